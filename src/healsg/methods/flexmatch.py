"""FlexMatch: FixMatch with a threshold for each class (Zhang et al. 2021, arXiv 2110.08263)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg import distributed
from healsg.errors import ConfigError
from healsg.losses.semi import curriculum_thresholds, hard_cross_entropy
from healsg.methods.consistency import SemiSupervised, classes, probabilities, unlabelled
from healsg.training.step import Loss, rows_of
from healsg.types import Fraction

if TYPE_CHECKING:
    from healsg.task import BasicTask


class FlexMatch(SemiSupervised):
    """Ask less of the classes of which fewer unlabelled samples are predicted surely so far.

    Several processes tell each other what to remember: a number a step for each unlabelled sample.

    Args:
        threshold: the probability from which a prediction is sure, and what is asked of the class learned best; tau.
        common: the arguments of SemiSupervised and Supervised.
    """

    remembered: Tensor

    def __init__(self, threshold: Fraction = 0.95, **common: Any) -> None:
        super().__init__(**common)
        self.threshold = threshold

    def setup(self, task: BasicTask) -> None:
        super().setup(task)
        source = unlabelled(task)
        if source is None:
            raise ConfigError("method: FlexMatch remembers every unlabelled sample; the task's own loader tells none")
        self.number = classes(task)
        self.register_buffer("remembered", torch.full((len(source),), -1))

    def term(self, task: BasicTask, batch: dict[str, Any], *outputs: Tensor) -> tuple[Loss, dict[str, Any]]:
        weak, strong = outputs
        confidence, label = probabilities(weak).max(dim=1)
        thresholds = curriculum_thresholds(self.remembered, self.number, self.threshold).to(confidence.dtype)
        term, logs = self.selected(batch, hard_cross_entropy(strong, label), confidence > thresholds[label])
        sure = confidence > self.threshold if rows_of(batch, label) else torch.zeros_like(label, dtype=torch.bool)
        self.remember(batch["index"], torch.where(sure, label, -1))
        return term, {**logs, "threshold": thresholds.mean()}

    def remember(self, places: Tensor, label: Tensor) -> None:
        """Put the classes (N,) of the sure predictions in their places; -1 is not sure and changes nothing.

        Of a sample that several processes or places of a batch bring, the last class counts.
        """
        told = torch.full_like(self.remembered, -1).scatter_reduce_(0, places, label, "amax")
        if distributed.launched():
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        self.remembered.copy_(torch.where(told >= 0, told, self.remembered))
