"""A member of a stack: one job with its own task, session, keeper and lines, whose steps others take with it."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from healsg import faults
from healsg.commands.sweep import Row, ended, failed
from healsg.config import Composed
from healsg.errors import Stopped
from healsg.folder import RunFolder
from healsg.halt import Halt
from healsg.keeper import REST, Keeper
from healsg.monitor import directions
from healsg.session import Session
from healsg.sweeps.sharing import JobTrainer

if TYPE_CHECKING:
    from healsg.task import BasicTask

log = logging.getLogger("healsg")


class Together:
    """In the place of each keeper's halt: all jobs stop at one step, and what one save takes, all of them take."""

    def __init__(self, halt: Halt) -> None:
        self.halt, self.stopping, self.saving = halt, False, 0.0

    @property
    def received(self) -> int | None:
        return self.halt.received

    def ask(self, jobs: int) -> None:
        """Ask once for ``jobs`` jobs, at a step boundary."""
        self.halt.saving = jobs * self.saving
        self.stopping = self.stopping or self.halt.asked()

    def due(self, saved_at: float, jobs: int) -> bool:
        """Whether ``jobs`` jobs are to be saved at the end of an epoch: as often as each would be by itself."""
        self.ask(jobs)
        return self.stopping or time.monotonic() - saved_at >= REST * jobs

    def asked(self) -> bool:
        return self.stopping

    asked_within = agreed = asked

    def stopped(self) -> Stopped:
        return self.halt.stopped()


class Member:
    """One job of a stack.

    Args:
        job: its name.
        composed: its configuration.
        folder: where it lies, or will.
    """

    speaking: Member | None = None
    """Whose log and screen get what is logged: the program has one logger for all."""

    def __init__(self, job: str, composed: Composed, folder: RunFolder) -> None:
        self.job, self.composed, self.folder = job, composed, folder
        self.live, self.row = False, Row(status="stopped", exit=0)
        self.watched: tuple[str, float] | None = None
        self.around = contextlib.ExitStack()
        self.session: Session | None = None
        self.task: BasicTask
        self.keeper: Keeper | None = None

    def begin(self, together: Together, kept: dict[str, Any]) -> None:
        """Claim the folder, build the task, and go on from the last checkpoint where there is one."""
        trainer = JobTrainer(self.composed)
        trainer.folder, trainer.kept = self.folder, kept
        Member.speaking, handlers = self, list(log.handlers)
        try:
            self.task, self.folder = trainer._begin(None)
            quiet = replace(self.composed, values=self.composed.values | {"quiet": True})
            session = Session(quiet, self.folder, self.task.runner.progress, trainer.mirrors)
            session.__enter__()
        except (Exception, SystemExit) as error:
            self.row = failed(error, self.composed)
            return
        self.session, self.live = session, True
        for handler in log.handlers:
            if handler not in handlers:
                handler.addFilter(lambda _: Member.speaking is self)
        self.alone(lambda: self._build(trainer, session, together))

    def _build(self, trainer: JobTrainer, session: Session, together: Together) -> None:
        """As ``TaskTrainer.train`` does it, and the beginning of ``TaskRunner.fit``."""
        task, runner, folder = self.task, self.task.runner, self.folder
        facts = trainer.build(task, folder)
        keeper = Keeper(folder, session.journal, cast(Halt, together), session.screen.epoch)
        self.keeper = runner.keeper = self.around.enter_context(keeper)
        keeper.begin(task)
        session.begin(facts, runner.step_count)
        runner.monitor.check(task)
        task.net.train()

    def alone(self, act: Callable[[], None]) -> None:
        """Do what is this job's alone: a failure, or a stop, ends this job and no other."""
        if not self.live:
            return
        Member.speaking = self
        try:
            with faults.explained(self.task, self.keeper) if self.keeper else contextlib.nullcontext():
                act()
        except (Exception, SystemExit) as error:
            self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """End this job's run, in its folder too. One that has ended stays as it ended."""
        if not self.live or self.session is None:
            return
        self.live = False
        Member.speaking = self
        self.around.close()
        self.session.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        log.setLevel(logging.DEBUG)  # which the session has put back, and others are still open
        log.propagate = False
        done = error is None or isinstance(error, Stopped)
        self.row = ended(self.session.result) if done else failed(cast(BaseException, error), self.composed)

    def begin_epoch(self) -> None:
        runner, progress = self.task.runner, self.task.runner.progress
        progress.phase, progress.length, progress.epoch = "train", runner.length, self.task.epoch

    def take(self, loss: torch.Tensor, rows: int) -> None:
        """Book the update that was just made: its schedule, its loss, its line and save where they are due."""
        task, runner = self.task, self.task.runner
        runner.position += 1
        runner.rows, runner.closing, runner.progress.position = rows, True, runner.position
        runner.progress.samples += rows
        if task.scheduler is not None and task.interval == "update":
            task.scheduler.step()
        runner.step_count = runner.progress.step = runner.step_count + 1
        runner.meter.add({"loss": loss, "count": rows})
        runner.tick(task)

    def end_epoch(self, seconds: float, due: bool) -> None:
        """The epoch's evaluation and line; ``due`` says whether a save follows."""
        task, runner = self.task, self.task.runner
        runner.landed()  # what follows may change anything
        train = runner.meter.finish()
        results = {"train": train, "val": task.val_epoch.run() if runner.eval_due() else {}}
        runner.keeper.saved_at = -math.inf if due else math.inf
        self._watch(results)
        runner.end_epoch(task, results, seconds)

    def _watch(self, results: dict[str, dict[str, float]]) -> None:
        numbers = {f"{split}/{key}": value for split, row in results.items() for key, value in row.items()}
        name = self.task.runner.monitor.resolve({"lr": 0.0, **numbers}, directions(self.task))[0]
        self.watched = (name, numbers[name]) if name in numbers else None

    def finish_if_done(self) -> None:
        """At the end of the run: the test with the best weights, and the record."""
        runner = self.task.runner
        if runner.epoch >= runner.max_epoch or runner.stop_reason is not None:
            runner.keeper.finish(self.task)
            self.close()
