"""Synthetic samples of any shape, number and kind, drawn from a seed: for tests and benchmarks."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.data.base import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import TensorSource
from healsg.datasets.classification import Classification
from healsg.errors import ConfigError
from healsg.seeding import generator
from healsg.transforms.standard import Standardise
from healsg.transforms.views import Augment, image_views
from healsg.types import Count, Natural, NonNegative, Positive

LEVEL, STEP = 128.0, 32.0
"""The uint8 level that represents 0, and the number of levels of a step of 1."""


class Synthetic(Classification):
    """Gaussian noise around a mean that depends on the target, a pure function of ``seed``; kept in memory.

    ============== ===================================================================================================
    ``multiclass`` every class has a mean of its own
    ``multilabel`` every label has one, and comes with probability 1/2; the means of a sample's labels add up
    ``regression`` ``classes`` normal numbers a sample, each times a mean of its own
    ============== ===================================================================================================

    Args:
        shape: of a sample: (features,), (channels, height, width) or (channels, depth, height, width).
        classes: the number of classes, labels, or regression targets.
        kind: of task.
        train, val, test: samples of each part; with ``val=0``, ``val_fraction`` applies.
        images: uint8 samples, as images are stored; otherwise floating-point numbers.
        separation: the norm of the class means, in standard deviations of the noise.
        seed: of the generated data; independent of the run's seed.
        augment: of training images, by name; see ``ImageViews``. Volumes know ``none`` and ``standard``.
        flip: flip training images horizontally at random.
        shift: the largest random shift of ``augment=standard``, in pixels.
        noise: standard deviation of additional Gaussian noise on training samples that are not images.
        common: the arguments of Classification.
    """

    repeatable = True

    def __init__(
        self,
        shape: list[int] | None = None,
        classes: Count = 10,
        kind: Literal["multiclass", "multilabel", "regression"] = "multiclass",
        train: Count = 1000,
        val: Natural = 0,
        test: Natural = 200,
        images: bool = True,
        separation: Positive = 8.0,
        seed: Natural = 0,
        augment: Augment = "standard",
        flip: bool = False,
        shift: Natural = 0,
        noise: NonNegative = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.shape = tuple(shape or (3, 32, 32))
        if min(self.shape) < 1:
            raise ConfigError(f"data.shape: {list(self.shape)} has a side below 1")
        if images and len(self.shape) not in (3, 4):
            raise ConfigError(f"data.shape: {list(self.shape)} is no image; set data.images=false")
        self.classes = classes
        self.kind = kind
        self.images = images
        self.separation = separation
        self.seed = seed
        self.sizes = {"train": train, "val": val, "test": test}
        self.seen = (
            image_views(augment, flip, shift, LEVEL / 255, STEP / 255, self.shape, "zero", "these are")
            if images
            else Standardise(torch.zeros(()), torch.ones(()), noise)
        )

    @property
    def info(self) -> DataInfo:
        return DataInfo(self.shape, self.classes, self.kind)

    @property
    def has_val(self) -> bool:
        return self.sizes["val"] > 0

    @property
    def has_test(self) -> bool:
        return self.sizes["test"] > 0

    def transform(self, view: str, split: str) -> Transform:
        return self.seen.of(view, split)

    def read(self, part: str) -> TensorSource | None:
        size = self.sizes.get(part, 0)
        return TensorSource(*self._draw(part, size)) if size else None

    @cached_property
    def _means(self) -> Tensor:
        source, sides = generator(self.seed, "means"), self.shape[1:]
        if self.images:  # smooth, so that a shift leaves something of them
            coarse = torch.randn(self.classes, self.shape[0], *[-(-side // 4) for side in sides], generator=source)
            mode = "bilinear" if len(sides) == 2 else "trilinear"
            drawn = F.interpolate(coarse, sides, mode=mode)
        else:
            drawn = torch.randn(self.classes, *self.shape, generator=source)
        length = drawn.flatten(1).norm(dim=1).view(-1, *[1] * len(self.shape))
        means: Tensor = drawn * (self.separation / length)
        return means

    def _draw(self, part: str, size: int) -> tuple[Tensor, Tensor]:
        source = generator(self.seed, "samples", part)
        if self.kind == "multiclass":
            target = torch.arange(size)[torch.randperm(size, generator=source)] % self.classes
        elif self.kind == "multilabel":
            target = weight = torch.randint(0, 2, (size, self.classes), generator=source).float()
        else:
            target = weight = torch.randn(size, self.classes, generator=source)
        inputs = torch.randn(size, *self.shape, generator=source)
        means = self._means.flatten(1)
        inputs += (means[target] if self.kind == "multiclass" else weight @ means).view(inputs.shape)
        if self.images:
            inputs = (inputs * STEP + LEVEL).round().clamp(0, 255).to(torch.uint8)
        return inputs, target[:, 0] if self.kind == "regression" and self.classes == 1 else target
