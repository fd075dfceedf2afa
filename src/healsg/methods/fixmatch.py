"""FixMatch: confident predictions of weak views are the labels of strong ones (Sohn et al. 2020, arXiv 2001.07685)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from healsg.losses.semi import hard_cross_entropy
from healsg.methods.consistency import SemiSupervised, probabilities
from healsg.training.step import Loss
from healsg.types import Fraction

if TYPE_CHECKING:
    from healsg.task import BasicTask


class FixMatch(SemiSupervised):
    """Learn the class that the weak view of an unlabelled sample is surely of on its strong view.

    Args:
        threshold: the probability from which a prediction is sure; tau.
        common: the arguments of SemiSupervised and Supervised.
    """

    def __init__(self, threshold: Fraction = 0.95, **common: Any) -> None:
        super().__init__(**common)
        self.threshold = threshold

    def term(self, task: BasicTask, batch: dict[str, Any], *outputs: Tensor) -> tuple[Loss, dict[str, Any]]:
        weak, strong = outputs
        confidence, label = probabilities(weak).max(dim=1)
        return self.selected(batch, hard_cross_entropy(strong, label), confidence >= self.threshold)
