"""Early-learning regularisation: learning with noisy labels (Liu et al. 2020, arXiv 2007.00151)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg.errors import ConfigError
from healsg.losses.classification import early_learning, log_softmax
from healsg.methods.counts import class_counts, labelled_targets, remember
from healsg.methods.supervised import Supervised
from healsg.training.step import Loss, rows_of
from healsg.types import NonNegative, Share

if TYPE_CHECKING:
    from healsg.task import BasicTask


class EarlyLearning(Supervised):
    """Keep to what was predicted of each sample before wrong labels are learned by heart.

    Several processes tell each other what to remember: as many numbers a step as samples times classes.

    Args:
        beta: how much of a sample's remembered prediction an epoch keeps; 0.7 on CIFAR-10, 0.9 on CIFAR-100.
        weight: of the regulariser; 3 on CIFAR-10, 7 on CIFAR-100.
        common: the arguments of Supervised.
    """

    counts_classes = True
    mean_over_samples = False  # what is remembered moves with the forward pass, so that no batch is tried twice
    remembered: Tensor

    def __init__(self, beta: Share = 0.7, weight: NonNegative = 3.0, **common: Any) -> None:
        super().__init__(**common)
        self.beta, self.weight = beta, weight

    def check(self, task: BasicTask) -> None:
        super().check(task)
        if self.mixup or self.cutmix:
            raise ConfigError("method: elr remembers each sample's own prediction; set method.mixup and cutmix to 0")

    def setup(self, task: BasicTask) -> None:
        super().setup(task)
        self.register_buffer("remembered", torch.zeros(len(labelled_targets(task)), len(class_counts(task))))

    def loss(self, task: BasicTask, batch: dict[str, Any], output: Tensor, target: Tensor) -> Tensor | Loss:
        places = batch["index"]
        with torch.no_grad():
            predicted = log_softmax(output.detach()).exp().clamp(1e-4, 1.0 - 1e-4)
            predicted = (predicted / predicted.sum(dim=1, keepdim=True)).to(self.remembered.dtype)
            remembered = torch.lerp(predicted, self.remembered[places], self.beta)
            remember(self.remembered, places, remembered, counts=rows_of(batch, places) > 0)
        return super().loss(task, batch, output, target) + self.weight * early_learning(output, remembered).mean()
