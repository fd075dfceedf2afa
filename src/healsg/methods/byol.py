"""BYOL: predict a momentum encoder's projection of the other view (Grill et al. 2020, arXiv 2006.07733)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from healsg.losses.agreement import cosine_distance
from healsg.losses.redundancy import spread
from healsg.methods.selfsupervised import (
    Predicted,
    SelfSupervised,
    both_views,
    follow,
    full_precision,
    halves,
    perceptron,
    rising,
)
from healsg.types import Count, Kept

if TYPE_CHECKING:
    from healsg.protocols import Task


class BYOL(SelfSupervised):
    """Predict the projection that the target network, a momentum encoder, gives of the other view (equation 2).
    ``spread`` is near 0 where the projections have collapsed to a point.

    Args:
        momentum: initial decay of the target network's moving average; it rises to 1 over the run.
        hidden, size: units of the hidden layers of projector and predictor, and of their outputs.
        common: the arguments of SelfSupervised.
    """

    mean_over_samples = True

    def __init__(self, momentum: Kept = 0.99, hidden: Count = 512, size: Count = 128, **common: Any) -> None:
        super().__init__(**common)
        self.momentum = momentum
        self.hidden = hidden
        self.size = size
        self.target: nn.Module = nn.Identity()

    def head(self, features: int) -> nn.Module:
        projector = perceptron(features, self.hidden, self.size)
        return Predicted(projector, perceptron(self.size, self.hidden, self.size))

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.target = self.momentum_encoder(task)

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        input = both_views(batch["unlabelled"])
        with torch.no_grad():
            wanted1, wanted2 = halves(self.target(input)[0])
        projection, prediction = task.net(input)
        predicted1, predicted2 = halves(prediction)
        with full_precision(task):
            losses = cosine_distance(predicted1, wanted2) + cosine_distance(predicted2, wanted1)
            return {"loss": 2 * losses.mean(), "spread": spread(halves(projection)[0].detach())}

    def after_update(self, task: Task) -> None:
        super().after_update(task)
        progress = task.runner.step_count / task.runner.total_steps
        follow(self.target, task.model, rising(self.momentum, progress))
