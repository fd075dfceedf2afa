"""The traced run: a run that writes a hash of each tensor after every update, and that can kill itself.

``healsg verify`` and ``healsg diverge ... replay=true`` start it as a separate process, with its plan on standard
input. A line of ``trace.jsonl`` holds ``step`` and, in the order of ``names``, each tensor's ``hash`` and ``size`` (its
norm, or a number's value); ``names`` are written when they change, and ``begin`` is the step from which a process
resumed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from healsg import safefiles, system
from healsg.cli import as_mistake, finish, report
from healsg.commands.diverge.command import TRACE
from healsg.commands.diverge.fingerprints import fingerprint, in_order
from healsg.commands.launch.processes import own_job
from healsg.config.schema import Composed
from healsg.distributed import processes
from healsg.errors import Stopped
from healsg.runs.checkpointer import Checkpointer
from healsg.runs.folder import RunFolder
from healsg.trainer import TaskTrainer

if TYPE_CHECKING:
    from healsg.protocols import Task


class Tracer(Checkpointer):
    """A checkpointer that also writes the trace and follows a plan, in which each step may be None.

    With several processes rank 0 writes it, and a kill ends all of them and the agent that started them.

    The plan: after the update ``save`` the run saves, and with ``settle`` waits until the checkpoint is on disk; after
    ``kill`` the process ends by SIGKILL, ``share`` of a step's time later; after ``until`` it stops. It also ends when
    ``parent``, the process that started it, has ended.
    """

    def __init__(self, plan: dict[str, Any], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.plan = plan
        self.names: list[str] = []
        self.turned = time.monotonic()

    def begin(self, task: Task, path: Path, state: dict[str, Any] | None) -> None:
        super().begin(task, path, state)
        self._write_trace({"begin": task.runner.step_count})
        self.turned = time.monotonic()

    def updated(self, task: Task) -> None:
        super().updated(task)
        self._watch(task)

    def _watch(self, task: Task) -> None:
        took = time.monotonic() - self.turned
        plan = self.plan
        step = task.runner.step_count
        if os.getppid() != plan["parent"]:
            raise Stopped("the process that started this run is gone", 1)
        state = in_order(task.state_dict())
        names, marks = list(state), [fingerprint(value) for value in state.values()]
        fresh = {} if names == self.names else {"names": names}
        self.names = names
        self._write_trace(
            {"step": step, **fresh, "hash": [mark for mark, _ in marks], "size": [size for _, size in marks]}
        )
        if step == plan["save"]:
            self.save(task)
            if plan["settle"]:
                self.writer.wait()
        if step == plan["kill"]:
            self._kill(plan["share"] * took)
        if step == plan["until"]:
            raise Stopped("traced as far as was asked", 0)
        self.turned = time.monotonic()

    def _write_trace(self, row: dict[str, Any]) -> None:
        """Start a new line, also after a line truncated by a kill."""
        if processes().rank > 0:
            return
        with safefiles.open_to_append(self.folder.path / TRACE) as file:
            file.write(f"\n{json.dumps(row, separators=(',', ':'))}\n".encode())

    @staticmethod
    def _kill(delay: float) -> None:
        if delay <= 0:
            _end()
        timer = threading.Timer(delay, _end)
        timer.daemon = True
        timer.start()


def _end() -> None:
    """End this process by SIGKILL, and before it the agent of several."""
    if processes().several:
        system.kill(os.getppid())
    system.kill(os.getpid())


class TracedTrainer(TaskTrainer):
    """``TaskTrainer`` with a ``Tracer`` as checkpointer.

    Args:
        composed: the checked configuration.
        plan: of the ``Tracer``.
        folder: of an existing run.
    """

    def __init__(self, composed: Composed, plan: dict[str, Any], folder: RunFolder | None = None) -> None:
        super().__init__(composed, folder=folder)
        self.plan = plan

    def make_checkpointer(self, **arguments: Any) -> Checkpointer:
        return Tracer(self.plan, **arguments)


def rank() -> int:
    """One process of a traced run that an agent has started (``processes.become_agent``); returns its exit status."""
    job = own_job()
    plan = (job.traced or {}) | {"parent": os.getppid()}
    return finish(
        lambda: int(TracedTrainer(job.composed, plan, job.folder).train()["exit"]), job.composed.values["debug"]
    )


def main() -> int:
    """Train with a trace, according to the plan on standard input; returns the exit status of ``healsg train``."""
    plan = yaml.safe_load(sys.stdin.buffer)
    system.take_command_line(plan["command"])
    composed = Composed.of_plain(plan["composed"])
    try:
        return int(TracedTrainer(composed, plan, RunFolder(Path(plan["folder"]))).train()["exit"])
    except Exception as error:
        if mistake := as_mistake(error):
            return report(mistake, debug=composed.values["debug"])
        raise
