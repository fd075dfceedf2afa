"""Linear probe: a linear classifier on the features of a frozen network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from healsg.methods.supervised import Supervised
from healsg.training.layers import head_of

if TYPE_CHECKING:
    from healsg.protocols import Task


class LinearProbe(Supervised):
    """Train ``model.head``, newly initialised, on the features of the body, which stays in evaluation mode.

    Args:
        freeze: the body.
        common: the arguments of Supervised.
    """

    starts_from_weights = True

    def __init__(self, freeze: Literal["body"] = "body", **common: Any) -> None:
        super().__init__(freeze=freeze, **common)

    def setup(self, task: Task) -> None:
        head_of(task.model, "a linear probe").reset_parameters()
        super().setup(task)

    def evaluation_modules(self, model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_children() if name != "head"]
