"""One pass over a split: ``TrainEpoch`` learns, ``EvalEpoch`` measures. Both are objects with ``run() -> dict``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from healsg.protocols import Task
    from healsg.training.step import MicroBatch


class TrainEpoch:
    """One pass over the training data, from the run's position in it.

    Args:
        task: the trained task, whose method is set up.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.follows_updates = task.task_method.follows_updates

    def run(self) -> dict[str, float]:
        """Train; returns the means of the steps' scalars over the whole epoch, e.g. ``{"loss": 0.31}``."""
        task, runner = self.task, self.task.runner
        task.net.train()
        for batch, micro in runner.train_batches(task):
            scalars, updated = runner.step(task, batch, micro)
            self.finish_step(micro, scalars, updated)
        return runner.meter.finish()

    def finish_step(self, micro: MicroBatch, scalars: dict[str, Any], updated: bool) -> None:
        """What follows a step: ``after_update`` of the method, the means of the epoch, and a save or stop if it is due.

        Args:
            micro: the step's micro-batch.
            scalars: its result, with their counts.
            updated: whether the weights were updated.
        """
        task = self.task
        runner = task.runner
        if updated and self.follows_updates:
            with torch.no_grad():
                task.task_method.after_update(task)
        runner.meter.add(scalars)
        if micro.closes:
            runner.tick(task)
