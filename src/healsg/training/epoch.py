"""One pass over a split: ``TrainEpoch`` learns, ``EvalEpoch`` measures. Both are objects with ``run() -> dict``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from healsg.protocols import Task
    from healsg.training.step import MicroBatch


class TrainEpoch:
    """One pass over the training data, from the run's position in it."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def run(self) -> dict[str, float]:
        """Train; returns the means of the steps' scalars over the whole epoch, e.g. ``{"loss": 0.31}``."""
        task, runner = self.task, self.task.runner
        task.net.train()
        for batch, micro in runner.train_batches(task):
            scalars, moved = runner.step(task, batch, micro)
            finish_step(task, micro, scalars, moved)
        return runner.meter.finish()


def finish_step(task: Task, micro: MicroBatch, scalars: dict[str, Any], moved: bool) -> None:
    """What follows a step: ``after_update`` of the method, the means of the epoch, and a save or stop if it is due.

    Args:
        scalars, moved: the result of ``runner.step``; ``moved`` is whether the weights were updated.
    """
    runner = task.runner
    method = task.task_method
    if moved and (method.average is not None or method.replaces("after_update")):  # else it does nothing
        with torch.no_grad():
            method.after_update(task)
    runner.meter.add(scalars)
    if micro.closes:
        runner.tick(task)
