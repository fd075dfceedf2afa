"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg.data.base import Needs
from healsg.errors import ConfigError
from healsg.losses.distillation import soft_targets
from healsg.methods.teacher import Distilled
from healsg.training.step import Loss, Mean, Samples, joined_samples, samples_of
from healsg.types import Fraction, Natural, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class KD(Distilled):
    """Match the teacher's probabilities at a raised temperature, in addition to learning from the labels, also on
    unlabelled samples.

    ``(1 - alpha) CE + alpha T^2 KL`` (section 2). RepDistiller (Tian et al. 2020, arXiv 1910.10699, table 1) has T = 4
    and alpha = 0.9.

    Args:
        temperature: T, divides the logits of both networks.
        alpha: the weight of the distillation loss; 1 ignores the labels.
        unlabelled_ratio: unlabelled samples per labelled sample in a batch, which have the distillation loss alone; 0
            takes none.
        common: the arguments of Distilled.
    """

    takes_shards = True

    def __init__(
        self, temperature: Positive = 4.0, alpha: Fraction = 0.9, unlabelled_ratio: Natural = 0, **common: Any
    ) -> None:
        super().__init__(**common)
        self.temperature = temperature
        self.alpha = alpha
        if unlabelled_ratio:
            streams = {"labelled": ("input",), "unlabelled": ("input",)}
            self.needs = Needs(streams, {"unlabelled": unlabelled_ratio})

    def check(self, task: Task) -> None:
        super().check(task)
        if task.runner.auto_accumulate and not self.needs.flat:
            raise ConfigError(
                "runner.auto_accumulate: batches of several streams are not taken in pieces; set it to false"
            )

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled = batch if self.needs.flat else batch["labelled"]
        input, mixed = self.labelled.inputs(task, labelled)
        rows = len(input)
        if not self.needs.flat:
            input = torch.cat([input, batch["unlabelled"]["input"]])
        teacher = self.teach(input).output
        student = task.net(input)

        divergence = self.alpha * soft_targets(student, teacher, self.temperature).mean()
        distillation = divergence if self.needs.flat else Mean(divergence, all_samples(batch))
        loss: Tensor | Loss = distillation
        if self.alpha < 1.0:
            labels = self.labelled.loss(task.criterion, labelled, student[:rows], mixed)
            loss = (1.0 - self.alpha) * labels + distillation
        return {"loss": loss, "distillation": distillation.detach()}


def all_samples(batch: dict[str, Any]) -> Samples | None:
    """The labelled and the unlabelled samples of a batch together."""
    labelled, unlabelled = samples_of(batch["labelled"]), samples_of(batch["unlabelled"])
    return joined_samples(labelled, unlabelled) if labelled and unlabelled else None
