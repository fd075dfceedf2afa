"""Rotation, shift, scale, shear, flip and crop of whole batches in one bilinear sampling.

Each function is pure: a sample's result depends on the sample and its own numbers, never on its neighbours.
"""

from __future__ import annotations

from math import log, radians

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.metric import precise
from healsg.seeding import Draw
from healsg.transforms.image import Padding
from healsg.transforms.numbers import between, uniform


def resample(images: Tensor, matrix: Tensor, padding: Padding = "zero") -> Tensor:
    """Each output pixel from the place that its image's matrix says, bilinearly.

    Args:
        images: (N, C, H, W) floating point.
        matrix: (N, 2, 3) float32: from (column, row, 1) of an output pixel, in pixels from the image's centre, to the
            place in the input, likewise.
        padding: what lies outside, ``zero`` or ``reflect``.
    """
    height, width = images.shape[2:]
    column = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    row = (torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2).unsqueeze(1)
    a = matrix.view(-1, 6, 1, 1).unbind(1)  # element by element: a matrix product may round by the batch's size
    across, down = a[0] * column + a[1] * row + a[2], a[3] * column + a[4] * row + a[5]
    grid = torch.stack([across * (2 / width), down * (2 / height)], dim=3)
    outside = "zeros" if padding == "zero" else "reflection"
    return F.grid_sample(images, grid.to(images.dtype), padding_mode=outside, align_corners=False)


def affine_matrix(
    angle: Tensor, right: Tensor, down: Tensor, scale: Tensor, shear: Tensor, flip: Tensor | None = None
) -> Tensor:
    """(N, 2, 3) for ``resample``: images are flipped, sheared, enlarged, turned about their centre, then shifted.

    Args:
        angle: (N,) radians, counterclockwise as one sees it.
        right: (N,) pixels.
        down: (N,) pixels.
        scale: (N,) above 0; 2 shows everything twice as large.
        shear: (N,) pixels that a row is pushed right for each that it lies lower.
        flip: (N,) -1 mirrors left to right, 1 does not.
    """
    cos, sin = precise(angle).cos().float(), precise(angle).sin().float()  # rounded alike whatever the batch's size
    mirror = torch.ones_like(cos) if flip is None else flip
    # The inverse, since resample asks where a pixel comes from.
    first, second = torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)
    first = (first - shear.unsqueeze(1) * second) / scale.unsqueeze(1) * mirror.unsqueeze(1)
    second = second / scale.unsqueeze(1)
    rows = [
        torch.cat([row, -(row[:, :1] * right.unsqueeze(1) + row[:, 1:] * down.unsqueeze(1))], 1)
        for row in (first, second)
    ]
    return torch.stack(rows, 1)


def random_affine(
    images: Tensor,
    draw: Draw,
    *,
    rotation: float = 0.0,
    shift: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    flip: bool = False,
    padding: Padding = "zero",
    which: int = 0,
) -> Tensor:
    """Turn, shift, enlarge, shear and flip each image by its own evenly drawn amounts.

    Args:
        images: (N, C, H, W) floating point.
        draw: the samples' draws, of which ``which`` and ``which + 1`` are used.
        rotation: at most so many degrees either way.
        shift: at most so many pixels in each direction, in fractions.
        scale: between 1 - scale and 1 + scale.
        shear: at most so many pixels a row, either way.
        flip: mirror with probability 1/2.
        padding: what comes in from outside.
        which: the first of the draws.
    """
    u = uniform(draw, 6, which)
    signed = u * 2 - 1
    mirror = torch.where(u[:, 5] < 0.5, -1.0, 1.0) if flip else None
    angle = signed[:, 0] * radians(rotation)
    right = signed[:, 1] * shift
    down = signed[:, 2] * shift
    return resample(
        images,
        affine_matrix(angle, right, down, 1 + signed[:, 3] * scale, signed[:, 4] * shear, mirror),
        padding,
    )


def random_resized_crop(
    images: Tensor, draw: Draw, *, smallest: float = 0.08, ratio: float = 4 / 3, flip: bool = False, which: int = 0
) -> Tensor:
    """A random window of each image, shown in full size (Szegedy et al. 2015, arXiv 1409.4842, section 6).

    The window's share of the area is drawn evenly, the logarithm of its aspect likewise; a window wider or higher than
    the image is cut to it.

    Args:
        images: (N, C, H, W) floating point.
        draw: the samples' draws, of which ``which`` and ``which + 1`` are used.
        smallest: the least share of the area; the largest is 1.
        ratio: the aspect lies between its inverse and this.
        flip: mirror with probability 1/2.
        which: the first of the draws.
    """
    height, width = images.shape[2:]
    u = uniform(draw, 5, which)
    area, aspect = precise(between(u[:, 0], smallest, 1.0)), (precise(between(u[:, 1], -1.0, 1.0)) * log(ratio)).exp()
    across, down = ((area * one).sqrt().clamp(max=1.0).float() for one in (aspect, 1 / aspect))
    left, top = (u[:, 2] - 0.5) * (1 - across) * width, (u[:, 3] - 0.5) * (1 - down) * height
    zero, mirror = torch.zeros_like(left), torch.where(u[:, 4] < 0.5, -1.0, 1.0) if flip else 1.0
    return resample(images, torch.stack([across * mirror, zero, left, zero, down, top], 1).view(-1, 2, 3), "reflect")
