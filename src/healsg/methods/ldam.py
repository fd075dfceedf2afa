"""Label-distribution-aware margins with deferred re-weighting (Cao et al. 2019, arXiv 1906.07413)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.losses.classification import class_balanced_weights, cross_entropy, margins
from healsg.methods.counts import class_counts
from healsg.methods.supervised import Supervised
from healsg.training.layers import head_of
from healsg.types import Fraction, Positive, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class CosineLinear(nn.Linear):
    """``scale`` times the cosine between the input and each row of the weights; no bias.

    Args:
        linear: the layer whose weights these are.
        scale: the factor of the cosines.
    """

    def __init__(self, linear: nn.Linear, scale: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = linear.weight
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(input, dim=-1), F.normalize(self.weight, dim=-1))


class LDAM(Supervised):
    """Larger margins for rarer classes, on cosines (section 3.2); late in the run classes are also weighted (section
    3.3, deferred re-weighting).

    The weighted loss of an update is divided by the sum of its weights. With smoothed or mixed labels the margin of
    each class is proportional to its probability.

    Args:
        largest: the margin of the rarest class, as a cosine.
        scale: the factor of the cosines.
        beta: of the weights (see ``ClassBalanced``).
        defer: the share of the run after which classes are weighted; 1 never does.
        common: the arguments of Supervised.
    """

    replaces_criterion = True
    margins: Tensor
    class_weights: Tensor

    def __init__(
        self,
        largest: Positive = 0.5,
        scale: Positive = 30.0,
        beta: Share = 0.9999,
        defer: Fraction = 0.8,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.largest = largest
        self.scale = scale
        self.beta = beta
        self.defer = defer

    def setup(self, task: Task) -> None:
        counts = class_counts(task)
        self.register_buffer("margins", margins(counts, self.largest).float())
        self.register_buffer("class_weights", class_balanced_weights(counts, self.beta).float())
        super().setup(task)

    def extend_network(self, task: Task, network: nn.Module) -> nn.Module:
        return self.evaluated(network)

    def evaluated(self, network: nn.Module) -> nn.Module:
        network.head = CosineLinear(head_of(network, "LDAM"), self.scale)
        return network

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        input, mixed = self.labelled.inputs(task, batch)
        output = task.net(input)
        target = self.labelled.class_probabilities(batch["target"], output, mixed)
        losses = cross_entropy(output - self.scale * self.margins * target, target)
        deferred = task.runner.step_count < self.defer * task.runner.total_steps
        weights = torch.ones_like(losses) if deferred else (target * self.class_weights).sum(dim=1)
        return {"loss": (weights * losses).sum() / weights.sum(), "count": weights.sum()}
