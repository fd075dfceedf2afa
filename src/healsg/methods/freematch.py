"""FreeMatch: thresholds that follow the network's own confidence (Wang et al. 2022, arXiv 2205.07246)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg.losses.classification import log_softmax
from healsg.losses.semi import class_thresholds, fairness, hard_cross_entropy
from healsg.methods.consistency import SemiSupervised, classes, mean_over_all, probabilities
from healsg.methods.gathered import gather
from healsg.training.step import Loss, Mean, rows_of, samples_of
from healsg.types import NonNegative, Share

if TYPE_CHECKING:
    from healsg.task import BasicTask


class FreeMatch(SemiSupervised):
    """FixMatch whose threshold is the mean confidence, by class, and which asks for predictions of all classes.

    Several processes share the averages and the fairness, which is of the batch of all of them; with
    ``runner.accumulate`` it is of each micro-batch.

    Args:
        momentum: of the moving averages: how much of them a batch keeps; lambda. Over a short run take less: they
            begin at one over the number of classes.
        fairness_weight: of the self-adaptive fairness; w_f. 0.01 in the paper with the fewest labels.
        common: the arguments of SemiSupervised and Supervised.
    """

    confidence: Tensor
    marginal: Tensor
    shares: Tensor

    def __init__(self, momentum: Share = 0.999, fairness_weight: NonNegative = 0.05, **common: Any) -> None:
        super().__init__(**common)
        self.momentum, self.fairness_weight = momentum, fairness_weight

    def setup(self, task: BasicTask) -> None:
        super().setup(task)
        number = classes(task)
        self.register_buffer("confidence", torch.full((), 1.0 / number))
        self.register_buffer("marginal", torch.full((number,), 1.0 / number))
        self.register_buffer("shares", torch.full((number,), 1.0 / number))

    def term(self, task: BasicTask, batch: dict[str, Any], *outputs: Tensor) -> tuple[Loss, dict[str, Any]]:
        weak, strong = outputs
        predicted = probabilities(weak)
        confidence, label = predicted.max(dim=1)
        rows, samples = rows_of(batch, label), samples_of(batch)
        self.follow(predicted, confidence, label, rows)
        chosen = confidence >= class_thresholds(self.marginal, self.confidence).to(confidence.dtype)[label]
        term, logs = self.selected(batch, hard_cross_entropy(strong, label), chosen)
        everywhere = gather(log_softmax(strong).exp(), rows), gather(chosen, rows)
        fair = Mean(fairness(*everywhere, self.marginal, self.shares), samples)
        return term + self.fairness_weight * fair, {**logs, "threshold": self.confidence.clone(), "fairness": fair}

    @torch.no_grad()
    def follow(self, predicted: Tensor, confidence: Tensor, label: Tensor, rows: int) -> None:
        """Move the averages of confidence, predictions and classes towards those of a batch."""
        number = predicted.shape[1]
        hits = label[:, None] == torch.arange(number, device=label.device)
        now = mean_over_all(torch.cat([confidence[:, None], predicted, hits.to(predicted.dtype)], dim=1), rows)
        kept = self.confidence, self.marginal, self.shares
        for own, new in zip(kept, (now[0], now[1 : number + 1], now[number + 1 :]), strict=True):
            own.lerp_(new.to(own.dtype), 1.0 - self.momentum)
