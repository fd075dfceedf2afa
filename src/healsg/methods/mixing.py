"""Mixup, CutMix and Random Erasing on a batch that is on the device already, as pure functions of tensors.

They draw from the default generator of the batch's device, which the runner seeds for each step, and read no value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from healsg.errors import ConfigError
from healsg.metric import precise

ATTEMPTS = 10
"""Rectangles that are drawn for a sample, of which the first that fits is taken."""

AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)
"""Of Random Erasing: the share of the image, and its height by its width."""


class Mixing(NamedTuple):
    """How samples were mixed: each with its ``partner`` ((N,) places in the batch), keeping ``share`` (one for all, or
    (N,))."""

    partner: Tensor
    share: Tensor

    def of(self, values: Tensor) -> Tensor:
        """``share * values + (1 - share) * values[partner]``, for inputs or class probabilities (N, ...)."""
        shares = self.share.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
        return torch.lerp(values[self.partner], values, shares)


def beta(alpha: float, like: Tensor) -> Tensor:
    """A scalar of Beta(alpha, alpha) on the device of ``like``."""
    both = torch.distributions.Dirichlet(precise(like.new_full((2,), alpha)), validate_args=False).sample()
    return both[0]


def mixup(input: Tensor, alpha: float) -> tuple[Tensor, Mixing]:
    """Mix every sample with another of its batch (Zhang et al. 2018, arXiv 1710.09412).

    Args:
        input: (N, ...) floating-point.
        alpha: the share that a sample keeps is drawn from Beta(alpha, alpha), once for the batch.
    """
    mixing = Mixing(torch.randperm(len(input), device=input.device), beta(alpha, input))
    return mixing.of(input), mixing


def box(size: tuple[int, ...], share: Tensor, device: torch.device) -> Tensor:
    """A random box of sides ``size * (1 - share)^(1/d)`` around a random centre, clipped to the image.

    Returns a bool tensor of ``size``.

    Args:
        size: the image's d sides in pixels.
        share: scalar, of the image that stays outside a box that is not clipped.
    """
    inside = torch.ones(size, dtype=torch.bool, device=device)
    side = (1.0 - share) ** (1.0 / len(size))
    for axis, pixels in enumerate(size):
        half = (pixels * side).floor().div(2).floor()
        centre = torch.randint(pixels, (), device=device)
        place = torch.arange(pixels, device=device)
        within = (place >= centre - half) & (place < centre + half)
        inside &= within.view([-1 if other == axis else 1 for other in range(len(size))])
    return inside


def cutmix(input: Tensor, alpha: float) -> tuple[Tensor, Mixing]:
    """Put a box of another sample of the batch into every sample (Yun et al. 2019, arXiv 1905.04899, Algorithm A1).

    Args:
        input: (N, C, *spatial) images or volumes.
        alpha: the share that stays is drawn from Beta(alpha, alpha) and then counted in pixels, once for the batch.

    Raises ConfigError for anything else than images.
    """
    if input.dim() < 4:
        raise ConfigError(f"method.cutmix: needs images or volumes, and a batch here is {tuple(input.shape)}")
    partner = torch.randperm(len(input), device=input.device)
    pasted = box(tuple(input.shape[2:]), beta(alpha, input), input.device)
    return torch.where(pasted, input[partner], input), Mixing(partner, 1.0 - precise(pasted).mean())


def mix(input: Tensor, mixup_alpha: float, cutmix_alpha: float) -> tuple[Tensor, Mixing]:
    """Mixup, CutMix, or one of them at even odds where both are asked for (alpha of 0 leaves one out)."""
    if not cutmix_alpha:
        return mixup(input, mixup_alpha)
    cut, first = cutmix(input, cutmix_alpha)
    if not mixup_alpha:
        return cut, first
    mixed, second = mixup(input, mixup_alpha)
    coin = torch.rand((), device=input.device) < 0.5
    chosen = Mixing(*(torch.where(coin, one, other) for one, other in zip(first, second, strict=True)))
    return torch.where(coin, cut, mixed), chosen


def random_erasing(images: Tensor, probability: float) -> Tensor:
    """Fill a random rectangle of some of the images with noise (Zhong et al. 2020, arXiv 1708.04896, Algorithm 1).

    Each sample has its own rectangle, or none. The noise is N(0, 1) for each value: the images are normalised.

    Args:
        images: (N, C, height, width).
        probability: that a sample is erased.

    Raises ConfigError for anything else than images.
    """
    if images.dim() != 4:
        raise ConfigError(f"method.random_erasing: needs images, and a batch here is {tuple(images.shape)}")
    count, _, height, width = images.shape
    draw = torch.rand(4, count, ATTEMPTS, device=images.device)
    area = (AREA[0] + (AREA[1] - AREA[0]) * draw[0]) * height * width
    aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * draw[1]
    tall, wide = (area * aspect).sqrt().floor(), (area / aspect).sqrt().floor()
    fits = (tall < height) & (wide < width)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    tall, wide, down, right, fitting = (
        values.gather(1, first) for values in (tall, wide, draw[2], draw[3], fits.to(draw.dtype))
    )
    top, left = (down * (height - tall + 1)).floor(), (right * (width - wide + 1)).floor()
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    within_rows = (rows >= top) & (rows < top + tall)
    within_columns = (columns >= left) & (columns < left + wide)
    erased = (torch.rand(count, 1, device=images.device) < probability) & (fitting > 0)
    chosen = within_rows[:, :, None] & within_columns[:, None, :] & erased[:, :, None]
    return torch.where(chosen[:, None], torch.randn_like(images), images)
