"""A small convolutional network for small images: seconds on one CPU core."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.model import Network, TaskModel, takes_any
from healsg.types import Count, Share

SMALLEST = 8
"""The side of the smallest image, in pixels."""


def convolution(before: int, after: int) -> nn.Sequential:
    """A 3x3 convolution that keeps the size, BatchNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class ConvolutionalNetwork(Network):
    """Four 3x3 convolutions, a max-pool before each of the last two, global average pooling, a linear head.

    Args:
        channels: channels of the images.
        classes: the number of outputs.
        width: channels of the first pair; the second has twice as many.
        dropout: dropout probability of the features.
    """

    def __init__(self, channels: int, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.num_features = 2 * width
        self.body = nn.Sequential(
            convolution(channels, width),
            convolution(width, width),
            nn.MaxPool2d(2),
            convolution(width, 2 * width),
            nn.MaxPool2d(2),
            convolution(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
        )
        self.head = nn.Linear(self.num_features, classes)

    def features(self, input: Tensor) -> Tensor:
        """(N, channels, height, width) images to (N, num_features)."""
        hidden: Tensor = self.body(input)
        return hidden


class CNN(TaskModel):
    """Four 3x3 convolutions with BatchNorm and ReLU, for images of 8x8 pixels and more.

    Args:
        width: channels of the first two convolutions; the last two have twice as many.
        dropout: dropout probability of the features, before the head.
        common: the arguments of TaskModel.
    """

    leaves_weights = True
    draws_only_from_torch = True

    def __init__(self, width: Count = 24, dropout: Share = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.width, self.dropout = width, dropout

    def check(self, info: DataInfo) -> None:
        super().check(info)
        shape = info.input_shape
        if len(shape) != 3:
            raise ConfigError(f"model: CNN takes images (channels, height, width), not {shape}; {takes_any(info)}")
        if min(shape[1:]) < SMALLEST:
            raise ConfigError(
                f"model: CNN takes images of {SMALLEST}x{SMALLEST} pixels and more, not {shape[1]}x{shape[2]}; "
                "model=mlp takes any size"
            )

    def build(self, info: DataInfo) -> nn.Module:
        return ConvolutionalNetwork(info.input_shape[0], info.num_classes, self.width, self.dropout)
