"""Per-sample random numbers of a training step, independent of a sample's process and micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from healsg.parts import declares
from healsg.seeding import mix, uniform_of
from healsg.training.step import samples_of

if TYPE_CHECKING:
    from healsg.protocols import Task


def only_from_torch(task: Task) -> bool:
    """Whether it is certain that training steps draw random numbers from torch's generators alone.

    The classes of the method, the model, the runner, the criterion, the optimizer and a schedule that is stepped with
    each update declare it (``TaskMethod.draws_only_from_torch``); torch's own criteria and optimizers draw nothing.
    Otherwise Python's and NumPy's generators are seeded before each step too, since a mixup with ``numpy.random.beta``
    would draw other numbers in a resumed run.
    """
    if task.custom_network or task.custom_epoch:
        return False
    parts: list[object] = [task.task_method, task.task_model, task.runner, task.criterion, task.optimizer]
    if task.scheduler is not None and task.interval == "update":
        parts.append(task.scheduler)
    return all(declares(part, "draws_only_from_torch") or _is_of_torch(part) for part in parts)


def _is_of_torch(part: object) -> bool:
    """Whether a criterion or an optimizer is one of torch's own, and no subclass."""
    kind = type(part)
    return any(getattr(package, kind.__name__, None) is kind for package in (nn, torch.optim))


def uniform(task: Task, batch: Mapping[str, Any], purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Per-sample uniform numbers in [0, 1), float32 on the device: a pure function of the run's seed, the purpose, the
    epoch and the sample's ``index``. If the batch has no ``index``, as with a task's own loader, the sample's position
    in the batch of all processes and the batch's position in the epoch are used instead.

    Args:
        batch: the samples, or the stream that contains them.
        purpose: distinguishes several draws for one sample.
        shape: (N, ...), of the numbers for N samples.
    """
    runner = task.runner
    key = mix(runner.plan.shared_seed, purpose, runner.epoch)
    index = batch.get("index")
    if index is None:
        samples = samples_of(batch)
        first = samples.first if samples is not None else 0
        index = torch.arange(first, first + shape[0], device=task.device)
        key = mix(runner.batch_count, state=key)
    return uniform_of(index.to(task.device), key, shape[1:])


def normal(task: Task, batch: Mapping[str, Any], purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Per-sample standard normal numbers; see ``uniform``."""
    quantiles = uniform(task, batch, purpose, shape) + 2.0**-25  # half the resolution of uniform, so that 0 is excluded
    numbers: Tensor = torch.special.ndtri(quantiles)
    return numbers
