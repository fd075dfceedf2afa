"""The fields of ``run.json`` that are read back, with checks: the file may be damaged, edited, or from anybody."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from healsg import safefiles
from healsg.errors import RunError
from healsg.paths import shown
from healsg.types import MOST_THREADS

LARGEST = 1 << 24
"""The most bytes of a ``run.json``: many times a patch of 1 MiB and the metrics of a test."""

DEEPEST = 60
"""The most levels of nesting."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_best(value: Any) -> bool:
    fits = isinstance(value, dict) and isinstance(value.get("monitor"), str)
    fits = fits and (value.get("metrics") is None or isinstance(value["metrics"], dict))
    return fits and (value.get("value") is None or _is_number(value["value"]))


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(element, kind) for element in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "status": (_is_text, "a text"),
    "digest": (_is_text, "a text"),
    "seconds": (lambda value: _is_number(value) and 0 <= value < 1e12, "a number of seconds"),
    "threads": (lambda value: type(value) is int and 1 <= value <= MOST_THREADS, f"a number from 1 to {MOST_THREADS}"),
    "processes": (lambda value: type(value) is int and 1 <= value <= 1 << 20, "a number of processes"),
    "continued": (_is_list_of(str), "a list of times"),
    "earlier": (_is_list_of(dict), "a list of results"),
    "samples": (_is_mapping, "a mapping"),
    "versions": (_is_mapping, "a mapping"),
    "choices": (_is_mapping, "a mapping"),
    "best": (_is_best, "a mapping with monitor, a text, value, a number, and metrics, a mapping"),
    "monitor": (_is_text, "a text"),
    "mode": (lambda value: value in ("max", "min"), "max or min"),
    "test": (_is_mapping, "a mapping"),
    "last": (_is_mapping, "a mapping"),
}
"""For each field, a check of its value and a description of valid values. Every field may be absent or null."""


def read_record(path: Path) -> dict[str, Any]:
    """The content of ``run.json``; empty if it does not exist or is not JSON.

    Raises:
        RunError: a field that is read back has a value of a wrong type or range; the message names it.
    """
    try:
        record = parse(safefiles.read_bytes(path, LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    way = "correct it, or remove the file: the run then continues without it"
    for key, (fits, wanted) in FIELDS.items():
        value = record.get(key)
        if value is not None and not fits(value):
            text = json.dumps(value)
            text = text if len(text) <= 60 else f"{text[:57]}..."
            raise RunError(f"{shown(path)}: {key}: {text} is not {wanted}; {way}")
    if _depth(record) > DEEPEST:
        raise RunError(f"{shown(path)}: is nested more than {DEEPEST} levels deep; {way}")
    return record


def row_of(text: bytes | str) -> dict[str, Any] | None:
    """The JSON object of a line; None if the line is not one, e.g. because a kill has truncated it."""
    try:
        row = parse(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def parse(text: bytes | str) -> Any:
    """The value of a JSON text from an untrusted source: an integer of more than 64 bits is read as a float.

    Raises ValueError, RecursionError.
    """
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))


def _depth(value: Any) -> int:
    """The levels of nesting of a JSON value, counted without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        inner: list[Any] = []
        for element in level:
            if isinstance(element, (dict, list)):
                inner += element.values() if isinstance(element, dict) else element
        level = inner
    return depth
