"""SimCLR: a view finds its sample's other view among the batch (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from healsg.losses.contrastive import nt_xent
from healsg.methods.gathered import gather
from healsg.methods.selfsupervised import Pair, SelfSupervised, Views, perceptron
from healsg.training.step import rows_of
from healsg.types import Count, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask


class SimCLR(SelfSupervised):
    """Contrast the views of a batch, of all processes together; see ``losses.contrastive.nt_xent``.

    With ``runner.accumulate`` each piece is a batch of its own: its samples meet no others.

    Args:
        temperature: what similarities are divided by; 0.5 in the paper on CIFAR-10, 0.1 on ImageNet.
        hidden, size: units of the projector's hidden layer, and of its output.
        common: the arguments of SelfSupervised.
    """

    def __init__(self, temperature: Positive = 0.5, hidden: Count = 512, size: Count = 128, **common: Any) -> None:
        super().__init__(**common)
        self.temperature, self.hidden, self.size = temperature, hidden, size

    def head(self, features: int) -> nn.Module:
        return perceptron(features, self.hidden, self.size)

    def compare(self, task: BasicTask, batch: Views, output: list[Pair], wanted: list[Pair]) -> dict[str, Tensor]:
        first, second = (gather(view, rows_of(batch, view)) for view in output[0])
        return {"loss": nt_xent(first, second, self.temperature).mean()}
