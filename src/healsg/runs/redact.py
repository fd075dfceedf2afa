"""Removes secrets from text before it is written to files or logs.

A secret is recognised in three ways: by the name of its key or variable (``is_secret_name``); by its value, once that
was found under such a name; and by its form (``_SHAPE``, and the plugins of the package detect-secrets). A secret with
an ordinary name and an ordinary form is not recognised; docs/reliability.md describes what is covered.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

HIDDEN = "***"

# --- names -----------------------------------------------------------------------------------------------------------

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
"""The words of a name: ``apiToken``, ``API_TOKEN``, ``APIToken`` and ``X-Api-Token`` have the words api and token."""

_ENDINGS = (
    *("password", "passwords", "passwd", "passphrase", "passcode", "secret", "secrets", "credential", "credentials"),
    *("apikey", "apikeys", "accesskey", "secretkey", "privatekey", "authkey", "apitoken", "accesstoken", "authtoken"),
    *("authorization", "oauth", "webhook", "webhooks", "connectionstring", "dbpass", "userpass"),
)
"""A name is secret if one of its words ends with one of these, such as ``dbpassword``."""

_WHOLE = ("auth", "pwd", "jwt", "bearer")
"""A name is secret if one of its words is one of these."""

_KEYS = (
    *("api", "access", "private", "secret", "auth", "account", "signing", "encryption", "shared", "master", "service"),
    *("storage", "subscription", "ssh", "deploy", "license", "client", "session", "consumer", "app", "application"),
    *("wandb", "openai", "anthropic", "azure", "aws", "gcp", "google", "hf", "github", "gitlab", "comet", "neptune"),
)
"""A name is secret if ``key`` or ``keys`` follows one of these: ``api_key``, ``accessKeys``; not ``sort_key``."""

_PLAIN_TOKENS = (
    *("cls", "class", "mask", "pad", "padding", "eos", "bos", "unk", "sep", "special", "register", "dist", "distill"),
    *("start", "end", "stop", "first", "last", "next", "prev", "image", "patch", "text", "prompt", "query", "per"),
    *("max", "min", "num", "n", "new", "each", "extra", "global", "summary", "latent", "audio", "video", "time"),
)
"""Words before ``token`` that make it one of a model's input, which is no secret: ``cls_token``, ``pad_token``."""

_SECRET_TOKENS = ("access", "api", "auth", "bearer", "refresh", "session", "secret", "id", "deploy", "hf", "bot")
"""Words before ``tokens`` that make them secrets; ``tokens`` alone, or after other words, is usually a number."""

_PLAIN_PASSES = (
    *("forward", "backward", "first", "second", "third", "last", "next", "one", "two", "single", "double", "multi"),
    *("per", "each", "every", "extra", "all", "low", "high", "band", "n", "num", "max", "min", "train", "val", "test"),
)
"""Words before ``pass`` that make it a pass over data or a filter, which is no secret."""

_PASSWORDS = ("pass", "password", "passwords", "passwd", "passphrase", "passcode", "pwd")
"""Words of names whose values are hidden even if they are small numbers."""

_PAIRS = {("connection", "string"), ("hook", "url"), ("private", "pem")}


@lru_cache(4096)
def is_secret_name(name: str) -> bool:
    """Whether the name of a key, variable, attribute or header suggests a secret; for a dotted key, any part of it."""
    return any(_names_secret([word.lower() for word in _WORDS.findall(part)]) for part in re.split(r"[./]", name))


def _names_secret(words: list[str]) -> bool:
    if not words:
        return False
    if any(word in _WHOLE or word.endswith(_ENDINGS) for word in words):
        return True
    for first, second in pairwise(words):
        if (first, second) in _PAIRS or (second in ("key", "keys") and first in _KEYS):
            return True
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last == "token":
        return before not in _PLAIN_TOKENS
    if last == "tokens":
        return before in _SECRET_TOKENS
    return last == "pass" and before not in _PLAIN_PASSES


# --- forms -----------------------------------------------------------------------------------------------------------

_ADDRESS = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
_QUERY = re.compile(r"(?i)([?&](?:key|sig|signature|x-amz-signature|x-amz-credential|x-goog-signature)=)[^&\s'\"]{8,}")
_VALUE = r"""(?:"[^"]*"|'[^']*'|\{[^}]*\}?|\[[^\]]*\]?|[^\s,}\])'"&]+)"""
_NAME = r"[A-Za-z_][\w.-]*"
_ASSIGNED = re.compile(rf"()(?<![\w.-])({_NAME})(=)({_VALUE})")
_INSIDE = re.compile(rf"([{{,]\s*['\"]?)({_NAME})(['\"]?\s*:\s*)({_VALUE})")
_DIGITS = r"(?=[\w+/=.~!@#$%^*-]*\d)[\w+/=.~!@#$%^*-]{8,}"
_SPACED = re.compile(rf"()(?<![\w.-])({_NAME})(['\"]?\s*[=:]\s*['\"]?)({_DIGITS})")
_LITERAL = re.compile(rf"()(?<![\w.-])({_NAME})(['\"]?\s*[=:]\s*(?P<mark>['\"]))([^'\"\n]{{6,}})(?=(?P=mark))")
_BARE = re.compile(rf"(?m)()(?<![\w.-])({_NAME})(\s*[=:]\s*)((?=\S*\d)[\w+/=-]{{12,}}$)")
_OVERRIDE = re.compile(r"[+~]*[\w./@-]+=")
_SHAPE = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:.*?-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|.*)"
    r"|\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}"
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{8,}|sk-(?=[\w-]*\d)[\w-]{20,}|xox[abeprs]-[\w-]{10,}|xapp-[\w-]{10,}"
    r"|A(?:KIA|SIA)[0-9A-Z]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|pypi-[\w-]{40,}|dop_v1_[a-f0-9]{40,}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{24,}|\d{8,10}:AA[\w-]{30,}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{40,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}"
    r"|(?<=hooks\.slack\.com/)[\w/-]+"
    r"|(?:(?<=discord\.com/api/webhooks/)|(?<=discordapp\.com/api/webhooks/))[\w/-]+"
    r"|(?<=\.webhook\.office\.com/)[\w/@-]+"
    r"|(?<=[/.]webhook/)[\w/-]{16,}|(?<=[/.]webhooks/)[\w/-]{16,}",
    re.DOTALL,
)
"""Tokens that services issue with a known prefix, webhook addresses, which are secrets themselves, and private keys."""

