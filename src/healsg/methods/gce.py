"""Generalised cross entropy: learning with noisy labels (Zhang and Sabuncu 2018, arXiv 1805.07836)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from torch import Tensor

from healsg.losses.classification import generalised_cross_entropy
from healsg.methods.supervised import Supervised
from healsg.types import Range

if TYPE_CHECKING:
    from healsg.protocols import Task


class GeneralisedCrossEntropy(Supervised):
    """The loss L_q (section 3.2), between the cross entropy and the mean absolute error. The truncated loss of section
    3.3 is not implemented.

    Args:
        q: 1 is the mean absolute error, the most robust to wrong labels and the slowest to learn; the paper uses 0.7.
        common: the arguments of Supervised.
    """

    replaces_criterion = True

    def __init__(self, q: Annotated[float, Range(low=0, high=1, open_low=True)] = 0.7, **common: Any) -> None:
        super().__init__(**common)
        self.q = q

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        input, mixed = self.labelled.inputs(task, batch)
        output = task.net(input)
        target = self.labelled.class_probabilities(batch["target"], output, mixed)
        return {"loss": generalised_cross_entropy(output, target, self.q).mean()}
