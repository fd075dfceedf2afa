"""Mixup, CutMix and Random Erasing on a batch that is already on the device, as pure functions of tensors.

They draw from the default generator of the batch's device, which the runner seeds for each step, and read no value.
With several processes each draws for the batch of all of them (``samples``) and uses its own part, and a partner may be
any sample of the whole batch, so that the numbers do not depend on the number of processes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from healsg.errors import ConfigError
from healsg.methods.gathered import gather
from healsg.metric import precise
from healsg.training.step import Samples

ATTEMPTS = 10
"""Rectangles that Random Erasing draws for a sample; the first that fits is used."""

AREA = (0.02, 0.4)
"""The smallest and the largest area of such a rectangle, as a share of the image."""

ASPECT = (0.3, 1 / 0.3)
"""The smallest and the largest ratio of its height and width."""


class Mixing(NamedTuple):
    """How samples were mixed: each keeps ``share`` of itself (a scalar, or (N,)), and the rest is its ``partner``'s
    ((N,) indices in the batch of all processes)."""

    partner: Tensor
    share: Tensor
    samples: Samples | None = None
    """Which of all processes' samples these are; None if there is one process."""
    pixels: Tensor | None = None
    """(*spatial) the share that each pixel keeps, 0 or 1 where a box was pasted; None if all keep ``share``."""

    def others(self, values: Tensor) -> Tensor:
        """The partners' inputs or class probabilities, of (N, ...) own ones."""
        everywhere = values if self.samples is None else gather(values, self.samples.rows)
        return everywhere[self.partner]

    def of(self, values: Tensor) -> Tensor:
        """``share * values + (1 - share) * values[partner]``, for inputs or class probabilities (N, ...).

        Class probabilities of pixels (N, C, *spatial) keep the share of each pixel: what is in the box is the
        partner's.
        """
        if self.pixels is not None and values.shape[2:] == self.pixels.shape and values.dim() > 2:
            return torch.lerp(self.others(values), values, self.pixels.to(values.dtype))
        shares = self.share.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
        return torch.lerp(self.others(values), values, shares)

    def pasted(self, mask: Tensor) -> Tensor | None:
        """Masks (N, *spatial) of labels with the partners' box in them; None if that is not what was done to the
        inputs, or targets have no place."""
        if self.pixels is None or self.pixels.dtype != torch.bool or mask.shape[1:] != self.pixels.shape:
            return None
        return torch.where(self.pixels, mask, self.others(mask))


def partners(input: Tensor, samples: Samples | None) -> Tensor:
    """(N,) a partner of each sample, in a random order of the batch of all processes."""
    order = torch.randperm(global_batch_size(input, samples), device=input.device)
    return order if samples is None else local_part(order, len(input), samples)


def global_batch_size(input: Tensor, samples: Samples | None) -> int:
    """The number of samples in the batch of all processes."""
    return len(input) if samples is None or samples.batch is None else samples.batch


def local_part(drawn: Tensor, count: int, samples: Samples | None, dim: int = 0) -> Tensor:
    """The part for this process, ``count`` samples, of random numbers drawn for the batch of all processes."""
    return drawn if samples is None else drawn.narrow(dim, samples.first, count)


def beta(alpha: float, like: Tensor) -> Tensor:
    """A scalar of Beta(alpha, alpha) on the device of ``like``."""
    both = torch.distributions.Dirichlet(precise(like.new_full((2,), alpha)), validate_args=False).sample()
    return both[0]


def mixup(input: Tensor, alpha: float, samples: Samples | None = None) -> tuple[Tensor, Mixing]:
    """Mix every sample with another of its batch (Zhang et al. 2018, arXiv 1710.09412).

    Args:
        input: (N, ...) floating-point.
        alpha: the mixing coefficient is drawn from Beta(alpha, alpha), once per batch.
        samples: which samples of all processes these are; None for one process.
    """
    mixing = Mixing(partners(input, samples), beta(alpha, input), samples)
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
        position = torch.arange(pixels, device=device)
        within = (position >= centre - half) & (position < centre + half)
        inside &= within.view([-1 if other == axis else 1 for other in range(len(size))])
    return inside


def cutmix(input: Tensor, alpha: float, samples: Samples | None = None) -> tuple[Tensor, Mixing]:
    """Paste a box of another sample of the batch into every sample (Yun et al. 2019, arXiv 1905.04899, Algorithm A1).

    Args:
        input: (N, C, *spatial) images or volumes.
        alpha: the share of the image that stays is drawn from Beta(alpha, alpha) and then recomputed from the clipped
            box, once per batch.
        samples: see ``mixup``.

    Raises ConfigError for inputs that are not images.
    """
    if input.dim() < 4:
        raise ConfigError(f"method.cutmix: needs images or volumes, and a batch here is {tuple(input.shape)}")
    partner = partners(input, samples)
    pasted = box(tuple(input.shape[2:]), beta(alpha, input), input.device)
    mixing = Mixing(partner, 1.0 - precise(pasted).mean(), samples, ~pasted)
    return torch.where(pasted, mixing.others(input), input), mixing


def mix(
    input: Tensor, mixup_alpha: float, cutmix_alpha: float, samples: Samples | None = None
) -> tuple[Tensor, Mixing]:
    """Mixup or CutMix; if both are on, each batch draws one with probability 1/2. alpha = 0 turns one off."""
    if not cutmix_alpha:
        return mixup(input, mixup_alpha, samples)
    cut, first = cutmix(input, cutmix_alpha, samples)
    if not mixup_alpha:
        return cut, first
    mixed, second = mixup(input, mixup_alpha, samples)
    coin = torch.rand((), device=input.device) < 0.5
    partner, share = (torch.where(coin, one, other) for one, other in zip(first[:2], second[:2], strict=True))
    assert first.pixels is not None
    pixels = torch.where(coin, first.pixels.to(share.dtype), share)
    return torch.where(coin, cut, mixed), Mixing(partner, share, samples, pixels)


def random_erasing(images: Tensor, probability: float, samples: Samples | None = None) -> Tensor:
    """Fill a random rectangle of some of the images with noise (Zhong et al. 2020, arXiv 1708.04896, Algorithm 1).

    Each sample has its own rectangle, or none. The noise is N(0, 1) for each value: the images are normalised. A mask
    stays as it is: the content under the noise is to be inferred from its surroundings.

    Args:
        images: (N, C, height, width).
        probability: that a sample is erased.
        samples: see ``mixup``.

    Raises ConfigError for inputs that are not images.
    """
    if images.dim() != 4:
        raise ConfigError(f"method.random_erasing: needs images, and a batch here is {tuple(images.shape)}")
    count = len(images)
    height, width = images.shape[2:]
    total = global_batch_size(images, samples)
    draw = local_part(torch.rand(4, total, ATTEMPTS, device=images.device), count, samples, dim=1)
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
    coin = local_part(torch.rand(total, 1, device=images.device), count, samples)
    erased = (coin < probability) & (fitting > 0)
    chosen = within_rows[:, :, None] & within_columns[:, None, :] & erased[:, :, None]
    noise = torch.randn_like(images) if samples is None else images.new_empty(total, *images.shape[1:]).normal_()
    return torch.where(chosen[:, None], local_part(noise, count, samples), images)
