"""FreeMatch: thresholds that follow the network's own confidence (Wang et al. 2022, arXiv 2205.07246)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from healsg.losses.classification import log_softmax
from healsg.losses.semi import class_thresholds, fairness, hard_cross_entropy
from healsg.methods.consistency import (
    SemiSupervised,
    class_number,
    forward_together,
    masked_mean,
    mean_over,
    mean_over_all,
    probabilities,
)
from healsg.methods.gathered import gather
from healsg.training.step import Mean, rows_of, samples_of
from healsg.types import NonNegative, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class FreeMatch(SemiSupervised):
    """FixMatch whose threshold is the moving average of the confidence, scaled by class (equations 5 to 8), with a
    fairness term that balances predictions over the classes (equations 9 to 12).

    Several processes share the averages, and the fairness term covers the batch of all of them; with
    ``runner.accumulate`` it covers each micro-batch.

    Args:
        momentum: decay of the moving averages; lambda. Use a smaller one for a short run: they start at one over the
            number of classes.
        fairness_weight: of the self-adaptive fairness; w_f. 0.01 in the paper with the fewest labels.
        common: the arguments of SemiSupervised.
    """

    records_pseudo_labels = True
    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "averages": "thresholds and fairness take in the averages of a micro-batch (of all processes)"
    }

    confidence: Tensor
    marginal: Tensor
    shares: Tensor

    def __init__(self, momentum: Share = 0.999, fairness_weight: NonNegative = 0.05, **common: Any) -> None:
        super().__init__(**common)
        self.momentum = momentum
        self.fairness_weight = fairness_weight

    def setup(self, task: Task) -> None:
        super().setup(task)
        number = class_number(task)
        self.register_buffer("confidence", torch.full((), 1.0 / number))
        self.register_buffer("marginal", torch.full((number,), 1.0 / number))
        self.register_buffer("shares", torch.full((number,), 1.0 / number))

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        input, _ = self.labelled.inputs(task, labelled)
        output, weak, strong = forward_together(task.net, input, unlabelled["weak"], unlabelled["strong"])
        supervised = self.labelled.loss(task.criterion, labelled, output)

        predicted = probabilities(weak)
        confidence, label = predicted.max(dim=1)
        rows = rows_of(unlabelled, label)
        self.move_averages(predicted, confidence, label, rows)
        thresholds = class_thresholds(self.marginal, self.confidence).to(confidence.dtype)
        confident = confidence >= thresholds[label]
        mask = confident.to(confidence.dtype)
        task.runner.record_pseudo_labels(unlabelled, weak, mask)
        consistency = masked_mean(hard_cross_entropy(strong, label), mask, unlabelled)

        all_strong, all_confident = gather(log_softmax(strong).exp(), rows), gather(confident, rows)
        fair = Mean(fairness(all_strong, all_confident, self.marginal, self.shares), samples_of(unlabelled))
        return {
            "loss": supervised + (self.unlabelled_weight * consistency + self.fairness_weight * fair),
            "supervised": supervised,
            "unlabelled": consistency.detach(),
            "selected": mean_over(mask, unlabelled),
            "threshold": self.confidence.clone(),
            "fairness": fair,
        }

    @torch.no_grad()
    def move_averages(self, predicted: Tensor, confidence: Tensor, label: Tensor, rows: int) -> None:
        """Move the averages of confidence, predictions and predicted classes towards those of a batch.

        Args:
            predicted: (N, C) probabilities of the weak views.
            confidence, label: (N,) the largest of them, and their class.
            rows: how many of them count, the first ones.
        """
        number = predicted.shape[1]
        hits = (label[:, None] == torch.arange(number, device=label.device)).to(predicted.dtype)
        means = mean_over_all(torch.cat([confidence[:, None], predicted, hits], dim=1), rows)
        share = 1.0 - self.momentum
        self.confidence.lerp_(means[0].to(self.confidence.dtype), share)
        self.marginal.lerp_(means[1 : number + 1].to(self.marginal.dtype), share)
        self.shares.lerp_(means[number + 1 :].to(self.shares.dtype), share)
