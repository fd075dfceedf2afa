"""Resizing: uint8 images as tensors of one size, in integer arithmetic that any program can reproduce.

uint8 images are resized by torch's uint8 kernel (bilinear, antialiased): each pass rounds to integers, with weights of
16 bits, so that NumPy gives the same levels in twenty lines (``tests/test_datasets_decoding.py`` has them). Training,
evaluation, prediction and a cache all go through here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

Window = Sequence[float]
"""Four numbers in [0, 1) that choose a part of a picture; see ``window_box``."""

Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""

SMALLEST, RATIO = 0.08, 4 / 3
"""The least share of the area of a random window, and the largest ratio of its sides."""


def window_box(window: Window, width: int, height: int) -> Box:
    """The part of a picture that a random resized crop shows (Szegedy et al. 2015, arXiv 1409.4842, section 6).

    Its share of the area lies evenly between 8 % and 1, the logarithm of its aspect evenly between those of 3/4 and
    4/3, its place evenly among those possible. A side longer than the picture's is cut to it.

    Args:
        window: area, aspect, horizontal and vertical place, each in [0, 1).
        width: of the picture in pixels.
        height: likewise.
    """
    area, aspect, across, down = window
    pixels = width * height * (SMALLEST + (1 - SMALLEST) * area)
    root = math.exp(0.5 * math.log(RATIO) * (2 * aspect - 1))
    wide = min(width, max(1, round(math.sqrt(pixels) * root)))
    high = min(height, max(1, round(math.sqrt(pixels) / root)))
    return int(across * (width - wide + 1)), int(down * (height - high + 1)), wide, high


def resized(pixels: Tensor, size: int, window: Window | None = None) -> Tensor:
    """A picture of bytes as a square.

    Args:
        pixels: (H, W, C) uint8.
        size: height and width of the result in pixels.
        window: the part that is resized; None resizes the shorter side to ``size`` and cuts out the centre.

    Returns:
        (C, size, size) uint8, in memory channel after channel.
    """
    height, width = pixels.shape[:2]
    if window is not None:
        left, top, wide, high = window_box(window, width, height)
        return _interpolated(pixels[top : top + high, left : left + wide], size, size).contiguous()
    high, wide, top, left = _centre(height, width, size)
    return _interpolated(pixels, high, wide)[:, top : top + size, left : left + size].contiguous()


def resized_floats(image: Image.Image, size: int, window: Window | None = None) -> Tensor:
    """The same of a picture of floating-point numbers, by Pillow: (1, size, size) float32."""
    from PIL.Image import Resampling

    if window is not None:
        left, top, wide, high = window_box(window, *image.size)
        image = image.crop((left, top, left + wide, top + high)).resize((size, size), Resampling.BILINEAR)
    else:
        high, wide, top, left = _centre(image.height, image.width, size)
        image = image.resize((wide, high), Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).unsqueeze(0)


def whole(pixels: Tensor, shorter: int) -> Tensor:
    """A picture of bytes (H, W, C) with its shorter side resized to ``shorter``, without a crop: (C, height, width)."""
    high, wide, _, _ = _centre(pixels.shape[0], pixels.shape[1], shorter)
    return _interpolated(pixels, high, wide)


def whole_floats(image: Image.Image, shorter: int) -> Tensor:
    """The same of a picture of floating-point numbers, by Pillow: (1, height, width) float32."""
    from PIL.Image import Resampling

    high, wide, _, _ = _centre(image.height, image.width, shorter)
    return torch.from_numpy(np.array(image.resize((wide, high), Resampling.BILINEAR))).unsqueeze(0)


def _centre(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Height and width with the shorter side resized to ``size``, then top and left of the centre."""
    shorter = min(height, width)
    high, wide = size * height // shorter, size * width // shorter
    return high, wide, round((high - size) / 2), round((wide - size) / 2)


def _interpolated(pixels: Tensor, height: int, width: int) -> Tensor:
    """(C, height, width) of (H, W, C) uint8. Channels stay last in memory, where the kernel is the fastest."""
    planes = pixels.permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(planes, (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
