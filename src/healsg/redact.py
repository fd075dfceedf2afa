"""Keep secrets out of what is written: values of keys, variables and addresses that look like them."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
_NAME = r"(?:api_?key|access_?key|private_?key|password|passwd|secret|credential|(?<![a-z])token(?![a-z]))"
_SECRET = re.compile(_NAME, re.IGNORECASE)
_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_ASSIGNED = re.compile(rf"({_NAME}[\w.-]*=)(\S+)", re.IGNORECASE)


def values() -> list[str]:
    """The values of environment variables whose names look like secrets."""
    return [value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8]


def text(line: str) -> str:
    """A line without known secrets, passwords in addresses, and what is assigned to a key that looks like one."""
    for value in values():
        line = line.replace(value, HIDDEN)
    return _ASSIGNED.sub(rf"\g<1>{HIDDEN}", _ADDRESS.sub(HIDDEN, line))


def config(value: Any, key: str = "") -> Any:
    """A plain configuration without secrets."""
    if isinstance(value, dict):
        return {name: config(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [config(inner, key) for inner in value]
    if isinstance(value, str):
        return HIDDEN if value and _SECRET.search(key) else text(value)
    return value
