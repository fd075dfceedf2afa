"""Which runs there are: what lies under ``runs/``, read from the runs' own files, and an index that can be thrown away.

The folders are the truth. The index, ``runs/.index.json``, only spares reading a ``run.json`` again whose size and time
of change are those of before; it is written anew by whoever lists the runs, and a wrong or lost one costs time alone.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from healsg import safefiles
from healsg.config.values import flat
from healsg.errors import RunError
from healsg.runs import redact
from healsg.runs.folder import ROOT, RunFolder, began_at, write_text
from healsg.runs.record import read_record, row_of
from healsg.runs.saved_config import read_saved

INDEX = ".index.json"
FORMAT = 1

SILENT = 300.0
"""Seconds without a new line in ``metrics.jsonl`` after which a run of another machine is taken for dead."""

EPOCH = b'"event": "epoch"'
"""In the lines of epochs."""

TAIL = 1 << 16
"""Bytes at the end of ``metrics.jsonl`` that are read of a run that has not finished."""

_LARGEST_INDEX = 1 << 28
_SET_ASIDE = re.compile(r"~\d+$")

FINISHED, STOPPED, FAILED, LIVE, DEAD = "finished", "stopped", "failed", "live", "dead"

WAITING = "waiting"
"""Of a job that has a folder and no run yet, in a sweep that is being trained."""


@dataclass
class Listed:
    """One run as it is listed.

    Args:
        name: its path below the folder of all runs, such as ``exp1`` or ``sweep1/seed=0``.
        path: its folder.
        status: ``finished``, ``stopped``, ``failed``; or, where ``run.json`` says that it is running, ``live`` or
            ``dead``: killed, and to be gone on with by ``healsg resume``.
        facts: numbers and texts by column, such as ``data``, ``seed``, ``best``, ``val/acc``, ``test/acc``.
        settings: of its configuration, by dotted key, as far as they were asked for.
    """

    name: str
    path: Path
    status: str
    facts: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def value(self, column: str) -> Any:
        """What stands in a column: ``name``, ``status``, a fact, or a key of the configuration; None where nothing."""
        if column in ("name", "status"):
            return getattr(self, column)
        return self.facts.get(column, self.settings.get(column))


def listed(root: Path, keys: Iterable[str] = ()) -> list[Listed]:
    """All runs below ``root``, the oldest first; a run that ``fresh=true`` has set aside is none of them.

    Args:
        root: the folder of all runs.
        keys: of the configuration, read for each run beside what ``run.json`` holds.

    Raises:
        RunError: there is no such folder.
    """
    if not root.is_dir():
        raise RunError(f"{root}: there is no such folder, and so no run; runs lie in runs/ of the current directory")
    known = _read_index(root / INDEX)
    wanted = sorted(set(keys))
    rows: dict[str, Any] = {}
    found = []
    for name, path, stamp in _records(root):
        row = known.get(name)
        if not (isinstance(row, dict) and row.get("stamp") == stamp):
            row = {"stamp": stamp, "facts": _facts(path), "settings": {}}
        if any(key not in row["settings"] for key in wanted):
            row["settings"] |= _settings(path, wanted)
        rows[name] = row
        facts = dict(row["facts"])
        status = str(facts.pop("status"))
        if status == "running":
            status = LIVE if is_live(path, facts) else DEAD
        found.append(Listed(name, path, status, facts, {key: row["settings"].get(key) for key in wanted}))
    if rows != known:
        with suppress(OSError):  # a folder that cannot be written is listed all the same
            write_text(root / INDEX, json.dumps({"format": FORMAT, "runs": rows}))
    return sorted(found, key=lambda run: (run.facts.get("began") or 0.0, run.name))


def names(root: Path) -> list[str]:
    """The names of the runs and of the sweeps below ``root``, of which no file is read."""
    runs = [name for name, _, _ in _records(root)]
    return sorted({*runs, *(name.partition("/")[0] for name in runs)})


def is_live(path: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a run that says it is running has a process that trains it.

    On the machine that trains it, that is asked of the process whose number stands in the lock; on another one, which
    may see the folder over the network, it lives while ``metrics.jsonl`` grows or ``run.json`` is touched, which its
    heartbeat does.
    """
    if facts.get("host") == platform.node():
        return RunFolder(path).is_locked()
    newest = 0.0
    for name in ("metrics.jsonl", "run.json"):
        with suppress(OSError):
            newest = max(newest, (path / name).lstat().st_mtime)
    return time.time() - newest < SILENT


def _records(root: Path) -> Iterator[tuple[str, Path, list[int]]]:
    """The runs below ``root`` and the jobs of its sweeps: name, folder, and what tells whether ``run.json`` changed."""
    for name, path in _folders(root):
        stamp = _stamp(path / "run.json")
        if stamp is not None:
            yield name, path, stamp
            continue
        for job, below in _folders(path):
            stamp = _stamp(below / "run.json")
            if stamp is not None:
                yield f"{name}/{job}", below, stamp


