"""``launch``: starts a run for sweeps, ``healsg verify`` and other launchers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import yaml

from healsg import system
from healsg.commands.launch import processes
from healsg.config.schema import Composed
from healsg.errors import HealsgError
from healsg.runs.folder import RunFolder
from healsg.sweeps.sharing import SharedData


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Args:
        status: ``finished``, ``stopped``, or ``killed``.
        exit: the exit status of ``healsg train``; 128 + signal if it was killed.
        best, test: as in ``run.json``; None and empty if not available.
    """

    status: str
    exit: int
    best: Mapping[str, Any] | None = None
    test: Mapping[str, Any] = field(default_factory=dict)


class Launcher(Protocol):
    """Starts or resumes one run, and returns when it has ended; raises its error."""

    def __call__(self, composed: Composed, folder: RunFolder) -> Result: ...


def launch(composed: Composed, folder: RunFolder, launcher: Launcher | None = None) -> Result:
    """Train or resume a run.

    Args:
        composed: the run's checked configuration.
        folder: of the run; it may not exist yet.
        launcher: where to train; None for this process.

    Raises:
        HealsgError: an error that the user can fix. For a run in this process, any other exception propagates too.
    """
    return (launcher or InThisProcess())(composed, folder)


class InThisProcess:
    """Trains in the calling process.

    Args:
        shared: data that a run has read and the next one reuses; None to share nothing.
    """

    def __init__(self, shared: SharedData | None = None) -> None:
        self.shared = shared

    def __call__(self, composed: Composed, folder: RunFolder) -> Result:
        from healsg.sweeps.job_trainer import JobTrainer

        result = JobTrainer(composed, folder, self.shared).train()
        return Result(result["status"], result["exit"], result.get("best"), result.get("test") or {})


class InProcesses:
    """Trains in several fresh processes of this machine, for ``runner.processes``.

    Args:
        count: of the processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, composed: Composed, folder: RunFolder) -> Result:
        """Raises BrokenError where the run failed, and BusyError where another command trains in the folder."""
        processes.refuse_if_locked(folder)
        code, lines = processes.run_agent(self.count, processes.job_of(composed, folder.path, time.monotonic()))
        record = RunFolder(folder.path).record
        if code == 0 or code > 128:
            print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)
            status = "finished" if record.get("status") == "finished" else "stopped"
            return Result(status, code, record.get("best"), record.get("test") or {})
        raise _broken(folder, code, lines)


def _broken(folder: RunFolder, code: int, lines: list[str]) -> BrokenError:
    """The error of a failed process; its last line is the message, the lines before are printed."""
    print(*lines[:-1], sep="\n", end="\n" * (len(lines) > 1), file=sys.stderr)
    ended = f"ended by {system.signal_name(-code)}" if code < 0 else f"ended with status {code}"
    return BrokenError(lines[-1].removeprefix("error: ") if lines and code > 0 else f"{folder.path}: {ended}", code)


class TracedProcess:
    """Trains in a fresh process, or in several, traced: without loggers and ``runner.max_time``.

    Args:
        count: of the processes.
        plan: what ``Tracer`` follows: ``save``, ``settle``, ``kill``, ``share``, ``until``.
    """

    def __init__(self, count: int = 1, **plan: Any) -> None:
        self.count = count
        self.plan = plan

    def __call__(self, composed: Composed, folder: RunFolder) -> Result:
        """The status is ``killed`` if the planned kill came before the end.

        Raises BrokenError if the process ended otherwise, with the last line that it wrote as message; the lines before
        are shown.
        """
        traced = _untimed(composed, folder)
        plan = dict.fromkeys(("save", "settle", "kill", "share", "until")) | self.plan
        if self.count == 1:
            request = yaml.safe_dump(_instructions(traced, folder, plan)).encode()
            code, lines = ask(system.program("healsg.commands.diverge.trace", "main"), request)
        else:
            job = processes.job_of(traced, folder.path, time.monotonic(), plan)
            code, lines = processes.run_agent(self.count, job, "healsg.commands.diverge.trace", quiet=True)
        record = RunFolder(folder.path).record
        finished = record.get("status") == "finished"
        if code == 0 or (system.was_killed(code) and (finished or self.plan.get("kill"))):
            status = "finished" if finished else "stopped" if code == 0 else "killed"
            return Result(status, code if code >= 0 else 128 - code, record.get("best"), record.get("test") or {})
        raise _broken(folder, code, lines)


def ask(program: list[str], request: bytes, seconds: float | None = None) -> tuple[int, list[str]]:
    """Run a fresh process that reads its task from standard input and prints only errors.

    Args:
        program: its command line.
        request: the task.
        seconds: after which it is ended and TimeoutExpired is raised; None waits.

    Returns:
        Its exit status (negative if it was killed by a signal), and the lines that it wrote to standard error.
    """
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            child.communicate(request, timeout=seconds)
        finally:  # the child, and what it has started: loader workers
            system.kill_family(child)
            child.wait()
        errors.seek(0)
        return child.returncode, errors.read().decode(errors="replace").strip().splitlines()


def _untimed(composed: Composed, folder: RunFolder) -> Composed:
    """The configuration of a run without loggers, a limit of time, and what asks for another start."""
    values = composed.values | {"name": folder.path.name, "fresh": False, "quiet": True, "resume": {"force": False}}
    values |= {"use_wandb": False, "logger": None, "runner": composed.values["runner"] | {"max_time": None}}
    return replace(composed, values=values)


def _instructions(composed: Composed, folder: RunFolder, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What ``trace.main`` reads."""
    request = {"composed": composed.as_plain(), "folder": str(folder.path), "command": sys.argv, "parent": os.getpid()}
    return {**plan, **request}


class BrokenError(HealsgError):
    """A started process failed: with a user error, an exception, or a signal."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.status = 128 - code if code < 0 else code
