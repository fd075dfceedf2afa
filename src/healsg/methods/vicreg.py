"""VICReg: variance, invariance and covariance (Bardes, Ponce and LeCun 2022, arXiv 2105.04906)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from healsg.losses.redundancy import vicreg
from healsg.methods.gathered import gather
from healsg.methods.selfsupervised import Pair, SelfSupervised, Views, perceptron
from healsg.training.step import rows_of
from healsg.types import Count, NonNegative

if TYPE_CHECKING:
    from healsg.task import BasicTask


class VICReg(SelfSupervised):
    """Let both views agree while every number of the embeddings varies and no two tell the same.

    The statistics are over the batch of all processes; with ``runner.accumulate`` over each piece of it.

    Args:
        invariance, variance, covariance: the weights of the three terms.
        hidden, size: units of the expander's two hidden layers, and of its output; 8,192 each in the paper.
        common: the arguments of SelfSupervised.
    """

    def __init__(
        self,
        invariance: NonNegative = 25.0,
        variance: NonNegative = 25.0,
        covariance: NonNegative = 1.0,
        hidden: Count = 512,
        size: Count = 512,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.hidden, self.size = hidden, size

    def head(self, features: int) -> nn.Module:
        return perceptron(features, self.hidden, self.hidden, self.size)

    def compare(self, task: BasicTask, batch: Views, output: list[Pair], wanted: list[Pair]) -> dict[str, Tensor]:
        first, second = (gather(view, rows_of(batch, view)) for view in output[0])
        invariance, variance, covariance = vicreg(first, second)
        loss = self.invariance * invariance + self.variance * variance + self.covariance * covariance
        return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}
