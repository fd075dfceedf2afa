"""``-m``: the jobs of a sweep one after the other in one process, each in its own folder, and a table at the end."""

from __future__ import annotations

import contextlib
import csv
import gc
import hashlib
import io
import json
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healsg import distributed, safefiles
from healsg.cli import as_mistake, report, say
from healsg.commands.arguments import composed_once
from healsg.commands.launching import InThisProcess, Result, launch
from healsg.config.schema import Composed, check_init_from, verify
from healsg.errors import ConfigError, one_line
from healsg.runs import claim, redact
from healsg.runs.folder import ROOT, RunFolder, write_text
from healsg.sweeps.jobs import compose_jobs
from healsg.training.interrupt import StopSignal

if TYPE_CHECKING:
    from healsg.config.compose import Composer

Jobs = list[tuple[str, Composed]]
"""The jobs by name."""

Plan = tuple[str, Jobs, set[str]]
"""The sweep's name, its jobs, and the names of those whose configurations are known to be right."""

Row = dict[str, Any]
"""What the table says of a job: ``job``, ``status``, ``exit``, its numbers or the ``reason`` why it has none."""


def run_sweep(composer: Callable[[], Composer], overrides: list[str]) -> int:
    """Run every job; 0 where all are finished, 1 where one failed, 2 where the command was wrong."""
    name, jobs, sound = composed_once(lambda: plan(composer(), overrides))
    folder, rows = RunFolder(ROOT / name), list[Row]()
    composed_once(folder.lock)
    with StopSignal() as stop_signal, contextlib.ExitStack() as stack:
        stack.callback(folder.abandon)
        stack.callback(gc.unfreeze)
        rows += _one_by_one(name, jobs, sound, stop_signal)
        if rows and distributed.processes().rank == 0:
            _table(name, rows)
        if distributed.failed():
            return 1
        if len(rows) < len(jobs) or any(row["exit"] >= 128 for row in rows):
            return stop_signal.stopped().status
    return 1 if any(row["status"] == "failed" for row in rows) else 0


def _one_by_one(name: str, jobs: Jobs, sound: set[str], stop_signal: StopSignal) -> Iterator[Row]:
    kept: dict[str, Any] = {"sound": sound}
    for number, (job, composed) in enumerate(jobs, 1):
        if stop_signal.agreed():
            break
        stop_signal.restart_clock()
        say(f"job {number} of {len(jobs)}: {job}")
        row = {"job": job, **run_job(name, job, composed, kept)}
        if "torch" in sys.modules and not gc.get_freeze_count():
            gc.freeze()  # what has been imported is not to be looked through after each job
        yield row
        if row["status"] == "failed" and not distributed.recovered():
            if number < len(jobs):
                say("a process failed alone, which ends them all; the same command goes on with the jobs that are left")
            break


def plan(composer: Composer, overrides: list[str]) -> Plan:
    """What is to be done, see ``Plan``; a wrong key or option refuses the whole."""
    names, lines = [], composer.sweep(overrides)
    for line in lines:
        own = [override for override, given in zip(line, overrides, strict=True) if override != given]
        if any(override.startswith("name=") for override in own):
            raise ConfigError("name: is that of the whole sweep; its jobs are named by themselves")
        names.append(job_name(own))
    jobs = list(zip(names, compose_jobs(composer, lines, overrides), strict=True))
    problems = [_problem(composed) for _, composed in jobs]
    if all(problems):
        raise ConfigError(problems[0])
    name = jobs[0][1].values["name"] or f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_sweep_{secrets.token_hex(2)}"
    claim.check_name(name)
    if (ROOT / name / "config.yaml").exists():
        raise ConfigError(f"name: {ROOT / name} is one run; give the sweep another name")
    sound = {job for (job, _), problem in zip(jobs, problems, strict=True) if not problem}
    return name, _without_repeated(jobs), sound


def _without_repeated(jobs: Jobs) -> Jobs:
    """The jobs whose configurations differ, such as one of ``1e-3`` and ``0.001``: a mean would count both."""
    different: dict[str, tuple[str, Composed]] = {}
    for job, composed in jobs:
        values = json.dumps(_as_number(composed.values), sort_keys=True, default=str)
        different.setdefault(values, (job, composed))
    if repeated := len(jobs) - len(different):
        say(f"{len(jobs)} jobs were given; {repeated} repeat the values of others, and {len(different)} are trained")
    return list(different.values())


