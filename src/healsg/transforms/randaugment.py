"""RandAugment as FixMatch and its successors use it for the strong view: random operations of random strength.

The operations of PIL are written for whole batches of floating point images in 0..1; each is applied to the rows that
drew it. They differ from PIL's as FixMatch uses it in three ways: levels are not rounded between operations; pixels of
moved images are interpolated, where there the nearest is taken; and images are sheared about their centre, not about
their first row or column. Pixels from outside the image are black.
"""

from __future__ import annotations

from collections.abc import Callable
from math import radians

import torch
from torch import Tensor

from healsg.transforms import affine, colour
from healsg.transforms.numbers import between

OPERATIONS = 3
"""Operations of an image: TorchSSL, USB and the implementations after them; FixMatch's paper has 2."""

NUMBERS = 2 * OPERATIONS + 3
"""Random numbers of an image: which operations, their strengths, and the covered square's size, column and row."""


def randaugment(images: Tensor, u: Tensor, fill: Tensor) -> Tensor:
    """Apply to each image ``OPERATIONS`` of 14 operations, drawn with replacement, then cover a square of up to half
    its side (Sohn et al. 2020, arXiv 2001.07685, appendix D, table 12).

    Args:
        images: (N, C, H, W) floating point in 0..1.
        u: (N, ``NUMBERS``) in [0, 1), on the CPU, so that nothing waits for the images' device.
        fill: (C, 1, 1) the value of the covered square.
    """
    device = images.device
    images = images.clone()
    chosen = (u[:, :OPERATIONS] * len(_TABLE)).to(torch.int64)
    for step in range(OPERATIONS):
        strength = u[:, OPERATIONS + step]
        for number, (operation, low, high) in enumerate(_TABLE):
            rows = (chosen[:, step] == number).nonzero().flatten()
            if operation is not None and len(rows):
                amount = between(strength[rows], low, high).to(device, non_blocking=True)
                rows = rows.to(device, non_blocking=True)
                images[rows] = operation(images[rows], amount)
    size, across, down = u[:, 2 * OPERATIONS :].to(device, non_blocking=True).unbind(1)
    return colour.cutout(images, across, down, size * 0.5 * min(images.shape[2:]), fill)


# --- operations: images (N, C, H, W) in 0..1, amounts (N,) ------------------------------------------------------------


def autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to the whole range; a channel of one value stays."""
    low = images.amin(dim=(2, 3), keepdim=True)
    span = images.amax(dim=(2, 3), keepdim=True) - low
    return torch.where(span > 0, (images - low) / span.clamp_min(1e-6), images)


def brightness(images: Tensor, amount: Tensor) -> Tensor:
    """Blend with black; 1 changes nothing."""
    return colour.brightness(images, amount)


def saturation(images: Tensor, amount: Tensor) -> Tensor:
    """Blend with the grey image; 1 changes nothing."""
    return colour.saturation(images, amount)


def contrast(images: Tensor, amount: Tensor) -> Tensor:
    """Blend with the mean grey; 1 changes nothing."""
    return colour.contrast(images, amount)


def equalize(images: Tensor, amount: Tensor) -> Tensor:
    """Spread the levels of each channel evenly, by PIL's table of 256 levels."""
    levels = (images.flatten(2).nan_to_num() * 255).round().clamp(0, 255).to(torch.int64)
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    last = counts.gather(2, levels.amax(dim=2, keepdim=True))
    step = (levels.shape[2] - last) // 255
    before = counts.cumsum(dim=2) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp_max(255)
    spread = table.gather(2, levels).to(images.dtype).div(255).view(images.shape)
    return torch.where((step > 0).unsqueeze(3), spread, images)


def posterize(images: Tensor, amount: Tensor) -> Tensor:
    """Keep the upper ``amount`` bits, rounded down, of 8."""
    size = 2.0 ** (8 - amount.floor()).view(-1, 1, 1, 1)
    return ((images * 255).round() / size).floor() * size / 255


def solarize(images: Tensor, amount: Tensor) -> Tensor:
    """Invert the pixels from ``amount`` on."""
    return colour.solarise(images, amount)


def sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """Blend with the smoothed image; 1 changes nothing. Pixels of the border stay."""
    height, width = images.shape[2:]
    inside = images[:, :, 1:-1, 1:-1]
    total = 4 * inside  # no convolution, whose rounding may depend on the batch size
    for down in range(3):
        for right in range(3):
            total = total + images[:, :, down : height - 2 + down, right : width - 2 + right]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = total / 13
    return (smooth + (images - smooth) * amount.view(-1, 1, 1, 1)).clamp_(0, 1)


def rotate(images: Tensor, amount: Tensor) -> Tensor:
    """Turn about the centre by ``amount`` degrees, counterclockwise."""
    none = torch.zeros_like(amount)
    turned = affine.affine_matrix(amount * radians(1), none, none, none + 1, none)
    return affine.resample(images, turned)


def shear_x(images: Tensor, amount: Tensor) -> Tensor:
    """Shift each row by ``amount`` times its distance from the centre."""
    matrix = _identity(amount)
    matrix[:, 0, 1] = amount
    return affine.resample(images, matrix)


def shear_y(images: Tensor, amount: Tensor) -> Tensor:
    """Shift each column by ``amount`` times its distance from the centre."""
    matrix = _identity(amount)
    matrix[:, 1, 0] = amount
    return affine.resample(images, matrix)


def translate_x(images: Tensor, amount: Tensor) -> Tensor:
    """Shift to the left by ``amount`` times the width."""
    matrix = _identity(amount)
    matrix[:, 0, 2] = amount * images.shape[3]
    return affine.resample(images, matrix)


def translate_y(images: Tensor, amount: Tensor) -> Tensor:
    """Shift upwards by ``amount`` times the height."""
    matrix = _identity(amount)
    matrix[:, 1, 2] = amount * images.shape[2]
    return affine.resample(images, matrix)


def _identity(amount: Tensor) -> Tensor:
    """(N, 2, 3) the map of ``affine.resample`` that changes nothing, for each amount."""
    return torch.eye(2, 3, device=amount.device).repeat(len(amount), 1, 1)


Operation = Callable[[Tensor, Tensor], Tensor]

_TABLE: tuple[tuple[Operation | None, float, float], ...] = (
    (None, 0.0, 0.0),  # the identity
    (autocontrast, 0.0, 0.0),
    (brightness, 0.05, 0.95),
    (saturation, 0.05, 0.95),
    (contrast, 0.05, 0.95),
    (equalize, 0.0, 0.0),
    (posterize, 4.0, 8.0),
    (rotate, -30.0, 30.0),
    (sharpness, 0.05, 0.95),
    (shear_x, -0.3, 0.3),
    (shear_y, -0.3, 0.3),
    (solarize, 0.0, 1.0),
    (translate_x, -0.3, 0.3),
    (translate_y, -0.3, 0.3),
)
"""The operations with the least and the largest amount."""
