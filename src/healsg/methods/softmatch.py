"""SoftMatch: every unlabelled sample is weighted by its confidence (Chen et al. 2023, arXiv 2301.10921)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from healsg.losses.semi import align, hard_cross_entropy, truncated_gaussian
from healsg.methods.consistency import (
    SemiSupervised,
    class_number,
    forward_together,
    masked_mean,
    mean_over,
    mean_over_all,
    probabilities,
    sum_over_all,
)
from healsg.metric import precise
from healsg.training.step import rows_of
from healsg.types import Positive, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class SoftMatch(SemiSupervised):
    """FixMatch with a weight instead of the threshold: a Gaussian of the confidence around its mean, 1 above it
    (equations 5 to 7).

    The confidence is that of predictions aligned with a uniform distribution over classes (section 3.3); the labels are
    those of the predictions before the alignment.

    Args:
        momentum: decay of the moving averages; m. Use a smaller one for a short run: the mean starts at one over the
            number of classes, the variance at 1.
        deviations: divides the standard deviation; 2 in the authors' code.
        alignment: whether predictions are aligned.
        common: the arguments of SemiSupervised.
    """

    records_pseudo_labels = True
    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "averages": "the weights take in the averages of a micro-batch (of all processes)"
    }

    mean: Tensor
    variance: Tensor
    marginal: Tensor

    def __init__(
        self, momentum: Share = 0.999, deviations: Positive = 2.0, alignment: bool = True, **common: Any
    ) -> None:
        super().__init__(**common)
        self.momentum = momentum
        self.deviations = deviations
        self.alignment = alignment

    def setup(self, task: Task) -> None:
        super().setup(task)
        number = class_number(task)
        self.register_buffer("mean", torch.full((), 1.0 / number))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("marginal", torch.full((number,), 1.0 / number))

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        input, _ = self.labelled.inputs(task, labelled)
        output, weak, strong = forward_together(task.net, input, unlabelled["weak"], unlabelled["strong"])
        supervised = self.labelled.loss(task.criterion, labelled, output)

        predicted = probabilities(weak)
        label = predicted.argmax(dim=1)
        confidence = self.confidence(predicted, rows_of(unlabelled, predicted))
        weight = truncated_gaussian(confidence, self.mean, self.variance, self.deviations)
        task.runner.record_pseudo_labels(unlabelled, weak, weight)
        consistency = masked_mean(hard_cross_entropy(strong, label), weight, unlabelled)
        return {
            "loss": supervised + self.unlabelled_weight * consistency,
            "supervised": supervised,
            "unlabelled": consistency.detach(),
            "selected": mean_over(weight, unlabelled),
            "confidence": self.mean.clone(),
            "variance": self.variance.clone(),
        }

    @torch.no_grad()
    def confidence(self, predicted: Tensor, rows: int) -> Tensor:
        """The confidences (N,) of aligned predictions (N, C), after the averages were updated with their first
        ``rows``."""
        share = 1.0 - self.momentum
        if self.alignment:
            self.marginal.lerp_(mean_over_all(predicted, rows).to(self.marginal.dtype), share)
            uniform = torch.full_like(self.marginal, 1.0 / len(self.marginal))
            predicted = align(predicted, self.marginal, uniform)
        confidence = predicted.amax(dim=1)
        mean = mean_over_all(confidence, rows)
        squares, count = sum_over_all((precise(confidence) - mean).square(), rows)
        variance = squares / (count - 1.0).clamp(min=1.0)
        self.mean.lerp_(mean.to(self.mean.dtype), share)
        self.variance.lerp_(variance.to(self.variance.dtype), share)
        return confidence
