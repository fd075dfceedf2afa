"""The list of runs below ``runs/``, read from the runs' own files, and an index that may be deleted.

The folders are authoritative. The index, ``runs/.index.json``, only avoids reading a ``run.json`` again whose size and
modification time have not changed; every listing writes it again, and a wrong or missing index only costs time.
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
"""Seconds without a new line in ``metrics.jsonl`` after which a run on another machine counts as dead."""

EPOCH = b'"event": "epoch"'
"""The text by which the lines of epochs are recognised."""

TAIL = 1 << 16
"""Bytes at the end of ``metrics.jsonl`` that are read for a run that has not finished."""

_LARGEST_INDEX = 1 << 28
_SET_ASIDE = re.compile(r"~\d+$")

FINISHED, STOPPED, FAILED, LIVE, DEAD = "finished", "stopped", "failed", "live", "dead"

WAITING = "waiting"
"""The status of a job without a run yet, in a sweep that is being trained."""


@dataclass
class Listed:
    """One run in a listing.

    Args:
        name: its path below the folder of all runs, such as ``exp1`` or ``sweep1/seed=0``.
        path: its folder.
        status: ``finished``, ``stopped``, ``failed``; or, if ``run.json`` records it as running, ``live`` or ``dead``,
            i.e. killed, so that ``healsg resume`` can continue it.
        facts: numbers and texts by column, such as ``data``, ``seed``, ``best``, ``val/acc``, ``test/acc``.
        settings: the requested settings of its configuration, by dotted key.
    """

    name: str
    path: Path
    status: str
    facts: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def value(self, column: str) -> Any:
        """The value in a column: ``name``, ``status``, a fact, or a key of the configuration; None if there is none."""
        if column in ("name", "status"):
            return getattr(self, column)
        return self.facts.get(column, self.settings.get(column))


def listed(root: Path, keys: Iterable[str] = ()) -> list[Listed]:
    """All runs below ``root``, the oldest first, without those that ``fresh=true`` has renamed.

    Args:
        root: the folder of all runs.
        keys: keys of the configuration, which are read for each run in addition to ``run.json``.

    Raises:
        RunError: there is no such folder.
    """
    if not root.is_dir():
        raise RunError(f"{root}: no such folder; runs are in runs/ of the current directory")
    index = _read_index(root / INDEX)
    requested = sorted(set(keys))
    rows: dict[str, Any] = {}
    runs = []
    for name, path, stamp in _records(root):
        row = index.get(name)
        if not (isinstance(row, dict) and row.get("stamp") == stamp):
            row = {"stamp": stamp, "facts": _facts(path), "settings": {}}
        if any(key not in row["settings"] for key in requested):
            row["settings"] |= _settings(path, requested)
        rows[name] = row
        facts = dict(row["facts"])
        status = str(facts.pop("status"))
        if status == "running":
            status = LIVE if is_live(path, facts) else DEAD
        runs.append(Listed(name, path, status, facts, {key: row["settings"].get(key) for key in requested}))
    if rows != index:
        with suppress(OSError):  # a read-only folder can be listed too
            write_text(root / INDEX, json.dumps({"format": FORMAT, "runs": rows}))
    return sorted(runs, key=lambda run: (run.facts.get("began") or 0.0, run.name))


def names(root: Path) -> list[str]:
    """The names of the runs and of the sweeps below ``root``; no file is read."""
    runs = [name for name, _, _ in _records(root)]
    return sorted({*runs, *(name.partition("/")[0] for name in runs)})


def is_live(path: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a run that is recorded as running is really being trained by a process.

    On the machine that trains it, the process named in the lock is checked. On another machine, with a shared file
    system, the run is live while ``metrics.jsonl`` grows or the heartbeat touches ``run.json``.
    """
    if facts.get("host") == platform.node():
        return RunFolder(path).is_locked()
    newest = 0.0
    for name in ("metrics.jsonl", "run.json"):
        with suppress(OSError):
            newest = max(newest, (path / name).lstat().st_mtime)
    return time.time() - newest < SILENT


def _records(root: Path) -> Iterator[tuple[str, Path, list[int]]]:
    """The runs below ``root`` and the jobs of its sweeps: name, folder, and the stamp of ``run.json``."""
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
    """A value that changes whenever a run's record or metrics do; None if there is no record, and so no run."""
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
    """The rows of the index by run; empty if it is missing or unusable."""
    with suppress(OSError, ValueError, RecursionError, RunError):
        content = json.loads(safefiles.read_bytes(path, _LARGEST_INDEX))
        if isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("runs"), dict):
            return {name: row for name, row in content["runs"].items() if _is_row(row)}
    return {}


def _is_row(row: Any) -> bool:
    fits = isinstance(row, dict) and isinstance(row.get("facts"), dict) and isinstance(row.get("settings"), dict)
    return fits and isinstance(row["facts"].get("status"), str)


def _facts(path: Path) -> dict[str, Any]:
    """The columns of a run in a listing, from its ``run.json``."""
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
    """The last line of an epoch in a ``metrics.jsonl``, of which only the end is read; empty if there is none."""
    rows = (row_of(text) for text in reversed(last_lines(path, TAIL)) if EPOCH in text)
    return next((row for row in rows if row is not None), {})


def last_lines(path: Path, most: int) -> list[bytes]:
    """The lines in the last ``most`` bytes of a file, the first maybe truncated; empty if it cannot be read."""
    with suppress(OSError, RunError), safefiles.open_to_read(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most).splitlines()
    return []


def named(runs: Iterable[Listed], name: str, root: Path) -> list[Listed]:
    """The run with this name, or the jobs of the sweep with this name; ``root/`` may precede it, as completed by a
    shell."""
    short = short_name(name, root)
    return [run for run in runs if run.name == short or run.name.startswith(f"{short}/")]


def waiting(runs: Sequence[Listed], root: Path) -> list[Listed]:
    """The jobs that have not started yet, in sweeps with a live job."""
    known = {run.name for run in runs}
    sweeps = {run.name.partition("/")[0] for run in runs if run.status == LIVE and "/" in run.name}
    jobs = []
    for sweep in sorted(sweeps):
        for job, path in sorted(_folders(root / sweep)):
            if f"{sweep}/{job}" not in known:
                jobs.append(Listed(f"{sweep}/{job}", path, WAITING, {}))
    return jobs


def short_name(name: str, root: Path) -> str:
    """The name of a run without a preceding ``root/`` and a trailing slash."""
    return name.rstrip("/").removeprefix(f"{root}/")


def _settings(path: Path, keys: list[str]) -> dict[str, Any]:
    """The values of these keys of the configuration; None for missing keys, or if it cannot be read."""
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
    """A Unix time as date and minute in the local time zone."""
    try:
        return "" if not began else datetime.fromtimestamp(began).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):  # e.g. the year 0 in a time zone west of Greenwich
        return ""


def root_of(path: str | None) -> Path:
    """The folder of all runs: the one that was given, else ``runs`` in the current directory."""
    return Path(path) if path else ROOT
