"""The method ``new_part``: how it is learned. Replace the loss in ``train_step`` by that of your own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from healsg import TaskMethod
from healsg.protocols import Task
from healsg.types import NonNegative


class NewMethod(TaskMethod):
    """Supervised learning that penalises confident outputs (Pereyra et al. 2017, arXiv 1701.06548).

    What a method remembers from step to step (a teacher, a queue, a running mean) is a submodule or a buffer: it then
    moves to the device, is saved and resumes by itself.

    Args:
        weight: of the penalty; 0 is plain supervised learning.
        common: the arguments of TaskMethod.
    """

    def __init__(self, weight: NonNegative = 0.1, **common: Any) -> None:
        super().__init__(**common)
        self.weight = weight

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Named scalars, of which ``loss`` is minimised; no tensor's value is read here (``.item()``, ``if loss > 1``),
        so that nothing waits for the device."""
        output = task.net(batch["input"])
        logarithms = output.log_softmax(dim=1)
        entropy = -(logarithms.exp() * logarithms).sum(dim=1).mean()
        loss = task.criterion(output, batch["target"])
        return {"loss": loss - self.weight * entropy, "entropy": entropy}