def _as_number(value: Any) -> Any:
    """A plain value in which 1 and 1.0 are the same."""
    if isinstance(value, dict):
        return {str(key): _as_number(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_number(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _problem(composed: Composed) -> str:
    try:
        verify(composed)
        check_init_from(composed)
    except ConfigError as error:
        return str(error)
    return ""


def job_name(overrides: list[str]) -> str:
    """A job's folder: its swept keys and values, at most 120 characters and then a hash."""
    shown = [redact.override(override) for override in overrides]
    whole, name = ",".join(overrides), ",".join(shown).replace("/", "_").replace(" ", "") or "job"
    if shown != overrides:
        return f"{name[:60]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
    if len(name) <= 120 and len(name.encode()) <= 240:
        return name
    head = name[:107].encode()[:227].decode(errors="ignore")
    return f"{head}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def run_job(name: str, job: str, composed: Composed, kept: dict[str, Any] | None = None) -> Row:
    """Train one job in ``runs/<name>/<job>/``; a failure is told at once and is this job's alone.

    ``kept`` is what one job leaves to the next, the data it has read, and as ``sound`` the names of the jobs whose
    configurations are known to be right.
    """
    folder = RunFolder(ROOT / name / job)
    try:
        if row := finished(folder, composed, job in (kept or {}).get("sound", ())):
            return row
        return ended(launch(composed, folder, InThisProcess(kept)))
    except (Exception, SystemExit) as error:
        return failed(error, composed)
    finally:
        gc.collect()


def finished(folder: RunFolder, composed: Composed, sound: bool) -> Row | None:
    """The row of a job that is finished already.

    Raises ConfigError for a configuration that is wrong, RunError where the job's folder is none.
    """
    safefiles.require(folder.path, safefiles.FOLDER)
    if not sound:
        verify(composed)
    check_init_from(composed)
    record = composed_once(lambda: folder.record)
    if record.get("status") != "finished" or composed.values["fresh"] or claim.changed(folder, composed.values):
        return None
    say(f"{folder.shown}: is finished")
    return {"status": "finished", "exit": 0, **_numbers(record)}


def ended(result: Result) -> Row:
    """The row of a job that has been trained."""
    numbers = _numbers({"best": result.best, "test": result.test})
    return {"status": result.status, "exit": result.exit, **numbers}


def failed(error: BaseException, composed: Composed) -> Row:
    """Tell why a job failed; its row."""
    if isinstance(error, Exception) and (mistake := as_mistake(error)):
        report(mistake, debug=composed.values["debug"])
        return {"status": "failed", "exit": mistake.status, "reason": redact.text(one_line(mistake))}
    print(redact.trace(error), end="", file=sys.stderr)
    return {"status": "failed", "exit": 1, "reason": redact.text(f"{type(error).__name__}: {one_line(error)}")}


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    best, tested = (found if isinstance(found := record.get(key), dict) else {} for key in ("best", "test"))
    numbers = {f"best {best['monitor']}": best["value"]} if {"monitor", "value"} <= best.keys() else {}
    return numbers | {name: value for name, value in tested.items() if isinstance(value, float)}


def _table(name: str, rows: list[Row]) -> None:
    """Show the jobs of this call with their best numbers, and write those of all calls as ``sweep.csv``."""
    columns = _columns(rows)
    text = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *text]) for i in range(len(columns))]
    for line in [columns, *text]:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    path = ROOT / name / "sweep.csv"
    known = all_rows(ROOT / name, rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _columns(known), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(known)
    write_text(path, buffer.getvalue())
    more = f", with {len(known) - len(rows)} jobs of earlier calls" if len(known) > len(rows) else ""
    say(f"table: {path}{more}")


def _columns(rows: list[Row]) -> list[str]:
    """The keys of all rows: the job and its status, its numbers, and at the end the reason why it has none."""
    names = [key for row in rows for key in row if key not in ("job", "status", "exit", "reason")]
    reason = ["reason"] * any("reason" in row for row in rows)
    return list(dict.fromkeys(["job", "status", *names, *reason]))


def all_rows(folder: Path, rows: list[Row]) -> list[Row]:
    """The rows of all jobs in a sweep's folder: those of the table that is there, others that lie there, this call's.

    A job that failed before it had a folder is known from the table alone, as it was.

    Args:
        rows: of this call. Where one was refused, such as for a changed setting, what lies in its folder counts.
    """
    known = {row["job"]: row for row in _read_table(folder / "sweep.csv")}
    own = {row["job"]: row for row in rows}
    records = {job.name: RunFolder(job).record for job in folder.iterdir() if _is_job(job)}
    for job in sorted(records, key=lambda job: (str(records[job].get("begin")), job)):
        if records[job] and (job in known or job not in own):
            known[job] = _row_of(job, records[job])
    for job, row in own.items():
        if row["status"] == "failed" and records.get(job, {}).get("status") == "finished":
            known[job] = {**_row_of(job, records[job]), "reason": row["reason"]}
        else:
            known[job] = row
    return list(known.values())


def _read_table(path: Path) -> list[Row]:
    """The rows of ``sweep.csv``; none where there is none, or it is not one of ours."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: value for key, value in row.items() if key and value} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows if "job" in row and "status" in row]


def _is_job(path: Path) -> bool:
    """Whether a folder is that of a job, and not one that ``fresh=true`` has set aside."""
    return path.is_dir() and not path.is_symlink() and not re.search(r"~\d+$", path.name)


def _row_of(job: str, record: dict[str, Any]) -> Row:
    row = {"job": job, "status": str(record.get("status")), **_numbers(record)}
    return row | ({"reason": str(record["reason"])} if record.get("reason") else {})


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
