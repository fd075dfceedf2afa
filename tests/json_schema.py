"""``docs/schema.json``: what ``--json`` of each command holds, and whether a value is of that kind.

Of JSON Schema as much as that file uses, so that its tests need no package for it.
"""

from __future__ import annotations

import json
from typing import Any

from helpers import REPOSITORY

KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}


def schemas() -> dict[str, dict[str, Any]]:
    """By command its schema."""
    return dict(json.loads((REPOSITORY / "docs/schema.json").read_text())["$defs"])


def mismatch(value: Any, schema: dict[str, Any], place: str = "") -> str:
    """The first place where ``value`` is not what ``schema`` says, and how; empty where it is."""
    if "anyOf" in schema:
        found = [mismatch(value, one, place) for one in schema["anyOf"]]
        return "" if "" in found else "; or ".join(found)
    if "const" in schema:
        return "" if value == schema["const"] else f"{place}: is {value!r}, and not {schema['const']!r}"
    wanted = schema.get("type", list(KINDS))
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not any(_is(value, kind) for kind in wanted):
        return f"{place}: is {value!r:.80}, and not {' or '.join(wanted)}"
    if isinstance(value, list):
        return next(filter(None, (mismatch(one, schema.get("items", {}), f"{place}[]") for one in value)), "")
    return _mismatch_within(value, schema, place) if isinstance(value, dict) else ""


def _mismatch_within(value: dict[str, Any], schema: dict[str, Any], place: str) -> str:
    """The same of an object's entries."""
    if missing := [key for key in schema.get("required", ()) if key not in value]:
        return f"{place}: has no {', '.join(missing)}"
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    entries = (mismatch(one, known.get(key, others), f"{place}.{key}") for key, one in value.items())
    return next(filter(None, entries), "")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))
