"""Replay: repeat the steps since the last checkpoint, to find the first tensor that is not finite.

Runs are exactly reproducible, so the repeated steps are the same; this time every tensor is checked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from healsg.errors import NotFiniteError
from healsg.protocols import Task, Watcher
from healsg.training.interrupt import StopSignal

LIMIT = 60.0
"""Seconds after which the search is given up."""


class _SearchEnded(Exception):  # noqa: N818 - it is not an error
    """The search has ended; the text is its result, empty if nothing was found."""


class _Limited(Watcher):
    """Replaces the checkpointer during the search: saves nothing, and ends a search that takes too long."""

    def __init__(self, stop_signal: StopSignal) -> None:
        self.stop_signal = stop_signal
        self.deadline = time.monotonic() + LIMIT

    def updated(self, task: Task) -> None:
        if self.stop_signal.received is not None or time.monotonic() > self.deadline:
            raise _SearchEnded

    def evaluating(self, task: Task) -> None:
        self.updated(task)


def first_not_finite(task: Task, state: dict[str, Any], last: int, stop_signal: StopSignal) -> str | None:
    """Describe the first tensor that is not finite, and its step, from the step after ``state`` to update ``last``.

    Returns None if the search took too long or found nothing. The task cannot be used afterwards.
    """
    runner = task.runner
    task.load_state_dict(state)
    exempt = {name for name, _ in _not_finite(task.model)}
    gradients: list[str] = []

    def before_update(*_: Any) -> None:
        for name, parameter in task.model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                gradients.append(name)

    hook = task.optimizer.register_step_pre_hook(before_update)
    try:
        with runner.reporting_to(_Limited(stop_signal)):
            while runner.step_count < last and runner.epoch < runner.max_epoch:
                _epoch(task, exempt, gradients)
            _check_weights(task, exempt)
    except _SearchEnded as end:
        return str(end) or None
    except NotFiniteError:
        return None
    finally:
        hook.remove()
    return None


def _epoch(task: Task, exempt: set[str], gradients: list[str]) -> None:
    """Repeat an epoch and check every tensor. Raises _SearchEnded.

    Args:
        exempt: weights and buffers that are not finite in the checkpoint already (e.g. attention masks).
        gradients: filled with the names of parameters whose gradient is not finite at an update.
    """
    runner = task.runner
    runner.seed_epoch(task, "epoch")
    task.net.train()
    for batch, micro in runner.train_batches(task):
        step = runner.step_count + 1
        _check_weights(task, exempt)
        for name, rows in _inputs_not_finite(batch):
            raise _SearchEnded(f"step {step}: {name} of the batch is not finite (samples {rows})")
        scalars, updated = runner.step(task, batch, micro)
        if not torch.isfinite(scalars["loss"]):
            raise _SearchEnded(f"step {step}: the loss is {scalars['loss'].item()}, of finite inputs and weights")
        if gradients and not runner.device_setup.scaler:
            raise _SearchEnded(f"step {step}: the gradient of {gradients[0]} is not finite")
        task.train_epoch.finish_step(micro, scalars, updated)
    train = runner.meter.finish()
    results = {"train": train, "val": task.val_epoch.run() if runner.eval_due() else {}}
    directions = task.directions()
    runner.seed_epoch(task, "epoch end")
    numbers = runner.epoch_numbers(task, results, 0.0)
    runner.step_epoch_schedule(task, numbers, directions)
    runner.best_tracker.update(numbers, directions)
    runner.next_epoch()


def _check_weights(task: Task, exempt: set[str]) -> None:
    for name, kind in _not_finite(task.model):
        if name not in exempt:
            raise _SearchEnded(f"step {task.runner.step_count}: {kind} {name} is not finite after it")


def _not_finite(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of weights and buffers that are not finite, with ``the weight`` or ``the buffer``."""
    for kind, tensors in (("the weight", model.named_parameters()), ("the buffer", model.named_buffers())):
        for name, value in tensors:
            if value.is_floating_point() and not torch.isfinite(value).all():
                yield name, kind


def _inputs_not_finite(batch: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The names of tensors of a batch that are not finite, with the indices of the first samples affected."""
    for name, value in batch.items():
        if isinstance(value, dict):
            yield from _inputs_not_finite(value, f"{name}.")
        elif isinstance(value, Tensor) and value.is_floating_point() and not (finite := torch.isfinite(value)).all():
            rows = (~finite.flatten(1).all(1) if value.dim() > 1 else ~finite).nonzero().flatten()[:5]
            index = batch.get("index")
            samples = index.to(rows.device)[rows] if isinstance(index, Tensor) else rows
            yield prefix + name, ", ".join(str(int(sample)) for sample in samples)
