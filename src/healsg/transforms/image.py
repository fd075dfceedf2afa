"""Random flips and shifts and the normalisation of whole batches of images, uint8 until the last step.

Each function is pure: a sample's result depends on the sample and on its own draw, never on its neighbours in the
batch. No value is read from a device. On a CPU large images are changed one by one, with the same numbers: an image
stays in the processor's cache from one operation to the next, which a batch does not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.data.source import Batch
from healsg.errors import ConfigError
from healsg.seeding import Draw
from healsg.transforms.dense_targets import has_dense_target, moved_mask
from healsg.types import Count, Natural, Positive

Padding = Literal["zero", "reflect"]

LARGE = 1 << 14
"""Numbers of an image from which a CPU changes images one by one."""


def is_large(images: Tensor) -> bool:
    """Whether (N, C, ...) images are changed one by one."""
    return images.device.type == "cpu" and len(images) > 1 and images[0].numel() >= LARGE


def pad(images: Tensor, pixels: int, padding: Padding = "zero") -> Tensor:
    """Pad (N, C, H, W) images by ``pixels`` on every side: with zeros, or by reflection without repeating the border.

    ``reflect`` needs ``pixels`` to be smaller than H and W.
    """
    if padding == "zero":
        return F.pad(images, (pixels, pixels, pixels, pixels))
    for axis in (2, 3):
        size = images.shape[axis]
        before = images.narrow(axis, 1, pixels).flip(axis)
        after = images.narrow(axis, size - 1 - pixels, pixels).flip(axis)
        images = torch.cat([before, images, after], dim=axis)
    return images


def random_shift(images: Tensor, draw: Draw, pixels: int, which: int = 0, padding: Padding = "zero") -> Tensor:
    """Shift each image by up to ``pixels`` up or down and left or right: pad, then crop each image's own window.

    Every one of the ``(2 * pixels + 1)**2`` windows is equally likely.

    Args:
        images: (N, C, H, W), any type, on any device.
        draw: the N samples' draws.
        pixels: the largest shift, in pixels.
        which: the draw of the rows; ``which + 1`` is that of the columns.
        padding: fill of pixels outside the image, ``zero`` or ``reflect``.
    """
    if not pixels:
        return images
    count, channels, height, width = images.shape
    down = draw.integers(which, 0, 2 * pixels)
    right = draw.integers(which + 1, 0, 2 * pixels)
    padded = pad(images, pixels, padding)
    # Each row of a window is a run of `width` elements of the flat memory: one gather of such runs is the crop.
    runs = padded.flatten().unfold(0, width, 1)
    row = torch.arange(height, device=images.device) + down.view(-1, 1, 1)
    plane = torch.arange(count * channels, device=images.device).view(count, channels, 1)
    start = (plane * padded.shape[2] + row) * padded.shape[3] + right.view(-1, 1, 1)
    return runs.index_select(0, start.flatten()).view(images.shape)


def random_flip(images: Tensor, draw: Draw, which: int = 0, alternate: bool = False) -> Tensor:
    """Flip each of the (N, C, H, W) images horizontally with probability 1/2.

    With ``alternate`` only the first epoch is drawn; from then on each image is flipped in every other epoch, so that
    two successive epochs show every image both ways (the alternating flip of Jordan 2024, arXiv 2404.00498).
    """
    count = len(images)
    side = draw.alternating(which) if alternate else draw.integers(which, 0, 1)
    if is_large(images):
        made = torch.empty_like(images)
        for row, image, mirrored in zip(made.unbind(), images.unbind(), side.tolist(), strict=True):
            row.copy_(image.flip(2) if mirrored else image)
        return made
    both = torch.cat([images, images.flip(3)])
    chosen = torch.arange(count, device=images.device) + count * side
    return both.index_select(0, chosen)


def scaling(images: Tensor, mean: Sequence[float], std: Sequence[float], scale: float) -> tuple[Tensor, Tensor]:
    """The factor and offset with which ``images * factor + offset`` is ``(images / scale - mean) / std``.

    They lie on the device of ``images``: (C, 1, 1), or (C, 1, 1, 1) for volumes.
    """
    shape = (-1, *[1] * (images.dim() - 2))
    means, stds = (torch.tensor(values, dtype=torch.float64).view(shape) for values in (mean, std))
    return (1 / (scale * stds)).float().to(images.device), (-means / stds).float().to(images.device)


def scaled(images: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """(N, C, ...) float32 ``images * factor + offset``, rounded after the product; see ``scaling``."""
    if not is_large(images):
        return images.to(torch.float32, copy=True).mul_(factor).add_(offset)
    made = torch.empty_like(images, dtype=torch.float32)
    for row, image in zip(made.unbind(), images.unbind(), strict=True):
        row.copy_(image).mul_(factor).add_(offset)
    return made


def check_view(view: str, kind: str, known: Collection[str] = ("input", "weak", "view1", "view2")) -> None:
    """Raise ConfigError unless ``view`` is one of those in ``known``, the views that ``kind`` (images, volumes) has."""
    if view not in known:
        raise ConfigError(f"data: no {view!r} view of {kind}, which the method needs; there are {', '.join(known)}")


class ImageTransform:
    """The standard augmentation of small images: a random flip, a random shift, then the normalisation.

    Without a draw (evaluation) only the normalisation remains. A target that is a mask is flipped and shifted with its
    image.

    Args:
        flip: flip horizontally with probability 1/2.
        shift: the largest shift in pixels; 0 is none.
        mean: each channel's mean, with ``maximum`` as 1.
        std: each channel's standard deviation, with ``maximum`` as 1.
        padding: fill of pixels that a shift leaves empty, ``zero`` or ``reflect``.
        size: the images' shorter side in pixels, if it is known; a shift must be smaller.
        maximum: the stored value of full intensity, 255 for uint8.
        alternate: flip each image every other epoch; see ``random_flip``.
        outside: the label of a mask's pixels that a shift brings in with ``zero`` padding.
    """

    per_sample = True
    """The result for a sample does not depend on the other samples of its batch; see ``Loader``."""

    words: ClassVar[tuple[str, str]] = ("pixels", "images")

    shares_geometry: ClassVar[bool] = True
    """Whether images with dense targets (masks) are moved by ``Draw.shared`` alone, the geometric draw that all views
    of a sample share, so that one moved target fits all of them. Where a transform does not declare it, each view gets
    its own moved target."""

    def __init__(
        self,
        flip: bool,
        shift: Natural,
        mean: Sequence[float],
        std: Sequence[float],
        padding: Padding = "zero",
        size: Count | None = None,
        maximum: Positive = 255.0,
        alternate: bool = False,
        outside: int = 0,
    ) -> None:
        if size is not None and shift >= size:
            pixels, images = self.words
            raise ConfigError(f"data.shift: {shift} {pixels}, but the {images} have {size}; set less than that")
        self.flip = flip
        self.shift = shift
        self.padding = padding
        self.alternate = alternate
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.maximum = maximum
        self.outside = outside
        self.as_stored = maximum == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}
        """Whether the normalisation changes nothing."""
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        batch = self.before_normalised(batch, draw)
        return batch | {"input": self.normalised(batch["input"])}

    def before_normalised(self, batch: Batch, draw: Draw | None) -> Batch:
        """The first of two stages: all that is random, in the type in which images are stored."""
        return batch if draw is None else self.moved(batch, draw)

    def normalised(self, images: Tensor) -> Tensor:
        """The second one: (N, C, H, W) float32."""
        if images.device not in self._constants:
            self._constants[images.device] = scaling(images, self.mean, self.std, self.maximum)
        factor, offset = self._constants[images.device]
        if self.as_stored and images.dtype == torch.float32:
            return images
        return scaled(images, factor, offset)

    def described(self) -> dict[str, Any]:
        """Each channel's mean and standard deviation, and the stored value of full intensity, for
        ``DataInfo.preprocessing``."""
        return {"mean": list(self.mean), "std": list(self.std), "maximum": self.maximum}

    def moved(self, batch: Batch, draw: Draw) -> Batch:
        """Flip and shift each image of a batch and, where targets are masks, each mask like its image."""
        images: Tensor = batch["input"]
        batch = batch | {"input": self.move(images, draw.shared)}
        if has_dense_target(batch):
            outside = self.outside if self.padding == "zero" else 0
            mask = moved_mask(batch["target"], images.dim(), lambda planes: self.move(planes, draw.shared), outside)
            batch["target"] = mask
        return batch

    def move(self, images: Tensor, draw: Draw) -> Tensor:
        """Flip and shift each image."""
        if self.flip:
            images = random_flip(images, draw, which=0, alternate=self.alternate)
        return random_shift(images, draw, self.shift, which=1, padding=self.padding)
