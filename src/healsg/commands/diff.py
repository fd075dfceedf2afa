"""``healsg diff RUN RUN``: the differences between two runs: configuration, code, environment, numbers."""

from __future__ import annotations

from typing import Any

from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import print_wrapped, show, show_json
from healsg.config.names import is_below
from healsg.config.values import differing, flat
from healsg.runs import redact
from healsg.runs.acquire import FREE
from healsg.runs.folder import RunFolder, find
from healsg.runs.saved_config import read_saved

CODE = ("commit", "dirty", "patch")
ENVIRONMENT = ("versions", "host", "device", "threads", "processes")


def run(arguments: list[str]) -> int:
    """Print what differs, by part; 0 in any case."""
    flags = Flags("diff", "Show the differences between two runs. For the first differing step: healsg diverge RUN RUN")
    flags.add_argument("first", metavar="RUN")
    flags.add_argument("second", metavar="RUN")
    flags.add_json("for programs")
    args = flags.read(arguments)
    first, second = find(args.first), find(args.second)
    parts = differences(first, second)
    if args.json:
        named = {name: {key: list(pair) for key, pair in part.items()} for name, part in parts.items()}
        show_json({"first": str(first.path), "second": str(second.path), **named})
        return 0
    print_wrapped([f"A  {first.shown}", f"B  {second.shown}"])
    for name, part in parts.items():
        if not part:
            print(f"{name}: the same")
            continue
        print(f"{name}:")
        rows = [[f"  {key}", _short(one), _short(other), *_gap(one, other)] for key, (one, other) in part.items()]
        numbers = any(len(row) > 3 for row in rows)
        columns = ["  ", "A", "B", *["B - A"] * numbers]
        show(columns, [row + [None] * (len(columns) - len(row)) for row in rows], needed=3)
    return 0


def differences(first: RunFolder, second: RunFolder) -> dict[str, dict[str, tuple[Any, Any]]]:
    """The differences by area (configuration, code, environment, numbers): the values of both runs by key."""
    configs = [dict(flat(redact.config(read_saved(folder.config)))) for folder in (first, second)]
    records = [first.record, second.record]
    changed = differing(*configs)
    settings = {key: pair for key, pair in changed.items() if not is_below(key, FREE)}
    aside = {key: pair for key, pair in changed.items() if is_below(key, FREE) and key != "name"}
    code = differing(*({key: record.get(key) for key in CODE} for record in records))
    here = differing(*(dict(flat({key: record.get(key) for key in ENVIRONMENT})) for record in records))
    numbers = differing(*map(_numbers, records))
    parts = {"configuration": settings, "code": code, "environment": here, "numbers": numbers}
    return parts | ({"cannot alter the result": aside} if aside else {})


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    best, last = record.get("best") or {}, record.get("last") or {}
    found = {"best": best.get("value"), "best epoch": best.get("epoch"), "epochs": last.get("epoch")}
    found |= {"digest": record.get("digest"), "data digest": record.get("data_digest")}
    return found | (best.get("metrics") or {}) | (record.get("test") or {})


def _short(value: Any) -> Any:
    """A value in a cell: a digest, commit or patch by its first characters."""
    if isinstance(value, str) and len(value) > 40:
        return f"{value[:12]}…"
    return str(value) if isinstance(value, (list, dict)) else value


def _gap(one: Any, other: Any) -> list[float]:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    return [float(other - one)] if numbers else []
