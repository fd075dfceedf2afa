"""``healsg forecast``: predict the cost of a run or a sweep from a few real steps, and show the accuracy of past
forecasts."""

from __future__ import annotations

import json
import statistics
import time
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from healsg.commands.forecast.model import TIME_ERROR, WALL_ERROR, Amount
from healsg.commands.launch import processes
from healsg.commands.terminal import layout
from healsg.commands.terminal.arguments import of_one_run
from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import show, show_json
from healsg.config.compose import Composer
from healsg.config.schema import Composed, check_init_from
from healsg.errors import ConfigError
from healsg.loggers.screen import clock
from healsg.runs.folder import RunFolder
from healsg.runs.forecast import BUDGET, forecast
from healsg.runs.registry import listed, root_of

EXAMPLES = """\
  healsg forecast data=imagefolder data.folder=DIR model=torchvision
  healsg forecast -m data=digits method=sgd,adamw seed=0,1,2

A run with runner.forecast=true stores its forecast in run.json, beside what it
used; --record compares the two over all such runs."""

SCHEMA = 1
"""Version of the ``--json`` output; incremented when a key changes its meaning."""

COSTLESS = {"seed", "name", "split_seed", "lr", "weight_decay"}
"""Last parts of keys that do not change the cost of a job: one of such jobs is measured for all."""

UNSEEN = 0.4
"""CPU time outside of a run that no measurement sees, as a share of that of the imports: further imports of the command
``train``, and the end of the process. It is 0.6 s of 1.44 s for an MLP on digits, whose run itself takes 0.6 s."""

AMOUNTS = ("cpu_seconds", "wall_seconds", "peak_memory", "disk")


def run(arguments: list[str]) -> int:
    """``[-m] [overrides] [--seconds S] [--json]``, or ``--record``."""
    args = _read(arguments)
    if args.record:
        if args.settings or args.multirun:
            raise ConfigError("--record: looks at past runs, and takes no settings")
        return _record(args.root, args.json)
    if args.root:
        raise ConfigError("--root: goes with --record")
    composer = Composer(args.config_dir)
    jobs = _jobs(composer, args.settings) if args.multirun else [("", of_one_run(composer.compose(args.settings)))]
    answer = forecast_of(jobs, args.seconds)
    if args.json:
        show_json(answer)
    else:
        _print(answer)
    return 0


def _read(arguments: list[str]) -> Namespace:
    flags = Flags(
        "forecast",
        "Measure a few real steps, an evaluation, a save and the loader, with the arguments of train, and say how long "
        "the run will take (CPU and wall time), its peak memory, its disk space, and the largest batch that fits. "
        "Each number has a 90 % prediction interval. No run is created and no file is left behind.",
        EXAMPLES,
    )
    flags.add_argument("-m", "--multirun", action="store_true", help="a sweep: the sum over all its jobs")
    flags.add_settings()
    flags.add_argument(
        "--seconds",
        type=_budget,
        default=BUDGET,
        metavar="S",
        help=f"seconds of training steps to measure (default: {BUDGET:g})",
    )
    flags.add_argument(
        "--record", action="store_true", help="show the errors of past forecasts and the coverage of their intervals"
    )
    flags.add_argument("--root", metavar="DIR", help="the folder of the runs (default: runs)")
    flags.add_json()
    flags.add_config_dir()
    return flags.read(arguments)


def _budget(text: str) -> float:
    """The value of ``--seconds``. Raises ConfigError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ConfigError(f"--seconds {text}: is no number of seconds above 0, at most 3600")
    return seconds


def _jobs(composer: Composer, overrides: list[str]) -> list[tuple[str, Composed]]:
    """The jobs of a sweep by name. Raises ConfigError, also for a wrong job."""
    from healsg.commands.sweep.run import plan
    from healsg.commands.sweep.search import is_search

    if is_search(overrides):
        raise ConfigError("search: proposes its jobs while it runs; forecast one of them, without -m and search")
    jobs = plan(composer, overrides).jobs
    for _, composed in jobs:
        check_init_from(composed)
    return jobs


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Jobs that cost the same: their names, and the forecast of one of them."""

    names: list[str]
    forecast: dict[str, Any]


