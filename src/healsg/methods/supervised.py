"""Supervised learning: the loss of the model on labelled samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from healsg.method import TaskMethod
from healsg.methods.labelled import LabelledSamples
from healsg.types import Fraction, NonNegative, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class Supervised(TaskMethod):
    """Minimise ``task.criterion`` on labelled samples, with any optimizer and any schedule.

    A published method that learns from labelled samples only is a subclass with its own ``train_step``.

    Args:
        label_smoothing, mixup, cutmix, random_erasing: see ``LabelledSamples``.
        common: the arguments of TaskMethod.
    """

    mean_over_samples = True
    leaves_weights = True
    draws_only_from_torch = True
    takes_shards = True

    replaces_criterion: ClassVar[bool] = False
    """Whether ``train_step`` replaces ``task.criterion`` by its own loss on class probabilities."""

    needs_one_class: ClassVar[bool] = False
    """Whether the method is defined only for one class a sample, whatever its loss."""

    def __init__(
        self,
        label_smoothing: Share = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        random_erasing: Fraction = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.labelled = LabelledSamples(label_smoothing, mixup, cutmix, random_erasing)

    def check(self, task: Task) -> None:
        super().check(task)
        one_class = self.replaces_criterion or self.needs_one_class
        self.labelled.check(task, type(self).__name__ if one_class else None)

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.labelled.setup(task, type(self).__name__ if self.replaces_criterion else None)

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, mixed = self.labelled.inputs(task, batch)
        output = task.net(input)
        return {"loss": self.labelled.loss(task.criterion, batch, output, mixed)}
