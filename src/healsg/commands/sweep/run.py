"""``-m``: the jobs of a sweep, one after the other or several at once, each in its own folder, and a table."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from healsg import distributed, safefiles
from healsg.build import make
from healsg.cli import as_mistake, report, say
from healsg.commands.launch import processes
from healsg.commands.launch.launching import InProcesses, InThisProcess, Result, launch
from healsg.commands.sweep.table import Row, numbers, table
from healsg.commands.terminal.arguments import composed_once
from healsg.commands.terminal.imports import freeze_imports
from healsg.commands.train.tune import tuned_jobs
from healsg.config.schema import Composed, check_init_from, verify
from healsg.errors import BusyError, ConfigError, one_line
from healsg.runs import acquire, redact
from healsg.runs.folder import ROOT, RunFolder
from healsg.sweeps.launcher import LOST, JobLauncher, Order
from healsg.sweeps.sharing import SharedData
from healsg.training.interrupt import StopSignal

if TYPE_CHECKING:
    from healsg.config.compose import Composer

Jobs = list[tuple[str, Composed]]
"""The jobs by name."""


@dataclass(frozen=True)
class SweepPlan:
    """The plan of a sweep."""

    name: str
    jobs: Jobs
    """Their configurations are checked."""
    launcher: JobLauncher | None
    """What runs the jobs; None runs them one after the other in this process."""


BUSY = "busy"
"""The status of a job that another command trains."""

PATIENCE = 20.0
"""Seconds that commands on the same sweep wait for each other, as they begin and as they write the table."""


def run_sweep(composer: Callable[[], Composer], overrides: list[str]) -> int:
    """Run every job; returns 0 if all finished, 1 if one failed, 2 if the command was wrong."""
    planned = composed_once(lambda: plan(composer(), overrides))
    name, jobs = planned.name, planned.jobs
    folder = RunFolder(ROOT / name)
    rows: list[Row] = []
    composed_once(lambda: start_sweep(folder, jobs))
    with StopSignal() as stop_signal, contextlib.ExitStack() as stack:
        stack.callback(discard_empty_jobs, folder, jobs)
        stack.callback(gc.unfreeze)
        if planned.launcher:
            stack.callback(planned.launcher.close)
        rows += run_jobs(name, jobs, True, planned.launcher, stop_signal)
        indices = {job: index for index, (job, _) in enumerate(jobs)}
        rows.sort(key=lambda row: indices[row["job"]])
        if rows and distributed.processes().rank == 0:
            with held(folder):
                table(name, rows)
        if distributed.failed():
            return 1
        if len(rows) < len(jobs) or any(row["exit"] >= 128 for row in rows):
            return stop_signal.stopped().status or max(row["exit"] for row in rows)
    return 1 if any(row["status"] in ("failed", LOST) for row in rows) else 0


@contextlib.contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Lock the folder of a sweep, which several commands may work on, for a moment. Raises RunError."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            folder.lock()
            break
        except BusyError:
            if folder.config.exists() or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        folder.abandon()


def start_sweep(folder: RunFolder, jobs: Jobs) -> None:
    """Create the folder of a sweep, with one for each job; these reserve the name and show which jobs wait. Raises
    RunError."""
    with held(folder):
        for job, _ in jobs:
            with contextlib.suppress(FileExistsError):
                (folder.path / job).mkdir()


def discard_empty_jobs(folder: RunFolder, jobs: Jobs) -> None:
    """Remove the folders of jobs that have not started, and that of a sweep in which none has."""
    for empty in (*(folder.path / job for job, _ in jobs), folder.path, folder.path.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()


def run_jobs(
    name: str, jobs: Jobs, verified: bool, launcher: JobLauncher | None, stop_signal: StopSignal
) -> Iterator[Row]:
    """Train the jobs; yields a row for each as it ends, and ends early after a stop signal.

    Jobs that another command is training come last, after waiting for it.

    Args:
        name: of the sweep.
        jobs: by name.
        verified: whether their configurations have been checked.
        launcher: what runs them; None runs them one after the other in this process.
        stop_signal: of the command.
    """
    left, waits = dict(tuned_jobs(name, jobs)), False
    while left:
        ready = [job for job in left if not (waits and RunFolder(ROOT / name / job).is_locked())]
        for row in [_of_another(name, job) for job in ready] if waits else []:
            if row is not None:
                ready.remove(row["job"])
                del left[row["job"]]
                yield row
        chosen = [(job, left[job]) for job in ready]
        if launcher is None:
            rows = _one_by_one(name, chosen, verified, stop_signal, len(jobs) - len(left))
        else:
            rows = _at_once(name, chosen, verified, stop_signal, launcher)
        for row in rows:
            if row["status"] != BUSY:
                del left[row["job"]]
                yield row
        if distributed.processes().several or stop_signal.received is not None:
            return
        if left and not waits:
            say(f"waiting for {len(left)} jobs that another command trains: {', '.join([*left][:3])}")
            waits = True
            left = {job: _continued(composed) for job, composed in left.items()}
        elif left:
            time.sleep(0.5)


def _of_another(name: str, job: str) -> Row | None:
    """The row of a job that has failed in the other command; None if it is to be resumed."""
    record = RunFolder(ROOT / name / job).record
    if record.get("status") != "failed":
        return None
    return {"job": job, "status": "failed", "exit": 1, "reason": str(record.get("reason"))}


def _continued(composed: Composed) -> Composed:
    """The configuration of a job that another command has trained meanwhile, without ``fresh``."""
    return replace(composed, values=composed.values | {"fresh": False})


def _one_by_one(name: str, jobs: Jobs, verified: bool, stop_signal: StopSignal, before: int) -> Iterator[Row]:
    shared = SharedData()
    for number, (job, composed) in enumerate(jobs, 1):
        if stop_signal.agreed():
            break
        stop_signal.restart_clock()
        say(f"job {before + number} of {before + len(jobs)}: {job}")
        row = {"job": job, **run_job(name, job, composed, verified, shared)}
        freeze_imports()  # so that they are not traversed after each job
        yield row
        if row["status"] == "failed" and not distributed.recovered():
            if number < len(jobs):
                say("a process failed alone, which ends them all; the same command continues the jobs that are left")
            break


def _at_once(name: str, jobs: Jobs, verified: bool, stop_signal: StopSignal, launcher: JobLauncher) -> Iterator[Row]:
    orders = [order(name, job, composed, verified) for job, composed in jobs]
    for index, answer in launcher.results(orders, lambda: stop_signal.received):
        row = {"job": jobs[index][0], **answer}
        if row["status"] != BUSY:
            say(": ".join([row["job"], row["status"], *filter(None, [row.get("reason")])]))
        yield row


def order(name: str, job: str, composed: Composed, verified: bool) -> Order:
    """The order of a job, for a worker.

    Args:
        name: of the sweep.
        job: the name of its folder there.
        composed: its configuration.
        verified: whether it has been checked.
    """
    made = yaml.safe_dump(composed.as_plain())
    return {"name": name, "job": job, "composed": made, "verified": verified, "command": sys.argv}


def plan(composer: Composer, overrides: list[str]) -> SweepPlan:
    """The sweep to run. Raises ConfigError if the configuration of a job is wrong, before any of them starts."""
    names, lines = [], composer.sweep(overrides)
    for line in lines:
        own = [override for override, given in zip(line, overrides, strict=True) if override != given]
        if any(override.startswith("name=") for override in own):
            raise ConfigError("name: applies to the entire sweep; its jobs are named automatically")
        names.append(job_name(own))
    jobs = [(name, composer.compose(line, checked=False)) for name, line in zip(names, lines, strict=True)]
    name = jobs[0][1].values["name"] or new_sweep_name("sweep")
    problems = [_problem(name, composed) for _, composed in jobs]
    if wrong := [(job, problem) for job, problem in zip(names, problems, strict=True) if problem]:
        job, problem = wrong[0]
        raise ConfigError(problem if len(wrong) == len(jobs) else f"{job}: {problem} (no job was started)")
    acquire.check_name(name)
    if (ROOT / name / "config.yaml").exists():
        raise ConfigError(f"name: {ROOT / name} is one run; give the sweep another name")
    if (ROOT / name / "search.json").exists():
        raise ConfigError(f"name: {ROOT / name} is a search; give the sweep another name")
    launcher = launcher_of(jobs[0][1])
    _check_processes(jobs)
    return SweepPlan(name, _without_repeated([(job, as_run(composed)) for job, composed in jobs]), launcher)


def new_sweep_name(kind: str) -> str:
    """A name that is unique by itself."""
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{kind}_{secrets.token_hex(2)}"


def launcher_of(composed: Composed) -> JobLauncher | None:
    """The launcher of a checked configuration. Raises ConfigError."""
    if not composed.values["launcher"]:
        return None
    if distributed.processes().several:
        raise ConfigError("launcher: starts processes of its own; leave torchrun out, or the launcher")
    launcher: JobLauncher = make(composed.values["launcher"], "launcher", composed, JobLauncher)
    return launcher


def _check_processes(jobs: Jobs) -> None:
    """Refuse jobs whose ``runner.processes`` cannot be started. Raises ConfigError."""
    for _, composed in jobs:
        launcher = composed.values["launcher"]
        if processes.process_count(composed) > 1 and launcher and launcher.get("devices") is not None:
            raise ConfigError("launcher.devices: gives each job one GPU; leave it, or runner.processes, out")


def as_run(composed: Composed) -> Composed:
    """The configuration of one job, without the keys of the sweep."""
    choices = {group: option for group, option in composed.choices.items() if group not in ("launcher", "search")}
    return replace(composed, values=composed.values | {"launcher": None, "search": None}, choices=choices)


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


def _problem(name: str, composed: Composed) -> str:
    """What is wrong with the configuration of a job of the sweep ``name``; empty if nothing is.

    Whether ``init_from`` exists is asked here in a new sweep alone, since the finished jobs of a continued one need it
    no more, and not if it is to come from another job of the sweep. Each job asks as it starts.
    """
    try:
        verify(composed)
        source = str(composed.values.get("init_from") or "")
        own = any((start / Path(source).expanduser()).is_relative_to(ROOT / name) for start in (Path(), ROOT))
        if not own and not (ROOT / name).exists():
            check_init_from(composed)
    except ConfigError as error:
        return str(error)
    return ""


def job_name(overrides: list[str]) -> str:
    """A job's folder: its swept keys and values, at most 120 characters and then a hash."""
    shown = [redact.override(override) for override in overrides]
    full_name, name = ",".join(overrides), ",".join(shown).replace("/", "_").replace(" ", "") or "job"
    if shown != overrides:
        return f"{name[:60]}-{hashlib.sha256(full_name.encode()).hexdigest()[:12]}"
    if len(name) <= 120 and len(name.encode()) <= 240:
        return name
    head = name[:107].encode()[:227].decode(errors="ignore")
    return f"{head}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def run_job(name: str, job: str, composed: Composed, verified: bool, shared: SharedData | None = None) -> Row:
    """Train one job in ``runs/<name>/<job>/``; a failure is reported at once and does not end the sweep.

    Args:
        name: of the sweep.
        job: its folder's name.
        composed: its configuration.
        verified: whether it has been checked.
        shared: the data that one job has read for the next.
    """
    folder = RunFolder(ROOT / name / job)
    try:
        if row := finished(folder, composed, verified):
            return row
        count = processes.process_count(composed)
        return ended(launch(composed, folder, InProcesses(count) if count > 1 else InThisProcess(shared)))
    except BusyError as error:
        if distributed.processes().several:
            return failed(error, composed)
        return {"status": BUSY, "exit": 1}
    except (Exception, SystemExit) as error:
        return failed(error, composed)
    finally:
        gc.collect()


