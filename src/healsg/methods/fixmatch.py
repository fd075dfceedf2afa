"""FixMatch: confident predictions on weak views are pseudo-labels for strong views (Sohn et al. 2020, arXiv
2001.07685)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from healsg.losses.semi import hard_cross_entropy
from healsg.methods.consistency import (
    SemiSupervised,
    finest,
    forward_together,
    inside,
    masked_mean,
    mean_over,
    probabilities,
)
from healsg.types import Fraction

if TYPE_CHECKING:
    from healsg.protocols import Task


class FixMatch(SemiSupervised):
    """Where the prediction of an unlabelled sample's weak view is confident, it is the label of the strong view
    (equation 4). Where targets are masks, each pixel is a sample of its own.

    Args:
        threshold: the confidence threshold; tau.
        common: the arguments of SemiSupervised.
    """

    dense = True
    records_pseudo_labels = True

    def __init__(self, threshold: Fraction = 0.95, **common: Any) -> None:
        super().__init__(**common)
        self.threshold = threshold

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        input, _ = self.labelled.inputs(task, labelled)
        output, weak, strong = forward_together(task.net, input, unlabelled["weak"], unlabelled["strong"])
        supervised = self.labelled.loss(task.criterion, labelled, output)

        confidence, label = probabilities(finest(weak)).max(dim=1)
        confident = (confidence >= self.threshold).to(confidence.dtype)
        task.runner.record_pseudo_labels(unlabelled, finest(weak), confident)
        counted = inside(unlabelled)
        consistency = masked_mean(hard_cross_entropy(finest(strong), label), confident, unlabelled, counted)
        return {
            "loss": supervised + self.unlabelled_weight * consistency,
            "supervised": supervised,
            "unlabelled": consistency.detach(),
            "selected": mean_over(confident, unlabelled, counted),
        }
