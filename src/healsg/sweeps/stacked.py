"""``sweep=vectorised``: the jobs of a sweep as one stack, each with the folder and the files of a run of its own."""

from __future__ import annotations

import gc
import logging
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

from healsg import faults
from healsg.cli import say
from healsg.commands.sweep import Jobs, Row, failed, finished, run_job
from healsg.config import one_line
from healsg.errors import ConfigError, RunError
from healsg.folder import ROOT, RunFolder
from healsg.halt import Halt
from healsg.paths import returning
from healsg.sweeps.dealing import Dealer
from healsg.sweeps.fitting import INSTEAD
from healsg.sweeps.member import Member, Together
from healsg.sweeps.stack import Stack
from healsg.sweeps.trial import try_out

log = logging.getLogger("healsg")
MOST = 64
"""Jobs of a stack: each has files open and threads of its own, and no more is gained from some ten on."""


def run_stacked(name: str, jobs: Jobs, sound: set[str], halt: Halt) -> list[Row]:
    """Train the jobs in ``runs/<name>/<job>/``; a row each, in their order, but for those not begun when told to stop.

    Raises ConfigError for networks that cannot be stacked.
    """
    rows, waiting = dict[str, Row](), Jobs()
    for job, composed in jobs:
        try:
            row = finished(RunFolder(ROOT / name / job), composed, job in sound)
        except ConfigError as error:
            row = failed(error, composed)
        if row:
            rows[job] = row
        else:
            waiting.append((job, composed))
    kept: dict[str, Any] = {"sound": sound}
    if len(waiting) == 1:
        job, composed = waiting.pop()
        rows[job] = run_job(name, job, composed, kept)
    if waiting:
        with returning():
            told = try_out([composed for _, composed in waiting[:MOST]], kept)
        say(told)
    gc.collect()
    for start in range(0, len(waiting), MOST):
        if halt.asked():
            break
        with returning():
            rows |= _train(name, waiting[start : start + MOST], kept)
        gc.collect()
    return [{"job": job, **rows[job]} for job, _ in jobs if job in rows]


def _train(name: str, jobs: Jobs, kept: dict[str, Any]) -> dict[str, Row]:
    """Claim the folders, build the tasks and train those that stand at one step together."""
    members = [Member(job, composed, RunFolder(ROOT / name / job)) for job, composed in jobs]
    before = log.level, log.propagate
    try:
        with Halt(jobs[0][1].values["runner"]["max_time"]) as halt:
            together = Together(halt)
            for member in members:
                with returning():
                    member.begin(together, kept)
            ready = sorted((member for member in members if member.live), key=_place)
            for _, group in groupby(ready, _place):
                Course(list(group), together).run()
    except BaseException as error:  # what is no job's own ends them all
        for place, member in enumerate([member for member in members if member.live]):
            member.close(RunError(f"ended with the others of its stack: {one_line(error)}") if place else error)
        if not isinstance(error, Exception):
            raise
    finally:
        log.setLevel(before[0])
        log.propagate = before[1]
    return {member.job: member.row for member in members}


def _place(member: Member) -> tuple[int, int, int, int]:
    runner = member.task.runner
    return runner.epoch, runner.position, runner.step_count, runner.total_steps


class Course:
    """The way of some jobs, all at the same step, to their ends. One that fails or stops early leaves the others.

    Args:
        members: with tasks that are built and kept.
        together: asks all of them to stop.
    """

    def __init__(self, members: list[Member], together: Together) -> None:
        self.members, self.together = members, together
        lengths = {len(member.task.train_loader) for member in members}
        if len(lengths) > 1:
            raise ConfigError(f"sweep=vectorised: the jobs' epochs have {sorted(lengths)} batches; {INSTEAD}")
        self.saved_at = time.monotonic()
        self._gather()

    def _gather(self) -> None:
        """Stack those that are left, as they stand."""
        self.members = [member for member in self.members if member.live]
        if not self.members:
            return
        tasks = [member.task for member in self.members]
        nodes = [member.composed.values["data"] for member in self.members]
        self.stack = Stack(tasks)
        self.dealer = Dealer(tasks, alike=all(node == nodes[0] for node in nodes))

    def run(self) -> None:
        """Train all to their ends."""
        self._each(lambda member: member.finish_if_done())
        while self.members:
            began, count = time.monotonic(), len(self.members)
            self._epoch()
            seconds, due = (time.monotonic() - began) / count, self.together.due(self.saved_at, count)
            self._each(lambda member: member.end_epoch(seconds, due))  # noqa: B023 - called at once
            self.saved_at = time.monotonic() if due else self.saved_at
            self._tell()
            self._each(lambda member: member.finish_if_done())

    def _each(self, act: Callable[[Member], None]) -> bool:
        """Do something for each job alone, and part with those that end by it; whether any did."""
        for member in self.members:
            member.alone(partial(act, member))
        left = not all(member.live for member in self.members)
        if left:
            self._gather()
        return left

    def _epoch(self) -> None:
        """The updates of this epoch that are still to come."""
        runner = self.members[0].task.runner
        begin, epoch = runner.position, runner.epoch
        last = min(runner.length, begin + runner.total_steps - runner.step_count)
        for member in self.members:
            member.begin_epoch()
        batches = self.dealer.batches(epoch, begin)
        for position in range(begin, last):
            batch, rows = next(batches)
            first, batch = self.members[0], self.stack.place.move(batch)
            with faults.explained(first.task, first.task.runner.keeper):
                losses = iter(self.stack.step(batch["input"], batch["target"], self.dealer.shared).unbind())
            self.together.ask(len(self.members))
            if self._each(lambda member: member.take(next(losses), rows)):  # noqa: B023 - called at once
                if not self.members:
                    return
                batches = self.dealer.batches(epoch, position + 1)

    def _tell(self) -> None:
        """A line of the epoch: the watched number over the jobs, unless they are to be quiet."""
        if not self.members or self.members[0].composed.values["quiet"]:
            return
        runner = self.members[0].task.runner
        found = [member.watched for member in self.members if member.watched]
        numbers = [number for _, number in found]
        told = f"epoch {runner.epoch}/{runner.max_epoch}  {len(self.members)} jobs"
        if numbers:
            middle = statistics.median(numbers)
            told += f"  {found[0][0]} {middle:.4f} ({min(numbers):.4f} to {max(numbers):.4f})"
        say(told)
