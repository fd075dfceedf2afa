"""``healsg diverge RUN RUN``: find where two runs first differ: settings, machine, metrics, tensors."""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from healsg import safefiles
from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import messages_to_stderr, show_json
from healsg.config.names import is_below
from healsg.config.values import differing, flat
from healsg.console import visible
from healsg.errors import ConfigError, RunError
from healsg.runs import redact
from healsg.runs.acquire import FREE
from healsg.runs.folder import RunFolder, find, is_setting
from healsg.runs.record import row_of
from healsg.runs.saved_config import load_saved, read_saved

FACTS = ("versions", "threads", "device", "host", "processes", "commit", "patch")
TRACE = "trace.jsonl"
"""What ``healsg.commands.diverge.trace`` writes into a run's folder."""

LONGEST = 1 << 26
"""Bytes of a line: a trace has some hundred for each tensor of the network."""

SHOWN = 20
"""Differing settings that are shown one by one."""


class Divergence(NamedTuple):
    """The first difference of two traces. ``kill`` and ``begin``: the kill before it, and the step from which the run
    resumed."""

    step: int
    name: str
    detail: str
    kill: int | None = None
    begin: int | None = None

    def __str__(self) -> str:
        after = "" if self.kill is None else f" (after a kill at step {self.kill}, resumed from step {self.begin})"
        return f"at step {self.step}: {self.name}{after}"


def run(arguments: list[str]) -> int:
    """Show where two runs first differ; returns 0 if they are equal throughout, 1 otherwise."""
    args = _read(arguments)
    replay = "replay=true" in args.settings
    overrides = [override for override in args.settings if override not in ("replay=true", "replay=false")]
    if overrides and not replay:
        raise ConfigError(f"{overrides[0]}: only a replay takes settings: replay=true")
    first, second = find(args.first), find(args.second)
    found, step = compared(first, second)
    if not args.json:
        for name in ("settings", "run.json", "metrics", "checkpoint", "trace"):
            _print_part(name, found[name])
        print("the runs are equal: the same lines, the same state" if found["equal"] else "the runs differ")
    if replay:
        with messages_to_stderr(args.json):
            found["replay"] = _replay(first, second, step, overrides)
        if not args.json:
            print(found["replay"])
    if args.json:
        show_json(found)
    return int(not found["equal"])


def _read(arguments: list[str]) -> Namespace:
    flags = Flags(
        "diverge",
        "Find the first difference between two runs: in settings, machine and software, lines of metrics.jsonl, the "
        "last checkpoint and, for runs kept by healsg verify, the step and the tensor. Runs are equal if they have the "
        "same metrics, except for times, and end in the same state. Exit status: 0 if they are equal, 1 if not.",
    )
    flags.add_run("first")
    flags.add_run("second", "the other one")
    flags.add_settings(
        "replay=true trains both again, in temporary folders, to find the exact step and tensor; other settings "
        "then apply to both"
    )
    flags.add_json()
    args = flags.read(arguments)
    if is_setting(args.first) or is_setting(args.second):
        raise ConfigError("healsg diverge RUN RUN [replay=true]: name two runs, as folders or names under runs/")
    return args


def compared(first: RunFolder, second: RunFolder) -> tuple[dict[str, Any], int | None]:
    """Where two runs differ, as lines by part, and the step of the first line that differs. Raises RunError."""
    line, row = first_line(first, second)
    held = checkpoints(first, second)
    tensor = first_tensor(first.path / TRACE, second.path / TRACE)
    traced = all((folder.path / TRACE).exists() for folder in (first, second))
    trace = f"{tensor}; {tensor.detail}" if tensor else "" if traced else "not both have one"
    digests = [folder.record.get("digest") for folder in (first, second)]
    found: dict[str, Any] = {
        "schema": 1,
        "first": str(first.shown),
        "second": str(second.shown),
        "equal": not (line or held or tensor or digests[0] != digests[1]),
        "settings": settings(first, second),
        "run.json": facts(first, second),
    }
    found |= {name: [what] * bool(what) for name, what in (("metrics", line), ("checkpoint", held), ("trace", trace))}
    return found, int(row.get("step", 0)) or None


def _print_part(name: str, lines: list[str]) -> None:
    for number, line in enumerate(lines or ["same"]):
        print(f"{'' if number else name:12}{visible(line)}")


def settings(first: RunFolder, second: RunFolder) -> list[str]:
    """The settings, by key, in which two runs differ. Raises RunError."""
    configs = (dict(flat(redact.config(read_saved(folder.config)))) for folder in (first, second))
    free = " (cannot alter the result)"
    listed = [
        f"{key}: {old} | {new}" + free * is_below(key, FREE)
        for key, (old, new) in differing(*configs).items()
        if key != "name"
    ]
    return listed[:SHOWN] + [f"and {len(listed) - SHOWN} more"] * (len(listed) > SHOWN)


def facts(first: RunFolder, second: RunFolder) -> list[str]:
    """What ``run.json`` says differently of machine, software and code."""
    records = (dict(flat({key: folder.record.get(key) for key in FACTS})) for folder in (first, second))
    return [key if key == "patch" else f"{key}: {old} | {new}" for key, (old, new) in differing(*records).items()]


def first_line(first: RunFolder, second: RunFolder) -> tuple[str, dict[str, Any]]:
    """The first line of ``metrics.jsonl`` that differs, its times apart, with what differs in it; and the line."""
    for number, (one, other) in enumerate(zip_longest(_rows(first), _rows(second)), 1):
        if one != other:
            row: dict[str, Any] = one or other or {}
            where = f"line {number}: {row.get('event')}, epoch {row.get('epoch')}, step {row.get('step')}: "
            if one is None or other is None:
                return f"{where}only in {(first if one else second).shown}", row
            return where + ", ".join(f"{key} {old} | {new}" for key, (old, new) in differing(one, other).items()), row
    return "", {}


