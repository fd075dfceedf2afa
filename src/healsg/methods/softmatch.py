"""SoftMatch: every unlabelled sample counts, by its confidence (Chen et al. 2023, arXiv 2301.10921)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg.losses.semi import align, hard_cross_entropy, truncated_gaussian
from healsg.methods.consistency import SemiSupervised, classes, mean_over_all, probabilities, sum_over_all
from healsg.metric import precise
from healsg.training.step import Loss, rows_of
from healsg.types import Positive, Share

if TYPE_CHECKING:
    from healsg.task import BasicTask


class SoftMatch(SemiSupervised):
    """FixMatch with a weight in the place of a threshold: a Gaussian around the mean confidence, 1 above it.

    The confidence is that of predictions aligned with equally many samples of each class; the labels are those of the
    predictions as they are.

    Args:
        momentum: of the moving averages: how much of them a batch keeps; m. Over a short run take less: the mean
            begins at one over the number of classes, the variance at 1.
        deviations: what the standard deviation is divided by.
        alignment: whether predictions are aligned.
        common: the arguments of SemiSupervised and Supervised.
    """

    mean: Tensor
    variance: Tensor
    marginal: Tensor

    def __init__(
        self, momentum: Share = 0.999, deviations: Positive = 2.0, alignment: bool = True, **common: Any
    ) -> None:
        super().__init__(**common)
        self.momentum, self.deviations, self.alignment = momentum, deviations, alignment

    def setup(self, task: BasicTask) -> None:
        super().setup(task)
        number = classes(task)
        self.register_buffer("mean", torch.full((), 1.0 / number))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("marginal", torch.full((number,), 1.0 / number))

    def term(self, task: BasicTask, batch: dict[str, Any], *outputs: Tensor) -> tuple[Loss, dict[str, Any]]:
        weak, strong = outputs
        predicted = probabilities(weak)
        confidence = self.follow(predicted, rows_of(batch, predicted))
        weight = truncated_gaussian(confidence, self.mean, self.variance, self.deviations)
        term, logs = self.selected(batch, hard_cross_entropy(strong, predicted.argmax(dim=1)), weight)
        return term, {**logs, "confidence": self.mean.clone(), "variance": self.variance.clone()}

    @torch.no_grad()
    def follow(self, predicted: Tensor, rows: int) -> Tensor:
        """Move the averages towards those of a batch, whose first ``rows`` count; its confidences (N,)."""
        share = 1.0 - self.momentum
        if self.alignment:
            self.marginal.lerp_(mean_over_all(predicted, rows).to(self.marginal.dtype), share)
            predicted = align(predicted, self.marginal, torch.full_like(self.marginal, 1.0 / len(self.marginal)))
        confidence = predicted.amax(dim=1)
        mean = mean_over_all(confidence, rows)
        squares, count = sum_over_all((precise(confidence) - mean).square(), rows)
        variance = squares / (count - 1.0).clamp(min=1.0)
        self.mean.lerp_(mean.to(self.mean.dtype), share)
        self.variance.lerp_(variance.to(self.variance.dtype), share)
        return confidence
