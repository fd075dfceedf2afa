"""SimSiam: predict the projection of the other view, with a stop-gradient (Chen and He 2021, arXiv 2011.10566)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from healsg.losses.agreement import cosine_distance
from healsg.losses.redundancy import spread
from healsg.methods.selfsupervised import (
    Predicted,
    SelfSupervised,
    both_views,
    full_precision,
    halves,
    perceptron,
)
from healsg.types import Count

if TYPE_CHECKING:
    from healsg.protocols import Task


class SimSiam(SelfSupervised):
    """Predict the projection of the other view, into which no gradient goes (Algorithm 1). ``spread`` is near 0 where
    the projections have collapsed to a point.

    The predictor follows the schedule of the learning rate; the paper keeps its rate fixed (section 4.2).

    Args:
        hidden, size: units of the projector's two hidden layers, and of its output; 2,048 each in the paper.
        bottleneck: units of the predictor's hidden layer; 512 in the paper.
        common: the arguments of SelfSupervised.
    """

    mean_over_samples = True

    def __init__(self, hidden: Count = 512, size: Count = 512, bottleneck: Count = 128, **common: Any) -> None:
        super().__init__(**common)
        self.hidden = hidden
        self.size = size
        self.bottleneck = bottleneck

    def head(self, features: int) -> nn.Module:
        projector = perceptron(features, self.hidden, self.hidden, self.size)
        projector.append(nn.BatchNorm1d(self.size, affine=False))
        return Predicted(projector, perceptron(self.size, self.bottleneck, self.size))

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        projection, prediction = task.net(both_views(batch["unlabelled"]))
        projected1, projected2 = halves(projection)
        predicted1, predicted2 = halves(prediction)
        with full_precision(task):  # ``cosine_distance`` stops the gradient into the projections
            losses = cosine_distance(predicted1, projected2) + cosine_distance(predicted2, projected1)
            return {"loss": losses.mean() / 2 - 1.0, "spread": spread(projected1.detach())}
