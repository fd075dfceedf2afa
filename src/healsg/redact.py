"""Keep secrets out of what is written: values of keys, variables and addresses that look like them."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
_NAME = r"(?:api_?key|access_?key|private_?key|password|passwd|secret|credential|(?<![a-z])token(?![a-z]))"
_SECRET = re.compile(_NAME, re.IGNORECASE)
_ADDRESS = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
_VALUE = r"""(?:"[^"]*"|'[^']*'|\{[^}]*\}?|\[[^\]]*\]?|[^\s,}\])'"]+)"""
_ASSIGNED = re.compile(rf"({_NAME}[\w.-]*=){_VALUE}", re.IGNORECASE)
_INSIDE = re.compile(rf"([{{,]\s*['\"]?[\w.-]*{_NAME}[\w.-]*['\"]?\s*:\s*){_VALUE}", re.IGNORECASE)
_LITERAL = re.compile(rf"({_NAME}\w*['\"]?\s*[=:]\s*)(['\"])[^'\"\n]{{6,}}\2", re.IGNORECASE)
_OVERRIDE = re.compile(r"[+~]*[\w./@-]+=")


def values() -> list[str]:
    """The values of environment variables whose names look like secrets."""
    return [value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8]


def _known(line: str) -> str:
    for value in values():
        line = line.replace(value, HIDDEN)
    return _ADDRESS.sub(HIDDEN, line)


def text(line: str) -> str:
    """A line without known secrets, passwords in addresses, and what is assigned to a key that looks like one."""
    return _INSIDE.sub(rf"\g<1>{HIDDEN}", _ASSIGNED.sub(rf"\g<1>{HIDDEN}", _known(line)))


def override(argument: str) -> str:
    """One argument of a command line; all of its value is hidden where its key looks like a secret."""
    begin = _OVERRIDE.match(argument)
    return f"{begin[0]}{HIDDEN}" if begin and _SECRET.search(begin[0]) else text(argument)


def code(patch: str) -> str:
    """Source code, of which only known secrets, passwords in addresses and literals of secrets are hidden."""
    return _LITERAL.sub(rf"\g<1>\g<2>{HIDDEN}\g<2>", _known(patch))


def config(value: Any, key: str = "") -> Any:
    """A plain configuration without secrets; what stands below a key that looks like one is hidden with it."""
    if isinstance(value, dict):
        return {name: config(inner, key if _SECRET.search(key) else str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [config(inner, key) for inner in value]
    secret = _SECRET.search(key)
    if isinstance(value, str):
        return HIDDEN if value and secret else override(value)
    return HIDDEN if type(value) is int and secret and "pass" in secret[0].lower() else value
