"""Pseudo-Label: the predicted class becomes the label (Lee 2013, ICML Workshop on Challenges in Representation
Learning)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from healsg.errors import ConfigError
from healsg.losses.semi import hard_cross_entropy, linear_ramp
from healsg.methods.consistency import SemiSupervised, forward_together, masked_mean, mean_over, probabilities
from healsg.types import Count, Fraction, NonNegative

if TYPE_CHECKING:
    from healsg.protocols import Task


class PseudoLabel(SemiSupervised):
    """The class that the network predicts of an unlabelled sample, weakly augmented, is its label, with a growing
    weight (equations 15 and 16).

    Args:
        unlabelled_ratio: as for SemiSupervised; 256 unlabelled samples go with 32 labelled ones in the paper.
        unlabelled_weight: the final weight; alpha_f.
        threshold: the confidence threshold of a pseudo-label; 0, as in the paper, takes all.
        ramp_start, ramp_end: the shares of the run between which the weight grows linearly from 0.
        common: the arguments of SemiSupervised.
    """

    views = ("weak",)
    records_pseudo_labels = True

    def __init__(
        self,
        unlabelled_ratio: Count = 8,
        unlabelled_weight: NonNegative = 3.0,
        threshold: Fraction = 0.0,
        ramp_start: Fraction = 0.1,
        ramp_end: Fraction = 0.6,
        **common: Any,
    ) -> None:
        super().__init__(unlabelled_ratio=unlabelled_ratio, unlabelled_weight=unlabelled_weight, **common)
        self.threshold = threshold
        self.ramp_start = ramp_start
        self.ramp_end = ramp_end

    def check(self, task: Task) -> None:
        super().check(task)
        if self.ramp_start > self.ramp_end:
            raise ConfigError(f"method.ramp_start: {self.ramp_start} lies after method.ramp_end={self.ramp_end}")

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        input, _ = self.labelled.inputs(task, labelled)
        output, weak = forward_together(task.net, input, unlabelled["weak"])
        supervised = self.labelled.loss(task.criterion, labelled, output)

        confidence, label = probabilities(weak).max(dim=1)
        confident = (confidence >= self.threshold).to(confidence.dtype)
        task.runner.record_pseudo_labels(unlabelled, weak, confident)
        pseudo = masked_mean(hard_cross_entropy(weak, label), confident, unlabelled)
        growth = linear_ramp(task.runner.step_count / task.runner.total_steps, self.ramp_start, self.ramp_end)
        return {
            "loss": supervised + growth * (self.unlabelled_weight * pseudo),
            "supervised": supervised,
            "unlabelled": pseudo.detach(),
            "selected": mean_over(confident, unlabelled),
        }
