"""``-m``: the jobs of a sweep one after the other in one process, each in its own folder, and a table at the end."""

from __future__ import annotations

import contextlib
import csv
import gc
import hashlib
import io
import os
import secrets
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from healsg import claim, distributed, redact
from healsg.cli import as_mistake, report
from healsg.commands.train import composed_once
from healsg.config import Composed, check_init_from, one_line, verify
from healsg.errors import ConfigError
from healsg.folder import ROOT, RunFolder, write_text
from healsg.halt import Halt

if TYPE_CHECKING:
    from healsg.compose import Composer

Plan = tuple[str, list[tuple[str, Composed]]]


def run_sweep(composer: Callable[[], Composer], overrides: list[str]) -> int:
    """Run every job; 0 where all are finished, 1 where one failed, 2 where the command was wrong."""
    name, jobs = composed_once(lambda: plan(composer(), overrides))
    folder, rows = RunFolder(ROOT / name), list[dict[str, Any]]()
    composed_once(folder.lock)
    with Halt() as halt, contextlib.ExitStack() as stack:
        stack.callback(folder.abandon)
        for number, (job, composed) in enumerate(jobs, 1):
            if halt.agreed():
                break
            halt.began = time.monotonic()
            _say(f"job {number} of {len(jobs)}: {job}")
            rows.append({"job": job, **run_job(name, job, composed)})
        if rows and distributed.rank() == 0:
            _table(name, rows)
        if len(rows) < len(jobs) or rows[-1]["exit"] >= 128:
            return halt.stopped().status
    return 1 if any(row["status"] == "failed" for row in rows) else 0


def plan(composer: Composer, overrides: list[str]) -> Plan:
    """The sweep's name, and each job's name and configuration; a wrong key or option refuses the whole."""
    jobs = []
    for job_overrides in composer.sweep(overrides):
        own = [override for override, given in zip(job_overrides, overrides, strict=True) if override != given]
        if any(override.startswith("name=") for override in own):
            raise ConfigError("name: is that of the whole sweep; its jobs are named by themselves")
        jobs.append((job_name(own), composer.compose(job_overrides, checked=False)))
    problems = [_problem(composed) for _, composed in jobs]
    if all(problems):
        raise ConfigError(problems[0])
    name = jobs[0][1].values["name"] or f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_sweep_{secrets.token_hex(2)}"
    claim.check_name(name)
    if (ROOT / name / "config.yaml").exists():
        raise ConfigError(f"name: {ROOT / name} is one run; give the sweep another name")
    return name, jobs


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


def run_job(name: str, job: str, composed: Composed) -> dict[str, Any]:
    """Train one job in ``runs/<name>/<job>/``; a failure is told at once and is this job's alone."""
    from healsg.trainer import TaskTrainer

    path = ROOT / name / job
    folder = RunFolder(path)
    values = composed.values
    try:
        verify(composed)
        check_init_from(composed)
        record = composed_once(lambda: folder.record)
        if record.get("status") == "finished" and not values["fresh"] and not claim.changed(folder, values):
            _say(f"{path}: is finished")
            return {"status": "finished", "exit": 0, **_numbers(record)}
        trainer = TaskTrainer(composed)
        trainer.folder = folder
        result = trainer.train()
        return {"status": result["status"], "exit": result["exit"], **_numbers(result)}
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and (mistake := as_mistake(error)):
            report(mistake, debug=composed.values["debug"])
            return {"status": "failed", "exit": mistake.status, "reason": redact.text(one_line(mistake))}
        print(redact.trace(error), end="", file=sys.stderr)
        reason = redact.text(f"{type(error).__name__}: {one_line(error)}")
        return {"status": "failed", "exit": 1, "reason": reason}
    finally:
        gc.collect()


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    best = record.get("best") or {}
    numbers = {f"best {best['monitor']}": best["value"]} if best else {}
    tested = record.get("test") or {}
    return numbers | {name: value for name, value in tested.items() if isinstance(value, float)}


def _table(name: str, rows: list[dict[str, Any]]) -> None:
    """Show all jobs with their best numbers, and write the same as ``sweep.csv``."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "exit"))
    text = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *text]) for i in range(len(columns))]
    for line in [columns, *text]:
        _say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    path = ROOT / name / "sweep.csv"
    write_text(path, buffer.getvalue())
    _say(f"table: {path}")


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)
