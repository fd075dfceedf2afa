"""The model ``new_part``: which network is trained. Replace the layers by those of your own."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from healsg import DataInfo, Network, TaskModel
from healsg.types import Count


class NewNetwork(Network):
    """One hidden layer on the flattened input, then a linear head.

    Args:
        inputs: values in one sample.
        classes: outputs.
        width: hidden units.
    """

    def __init__(self, inputs: int, classes: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU())
        self.num_features = width
        self.head = nn.Linear(width, classes)

    def features(self, input: Tensor) -> Tensor:
        """(N, ...) to (N, width)."""
        hidden: Tensor = self.body(input)
        return hidden


class NewModel(TaskModel):
    """Builds the network for the data at hand.

    Args:
        width: hidden units.
        common: the arguments of TaskModel.
    """

    def __init__(self, width: Count = 64, **common: Any) -> None:
        super().__init__(**common)
        self.width = width

    def build(self, info: DataInfo) -> nn.Module:
        """The network for samples of ``info.input_shape`` with ``info.num_classes`` outputs."""
        return NewNetwork(math.prod(info.input_shape), info.num_classes, self.width)
