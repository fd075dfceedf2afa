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
from healsg.training.epoch import finish_step
from healsg.training.interrupt import StopSignal

LIMIT = 60.0
"""Seconds after which the search is given up."""


class _Found(Exception):  # noqa: N818 - it ends the search and is no error
    """The search is over; the text says what was found, empty where nothing was."""


class _Limited(Watcher):
    """Takes the place of the checkpointer during the search: saves nothing, and ends one that takes too long."""

    def __init__(self, stop_signal: StopSignal) -> None:
        self.stop_signal = stop_signal
        self.deadline = time.monotonic() + LIMIT

    def updated(self, task: Task) -> None:
        if self.stop_signal.received is not None or time.monotonic() > self.deadline:
            raise _Found

    def evaluating(self, task: Task) -> None:
        self.updated(task)


def first_not_finite(task: Task, state: dict[str, Any], last: int, stop_signal: StopSignal) -> str | None:
    """The first step after ``state`` up to update ``last``, and the first tensor in it, that is not finite.

    Returns None where the search took too long, or found nothing. The task is of no use afterwards.
    """
    runner = task.runner
    task.load_state_dict(state)
    exempt = {name for name, _ in _bad(task.model)}
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
            _look_at_weights(task, exempt)
    except _Found as found:
        return str(found) or None
    except NotFiniteError:
        return None
    finally:
        hook.remove()
    return None


def _epoch(task: Task, exempt: set[str], gradients: list[str]) -> None:
    """Repeat an epoch, and check every tensor. Raises _Found.

    Args:
        exempt: weights and buffers that were not finite from the beginning.
        gradients: takes the names of those that are not finite at an update.
    """
    runner = task.runner
    task.net.train()
    for batch, micro in runner.train_batches(task):
        step = runner.step_count + 1
        _look_at_weights(task, exempt)
        for name, rows in _bad_inputs(batch):
            raise _Found(f"step {step}: {name} of the batch is not finite (samples {rows})")
        scalars, moved = runner.step(task, batch, micro)
        if not torch.isfinite(scalars["loss"]):
            raise _Found(f"step {step}: the loss is {scalars['loss'].item()}, of finite inputs and weights")
        if gradients and not runner.device_setup.scaler:
            raise _Found(f"step {step}: the gradient of {gradients[0]} is not finite")
        finish_step(task, micro, scalars, moved)
    train = runner.meter.finish()
    runner.measured(task, {"train": train, "val": task.val_epoch.run() if runner.eval_due() else {}}, 0.0)
    runner.next_epoch()


def _look_at_weights(task: Task, exempt: set[str]) -> None:
    for name, kind in _bad(task.model):
        if name not in exempt:
            raise _Found(f"step {task.runner.step_count}: {kind} {name} is not finite after it")


def _bad(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The weights and buffers that are not finite, with what they are."""
    for kind, tensors in (("the weight", model.named_parameters()), ("the buffer", model.named_buffers())):
        for name, value in tensors:
            if value.is_floating_point() and not torch.isfinite(value).all():
                yield name, kind


def _bad_inputs(batch: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The tensors of a batch that are not finite, with the indices of the first samples in which."""
    for name, value in batch.items():
        if isinstance(value, dict):
            yield from _bad_inputs(value, f"{name}.")
        elif isinstance(value, Tensor) and value.is_floating_point() and not (finite := torch.isfinite(value)).all():
            rows = (~finite.flatten(1).all(1) if value.dim() > 1 else ~finite).nonzero().flatten()[:5]
            index = batch.get("index")
            samples = index.to(rows.device)[rows] if isinstance(index, Tensor) else rows
            yield prefix + name, ", ".join(str(int(sample)) for sample in samples)
