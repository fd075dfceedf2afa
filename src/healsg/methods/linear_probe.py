"""Linear probe: a linear classifier on the features of a network that no longer learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from healsg.methods.depth import head_of
from healsg.methods.supervised import Supervised

if TYPE_CHECKING:
    from healsg.task import BasicTask


class LinearProbe(Supervised):
    """Train ``model.head``, drawn anew, on the features of the rest, which is as in evaluation; see ``init_from``.

    Args:
        freeze: the body.
        common: the arguments of Supervised.
    """

    starts_from_weights = True

    def __init__(self, freeze: Literal["body"] = "body", **common: Any) -> None:
        super().__init__(freeze=freeze, **common)

    def setup(self, task: BasicTask) -> None:
        head_of(task.model, "a linear probe").reset_parameters()
        super().setup(task)
        self.frozen_modules = [module for name, module in task.model.named_children() if name != "head"]
