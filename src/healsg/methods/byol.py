"""BYOL: predict what a slowly moving copy of oneself makes of the other view (Grill et al. 2020, arXiv 2006.07733)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from healsg.losses.agreement import cosine_distance
from healsg.losses.redundancy import spread
from healsg.methods.selfsupervised import Pair, Predicted, SelfSupervised, Views, perceptron
from healsg.types import Count, Kept

if TYPE_CHECKING:
    from healsg.task import BasicTask


class BYOL(SelfSupervised):
    """Predict the projections of a momentum encoder, for both views; ``spread`` tells whether all is at one point.

    Args:
        momentum: how much of the momentum encoder an update keeps at first; it rises to 1 over the run.
        hidden, size: units of the hidden layers of projector and predictor, and of their outputs.
        common: the arguments of SelfSupervised.
    """

    mean_over_samples = True
    momentum_rises = True

    def __init__(self, momentum: Kept = 0.99, hidden: Count = 512, size: Count = 128, **common: Any) -> None:
        super().__init__(**common)
        self.momentum, self.hidden, self.size = momentum, hidden, size

    def head(self, features: int) -> nn.Module:
        projector = perceptron(features, self.hidden, self.size)
        return Predicted(projector, perceptron(self.size, self.hidden, self.size))

    def compare(self, task: BasicTask, batch: Views, output: list[Pair], wanted: list[Pair]) -> dict[str, Tensor]:
        (predicted, other), (first, second) = output[1], wanted[0]
        loss = 2 * (cosine_distance(predicted, second) + cosine_distance(other, first)).mean()
        return {"loss": loss, "spread": spread(output[0][0].detach())}
