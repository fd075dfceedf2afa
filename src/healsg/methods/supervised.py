"""Supervised learning: the loss of the model on labelled samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from healsg.errors import ConfigError
from healsg.method import Scheduler, TaskMethod
from healsg.types import Share

if TYPE_CHECKING:
    from healsg.task import BasicTask


class Supervised(TaskMethod):
    """Minimise ``task.criterion`` on labelled samples, with any optimizer and any schedule.

    Args:
        optimizer, scheduler, decay_norms_and_biases: see ``TaskMethod``.
        label_smoothing: the share of the target's probability that is spread evenly over all classes (Szegedy et al.
            2016, arXiv 1512.00567, section 7). The criterion must take class probabilities.
    """

    mean_over_samples = True

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Scheduler | None = None,
        decay_norms_and_biases: bool = True,
        label_smoothing: Share = 0.0,
    ) -> None:
        super().__init__(optimizer, scheduler, decay_norms_and_biases)
        self.label_smoothing = label_smoothing

    def setup(self, task: BasicTask) -> None:
        if self.label_smoothing and not takes_probabilities(task.criterion):
            raise ConfigError(
                f"method.label_smoothing: {type(task.criterion).__name__} takes no class probabilities; set it to 0"
            )

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
        output = task.net(batch["input"])
        target = batch["target"]
        if self.label_smoothing:
            target = smooth(target, output, self.label_smoothing)
        return {"loss": task.criterion(output, target)}


def smooth(target: Tensor, output: Tensor, share: float) -> Tensor:
    """Class probabilities of ``output``'s shape (N, C, ...) from indices (N, ...): ``share`` spread evenly over all."""
    even = share / output.shape[1]
    dtype = torch.promote_types(output.dtype, torch.float32)
    return torch.full_like(output, even, dtype=dtype).scatter_(1, target.unsqueeze(1), 1.0 - share + even)


def takes_probabilities(criterion: nn.Module) -> bool:
    """Whether ``criterion(output, target)`` accepts class probabilities in the place of indices."""
    weight = getattr(criterion, "weight", None)
    classes = len(weight) if isinstance(weight, Tensor) and weight.dim() else 2
    scores = torch.zeros(2, classes)
    try:
        return bool(torch.isfinite(criterion(scores, torch.full_like(scores, 1 / classes))).all())
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
