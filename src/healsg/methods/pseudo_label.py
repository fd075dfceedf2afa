"""Pseudo-Label: the class that is predicted is taken for the label (Lee 2013, ICML Workshop on Challenges in
Representation Learning)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from healsg.errors import ConfigError
from healsg.losses.semi import hard_cross_entropy, linear_ramp
from healsg.methods.consistency import SemiSupervised, probabilities
from healsg.training.step import Loss
from healsg.types import Count, Fraction, NonNegative

if TYPE_CHECKING:
    from healsg.task import BasicTask


class PseudoLabel(SemiSupervised):
    """Learn of each unlabelled sample, weakly augmented, the class that the network gives it, with a growing weight.

    Args:
        unlabelled_ratio: as for SemiSupervised; 256 unlabelled samples go with 32 labelled ones in the paper.
        unlabelled_weight: what the weight grows to; alpha_f.
        threshold: the probability from which a prediction is taken; 0, as in the paper, takes all.
        ramp_start, ramp_end: the shares of the run between which the weight grows from 0 in a straight line.
        common: the arguments of SemiSupervised and Supervised.
    """

    views = ("weak",)

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
        self.threshold, self.ramp_start, self.ramp_end = threshold, ramp_start, ramp_end

    def check(self, task: BasicTask) -> None:
        super().check(task)
        if self.ramp_start > self.ramp_end:
            raise ConfigError(f"method.ramp_start: {self.ramp_start} lies after method.ramp_end={self.ramp_end}")

    def term(self, task: BasicTask, batch: dict[str, Any], *outputs: Tensor) -> tuple[Loss, dict[str, Any]]:
        confidence, label = probabilities(outputs[0]).max(dim=1)
        grown = linear_ramp(task.runner.step_count / task.runner.total_steps, self.ramp_start, self.ramp_end)
        term, logs = self.selected(batch, hard_cross_entropy(outputs[0], label), confidence >= self.threshold)
        return grown * term, logs
