"""Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from healsg.losses.distillation import decoupled
from healsg.methods.teacher import Distilled
from healsg.types import Fraction, NonNegative, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class DKD(Distilled):
    """Knowledge distillation with separate weights for the target class and for the other classes, in addition to
    learning from the labels (equation 7).

    Args:
        temperature: T, divides the logits of both networks.
        alpha: the weight of target-class distillation (TCKD).
        beta: the weight of non-target-class distillation (NCKD); 8 for resnet32x4 to resnet8x4 on CIFAR-100 (table 11).
        warmup: the share of the run over which the distillation loss rises from 0; the paper takes 20 of 240 epochs.
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
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.warmup = warmup

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, _ = self.labelled.inputs(task, batch)
        teacher = self.teach(input).output
        student = task.net(input)

        runner = task.runner
        warmup = min(1.0, (runner.step_count + 1) / max(1.0, self.warmup * runner.total_steps))
        losses = decoupled(student, teacher, batch["target"], self.temperature, self.alpha, self.beta)
        distillation = warmup * losses.mean()
        labels = self.labelled.loss(task.criterion, batch, student)
        return {"loss": labels + distillation, "distillation": distillation.detach()}