def _folders(path: Path) -> Iterator[tuple[str, Path]]:
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".") and not _is_aside(entry.name):
                yield entry.name, Path(entry.path)


def _is_aside(name: str) -> bool:
    return _SET_ASIDE.search(name) is not None


def _stamp(path: Path) -> list[int] | None:
    """What changes where a run's record or metrics do; None where there is no record, and so no run."""
    stamp: list[int] = []
    for file in (path, path.with_name("metrics.jsonl")):
        try:
            status = file.lstat()
        except OSError:
            if file is path:
                return None
            continue
        stamp += [status.st_mtime_ns, status.st_size, status.st_ino]
    return stamp


def _read_index(path: Path) -> dict[str, Any]:
    """The rows of the index by run; none where it is not there, or not one that can be used."""
    with suppress(OSError, ValueError, RecursionError, RunError):
        held = json.loads(safefiles.read_bytes(path, _LARGEST_INDEX))
        if isinstance(held, dict) and held.get("format") == FORMAT and isinstance(held.get("runs"), dict):
            return {name: row for name, row in held["runs"].items() if _is_row(row)}
    return {}


def _is_row(row: Any) -> bool:
    fits = isinstance(row, dict) and isinstance(row.get("facts"), dict) and isinstance(row.get("settings"), dict)
    return fits and isinstance(row["facts"].get("status"), str)


def _facts(path: Path) -> dict[str, Any]:
    """What a run is listed with, by column, from its ``run.json``."""
    try:
        record = read_record(path / "run.json")
    except RunError as error:
        return {"status": "unreadable", "reason": str(error)}
    choices = record.get("choices")
    facts: dict[str, Any] = {"status": record.get("status") or "unreadable"}
    if isinstance(choices, dict):
        facts |= {group: choices[group] for group in ("data", "model", "method") if group in choices}
    facts |= {key: record.get(key) for key in ("seed", "begin", "end", "seconds", "host", "device", "reason", "commit")}
    began = began_at(record)
    facts["began"] = began if math.isfinite(began) else None
    best = record.get("best") or {}
    last = record.get("last") or last_epoch(path / "metrics.jsonl")
    facts |= {"monitor": best.get("monitor"), "best": best.get("value")}
    facts |= {"epoch": last.get("epoch", best.get("epoch")), "step": last.get("step", best.get("step"))}
    for numbers in (best.get("metrics") or last, record.get("test")):
        if isinstance(numbers, dict):
            facts |= {name: value for name, value in numbers.items() if "/" in name and isinstance(value, (int, float))}
    return {key: value for key, value in facts.items() if value is not None}


def last_epoch(path: Path) -> dict[str, Any]:
    """The last line of an epoch in a ``metrics.jsonl``, of which the end alone is read; empty where there is none."""
    found = (row_of(text) for text in reversed(last_lines(path, TAIL)) if EPOCH in text)
    return next((row for row in found if row is not None), {})


def last_lines(path: Path, most: int) -> list[bytes]:
    """The lines in the last ``most`` bytes of a file, the first of them perhaps cut; none where it cannot be read."""
    with suppress(OSError, RunError), safefiles.open_to_read(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most).splitlines()
    return []


def named(runs: Iterable[Listed], name: str, root: Path) -> list[Listed]:
    """The run of this name, or the jobs of the sweep of this name; ``root`` may stand before it, as a shell completes
    it."""
    short = short_name(name, root)
    return [one for one in runs if one.name == short or one.name.startswith(f"{short}/")]


def waiting(runs: Sequence[Listed], root: Path) -> list[Listed]:
    """The jobs that wait for their turn in the sweeps of which one is live."""
    known = {one.name for one in runs}
    sweeps = {one.name.partition("/")[0] for one in runs if one.status == LIVE and "/" in one.name}
    found = []
    for sweep in sorted(sweeps):
        for job, path in sorted(_folders(root / sweep)):
            if f"{sweep}/{job}" not in known:
                found.append(Listed(f"{sweep}/{job}", path, WAITING, {}))
    return found


def short_name(name: str, root: Path) -> str:
    """The name of a run below ``root``, before which that folder may stand."""
    return name.rstrip("/").removeprefix(f"{root}/")


def _settings(path: Path, keys: list[str]) -> dict[str, Any]:
    """What keys of the configuration are set to; None where it has no such key, or cannot be read."""
    try:
        values = dict(flat(redact.config(read_saved(path / "config.yaml"))))
    except RunError:
        values = {}
    return {key: values.get(key) for key in keys}


def age(seconds: float) -> str:
    """A length of time for people: ``12 s``, ``3 min``, ``2.5 h``, ``4 d``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} d"


def shown_time(began: float | None) -> str:
    """A time in seconds since the epoch as date and minute, of the local zone."""
    try:
        return "" if not began else datetime.fromtimestamp(began).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):  # such as the year 0 of a zone west of Greenwich
        return ""


def root_of(given: str | None) -> Path:
    """The folder of all runs: the one that was given, else ``runs`` in the current directory."""
    return Path(given) if given else ROOT
