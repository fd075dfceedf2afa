"""The network of airbench94, which trains on CIFAR-10 in seconds (Jordan 2024, arXiv 2404.00498, section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.model import Network, TaskModel
from healsg.models.wide_resnet import check_images
from healsg.types import Count, Fraction, Positive

KERNEL = 2
"""The side of the patches that the first layer whitens, in pixels."""

IMAGES = 5000
"""Training images whose patches it is computed from: the first ones, as published."""

SMALLEST = 9
"""The side of the smallest image, in pixels: after the first layer it is halved three times."""


def patch_moments(batches: Iterable[Tensor], most: int = IMAGES) -> Tensor:
    """The second moments, (D, D) float64, of all 2x2 patches of the first ``most`` images; D is 4 * channels.

    Args:
        batches: of images (N, channels, height, width); no more are read than needed.
    """
    moments = torch.zeros(())
    images = 0
    patches = 0
    for batch in batches:
        rows = F.unfold(batch[: most - images].cpu().double(), KERNEL).transpose(0, 1).flatten(1)
        moments, patches = moments + rows @ rows.mT, patches + rows.shape[1]
        images += len(batch)
        if images >= most:
            break
    return moments / patches


def whitening(moments: Tensor, epsilon: float) -> Tensor:
    """Whitening filters (2 D, D) for patches with these second moments, and their negatives.

    Each is an eigenvector over the root of its eigenvalue plus ``epsilon``, the largest eigenvalue first. An
    eigenvector's sign is free: its largest number is made positive.
    """
    values, vectors = torch.linalg.eigh(moments)
    rows = vectors.mT.flip(0)
    rows = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    rows = rows / (values.flip(0).clamp(min=0)[:, None] + epsilon).sqrt()
    return torch.cat([rows, -rows])


class ScaledLinear(nn.Linear):
    """A linear layer without bias whose output is divided by ``temperature``."""

    def __init__(self, before: int, after: int, temperature: float) -> None:
        super().__init__(before, after, bias=False)
        self.temperature = temperature

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / self.temperature


def convolution(before: int, after: int) -> nn.Conv2d:
    """A 3x3 convolution without bias whose first filters are initialised as the identity, one for each input
    channel."""
    layer = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:before])
    return layer


def norm(width: int, momentum: float) -> nn.BatchNorm2d:
    """BatchNorm with a trainable bias and a weight fixed to 1."""
    layer = nn.BatchNorm2d(width, eps=1e-12, momentum=momentum)
    layer.weight.requires_grad_(False)
    return layer


def block(before: int, after: int, momentum: float) -> nn.Sequential:
    """Two convolutions with norm and GELU, the images halved after the first."""
    return nn.Sequential(
        convolution(before, after),
        nn.MaxPool2d(2),
        norm(after, momentum),
        nn.GELU(),
        convolution(after, after),
        norm(after, momentum),
        nn.GELU(),
    )


class AirbenchNetwork(Network):
    """A 2x2 convolution, GELU, three blocks (``stages``), global max-pooling, a linear head of scaled outputs.

    Args:
        channels: channels of the images.
        classes: the number of outputs.
        width: channels of the first block; the second and third have four times as many.
        momentum: momentum of BatchNorm's running statistics.
        temperature: divisor of the logits.
        deviation: of the head's weights at the start; None leaves them as PyTorch initialises them.
    """

    def __init__(
        self, channels: int, classes: int, width: int, momentum: float, temperature: float, deviation: float | None
    ) -> None:
        super().__init__()
        first = 2 * channels * KERNEL**2
        self.first = nn.Conv2d(channels, first, KERNEL)
        nn.init.zeros_(self.first.bias)  # type: ignore[arg-type]
        widths = (first, width, 4 * width, 4 * width)
        self.stages = nn.Sequential(*[block(*pair, momentum) for pair in pairwise(widths)])
        self.num_features, self.head = 4 * width, ScaledLinear(4 * width, classes, temperature)
        if deviation is not None:
            with torch.no_grad():
                self.head.weight.mul_(deviation / self.head.weight.std())

    def features(self, input: Tensor) -> Tensor:
        """(N, channels, height, width) to (N, num_features)."""
        hidden: Tensor = self.stages(F.gelu(self.first(input)))
        return hidden.amax((2, 3))

    @torch.no_grad()
    def whiten(self, batches: Iterable[Tensor], epsilon: float) -> None:
        """Set the first layer from the patches of images, (N, channels, height, width) a batch, and freeze it.

        Its bias stays trainable. Reading the images changes no random generator's state.
        """
        weight = self.first.weight.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # data sets that are read sample by sample are seeded as they are
            weight.copy_(whitening(patch_moments(batches), epsilon).view_as(weight))


def seen(network: nn.Module, input: Tensor, views: int) -> Tensor:
    """The outputs for images (N, channels, height, width), averaged over 1, 2 or 6 views; see ``Airbench``."""
    if views == 1:
        return network(input)  # type: ignore[no-any-return]
    mirrored: Tensor = (network(input) + network(input.flip(3))) / 2
    if views == 2:
        return mirrored
    padded = F.pad(input, (1, 1, 1, 1), "reflect")
    height, width = input.shape[2:]
    shifted = [seen(network, padded[:, :, at : at + height, at : at + width], 2) for at in (0, 2)]
    return (mirrored + (shifted[0] + shifted[1]) / 2) / 2


class Airbench(TaskModel):
    """airbench94's network for images of 9x9 pixels and more; the published sizes are the defaults.

    ``adapt`` whitens the first layer before training: a pure function of the training images as evaluation sees them,
    the same in every process. In the original its bias is trained for three epochs; here it is trained throughout.

    Args:
        width: channels of the first block; the second and third have four times as many.
        whitening: initialise the first layer to whiten patches of the training images and freeze it; False trains it.
        epsilon: added to the eigenvalues before whitening.
        temperature: divisor of the logits.
        batchnorm_momentum: momentum of BatchNorm's running statistics.
        head_deviation: the standard deviation of the head's weights at the start; None leaves them as PyTorch
            initialises them.
        views: test-time views of an image that are averaged: 1, 2 with the flipped one, 6 with both shifted by a pixel
            up-left and down-right, which count as much as the two that are not.
        common: the arguments of TaskModel.
    """

    leaves_weights = True
    draws_only_from_torch = True

    def __init__(
        self,
        width: Count = 64,
        whitening: bool = True,
        epsilon: Positive = 5e-4,
        temperature: Positive = 9.0,
        batchnorm_momentum: Fraction = 0.4,
        head_deviation: Positive | None = None,
        views: Literal[1, 2, 6] = 1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.width = width
        self.whitening = whitening
        self.epsilon = epsilon
        self.temperature, self.batchnorm_momentum = temperature, batchnorm_momentum
        self.head_deviation, self.views = head_deviation, views

    def check(self, info: DataInfo) -> None:
        super().check(info)
        check_images("Airbench", info, SMALLEST)

    def build(self, info: DataInfo) -> nn.Module:
        sizes = (info.input_shape[0], info.num_classes, self.width)
        return AirbenchNetwork(*sizes, self.batchnorm_momentum, self.temperature, self.head_deviation)

    def predict(self, network: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The outputs (N, classes), their mean over the views."""
        return seen(network, batch["input"], self.views)

    def adapt(self, network: nn.Module, inputs: Iterable[Tensor]) -> None:
        """Whiten the first layer, if enabled. ``inputs``: the training samples, batch by batch."""
        if self.whitening and isinstance(network, AirbenchNetwork):
            network.whiten(inputs, self.epsilon)
