"""SimCLR: contrast the two views of a sample with all others of the batch (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from healsg.losses.contrastive import nt_xent
from healsg.methods.gathered import gather
from healsg.methods.selfsupervised import SelfSupervised, both_views, full_precision, halves, perceptron
from healsg.training.step import rows_of
from healsg.types import Count, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class SimCLR(SelfSupervised):
    """Contrast the two views of a sample with those of the other samples of the batch, of all processes together
    (equation 1, Algorithm 1).

    Args:
        temperature: divides the similarities; 0.5 in the paper on CIFAR-10, 0.1 on ImageNet.
        hidden, size: units of the projector's hidden layer, and of its output.
        common: the arguments of SelfSupervised.
    """

    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "negatives": "a sample is contrasted with those of its micro-batch (of all processes)"
    }

    def __init__(self, temperature: Positive = 0.5, hidden: Count = 512, size: Count = 128, **common: Any) -> None:
        super().__init__(**common)
        self.temperature = temperature
        self.hidden = hidden
        self.size = size

    def head(self, features: int) -> nn.Module:
        return perceptron(features, self.hidden, self.size)

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = batch["unlabelled"]
        first, second = halves(task.net(both_views(views)))
        with full_precision(task):
            rows = rows_of(views, first)
            first, second = gather(first, rows), gather(second, rows)  # the batch of all processes
            return {"loss": nt_xent(first, second, self.temperature).mean()}
