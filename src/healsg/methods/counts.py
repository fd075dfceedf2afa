"""The classes of all training samples, and a memory bank by sample that several processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from healsg import distributed
from healsg.data.loader import Loader
from healsg.errors import ConfigError

if TYPE_CHECKING:
    from healsg.protocols import Task


def labelled_targets(task: Task) -> Tensor:
    """(N,) classes of the training samples, int64 on the CPU, by their index.

    Raises ConfigError if they are not known without reading samples, or a sample does not have exactly one class.
    """
    loader, method = task.train_loader, type(task.task_method).__name__
    source = loader.sources.get("labelled") if isinstance(loader, Loader) else None
    targets = None if source is None else source.targets
    if targets is None:
        raise ConfigError(
            f"method: {method} needs the classes of all training samples; the task's own loader does not define them"
        )
    if targets.is_floating_point() or targets.dim() != 1:
        raise ConfigError(f"method: {method} needs one class a sample, and the targets are {tuple(targets.shape)}")
    return targets.cpu().long()


def class_counts(task: Task) -> Tensor:
    """(C,) how many training samples each class has, int64. Raises ConfigError, as ``labelled_targets``."""
    classes = task.info.num_classes if task.info else 0
    return torch.bincount(labelled_targets(task), minlength=classes)


def remember(memory: Tensor, indices: Tensor, values: Tensor, counts: bool) -> None:
    """Write new values of some samples into a memory bank, with several processes those of all of them. Needs
    ``no_grad``.

    Several processes exchange the change of the whole memory.

    Args:
        memory: (..., samples, D), the same on all processes; changed in place.
        indices: (N,) indices of samples.
        values: (..., N, D) their new values.
        counts: whether the samples are this process's own; a process without samples left repeats those of others.
    """
    parallel = distributed.processes()
    if not parallel.several:
        memory.index_copy_(-2, indices, values)
        return
    change = torch.zeros_like(memory)
    if counts:
        change.index_copy_(-2, indices, values - memory.index_select(-2, indices))
    memory += parallel.sum(change)