def finished(folder: RunFolder, composed: Composed, verified: bool) -> Row | None:
    """The row of an already finished job.

    Raises ConfigError for a configuration that is wrong, RunError if the job's folder is not a run's.
    """
    safefiles.require(folder.path, safefiles.FOLDER)
    if not verified:
        verify(composed)
    record = composed_once(lambda: folder.record)
    if record.get("status") != "finished" or composed.values["fresh"] or acquire.changed(folder, composed.values):
        check_init_from(composed)
        return None
    say(f"{folder.shown}: is finished")
    return {"status": "finished", "exit": 0, **numbers(record)}


def ended(result: Result) -> Row:
    """The row of a job that has been trained."""
    return {"status": result.status, "exit": result.exit, **numbers({"best": result.best, "test": result.test})}


def failed(error: BaseException, composed: Composed) -> Row:
    """Report why a job failed; returns its row."""
    if isinstance(error, Exception) and (mistake := as_mistake(error)):
        report(mistake, debug=composed.values["debug"])
        return {"status": "failed", "exit": mistake.status, "reason": redact.text(one_line(mistake))}
    print(redact.trace(error), end="", file=sys.stderr)
    return {"status": "failed", "exit": 1, "reason": redact.text(f"{type(error).__name__}: {one_line(error)}")}
