"""Rotation, shift, scale, shear, flip and crop of whole batches, each as one bilinear resampling.

The functions are pure: the result for a sample depends on the sample and its parameters, not on the rest of the batch.
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
    """Resample images by an affine map, bilinearly.

    Args:
        images: (N, C, H, W) floating point.
        matrix: (N, 2, 3) float32, which maps (column, row, 1) of an output pixel to (column, row) in the input, both in
            pixels relative to the image's centre.
        padding: the values outside the image, ``zero`` or ``reflect``.
    """
    height, width = images.shape[2:]
    column = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    row = (torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2).unsqueeze(1)
    a = matrix.view(-1, 6, 1, 1).unbind(1)  # no matrix product, whose rounding may depend on the batch size
    across, down = a[0] * column + a[1] * row + a[2], a[3] * column + a[4] * row + a[5]
    grid = torch.stack([across * (2 / width), down * (2 / height)], dim=3)
    outside = "zeros" if padding == "zero" else "reflection"
    return F.grid_sample(images, grid.to(images.dtype), padding_mode=outside, align_corners=False)


def affine_matrix(
    angle: Tensor, right: Tensor, down: Tensor, scale: Tensor, shear: Tensor, flip: Tensor | None = None
) -> Tensor:
    """The (N, 2, 3) matrix for ``resample`` that flips, shears, scales, rotates about the centre and then shifts.

    Args:
        angle: (N,) rotation in radians, counterclockwise in the displayed image.
        right: (N,) shift to the right, in pixels.
        down: (N,) shift downwards, in pixels.
        scale: (N,) above 0; 2 doubles the size of everything in the image.
        shear: (N,) pixels by which each row is shifted right relative to the row above it.
        flip: (N,) -1 flips horizontally, 1 does not.
    """
    cos, sin = precise(angle).cos().float(), precise(angle).sin().float()  # rounding independent of the batch size
    mirror = torch.ones_like(cos) if flip is None else flip
    # The inverse of the described map, since resample needs the source of each output pixel.
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
    """Rotate, shift, scale, shear and flip each image by uniformly drawn amounts.

    Args:
        images: (N, C, H, W) floating point.
        draw: the samples' draws, of which ``which`` and ``which + 1`` are used.
        rotation: the largest rotation in either direction, in degrees.
        shift: the largest shift in each direction, in pixels; fractions are drawn too.
        scale: the factor is drawn from [1 - scale, 1 + scale].
        shear: the largest shear in either direction, in pixels per row.
        flip: flip horizontally with probability 1/2.
        padding: the values outside the image, ``zero`` or ``reflect``.
        which: number of the first draw.
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
    """Crop a random window of each image and resize it to the full size (Szegedy et al. 2015, arXiv 1409.4842,
    section 6).

    The window's fraction of the area and the logarithm of its aspect ratio are drawn uniformly; a window wider or
    higher than the image is clipped to it.

    Args:
        images: (N, C, H, W) floating point.
        draw: the samples' draws, of which ``which`` and ``which + 1`` are used.
        smallest: the smallest fraction of the area; the largest is 1.
        ratio: the aspect ratio is drawn from [1 / ratio, ratio].
        flip: flip horizontally with probability 1/2.
        which: number of the first draw.
    """
    height, width = images.shape[2:]
    u = uniform(draw, 5, which)
    area, aspect = precise(between(u[:, 0], smallest, 1.0)), (precise(between(u[:, 1], -1.0, 1.0)) * log(ratio)).exp()
    across, down = ((area * one).sqrt().clamp(max=1.0).float() for one in (aspect, 1 / aspect))
    left, top = (u[:, 2] - 0.5) * (1 - across) * width, (u[:, 3] - 0.5) * (1 - down) * height
    zero, mirror = torch.zeros_like(left), torch.where(u[:, 4] < 0.5, -1.0, 1.0) if flip else 1.0
    return resample(images, torch.stack([across * mirror, zero, left, zero, down, top], 1).view(-1, 2, 3), "reflect")
