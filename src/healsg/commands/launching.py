"""``launch``: the one way in which sweeps, ``healsg verify`` and other launchers start a run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from healsg import system
from healsg.config.schema import Composed
from healsg.errors import HealsgError
from healsg.runs.folder import RunFolder


@dataclass(frozen=True)
class Result:
    """How one run ended.

    Args:
        status: ``finished``, ``stopped``, or ``killed``.
        exit: the exit status of ``healsg train``; 128 + signal where it was killed.
        best, test: as in ``run.json``; None and empty where there is none.
    """

    status: str
    exit: int
    best: Mapping[str, Any] | None = None
    test: Mapping[str, Any] = field(default_factory=dict)


class Launcher(Protocol):
    """Starts one run, or goes on with it, and returns when it has ended; what goes wrong is raised."""

    def __call__(self, composed: Composed, folder: RunFolder) -> Result: ...


def launch(composed: Composed, folder: RunFolder, launcher: Launcher | None = None) -> Result:
    """Train, or go on with, one run.

    Args:
        composed: the run's checked configuration.
        folder: where the run lies, or will.
        launcher: where it is trained; in this process where it is None.

    Raises:
        HealsgError: something the user can mend. In this process whatever else is raised in the run is raised here.
    """
    return (launcher or InThisProcess())(composed, folder)


class InThisProcess:
    """Trains in the process that asks for it.

    Args:
        kept: what one run leaves to the next, the data that it has read (``sweeps.sharing.lend``); None for nothing.
    """

    def __init__(self, kept: dict[str, Any] | None = None) -> None:
        self.kept = kept

    def __call__(self, composed: Composed, folder: RunFolder) -> Result:
        from healsg.sweeps.sharing import JobTrainer

        result = JobTrainer(composed, folder, self.kept).train()
        return Result(result["status"], result["exit"], result.get("best"), result.get("test") or {})


class TracedProcess:
    """Trains in a fresh process, traced: without loggers and ``runner.max_time``.

    Args:
        plan: what ``Tracer`` follows: ``save``, ``settle``, ``kill``, ``share``, ``until``.
    """

    def __init__(self, **plan: Any) -> None:
        self.plan = plan

    def __call__(self, composed: Composed, folder: RunFolder) -> Result:
        """The status is ``killed`` where the kill that was planned came before the end.

        Raises BrokenError where it ended otherwise; the last line that it wrote is the message, those before are shown.
        """
        code, lines = self._run(self._instructions(composed, folder))
        record = RunFolder(folder.path).record
        finished = record.get("status") == "finished"
        if code == 0 or (system.was_killed(code) and (finished or self.plan.get("kill"))):
            status = "finished" if finished else "stopped" if code == 0 else "killed"
            return Result(status, code if code >= 0 else 128 - code, record.get("best"), record.get("test") or {})
        print(*lines[:-1], sep="\n", end="\n" * (len(lines) > 1), file=sys.stderr)
        where = folder.path
        ended = f"{where}: ended by {system.signal_name(-code)}" if code < 0 else f"{where}: ended with status {code}"
        raise BrokenError(lines[-1].removeprefix("error: ") if lines and code > 0 else ended, code)

    def _instructions(self, composed: Composed, folder: RunFolder) -> dict[str, Any]:
        """What ``trace.main`` reads."""
        values = composed.values | {"name": folder.path.name, "fresh": False, "quiet": True, "resume": {"force": False}}
        values |= {"use_wandb": False, "logger": None, "runner": composed.values["runner"] | {"max_time": None}}
        made = {**vars(composed), "values": values, "project": [str(path) for path in composed.project]}
        whole = dict.fromkeys(("save", "settle", "kill", "share", "until")) | self.plan
        return whole | {"composed": made, "folder": str(folder.path), "command": sys.argv, "parent": os.getpid()}

    def _run(self, instructions: dict[str, Any]) -> tuple[int, list[str]]:
        """The exit status of the process, and the lines that it wrote as errors."""
        program = "import sys; sys.path.append(sys.argv[1]); from healsg.commands.trace import main; sys.exit(main())"
        line = [sys.executable, "-P", "-c", program, str(Path(__file__).parents[2])]
        with tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
            try:
                child.communicate(yaml.safe_dump(instructions).encode())
            finally:  # the child, and what it has started: loader workers
                system.kill_family(child)
                child.wait()
            errors.seek(0)
            return child.returncode, errors.read().decode(errors="replace").strip().splitlines()


class BrokenError(HealsgError):
    """A process that was started ended as it should not have: with a mistake, a failure, or a signal."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.status = 128 - code if code < 0 else code
