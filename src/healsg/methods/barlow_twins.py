"""Barlow Twins: the cross-correlation of two views becomes the identity (Zbontar et al. 2021, arXiv 2103.03230)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from healsg.losses.redundancy import barlow_twins
from healsg.methods.gathered import gather
from healsg.methods.selfsupervised import SelfSupervised, both_views, full_precision, halves, perceptron
from healsg.training.step import rows_of
from healsg.types import Count, NonNegative

if TYPE_CHECKING:
    from healsg.protocols import Task


class BarlowTwins(SelfSupervised):
    """Correlate each dimension of the embeddings with itself in the other view, and with no other dimension (equations
    1 and 2).

    The correlations are over the batch of all processes.

    Args:
        weight: of the correlations of different dimensions; lambda.
        hidden, size: units of the projector's two hidden layers, and of its output; 8,192 each in the paper.
        common: the arguments of SelfSupervised.
    """

    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "statistics": "the correlations are those of a micro-batch (of all processes)"
    }

    def __init__(self, weight: NonNegative = 0.005, hidden: Count = 512, size: Count = 512, **common: Any) -> None:
        super().__init__(**common)
        self.weight = weight
        self.hidden = hidden
        self.size = size

    def head(self, features: int) -> nn.Module:
        return perceptron(features, self.hidden, self.hidden, self.size)

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = batch["unlabelled"]
        first, second = halves(task.net(both_views(views)))
        with full_precision(task):
            rows = rows_of(views, first)
            first, second = gather(first, rows), gather(second, rows)  # the batch of all processes
            return {"loss": barlow_twins(first, second, self.weight)}
