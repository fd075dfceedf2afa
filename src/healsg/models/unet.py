"""U-Nets for images and volumes as nnU-Net builds them (Ronneberger et al. 2015, arXiv 1505.04597; Isensee et al. 2021,
https://doi.org/10.1038/s41592-020-01008-z): strided convolutions, InstanceNorm, leaky ReLU, deep supervision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.evaluation.sliding_window import Rule, Windows, full_output
from healsg.losses.segmentation import DeepSupervision, DiceCrossEntropy, for_labels
from healsg.model import Network, TaskModel
from healsg.models.planning import Budget
from healsg.types import Count, Share

CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[str, dict[int, Any]] = {
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
}
DROPOUT: dict[int, Any] = {2: nn.Dropout2d, 3: nn.Dropout3d}
"""The layers by the number of spatial dimensions."""

Norm = Literal["instance", "batch"]
Sizes = Sequence[int | Sequence[int]]
"""One entry a stage: one number for all axes, or one for each."""

SMALLEST = 4
"""The side in pixels below which no axis is halved by default, as in nnU-Net's planner."""

MOST_STAGES = 7
WIDEST = {2: 512, 3: 320}
"""Channels at which stages stop to double, by the number of spatial dimensions (nnU-Net's)."""


@dataclass(frozen=True)
class Shape:
    """How a U-Net is laid out, one entry a stage.

    Args:
        channels: of each stage.
        strides: downsampling factor of each axis at the start of a stage; 1 for the first.
        kernels: the sides of the convolutions.
    """

    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def dim(self) -> int:
        return len(self.strides[0])

    def sides(self, spatial: Sequence[int]) -> list[tuple[int, ...]]:
        """The sides of each stage's maps for an input of ``spatial``."""
        found = [tuple(spatial)]
        for strides in self.strides[1:]:
            found.append(tuple(-(-side // stride) for side, stride in zip(found[-1], strides, strict=True)))
        return found


def usual_strides(spatial: Sequence[int], most: int = MOST_STAGES) -> list[tuple[int, ...]]:
    """Strides that halve each axis while half of it has ``SMALLEST`` pixels; axes that are at most half as long as the
    longest wait for the others, as nnU-Net's do for thick slices."""
    sides, strides = list(spatial), [(1,) * len(spatial)]
    while len(strides) < most:
        longest = max(sides)
        step = tuple(2 if side >= 2 * SMALLEST and 2 * side > longest else 1 for side in sides)
        if max(step) == 1:
            break
        strides.append(step)
        sides = [-(-side // stride) for side, stride in zip(sides, step, strict=True)]
    return strides


def by_axis(values: Sizes, dim: int, key: str) -> tuple[tuple[int, ...], ...]:
    """Entries by stage with one number for each axis. Raises ConfigError."""
    made = []
    for value in values:
        entry = (value,) * dim if isinstance(value, int) else tuple(value)
        if len(entry) != dim or min(entry) < 1:
            raise ConfigError(f"{key}: {value} is no entry for {dim} axes; give one number, or {dim}, from 1 on")
        made.append(entry)
    return tuple(made)


# --- layers ----------------------------------------------------------------------------------------------------------


def convolution(before: int, after: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Module:
    """A convolution that keeps the size but for its stride."""
    padding = [(side - 1) // 2 for side in kernel]
    layer: nn.Module = CONVOLUTION[len(kernel)](before, after, tuple(kernel), tuple(stride), padding)
    return layer


def normalisation(norm: Norm, dim: int, channels: int) -> nn.Module:
    """InstanceNorm or BatchNorm with a scale and a shift for each channel."""
    layer: nn.Module = NORM[norm][dim](channels, affine=True)
    return layer


def activated(
    before: int, after: int, kernel: Sequence[int], stride: Sequence[int], norm: Norm, dropout: float
) -> nn.Sequential:
    """Convolution, dropout of whole channels, norm, leaky ReLU."""
    dim = len(kernel)
    layers = [convolution(before, after, kernel, stride)]
    layers += [DROPOUT[dim](dropout)] if dropout else []
    return nn.Sequential(*layers, normalisation(norm, dim, after), nn.LeakyReLU(0.01, inplace=True))


def plain_stage(
    before: int, after: int, kernel: Sequence[int], stride: Sequence[int], number: int, norm: Norm, dropout: float
) -> nn.Sequential:
    """So many convolutions, the first of which has the stride."""
    first = activated(before, after, kernel, stride, norm, dropout)
    same = (1,) * len(kernel)
    return nn.Sequential(first, *(activated(after, after, kernel, same, norm, dropout) for _ in range(number - 1)))


class Decoder(nn.Module):
    """The decoder: transposed convolutions, concatenation with the encoder's maps, convolutions; an output at each
    resolution from the second coarsest on, or at the finest alone.

    Args:
        shape: of the U-Net.
        outputs: channels of an output.
        number: convolutions a stage.
        norm, dropout: see ``UNet``.
        deep: the coarser resolutions that have an output too.
    """

    def __init__(self, shape: Shape, outputs: int, number: int, norm: Norm, dropout: float, deep: int) -> None:
        super().__init__()
        up = []
        stages = []
        others = []
        for stage_index in range(len(shape.channels) - 2, -1, -1):
            below = shape.channels[stage_index + 1]
            own = shape.channels[stage_index]
            stride = shape.strides[stage_index + 1]
            up.append(TRANSPOSED[shape.dim](below, own, stride, stride))
            stages.append(
                plain_stage(2 * own, own, shape.kernels[stage_index], (1,) * shape.dim, number, norm, dropout)
            )
            if 0 < stage_index <= deep:
                others.append(CONVOLUTION[shape.dim](own, outputs, 1))
        self.up = nn.ModuleList(up)
        self.stages = nn.ModuleList(stages)
        self.others = nn.ModuleList(others)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The encoder's maps, finest first, to the finest map and the coarser outputs, finest first; in evaluation mode
        there are none of these."""
        hidden, made = maps[-1], []
        coarse = len(self.stages) - 1 - len(self.others)
        for index, (up, stage) in enumerate(zip(self.up, self.stages, strict=True)):
            beside = maps[-2 - index]
            hidden = stage(torch.cat([fitted(up(hidden), beside), beside], dim=1))
            if self.training and coarse <= index < len(self.stages) - 1:
                made.append(self.others[index - coarse](hidden))
        return hidden, made[::-1]


def fitted(hidden: Tensor, beside: Tensor) -> Tensor:
    """An upsampled map, cropped to the size of the skip connection, whose sides may be odd."""
    if hidden.shape[2:] == beside.shape[2:]:
        return hidden
    return hidden[(slice(None), slice(None), *(slice(side) for side in beside.shape[2:]))]


class DenseNetwork(Network):
    """A network with an output for each pixel.

    Args:
        window: the spatial size of its training samples, by which larger images are predicted in windows.
    """

    heads: tuple[str, ...] = ("head.", "decoder.others.")
    """Prefixes of the weights that belong to the classes, which ``init_from`` leaves out for other classes."""

    def __init__(self, window: Sequence[int]) -> None:
        super().__init__()
        self.window = tuple(window)


class UNetwork(DenseNetwork):
    """Encoder, decoder and ``head``, the 1x1 convolution that makes the finest output. In training it gives a list of
    outputs, the finest first, if it has coarser ones; in evaluation the finest alone.

    Args:
        encoder: stages, finest first.
        decoder: what makes of their maps the finest map and the coarser outputs.
        shape: of the U-Net.
        outputs: channels of an output.
        window: see ``DenseNetwork``.
    """

    def __init__(
        self, encoder: Sequence[nn.Module], decoder: Decoder, shape: Shape, outputs: int, window: Sequence[int]
    ) -> None:
        super().__init__(window)
        self.encoder, self.decoder = nn.ModuleList(encoder), decoder
        self.num_features = shape.channels[-1]
        self.head = CONVOLUTION[shape.dim](shape.channels[0], outputs, 1)

    def maps(self, input: Tensor) -> list[Tensor]:
        """The maps of the encoder's stages, finest first."""
        made = []
        for stage in self.encoder:
            input = stage(input)
            made.append(input)
        return made

    def features(self, input: Tensor) -> Tensor:
        """(N, channels, ...) to (N, num_features): the coarsest map, averaged over its pixels."""
        return self.maps(input)[-1].flatten(2).mean(dim=2)

    def forward(self, input: Tensor, features: bool = False) -> Tensor | list[Tensor]:  # type: ignore[override]
        if features:
            return self.features(input)
        hidden, coarser = self.decoder(self.maps(input))
        output: Tensor = self.head(hidden)
        return [output, *coarser] if coarser else output


def initialise(network: nn.Module) -> None:
    """Draw the convolutions' weights as nnU-Net does (He et al. 2015, arXiv 1502.01852), for leaky ReLU of 0.01."""
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for module in network.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# --- the part of a task ----------------------------------------------------------------------------------------------


class DenseModel(TaskModel):
    """Base class of networks with an output for each pixel: the loss, and sliding-window prediction of larger images.

    Args:
        loss: the criterion of one output, from logits (N, C, ...) and labels (N, ...) to a scalar. None is Dice and
            cross entropy.
        windows: positions and weights of the windows, as in ``nnunet`` or ``monai``; see ``sliding_window``.
        overlap: the overlap of neighbouring windows, as a share of a window.
        mirror: average each window's prediction with those of its flips along all axes, in evaluation.
        common: the arguments of TaskModel.
    """

    deeply_supervised: bool = True
    """Whether the network may give outputs at several resolutions in training."""

    def __init__(
        self,
        loss: nn.Module | None = None,
        windows: Rule = "nnunet",
        overlap: Share = 0.5,
        mirror: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.loss = loss
        self.windows = windows
        self.overlap = overlap
        self.mirror = mirror

    def criterion(self, info: DataInfo) -> nn.Module:
        labels = dense_settings(info)
        loss = DiceCrossEntropy(**labels) if self.loss is None else for_labels(self.loss, **labels)
        return DeepSupervision(loss) if self.deeply_supervised else loss

    def predict(self, network: nn.Module, batch: Mapping[str, Any]) -> Any:
        """The scores of ``batch["input"]``: at once if it has the size of a training sample, else in windows of that
        size, image by image."""
        input = batch["input"]
        window = next((part.window for part in network.modules() if isinstance(part, DenseNetwork)), None)
        if window is None or (tuple(input.shape[2:]) == window and not self.mirror):
            return network(input)
        axes = tuple(range(len(window))) if self.mirror else ()
        windows = Windows(window, self.windows, self.overlap, mirror=axes)
        return torch.stack([full_output(network, image, windows, input.device) for image in input])


def refuse_samples(model: TaskModel, info: DataInfo) -> None:
    """Raises ConfigError for a task whose targets are not one label for each pixel."""
    if info.kind != "segmentation":
        raise ConfigError(
            f"model: {type(model).__name__} has an output for each pixel, and this task is {info.kind}; "
            "model=resnet has one for each sample"
        )


def dense_settings(info: DataInfo) -> dict[str, Any]:
    """The arguments of a loss that the data determine: ``ignore``, and the labels of each of the ``regions``."""
    return {"ignore": info.ignore, "regions": list(info.regions.values()) or None}


class PyramidModel(DenseModel):
    """What U-Nets share.

    Args:
        width: channels of the finest stage; each coarser one has twice as many, up to nnU-Net's 512 (2D) or 320 (3D).
        stages: resolutions; None takes what the strides say.
        strides: stride of each stage, the first one 1: for each stage one number, or one for each axis. None halves
            each axis while that leaves 4 pixels.
        kernels: the convolutions' sides, in the same way; None is 3 throughout.
        deep_supervision: outputs at the coarser resolutions too, except the two coarsest, in training only.
        norm: ``instance`` or ``batch``.
        dropout: probability of dropping a channel in training.
        dim: spatial dimensions; those of the data if it is None.
        common: the arguments of DenseModel.
    """

    title: ClassVar[str] = "U-Net"

    def __init__(
        self,
        width: Count = 32,
        stages: Count | None = None,
        strides: list[Any] | None = None,
        kernels: list[Any] | None = None,
        deep_supervision: bool = True,
        norm: Norm = "instance",
        dropout: Share = 0.0,
        dim: Literal[2, 3] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.width = width
        self.stages = stages
        self.strides = strides
        self.kernels = kernels
        self.deep_supervision = deep_supervision
        self.norm = norm
        self.dropout = dropout
        self.dim = dim
        self.deeply_supervised = deep_supervision

    def shape(self, info: DataInfo) -> Shape:
        """The layout for inputs of ``info``. Raises ConfigError for one that does not fit them."""
        spatial = info.input_shape[1:]
        dim = len(spatial)
        if dim not in CONVOLUTION:
            raise ConfigError(
                f"model: a {self.title} takes images (channels, height, width) or volumes (channels, depth, height, "
                f"width), not {info.input_shape}"
            )
        if self.dim not in (None, dim):
            raise ConfigError(f"model.dim: {self.dim} does not fit inputs of {info.input_shape}; model.dim=null does")
        given = self.strides if self.strides is not None else usual_strides(spatial, self.stages or MOST_STAGES)
        strides = by_axis(given, dim, "model.strides")
        if self.stages is not None and self.stages != len(strides):
            raise ConfigError(
                f"model.stages: {self.stages}, but there are strides for {len(strides)}"
                + ("" if self.strides is not None else f" stages at {list(spatial)} pixels; give model.strides too")
            )
        if len(strides) < 2 or max(strides[0]) > 1:
            raise ConfigError(f"model.strides: {list(given)}; two stages are the least, and the first one is 1")
        kernels = by_axis([3] * len(strides) if self.kernels is None else self.kernels, dim, "model.kernels")
        if len(kernels) != len(strides) or any(side % 2 == 0 for kernel in kernels for side in kernel):
            raise ConfigError(f"model.kernels: {self.kernels}; give an odd number for each of {len(strides)} stages")
        return self.laid_out(strides, kernels)

    def laid_out(self, strides: tuple[tuple[int, ...], ...], kernels: tuple[tuple[int, ...], ...]) -> Shape:
        """These stages with the channels that they have."""
        widest = max(WIDEST[len(strides[0])], self.width)
        return Shape(tuple(min(self.width * 2**stage, widest) for stage in range(len(strides))), strides, kernels)

    @property
    def budget(self) -> Budget:
        """By which ``healsg plan`` sizes patch and batch for this network."""
        raise NotImplementedError

    def values(self, shape: Shape, sides: Sequence[int], outputs: int) -> int:
        """The number of elements of all convolutions' feature maps for one sample: the estimate of memory, as in
        nnU-Net."""
        raise NotImplementedError

    def check(self, info: DataInfo) -> None:
        refuse_samples(self, info)
        super().check(info)
        shape = self.shape(info)
        coarsest = shape.sides(info.input_shape[1:])[-1]
        if self.norm == "instance" and math.prod(coarsest) == 1:
            raise ConfigError(
                f"model.strides: leave one pixel of {list(info.input_shape[1:])}, of which InstanceNorm cannot be "
                "taken; give fewer stages"
            )

    def deep(self, shape: Shape) -> int:
        """The coarser resolutions that have an output: all but the coarsest of the decoder, as nnU-Net weighs them."""
        return max(0, len(shape.channels) - 3) if self.deep_supervision else 0


def map_sizes(shape: Shape, sides: Sequence[int]) -> list[int]:
    """The numbers in one map of each stage."""
    return [width * math.prod(own) for width, own in zip(shape.channels, shape.sides(sides), strict=True)]


def decoder_values(shape: Shape, sides: Sequence[int], outputs: int, convolutions: int) -> int:
    """The numbers in a decoder's maps: its convolutions, the transposed ones, the finest output."""
    return sum(map_sizes(shape, sides)[:-1]) * (convolutions + 1) + outputs * math.prod(sides)


class UNet(PyramidModel):
    """nnU-Net's plain U-Net, for images and volumes of any number of channels.

    Args:
        convolutions: of each stage, in encoder and decoder.
        common: the arguments of PyramidModel.
    """

    def __init__(self, convolutions: Count = 2, **common: Any) -> None:
        super().__init__(**common)
        self.convolutions = convolutions

    @property
    def budget(self) -> Budget:
        return Budget(memory=8, values=(85e6, 560e6), covered=0.05, for_two=True)

    def values(self, shape: Shape, sides: Sequence[int], outputs: int) -> int:
        encoder = self.convolutions * sum(map_sizes(shape, sides))
        return encoder + decoder_values(shape, sides, outputs, self.convolutions)

    def build(self, info: DataInfo) -> nn.Module:
        shape = self.shape(info)
        before, encoder = info.input_shape[0], []
        for after, stride, kernel in zip(shape.channels, shape.strides, shape.kernels, strict=True):
            encoder.append(plain_stage(before, after, kernel, stride, self.convolutions, self.norm, self.dropout))
            before = after
        decoder = Decoder(shape, info.num_classes, self.convolutions, self.norm, self.dropout, self.deep(shape))
        network = UNetwork(encoder, decoder, shape, info.num_classes, info.input_shape[1:])
        initialise(network)
        return network
