"""SimSiam: predict what oneself makes of the other view (Chen and He 2021, arXiv 2011.10566)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from healsg.losses.agreement import cosine_distance
from healsg.losses.redundancy import spread
from healsg.methods.selfsupervised import Pair, Predicted, SelfSupervised, Views, perceptron
from healsg.types import Count

if TYPE_CHECKING:
    from healsg.task import BasicTask


class SimSiam(SelfSupervised):
    """Predict the projections of the other view, into which no gradient goes; ``spread`` tells whether all is at one
    point. The predictor follows the schedule of the learning rate as all else does; the paper keeps its rate fixed.

    Args:
        hidden, size: units of the projector's two hidden layers, and of its output; 2,048 each in the paper.
        bottleneck: units of the predictor's hidden layer; 512 in the paper.
        common: the arguments of SelfSupervised.
    """

    mean_over_samples = True

    def __init__(self, hidden: Count = 512, size: Count = 512, bottleneck: Count = 128, **common: Any) -> None:
        super().__init__(**common)
        self.hidden, self.size, self.bottleneck = hidden, size, bottleneck

    def head(self, features: int) -> nn.Module:
        projector = perceptron(features, self.hidden, self.hidden, self.size)
        projector.append(nn.BatchNorm1d(self.size, affine=False))
        return Predicted(projector, perceptron(self.size, self.bottleneck, self.size))

    def compare(self, task: BasicTask, batch: Views, output: list[Pair], wanted: list[Pair]) -> dict[str, Tensor]:
        (first, second), (predicted, other) = output
        loss = (cosine_distance(predicted, second) + cosine_distance(other, first)).mean() / 2 - 1.0
        return {"loss": loss, "spread": spread(first.detach())}
