"""Replay: go over the steps since the last checkpoint again, to find where a number first stopped being finite.

A run is exact, so that the second time goes as the first; only this time every tensor is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from healsg.errors import NotFiniteError
from healsg.halt import Halt

if TYPE_CHECKING:
    from healsg.task import BasicTask

LIMIT = 60.0
"""Seconds after which the search is given up."""


class _Found(Exception):  # noqa: N818 - what is looked for
    pass


class _Watcher:
    """In the place of a keeper and its halt: keeps nothing, and ends a search that takes too long."""

    def __init__(self, halt: Halt) -> None:
        self.halt, self.signals, self.deadline = self, halt, time.monotonic() + LIMIT

    def asked(self) -> bool:
        return self.signals.received is not None or time.monotonic() > self.deadline

    asked_within = asked

    def stop(self, task: BasicTask) -> None:
        raise _Found

    def log_step(self, task: BasicTask) -> None:
        task.runner.meter.recent()

    def save(self, task: BasicTask) -> None:
        pass

    def end_epoch(self, task: BasicTask, numbers: dict[str, Any], best: bool) -> None:
        pass


def first_not_finite(task: BasicTask, state: dict[str, Any], last: int, halt: Halt) -> str | None:
    """The first step after ``state`` up to update ``last``, and the first tensor in it, that is not finite.

    Returns None where the search took too long, or found nothing. The task is of no use afterwards.
    """
    runner, step = task.runner, task.runner.step
    task.load_state_dict(state)
    gradients = list[str]()
    bad_before = {name for name, _ in _bad(task.model)}

    def watched(task: BasicTask, batch: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        number = runner.step_count + 1
        look_at_weights(number - 1)
        for name, rows in _bad_inputs(batch):
            raise _Found(f"step {number}: {name} of the batch is not finite (samples {rows})")
        logs, moved = step(task, batch)
        if not torch.isfinite(logs["loss"]):
            raise _Found(f"step {number}: the loss is {logs['loss'].item()}, of finite inputs and weights")
        if gradients and not runner.place.scaler:
            raise _Found(f"step {number}: the gradient of {gradients[0]} is not finite")
        return logs, moved

    def look_at_weights(number: int) -> None:
        for name, kind in _bad(task.model):
            if name not in bad_before:
                raise _Found(f"step {number}: {kind} {name} is not finite after it")

    def before_update(*_: Any) -> None:
        for name, parameter in task.model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                gradients.append(name)

    hook = task.optimizer.register_step_pre_hook(before_update)
    runner.callbacks, runner.step, runner.keeper = {}, watched, _Watcher(halt)  # type: ignore[assignment,method-assign]
    try:
        while runner.step_count < last and runner.epoch < runner.max_epoch:
            runner.end_epoch(task, task.run_epoch(), 0.0)
        look_at_weights(runner.step_count)
    except _Found as found:
        return str(found) or None
    except NotFiniteError:
        return None
    finally:
        hook.remove()
    return None


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
            told = index.to(rows.device)[rows] if isinstance(index, Tensor) else rows
            yield prefix + name, ", ".join(str(int(row)) for row in told)
