"""Brightness, contrast, saturation, hue, grey, blur, noise and cutout of whole batches, with parameters for each image.

Images are (N, C, H, W) floating point in 0..1; parameters are (N,). The functions are pure: the result for an image
does not depend on the rest of the batch.
"""

from __future__ import annotations

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.metric import precise

GREY = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in luma (ITU-R BT.601)."""


def _each(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


def grey(images: Tensor) -> Tensor:
    """(N, 1, H, W): luma of images of 3 channels; the mean over the channels of others."""
    if images.shape[1] == 3:
        red, green, blue = images.unbind(1)
        return (red * GREY[0] + green * GREY[1] + blue * GREY[2]).unsqueeze(1)
    return images if images.shape[1] == 1 else images.mean(dim=1, keepdim=True)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by ``factor``."""
    return (images * _each(factor)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the difference from the image's mean luma by ``factor``."""
    mean = precise(grey(images)).mean(dim=(1, 2, 3), keepdim=True).float()  # rounding independent of the batch size
    return (mean + (images - mean) * _each(factor)).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the difference from grey by ``factor``: 0 gives grey, 1 changes nothing.

    Images of other than 3 channels are returned unchanged.
    """
    if images.shape[1] != 3:
        return images
    bare = grey(images)
    return (bare + (images - bare) * _each(factor)).clamp_(0, 1)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate the colours about the grey axis of the RGB cube by ``turn`` of a full circle.

    Images of other than 3 channels are returned unchanged.
    """
    if images.shape[1] != 3:
        return images
    angle = precise(turn) * (2 * pi)
    cos, sin = _each(angle.cos().float()).squeeze(1), _each((angle.sin() / 3**0.5).float()).squeeze(1)
    red, green, blue = images.unbind(1)
    even = (red + green + blue) * ((1 - cos) / 3)
    turned = [
        red * cos + even + (blue - green) * sin,
        green * cos + even + (red - blue) * sin,
        blue * cos + even + (green - red) * sin,
    ]
    return torch.stack(turned, dim=1).clamp_(0, 1)


def solarise(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values from ``threshold`` on."""
    return torch.where(images < _each(threshold), images, 1 - images)


def add_noise(images: Tensor, noise: Tensor, deviation: float | Tensor) -> Tensor:
    """Add ``noise`` (N, C * H * W) of variance 1, multiplied by ``deviation``."""
    return (images + noise.view(images.shape) * deviation).clamp_(0, 1)


def blur(images: Tensor, deviation: Tensor, radius: int) -> Tensor:
    """Gaussian blur with a standard deviation in pixels for each image; the kernel is cut off at ``radius`` pixels."""
    offset = precise(torch.arange(-radius, radius + 1, device=images.device))
    weight = (-(offset**2) / (2 * precise(deviation).view(-1, 1) ** 2)).exp()
    weight = (weight / weight.sum(dim=1, keepdim=True)).float()
    for axis in (3, 2):
        size = images.shape[axis]
        sides = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        wide = F.pad(images, sides, mode="reflect")
        images = wide.narrow(axis, 0, size) * _each(weight[:, 0])
        for tap in range(1, 2 * radius + 1):
            images = images + wide.narrow(axis, tap, size) * _each(weight[:, tap])
    return images


def cutout(images: Tensor, across: Tensor, down: Tensor, size: Tensor | float, fill: float | Tensor = 0.0) -> Tensor:
    """Cover a square of each image (DeVries and Taylor 2017, arXiv 1708.04552).

    Args:
        images: (N, C, H, W).
        across: (N,) column of the square's centre, as a fraction of the width.
        down: (N,) row of the centre, as a fraction of the height. Near a border, part of the square is outside.
        size: the square's side in pixels, one for all or (N,).
        fill: the value that covers it.
    """
    height, width = images.shape[2:]
    half = size / 2
    column = torch.arange(width, device=images.device) + 0.5 - across.view(-1, 1) * width
    row = torch.arange(height, device=images.device) + 0.5 - down.view(-1, 1) * height
    half = half.view(-1, 1) if isinstance(half, Tensor) else half
    covered = (row.abs() < half).unsqueeze(2) & (column.abs() < half).unsqueeze(1)
    return torch.where(covered.unsqueeze(1), fill, images)