def _rows(folder: RunFolder) -> Iterator[dict[str, Any]]:
    if folder.metrics.exists():
        for _, row in entries(folder.metrics):
            yield {key: value for key, value in row.items() if key != "seconds"}


def entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of lines, each with its offset; a line truncated by a kill is skipped.

    Raises RunError for a line of more than ``LONGEST`` bytes.
    """
    offset = 0
    with safefiles.open_to_read(path) as file:
        while text := file.readline(LONGEST + 1):
            if len(text) > LONGEST:
                raise RunError(f"{path}: has a line of more than {LONGEST:,} bytes at byte {offset:,}")
            row = row_of(text)
            if row is not None:
                yield offset, row
            offset += len(text)


def checkpoints(first: RunFolder, second: RunFolder) -> str:
    """How the last checkpoints differ; empty if they are equal. Raises RunError if both have none."""
    states = [folder.last_state() for folder in (first, second)]
    if states[0] is None or states[1] is None:
        lacking = [str(folder.shown) for folder, state in zip((first, second), states, strict=True) if state is None]
        if len(lacking) == 2:
            raise RunError(f"{lacking[0]}: has no checkpoint yet, and {lacking[1]} has none")
        return f"{lacking[0]} has none"
    from healsg.commands.diverge.fingerprints import SECTIONS, fingerprint, in_order

    steps = [state["runner"]["step"] for state in states if state]
    one, other = (in_order({name: state[name] for name in SECTIONS}) for state in states if state)
    names = [name for name in {**one, **other} if not (name in one and name in other)]
    names += [name for name in one if name in other and fingerprint(one[name])[0] != fingerprint(other[name])[0]]
    if not names:
        return ""
    names.sort(key=list({**one, **other}).index)
    gap = _gap(one.get(names[0]), other.get(names[0])) if names[0] in one and names[0] in other else "only one has it"
    where = f"step {steps[0]}" if steps[0] == steps[1] else f"step {steps[0]} | {steps[1]}"
    return f"{where}: {names[0]}: {gap}; {_count(names, len({**one, **other}))}"


def _gap(one: Any, other: Any) -> str:
    """The difference of two values."""
    from torch import Tensor

    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return f"{one} | {other}"
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return f"{one.dtype} {tuple(one.shape)} | {other.dtype} {tuple(other.shape)}"
    wide = [value if value.is_complex() else value.double() for value in (one, other)]
    return f"differs by up to {(wide[0] - wide[1]).abs().max().item():.3g}"


def _count(names: list[str], total: int) -> str:
    parts = Counter(name.split(".")[0] for name in names)
    return f"{len(names)} of {total} differ ({', '.join(f'{part} {number}' for part, number in parts.items())})"


def first_tensor(first: Path, second: Path) -> Divergence | None:
    """The first difference of two traces, in the order of the second one; None if they agree or one is missing."""
    if not (first.exists() and second.exists()):
        return None
    places: dict[int, tuple[int, list[str]]] = {}
    names: list[str] = []
    for offset, row in entries(first):
        names = row.get("names", names)
        if "step" in row:
            places[row["step"]] = offset, names
    names = []
    last: int | None = None
    kill: int | None = None
    begin: int | None = None
    with safefiles.open_to_read(first) as file:
        for _, row in entries(second):
            names = row.get("names", names)
            if "begin" in row and last is not None:
                kill, begin = last, row["begin"]
            if "step" not in row:
                continue
            last = row["step"]
            if last in places:
                file.seek(places[last][0])
                if listed := _differing(places[last][1], json.loads(file.readline()), names, row):
                    return Divergence(last, *listed, kill, begin)
    return None


def _differing(names: list[str], row: dict[str, Any], own: list[str], line: dict[str, Any]) -> tuple[str, str] | None:
    """The first tensor that differs between two lines of traces, with its sizes and how many others do."""
    one = dict(zip(names, zip(row["hash"], row["size"], strict=True), strict=True))
    other = dict(zip(own, zip(line["hash"], line["size"], strict=True), strict=True))
    everything = {**one, **other}
    found = [name for name in everything if one.get(name, ("",))[0] != other.get(name, ("",))[0]]
    if not found:
        return None
    sizes = [
        f"{side[found[0]][1]:.6g}" if side.get(found[0], (0, None))[1] is not None else "" for side in (one, other)
    ]
    size = f"size {sizes[0]} | {sizes[1]}; " if all(sizes) else ""
    return found[0], size + _count(found, len(everything))


def _replay(first: RunFolder, second: RunFolder, until: int | None, overrides: list[str]) -> str:
    """Train both again with a trace, up to ``until``; the exact step and tensor. Raises HealsgError."""
    from healsg.commands.launch.launching import TracedProcess, launch

    with tempfile.TemporaryDirectory(prefix="healsg-") as temporary:
        folders = []
        for number, folder in enumerate((first, second), 1):
            if (folder.record.get("processes") or 1) > 1:
                raise RunError(f"{folder.shown}: was trained by several processes; a replay has one")
            composed = load_saved(folder, overrides)
            runner = composed.values["runner"]
            runner["threads"] = runner["threads"] or folder.record.get("threads")
            folders.append(Path(temporary) / f"replay{number}")
            print(f"replaying {folder.shown} {f'to step {until}' if until else 'to its end'}", flush=True)
            launch(composed, RunFolder(folders[-1]), TracedProcess(until=until))
        found = first_tensor(folders[0] / TRACE, folders[1] / TRACE)
    if found:
        return f"the replays differ first {found}; {found.detail}"
    return "the replays agree: what made the runs differ is not in their configurations (machine, software, code?)"
