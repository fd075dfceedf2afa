"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from healsg.data.base import Needs
from healsg.errors import ConfigError
from healsg.losses.distillation import soft_targets
from healsg.methods.teacher import Distilled, ForwardOutput
from healsg.types import Fraction, Natural, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask


class KD(Distilled):
    """Learn the teacher's probabilities at a raised temperature beside the labels; also where there are no labels.

    ``(1 - alpha) CE + alpha T^2 KL``. RepDistiller (Tian et al. 2020, arXiv 1910.10699, table 1) has T = 4, alpha 0.9.

    Args:
        temperature: T, what both networks' scores are divided by.
        alpha: the teacher's share of the loss; 1 leaves the labels aside.
        unlabelled_ratio: unlabelled samples of a batch for each labelled one, of which the teacher alone tells; 0 takes
            none.
        common: the arguments of Distilled.
    """

    def __init__(
        self, temperature: Positive = 4.0, alpha: Fraction = 0.9, unlabelled_ratio: Natural = 0, **common: Any
    ) -> None:
        super().__init__(**common)
        self.temperature, self.alpha = temperature, alpha
        if unlabelled_ratio:
            streams = {"labelled": ("input",), "unlabelled": ("input",)}
            self.needs = Needs(streams, {"unlabelled": unlabelled_ratio})

    def check(self, task: BasicTask) -> None:
        super().check(task)
        if task.runner.auto_accumulate and not self.needs.flat:
            raise ConfigError(
                "runner.auto_accumulate: batches of several streams are not taken in pieces; set it to false"
            )

    def label_share(self, task: BasicTask) -> float:
        return 1.0 - self.alpha

    def distillation_loss(
        self, task: BasicTask, batch: dict[str, Any], student: ForwardOutput, teacher: ForwardOutput
    ) -> Tensor:
        return self.alpha * soft_targets(student.output, teacher.output, self.temperature).mean()
