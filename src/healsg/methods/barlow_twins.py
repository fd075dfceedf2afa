"""Barlow Twins: the cross-correlation of two views becomes the identity (Zbontar et al. 2021, arXiv 2103.03230)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from healsg.losses.redundancy import barlow_twins
from healsg.methods.gathered import gather
from healsg.methods.selfsupervised import Pair, SelfSupervised, Views, perceptron
from healsg.training.step import rows_of
from healsg.types import Count, NonNegative

if TYPE_CHECKING:
    from healsg.task import BasicTask


class BarlowTwins(SelfSupervised):
    """Correlate each number of the embeddings with itself in the other view, and with no other number.

    The correlations are over the batch of all processes; with ``runner.accumulate`` over each piece of it.

    Args:
        weight: of the correlations of different numbers.
        hidden, size: units of the projector's two hidden layers, and of its output; 8,192 each in the paper.
        common: the arguments of SelfSupervised.
    """

    def __init__(self, weight: NonNegative = 0.005, hidden: Count = 512, size: Count = 512, **common: Any) -> None:
        super().__init__(**common)
        self.weight, self.hidden, self.size = weight, hidden, size

    def head(self, features: int) -> nn.Module:
        return perceptron(features, self.hidden, self.hidden, self.size)

    def compare(self, task: BasicTask, batch: Views, output: list[Pair], wanted: list[Pair]) -> dict[str, Tensor]:
        first, second = (gather(view, rows_of(batch, view)) for view in output[0])
        return {"loss": barlow_twins(first, second, self.weight)}
