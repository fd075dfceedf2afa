"""A multilayer perceptron: the smallest network, and the baseline for tables."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.model import Network, TaskModel
from healsg.types import Count, Natural, Share


class PerceptronNetwork(Network):
    """``depth`` hidden layers of ``width`` units with ReLU, then a linear head; any input is flattened.

    Args:
        inputs: the number of values in one sample.
        classes: the number of outputs.
        width: units of a hidden layer.
        depth: the number of hidden layers; 0 is a linear classifier.
        dropout: dropout probability of hidden units.
    """

    def __init__(self, inputs: int, classes: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        sizes = [inputs] + [width] * depth
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.body = nn.Sequential(*layers)
        self.num_features = sizes[-1]
        self.head = nn.Linear(self.num_features, classes)

    def features(self, input: Tensor) -> Tensor:
        """(N, ...) to (N, width)."""
        hidden: Tensor = self.body(input)
        return hidden


class MLP(TaskModel):
    """A multilayer perceptron with ReLU on the flattened input, whatever its shape.

    Args:
        width: units of a hidden layer.
        depth: the number of hidden layers; 0 is a linear classifier.
        dropout: dropout probability of hidden units.
        common: the arguments of TaskModel.
    """

    leaves_weights = True
    draws_only_from_torch = True

    def __init__(self, width: Count = 128, depth: Natural = 1, dropout: Share = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.width = width
        self.depth = depth
        self.dropout = dropout

    def build(self, info: DataInfo) -> nn.Module:
        return PerceptronNetwork(math.prod(info.input_shape), info.num_classes, self.width, self.depth, self.dropout)
