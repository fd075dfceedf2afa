"""Keep secrets out of what is written: values of keys, variables and addresses that look like them."""

from __future__ import annotations

import os
import re
import sys
import traceback
from functools import lru_cache
from typing import Any

HIDDEN = "***"
_NAME = (
    r"(?:api_?key|access_?key|private_?key|password|passwd|passphrase|secret|credential|authorization"
    r"|(?<![a-z])(?:token|pwd|auth)(?![a-z]))"
)
_SECRET = re.compile(_NAME, re.IGNORECASE)
_ADDRESS = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
_VALUE = r"""(?:"[^"]*"|'[^']*'|\{[^}]*\}?|\[[^\]]*\]?|[^\s,}\])'"&]+)"""
_ASSIGNED = re.compile(rf"({_NAME}[\w.-]*=){_VALUE}", re.IGNORECASE)
_INSIDE = re.compile(rf"([{{,]\s*['\"]?[\w.-]*{_NAME}[\w.-]*['\"]?\s*:\s*){_VALUE}", re.IGNORECASE)
_LITERAL = re.compile(rf"({_NAME}\w*['\"]?\s*[=:]\s*)(['\"])[^'\"\n]{{6,}}\2", re.IGNORECASE)
_BARE = re.compile(rf"({_NAME}\w*\s*[=:]\s*)(?=\S*\d)[\w+/=-]{{12,}}$", re.IGNORECASE | re.MULTILINE)
_OVERRIDE = re.compile(r"[+~]*[\w./@-]+=")
_SHAPE = re.compile(
    r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|sk-(?=[\w-]*\d)[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[0-9A-Z]{16}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)|(?<=[Bb]earer )[\w.~+/=-]{8,}"
)
"""Tokens that services issue, known by their beginnings."""
_PLACES = {"PWD", "OLDPWD"}
"""Variables whose names look like secrets, and which hold folders."""
_met: set[str] = set()


def values() -> set[str]:
    """The secrets that are known by their values: those of the environment, of the command line, of configurations."""
    return {value for value in _around(len(os.environ), *sys.argv[1:]) | _met if len(value) >= 8}


@lru_cache(1)
def _around(variables: int, *arguments: str) -> set[str]:
    """The secrets of the environment and of the command line, looked for again where either has changed its length."""
    known = {value for name, value in os.environ.items() if name not in _PLACES and _SECRET.search(name)}
    for argument in arguments:
        if (begin := _OVERRIDE.match(argument)) and _SECRET.search(begin[0]):
            known.add(argument[begin.end() :].strip("'\""))
    for address in _ADDRESS.findall("\n".join([*arguments, *os.environ.values()])):
        known.add(address.partition(":")[2])
    return known


def _known(line: str) -> str:
    for value in sorted(values(), key=len, reverse=True):
        line = line.replace(value, HIDDEN)
    return _SHAPE.sub(HIDDEN, _ADDRESS.sub(HIDDEN, line))


def text(line: str) -> str:
    """A line without known secrets, passwords in addresses, and what is assigned to a key that looks like one."""
    line = _known(line)
    return _INSIDE.sub(rf"\g<1>{HIDDEN}", _ASSIGNED.sub(rf"\g<1>{HIDDEN}", line) if "=" in line else line)


def trace(error: BaseException) -> str:
    """An error's traceback without known secrets; the lines of code in it stay whole."""
    return _known("".join(traceback.format_exception(error)))


def override(argument: str) -> str:
    """One argument of a command line; all of its value is hidden where its key looks like a secret."""
    begin = _OVERRIDE.match(argument)
    return f"{begin[0]}{HIDDEN}" if begin and _SECRET.search(begin[0]) else text(argument)


def code(patch: str) -> str:
    """Source code, of which only known secrets, passwords in addresses and literals of secrets are hidden."""
    return _BARE.sub(rf"\g<1>{HIDDEN}", _LITERAL.sub(rf"\g<1>\g<2>{HIDDEN}\g<2>", _known(patch)))


def config(value: Any, key: str = "") -> Any:
    """A plain configuration without secrets; what stands below a key that looks like one is hidden with it."""
    if isinstance(value, dict):
        return {name: config(inner, key if _SECRET.search(key) else str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [config(inner, key) for inner in value]
    secret = _SECRET.search(key)
    if isinstance(value, str):
        if value and secret:
            _met.add(value)
        return HIDDEN if value and secret else override(value)
    return HIDDEN if type(value) is int and secret and "pass" in secret[0].lower() else value
