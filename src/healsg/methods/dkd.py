"""Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from healsg.losses.distillation import decoupled
from healsg.methods.teacher import Distilled, ForwardOutput
from healsg.types import Fraction, NonNegative, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask


class DKD(Distilled):
    """Knowledge distillation with weights of their own for a sample's class and for all others, beside the labels.

    Args:
        temperature: what both networks' scores are divided by.
        alpha: the weight of a sample's own class against all others.
        beta: the weight of the others among each other; 8 for resnet32x4 to resnet8x4 on CIFAR-100 (table 11).
        warmup: the share of the run over which the teacher's part rises from 0; the paper takes 20 of 240 epochs.
        common: the arguments of Distilled.
    """

    whole_samples = True

    def __init__(
        self,
        temperature: Positive = 4.0,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 8.0,
        warmup: Fraction = 0.083,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.temperature, self.alpha, self.beta, self.warmup = temperature, alpha, beta, warmup

    def distillation_loss(
        self, task: BasicTask, batch: dict[str, Any], student: ForwardOutput, teacher: ForwardOutput
    ) -> Tensor:
        runner, target = task.runner, batch["target"]
        share = min(1.0, (runner.step_count + 1) / max(1.0, self.warmup * runner.total_steps))
        answers = student.output, teacher.output
        return share * decoupled(*answers, target, self.temperature, self.alpha, self.beta).mean()
