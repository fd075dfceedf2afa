"""Focal loss: samples that are classified well count less (Lin et al. 2017, arXiv 1708.02002), over softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from healsg.losses.classification import focal
from healsg.methods.supervised import Supervised
from healsg.types import NonNegative

if TYPE_CHECKING:
    from healsg.protocols import Task


class Focal(Supervised):
    """The focal loss of the classes' softmax.

    Args:
        gamma: the focusing parameter; 0 is the cross entropy, the paper uses 2 (section 5.1).
        common: the arguments of Supervised.
    """

    replaces_criterion = True

    def __init__(self, gamma: NonNegative = 2.0, **common: Any) -> None:
        super().__init__(**common)
        self.gamma = gamma

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        input, mixed = self.labelled.inputs(task, batch)
        output = task.net(input)
        target = self.labelled.class_probabilities(batch["target"], output, mixed)
        return {"loss": focal(output, target, self.gamma).mean()}