def forecast_of(jobs: list[tuple[str, Composed]], budget: float) -> dict[str, Any]:
    """The forecast of a run, or the sum over the jobs of a sweep, as ``--json`` prints it. Raises HealsgError."""
    composing = time.process_time()  # this process has done nothing else yet
    kinds: dict[str, list[tuple[str, Composed]]] = {}
    for name, composed in jobs:
        if processes.process_count(composed) > 1:
            raise ConfigError("runner.processes: a forecast is of a run on one process; leave it out")
        kinds.setdefault(kind_of(composed.values), []).append((name, composed))
    found = [Kind([name for name, _ in same], forecast(_as_run(same[0][1]), budget)) for same in kinds.values()]
    first = found[0].forecast
    beside = composing + UNSEEN * first["imports"]["cpu"]
    total = {key: _total(found, key, beside) for key in AMOUNTS}
    return {
        "schema": SCHEMA,
        "jobs": len(jobs),
        "device": first["device"],
        **total,
        "imports": {name: round(value + beside, 3) for name, value in first["imports"].items()},
        "largest_batch": first["largest_batch"] if len(found) == 1 else None,
        "kinds": [{"jobs": kind.names, **kind.forecast} for kind in found],
    }


def _as_run(composed: Composed) -> Composed:
    from healsg.commands.sweep.run import as_run

    return as_run(composed)


def kind_of(values: Any) -> str:
    """What determines the cost of a job, as text: its settings without those that do not change the time."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(inner) for key, inner in value.items() if key not in COSTLESS}
        return [without(inner) for inner in value] if isinstance(value, list) else value

    return json.dumps(without(values), sort_keys=True, default=str)


def _total(kinds: list[Kind], key: str, beside: float) -> dict[str, float] | None:
    """The sum over all jobs, of their memory the largest.

    Args:
        kinds: the jobs.
        key: the amount.
        beside: further seconds outside of the runs, counted once.
    """
    amounts = [(kind.forecast[key], len(kind.names)) for kind in kinds]
    if any(amount is None for amount, _ in amounts):
        return None
    if key == "peak_memory":
        return {part: max(amount[part] for amount, _ in amounts) for part in ("value", "low", "high")}
    total = {part: sum(amount[part] * count for amount, count in amounts) for part in ("value", "low", "high")}
    if key.endswith("_seconds"):
        clock, error = ("cpu", TIME_ERROR) if key == "cpu_seconds" else ("wall", WALL_ERROR)
        start = Amount.within(kinds[0].forecast["imports"][clock] + beside, error)
        total = (Amount(**total) + start).as_json()
    return {part: round(value, 3) for part, value in total.items()}


# --- how good forecasts were -----------------------------------------------------------------------------------------


def record_of(root: str | None) -> list[dict[str, Any]]:
    """For each finished run with a forecast, by amount: the forecast, the true value, the error, and whether the
    interval covered it. Runs that were resumed in another process are left out: their memory and imports are those
    of several processes."""
    rows = []
    for found in listed(root_of(root)):
        record = RunFolder(found.path).record
        made, used = record.get("forecast"), record.get("usage")
        if found.status != "finished" or not isinstance(made, dict) or not isinstance(used, dict):
            continue
        if used.get("processes") != 1:
            continue
        row: dict[str, Any] = {"run": found.name}
        for key in AMOUNTS:
            amount, truth = made.get(key), used.get(key)
            if isinstance(amount, dict) and isinstance(truth, (int, float)) and truth > 0:
                value, low, high = (float(amount[part]) for part in ("value", "low", "high"))
                held = low <= truth <= high
                row[key] = {"forecast": value, "truth": truth, "error": value / truth - 1, "held": held}
        rows.append(row)
    return rows


def summary_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By amount: the number of runs, the median absolute error, and how often the interval covered the true value."""
    summary = {}
    for key in AMOUNTS:
        known = [row[key] for row in rows if key in row]
        if known:
            median = statistics.median(abs(one["error"]) for one in known)
            summary[key] = {"runs": len(known), "median_error": median, "held": sum(one["held"] for one in known)}
    return summary


