"""``healsg runs``: list the runs as a table: filtered, sorted, with selected columns."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import show, show_json
from healsg.config.names import did_you_mean
from healsg.errors import ConfigError
from healsg.runs.registry import Listed, age, listed, root_of, shown_time

DEFAULT = ("name", "status", "best", "test", "monitor", "epoch", "data", "model", "method", "seed", "seconds", "begin")
"""The default columns; ``test`` is the monitored metric on the test part."""

_CONDITION = re.compile(r"\s*([\w./-]+)\s*(!=|>=|<=|=|>|<|~)\s*(.*?)\s*$")

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def run(arguments: list[str]) -> int:
    """Print the table, or its data as JSON."""
    flags = Flags("runs", "List the runs below runs/, the newest last. Jobs of a sweep are listed as SWEEP/JOB.")
    flags.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="only runs whose name starts with this, such as a sweep"
    )
    flags.add_argument("--root", help="the folder of the runs (default: runs)")
    flags.add_argument(
        *("--where", "-w"),
        action="append",
        default=[],
        metavar="CONDITION",
        help="only runs for which this holds: status=live, method=sgd, 'val/acc>0.9', method.optimizer.lr=0.1, "
        "'name~vessel' (contains); may be given several times",
    )
    flags.add_argument(
        "--sort", metavar="COLUMN", help="column to sort by, the largest first; COLUMN:asc for the smallest first"
    )
    flags.add_argument(
        "--columns",
        metavar="A,B",
        help="instead of the default ones; +A,B in addition to them; any key of the configuration can be a column",
    )
    flags.add_argument("--limit", type=int, default=50, help="most rows to show, the newest; 0 for all (default: 50)")
    flags.add_json("for programs: all facts of each run")
    args = flags.read(arguments)
    conditions = [_condition(text) for text in args.where]
    columns = _columns(args.columns)
    order, _, direction = (args.sort or "").partition(":")
    if direction not in ("", "asc", "desc"):
        raise ConfigError(f"--sort {args.sort}: the direction is asc or desc, such as {order}:asc")
    requested = [*columns, *(key for key, _, _ in conditions), *[order] * bool(order)]
    runs = listed(root_of(args.root), [column for column in requested if _is_setting(column)])
    every = {name for found in runs for name in found.facts} | set(DEFAULT)
    for column in requested:
        if runs and column not in every and not any(found.settings.get(column) is not None for found in runs):
            raise ConfigError(f"{column}: no run has such a column or key{did_you_mean(column, sorted(every))}")
    runs = [found for found in runs if not args.names or found.name.startswith(tuple(args.names))]
    runs = [found for found in runs if all(_holds(value_of(found, key), sign, text) for key, sign, text in conditions)]
    if order:
        runs = _sorted(runs, order, descending=direction != "asc")
    kept = runs if args.limit <= 0 else runs[: args.limit] if order else runs[-args.limit :]
    if args.json:
        show_json([as_json(found) for found in kept])
        return 0
    if not kept:
        print("no run" + (" for which this holds" if args.where or args.names else " yet"))
        return 0
    filled = [name for name in columns if args.columns or any(value_of(found, name) is not None for found in kept)]
    show([_head(name) for name in filled], [[_shown(found, name) for name in filled] for found in kept])
    if len(kept) < len(runs):
        print(f"{len(kept)} of {len(runs)} runs; --limit 0 shows all")
    return 0


def as_json(run: Listed) -> dict[str, Any]:
    """All that is known of a run, under the names of the columns."""
    return {"name": run.name, "path": str(run.path), "status": run.status, **run.facts, **run.settings}


def value_of(run: Listed, column: str) -> Any:
    """A run's value in a column; ``test`` is the number of the test part under the monitor's own name."""
    if column == "test":
        monitor = str(run.facts.get("monitor") or "")
        return run.facts.get(f"test/{monitor.rpartition('/')[2]}")
    return run.value(column)


def _shown(run: Listed, column: str) -> Any:
    value = value_of(run, column)
    if column in run.settings and value is not None:
        return str(value)
    if column == "begin":
        return shown_time(run.facts.get("began"))
    if column == "seconds" and isinstance(value, (int, float)):
        return age(value)
    return value


def _head(column: str) -> str:
    return {"seconds": "took"}.get(column, column)


def _columns(text: str | None) -> list[str]:
    if not text:
        return list(DEFAULT)
    names = [name.strip() for name in text.lstrip("+").split(",") if name.strip()]
    if not text.startswith("+"):
        return list(dict.fromkeys(["name", *names]))
    return list(dict.fromkeys([*DEFAULT, *names]))


def _is_setting(column: str) -> bool:
    """Whether a column is a key of the configuration, which is not in ``run.json``."""
    return "/" not in column and ("." in column or column not in {*DEFAULT, "began", "end", "host", "device", "step"})


def _condition(text: str) -> tuple[str, str, str]:
    found = _CONDITION.match(text)
    if not found:
        raise ConfigError(f"--where {text!r}: write a column, one of = != > < >= <= ~, and a value, such as seed=0")
    return found[1], found[2], found[3]


def _holds(value: Any, sign: str, operand: str) -> bool:
    """Whether a run's value satisfies a condition; a missing value is equal to nothing."""
    if sign == "~":
        return operand.lower() in str(value or "").lower()
    number = _number(operand)
    if sign in _COMPARISONS:
        if number is None:
            raise ConfigError(f"--where: {operand!r} is no number, and {sign} compares numbers")
        return isinstance(value, (int, float)) and _COMPARISONS[sign](value, number)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and number is not None:
        same = value == number
    else:
        same = str(value).lower() == operand.lower() if value is not None else operand in ("", "null")
    return same if sign == "=" else not same


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _sorted(runs: list[Listed], column: str, descending: bool) -> list[Listed]:
    """By a column; numbers before texts, and runs that have nothing there at the end in either order."""
    having = [found for found in runs if value_of(found, column) is not None]
    lacking = [found for found in runs if value_of(found, column) is None]

    def rank(run: Listed) -> tuple[bool, Any]:
        value = value_of(run, column)
        return (True, str(value)) if not isinstance(value, (int, float)) else (False, value)

    return sorted(having, key=rank, reverse=descending) + lacking