_CANDIDATE = re.compile(r"(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{20,}")
"""Only text with such a run of letters and digits is passed to detect-secrets, whose import takes 0.17 s."""

_DIGEST = re.compile(r"[0-9a-f]+")
"""A text that is nothing but this, such as the digests in each ``run.json``, has no form by which a plugin knows it."""

_OTHERS = ("KeywordDetector", "Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector")
"""Plugins that are not used: one goes by names, as ``is_secret_name`` does; the others would hide digests and IPs."""


def has_detector() -> bool:
    """Whether the package detect-secrets is installed, which is one of the dependencies."""
    return find_spec("detect_secrets") is not None


@lru_cache(1)
def _detectors() -> list[Any]:
    """The plugins of detect-secrets that know forms of tokens. Only their ``analyze_string`` is used: no network."""
    if not has_detector():
        return []
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    return [made() for made in get_mapping_from_secret_type_to_class().values() if made.__name__ not in _OTHERS]


def _detected(line: str) -> str:
    if not _CANDIDATE.search(line) or _DIGEST.fullmatch(line):
        return line
    for detector in _detectors():
        for found in list(detector.analyze_string(line)):
            secret = found.strip() if isinstance(found, str) else ""
            if len(secret) >= 8:
                line = line.replace(secret, HIDDEN)
    return line


# --- values that are known -------------------------------------------------------------------------------------------

_PLACES = {"PWD", "OLDPWD"}
"""Variables whose names look secret (``pwd``), but whose values are paths."""
_met: set[str] = set()
"""Secrets that ``config`` has found in configurations."""


def values() -> set[str]:
    """The secrets known by value: those of the environment, of the command line and of configurations."""
    return {value for value in _around(len(os.environ), *sys.argv[1:]) | _met if len(value) >= 8}


@lru_cache(1)
def _around(variables: int, *arguments: str) -> set[str]:
    """The secrets of the environment and the command line; searched again when the number of variables changes."""
    known = {value for name, value in os.environ.items() if name not in _PLACES and is_secret_name(name)}
    for argument in arguments:
        if (begin := _OVERRIDE.match(argument)) and is_secret_name(begin[0]):
            known.add(argument[begin.end() :].strip("'\""))
    for address in _ADDRESS.findall("\n".join([*arguments, *os.environ.values()])):
        known.add(address.partition(":")[2])
    return known


def _known(line: str) -> str:
    for value in sorted(values(), key=len, reverse=True):
        line = line.replace(value, HIDDEN)
    return _detected(_SHAPE.sub(HIDDEN, _QUERY.sub(rf"\g<1>{HIDDEN}", _ADDRESS.sub(HIDDEN, line))))


# --- redaction -------------------------------------------------------------------------------------------------------


def _hide(pattern: re.Pattern[str], line: str) -> str:
    """Hide the value in each match of a pattern of groups (before, name, between, value) if the name is secret."""

    def hidden(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}{found[3]}{HIDDEN}" if is_secret_name(found[2]) else found[0]

    return pattern.sub(hidden, line)


def text(line: str) -> str:
    """A line without known secrets, passwords in addresses, and values assigned to secret names."""
    return _hide(_SPACED, _hide(_INSIDE, _hide(_ASSIGNED, _known(line))))


def trace(error: BaseException) -> str:
    """An error's traceback without known secrets; its lines of code are not redacted by names."""
    return _known("".join(traceback.format_exception(error)))


def override(argument: str) -> str:
    """One argument of a command line; its whole value is hidden if its key has a secret name."""
    begin = _OVERRIDE.match(argument)
    return f"{begin[0]}{HIDDEN}" if begin and is_secret_name(begin[0]) else text(argument)


def code(source: str) -> str:
    """Source code without known secrets, passwords in addresses, and literals assigned to secret names."""
    return _hide(_BARE, _hide(_LITERAL, _known(source)))


def config(value: Any, key: str = "") -> Any:
    """A plain configuration without secrets; everything below a key with a secret name is hidden."""
    if isinstance(value, dict):
        return {name: config(inner, key if is_secret_name(key) else str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [config(inner, key) for inner in value]
    if not is_secret_name(key):
        return override(value) if isinstance(value, str) else value
    if isinstance(value, str) and value:
        _met.add(value)
        return HIDDEN
    if type(value) is int and (_is_password(key) or abs(value) >= 10**5):  # a small number is a count or a choice
        _met.add(str(value))
        return HIDDEN
    return value


def _is_password(key: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(key)]
    return any(word.endswith(_PASSWORDS) for word in words)
