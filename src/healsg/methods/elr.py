"""Early-learning regularisation: learning with noisy labels (Liu et al. 2020, arXiv 2007.00151)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg.losses.classification import early_learning, log_softmax
from healsg.methods.counts import class_counts, labelled_targets, remember
from healsg.methods.supervised import Supervised
from healsg.training.step import rows_of
from healsg.types import NonNegative, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class EarlyLearning(Supervised):
    """Stay near the moving average of each sample's own predictions, made before wrong labels are memorised (section
    4).

    Several processes exchange the moving averages: as many numbers a step as samples times classes.

    Args:
        beta: decay of a sample's moving average, by epoch; 0.7 on CIFAR-10, 0.9 on CIFAR-100.
        weight: of the regulariser, lambda; 3 on CIFAR-10, 7 on CIFAR-100.
        common: the arguments of Supervised.
    """

    needs_one_class = True
    mean_over_samples = False  # the moving averages are updated in the forward pass, so that no batch may be retried
    remembered: Tensor

    def __init__(self, beta: Share = 0.7, weight: NonNegative = 3.0, **common: Any) -> None:
        super().__init__(**common)
        self.beta = beta
        self.weight = weight

    def check(self, task: Task) -> None:
        super().check(task)
        self.labelled.refuse_mixing("elr remembers the prediction of each sample as it is")

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.register_buffer("remembered", torch.zeros(len(labelled_targets(task)), len(class_counts(task))))

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, _ = self.labelled.inputs(task, batch)
        output = task.net(input)
        remembered = self.remember(batch, output.detach())
        regulariser = early_learning(output, remembered).mean()
        return {"loss": self.labelled.loss(task.criterion, batch, output) + self.weight * regulariser}

    @torch.no_grad()
    def remember(self, batch: dict[str, Any], output: Tensor) -> Tensor:
        """Move the stored predictions of a batch's samples towards the current ones (equation 5); returns the new
        values (N, C)."""
        index = batch["index"]
        predicted = log_softmax(output).exp().clamp(1e-4, 1.0 - 1e-4)
        predicted = (predicted / predicted.sum(dim=1, keepdim=True)).to(self.remembered.dtype)
        remembered = torch.lerp(predicted, self.remembered[index], self.beta)
        remember(self.remembered, index, remembered, counts=rows_of(batch, index) > 0)
        return remembered