def _record(root: str | None, as_json: bool) -> int:
    rows = record_of(root)
    summary = summary_of(rows)
    if as_json:
        show_json({"schema": SCHEMA, "summary": summary, "runs": rows})
        return 0
    if not rows:
        print("no finished run has a forecast yet; runner.forecast=true makes one as a run begins")
        return 0
    heads = ["run", *(f"{key.removesuffix('_seconds').replace('_', ' ')} error" for key in AMOUNTS)]
    show(heads, [[row["run"], *(_error(row.get(key)) for key in AMOUNTS)] for row in rows])
    print("* outside of its interval\n")
    names = {"cpu_seconds": "CPU time", "wall_seconds": "wall time", "peak_memory": "memory", "disk": "disk"}
    for key, one in summary.items():
        detail = f"median error {one['median_error']:.1%}, the interval held {one['held']} of {one['runs']} times"
        print(f"{names[key]:9}  {detail}")
    return 0


def _error(one: dict[str, Any] | None) -> str:
    return "" if one is None else f"{one['error']:+.1%}" + " *" * (not one["held"])


# --- what is said ----------------------------------------------------------------------------------------------------


def _print(answer: dict[str, Any]) -> None:
    kinds = answer["kinds"]
    if answer["jobs"] > 1:
        rows = [[kind["jobs"][0], len(kind["jobs"]), *(_shown(key, kind[key]) for key in AMOUNTS)] for kind in kinds]
        show(["first job", "jobs", "CPU time each", "wall time each", "memory", "disk each"], rows)
        print()
    print("\n".join(layout.rows(list(_lines(answer)), indent=0)))


def _lines(answer: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("wall time", _shown("wall_seconds", answer["wall_seconds"])),
        ("CPU time", _shown("cpu_seconds", answer["cpu_seconds"])),
        ("memory", _shown("peak_memory", answer["peak_memory"])),
        ("disk", _shown("disk", answer["disk"])),
    ]
    if len(answer["kinds"]) == 1:
        kind = answer["kinds"][0]
        spent = ", ".join(f"{name} {span(seconds)}" for name, seconds in kind["parts"].items())
        lines.append(("CPU time by part", f"{spent}, importing {span(kind['imports']['cpu'])}"))
        share = kind["loader"]["share"]
        if kind["samples_a_second"] and share is not None:
            detail = f"{kind['samples_a_second']:,.0f} samples a second; the loader takes {share:.0%} of a step's time"
            lines.append(("speed", detail))
        lines.append(("largest batch", _batch_line(kind)))
        lines.append(("measured", f"{kind['measured_steps']} of {kind['updates']} updates on {kind['device']}"))
    return lines


def _batch_line(kind: dict[str, Any]) -> str:
    largest = kind["largest_batch"]
    if largest is None:
        return "is not known here"
    if largest["rows"] is None:
        return f"is not limited by memory as far as can be measured (now {kind['batch']})"
    if largest["reason"]:
        return f"{largest['rows']}: {largest['reason']}"
    return f"{largest['rows']:,} samples, {size(largest['bytes_a_sample'])} each (now {kind['batch']})"


def _shown(key: str, amount: dict[str, float] | None) -> str:
    if amount is None:
        return "is not known here"
    text = span if key.endswith("_seconds") else size
    return f"{text(amount['value'])} ({text(amount['low'])} to {text(amount['high'])})"


def span(seconds: float) -> str:
    """A time for people: ``0.8 s``, ``1:05``, ``3:05:00``."""
    return f"{seconds:.1f} s" if seconds < 10 else clock(seconds)


def size(count: float) -> str:
    """Bytes for people: ``12 kB``, ``3.4 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
