"""Random numbers of samples in a training step: each sample has its own, in whatever process and micro-batch it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg.seeding import mix, uniform_of
from healsg.training.step import samples_of

if TYPE_CHECKING:
    from healsg.protocols import Task


def uniform(task: Task, batch: Mapping[str, Any], purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in [0, 1) of a batch's samples, float32 on the device: a pure function of the run's seed, the
    purpose, the epoch and the sample's ``index``. Where the batch has none, as with a loader of the task's own, its
    place in the batch of all processes and the batch's position in the epoch take the place of the index.

    Args:
        batch: the samples, or the stream that they are in.
        purpose: tells several draws for one sample apart.
        shape: (N, ...), of what is drawn for N samples.
    """
    runner = task.runner
    key = mix(runner.plan.shared_seed, purpose, runner.epoch)
    index = batch.get("index")
    if index is None:
        samples = samples_of(batch)
        first = samples.first if samples is not None else 0
        index = torch.arange(first, first + shape[0], device=task.device)
        key = mix(runner.position, state=key)
    return uniform_of(index.to(task.device), key, shape[1:])


def normal(task: Task, batch: Mapping[str, Any], purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of the standard normal distribution; else as ``uniform``."""
    drawn = uniform(task, batch, purpose, shape) + 2.0**-25  # the middle of its step, so that 0 does not occur
    numbers: Tensor = torch.special.ndtri(drawn)
    return numbers
