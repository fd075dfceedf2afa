"""U-Nets with a residual encoder, nnU-Net's strongest (Isensee et al. 2024, nnU-Net Revisited, arXiv 2404.09556)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.models.planning import Budget
from healsg.models.unet import (
    CONVOLUTION,
    Decoder,
    Norm,
    PyramidModel,
    Shape,
    UNetwork,
    activated,
    convolution,
    decoder_values,
    initialise,
    map_sizes,
    normalisation,
)
from healsg.types import Count

BLOCKS = (1, 3, 4, 6, 6, 6, 6)
"""Blocks of each stage, of the published presets M and L."""

Preset = Literal["M", "L"]

BUDGETS: dict[str, Budget] = {
    "M": Budget(memory=8, values=(135e6, 680e6), covered=1.0, for_two=False),
    "L": Budget(memory=24, values=(380e6, 2100e6), covered=1.0, for_two=False),
}
"""Of the presets; unlike the plain U-Net's they do not bound a batch by a share of the data set."""

AVERAGE: dict[int, Any] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class ResidualBlock(nn.Module):
    """``leaky(residual(x) + shortcut(x))`` with two convolutions; a shortcut averages if there is a stride, and is a
    1x1 convolution where the channels change (ResNet-D, He et al. 2019, arXiv 1812.01187).

    Args:
        before, after: channels that come in and go out.
        kernel, stride: of the first convolution, by axis.
        norm, dropout: see ``UNet``.
    """

    def __init__(
        self, before: int, after: int, kernel: Sequence[int], stride: Sequence[int], norm: Norm, dropout: float
    ) -> None:
        super().__init__()
        dim = len(kernel)
        same = (1,) * dim
        self.residual = nn.Sequential(
            activated(before, after, kernel, stride, norm, dropout),
            convolution(after, after, kernel, same),
            normalisation(norm, dim, after),
        )
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            shortcut.append(AVERAGE[dim](tuple(stride), tuple(stride), ceil_mode=True))  # as a padded stride rounds
        if before != after:
            shortcut += [CONVOLUTION[dim](before, after, 1, bias=False), normalisation(norm, dim, after)]
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.activation(self.residual(input) + self.shortcut(input))
        return output


class ResEncUNet(PyramidModel):
    """A U-Net whose encoder is residual and deeper than its decoder, for images and volumes of any number of channels.

    The published presets M and L have the same stages, and differ in the patches and batches that ``healsg plan`` finds
    for them.

    Args:
        blocks: of each stage; None takes the published 1, 3, 4, 6, 6, 6.
        preset: by which ``healsg plan`` sizes patch and batch: ``M``, for about 9 GB, or ``L``, for 24 GB.
        convolutions: of each stage of the decoder.
        common: the arguments of PyramidModel.
    """

    title: ClassVar[str] = "residual U-Net"

    def __init__(
        self, blocks: list[int] | None = None, convolutions: Count = 1, preset: Preset = "M", **common: Any
    ) -> None:
        super().__init__(**common)
        self.blocks = blocks
        self.convolutions = convolutions
        self.preset = preset

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.preset]

    def values(self, shape: Shape, sides: Sequence[int], outputs: int) -> int:
        maps = map_sizes(shape, sides)
        blocks = zip(maps, self.numbers(len(maps)), strict=True)
        encoder = maps[0] + sum(2 * number * size for size, number in blocks)  # the stem, two convolutions a block
        shortcuts = sum(maps[1:])
        return encoder + shortcuts + decoder_values(shape, sides, outputs, self.convolutions)

    def numbers(self, stages: int) -> list[int]:
        """The blocks of each stage. Raises ConfigError."""
        if self.blocks is None:
            return [*BLOCKS, *[BLOCKS[-1]] * stages][:stages]
        if len(self.blocks) != stages or min(self.blocks) < 1:
            raise ConfigError(f"model.blocks: {list(self.blocks)}; give at least 1 for each of {stages} stages")
        return list(self.blocks)

    def check(self, info: DataInfo) -> None:
        super().check(info)
        self.numbers(len(self.shape(info).channels))

    def build(self, info: DataInfo) -> nn.Module:
        shape = self.shape(info)
        numbers = self.numbers(len(shape.channels))
        first = shape.channels[0]
        stem = activated(info.input_shape[0], first, shape.kernels[0], (1,) * shape.dim, self.norm, 0.0)
        before, encoder = first, []
        stages = zip(shape.channels, shape.strides, shape.kernels, numbers, strict=True)
        for index, (after, stride, kernel, number) in enumerate(stages):
            blocks: list[nn.Module] = [stem] if index == 0 else []
            blocks.append(ResidualBlock(before, after, kernel, stride, self.norm, self.dropout))
            same = (1,) * shape.dim
            blocks += [ResidualBlock(after, after, kernel, same, self.norm, self.dropout) for _ in range(number - 1)]
            encoder.append(nn.Sequential(*blocks))
            before = after
        decoder = Decoder(shape, info.num_classes, self.convolutions, self.norm, self.dropout, self.deep(shape))
        network = UNetwork(encoder, decoder, shape, info.num_classes, info.input_shape[1:])
        initialise(network)
        return network
