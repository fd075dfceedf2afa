"""Wide residual networks for small images (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.model import Network, TaskModel, takes_any
from healsg.models.resnet import convolution, initialise
from healsg.types import Count, Fraction, NonNegative, Range, Share

SMALLEST = 4
"""The side of the smallest image, in pixels: the last group sees a quarter of it."""


class WideBlock(nn.Module):
    """``x + residual(h)`` with ``h = activation(norm(x))``; where the number of channels changes, a 1x1 convolution of
    h, or of x, takes the place of x.

    Args:
        before: channels that come in.
        after: channels that go out.
        stride: the step of the block.
        dropout: dropout probability between the two convolutions.
        slope: of the activation below zero.
        momentum: momentum of BatchNorm's running statistics.
        active: whether the convolution of the shortcut sees h.
    """

    def __init__(
        self, before: int, after: int, stride: int, dropout: float, slope: float, momentum: float, active: bool
    ) -> None:
        super().__init__()
        self.slope, self.active = slope, active
        self.norm = nn.BatchNorm2d(before, momentum=momentum)
        self.residual = nn.Sequential(
            convolution(2, before, after, 3, stride),
            nn.BatchNorm2d(after, momentum=momentum),
            nn.LeakyReLU(slope, inplace=True),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            convolution(2, after, after, 3),
        )
        changes = stride != 1 or before != after
        self.shortcut = convolution(2, before, after, 1, stride) if changes else None

    def forward(self, input: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.norm(input), self.slope)
        kept: Tensor = self.shortcut(hidden if self.active else input) if self.shortcut else input
        return kept + self.residual(hidden)  # type: ignore[no-any-return]


class WideResidualNetwork(Network):
    """A 3x3 convolution of 16 channels, three groups of blocks (``stages``), norm, average pooling, a linear head.

    Args:
        channels: channels of the images.
        classes: the number of outputs.
        depth: the number of layers, 6 n + 4 with n blocks a group.
        widen_factor: channels of the groups in multiples of 16, 32 and 64.
        dropout, slope, momentum: see ``WideBlock``.
        shortcut: see ``WideResNet``.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        depth: int,
        widen_factor: int,
        dropout: float,
        slope: float,
        momentum: float,
        shortcut: str,
    ) -> None:
        super().__init__()
        self.stem = convolution(2, channels, 16, 3)
        before = 16
        groups = []
        for group in range(3):
            after, blocks = 16 * widen_factor * 2**group, []
            for position in range((depth - 4) // 6):
                stride = 2 if group and not position else 1
                active = shortcut == "activated" or group == 0
                blocks.append(WideBlock(before, after, stride, dropout, slope, momentum, active))
                before = after
            groups.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*groups)
        self.last = nn.Sequential(nn.BatchNorm2d(before, momentum=momentum), nn.LeakyReLU(slope, inplace=True))
        self.num_features, self.head = before, nn.Linear(before, classes)
        initialise(self, zero_init_residual=False)
        nn.init.zeros_(self.head.bias)

    def features(self, input: Tensor) -> Tensor:
        """(N, channels, height, width) to (N, num_features)."""
        hidden: Tensor = self.last(self.stages(self.stem(input)))
        return hidden.mean((2, 3))


class WideResNet(TaskModel):
    """Wide residual networks of pre-activation blocks: WRN-28-2 by default, WRN-28-10 with ``widen_factor=10``.

    Semi-supervised papers (Oliver et al. 2018, Sohn et al. 2020) take WRN-28-2 with ``negative_slope=0.1``,
    ``batchnorm_momentum=0.001`` and ``shortcut=raw``.

    Args:
        depth: the number of layers, 6 n + 4 (28 has four blocks in each of the three groups).
        widen_factor: channels of the groups in multiples of 16, 32 and 64.
        dropout: dropout probability between a block's two convolutions.
        negative_slope: of the activation below zero; 0 is ReLU.
        batchnorm_momentum: momentum of BatchNorm's running statistics.
        shortcut: input of the projection shortcut where the shape changes: the normed and ``activated`` input (the
            paper), or the ``raw`` one in the second and third group (FixMatch's network).
        common: the arguments of TaskModel.
    """

    leaves_weights = True
    draws_only_from_torch = True

    def __init__(
        self,
        depth: Annotated[int, Range(low=10, step=6)] = 28,
        widen_factor: Count = 2,
        dropout: Share = 0.0,
        negative_slope: NonNegative = 0.0,
        batchnorm_momentum: Fraction = 0.1,
        shortcut: Literal["activated", "raw"] = "activated",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if depth < 10 or (depth - 4) % 6:
            raise ConfigError(f"model.depth: {depth} is not 6 n + 4 (10, 16, 22, 28, 34, 40, ...)")
        self.depth = depth
        self.widen_factor = widen_factor
        self.dropout = dropout
        self.negative_slope = negative_slope
        self.batchnorm_momentum = batchnorm_momentum
        self.shortcut = shortcut

    def check(self, info: DataInfo) -> None:
        super().check(info)
        check_images("WideResNet", info, SMALLEST)

    def build(self, info: DataInfo) -> nn.Module:
        sizes = (info.input_shape[0], info.num_classes, self.depth, self.widen_factor)
        return WideResidualNetwork(*sizes, self.dropout, self.negative_slope, self.batchnorm_momentum, self.shortcut)


def check_images(name: str, info: DataInfo, smallest: int) -> None:
    """Refuse data that are no images, or whose sides are shorter than ``smallest`` pixels. Raises ConfigError."""
    shape = info.input_shape
    if len(shape) != 3:
        raise ConfigError(f"model: {name} takes images (channels, height, width), not {shape}; {takes_any(info)}")
    if min(shape[1:]) < smallest:
        raise ConfigError(
            f"model: {name} takes images of {smallest}x{smallest} pixels and more, not {shape[1]}x{shape[2]}; "
            "model=mlp takes any size"
        )
