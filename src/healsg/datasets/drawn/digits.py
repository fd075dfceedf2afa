"""Real handwritten digits on textured canvases with masks: a pure function of (seed, index) and the pictures of digits
that come with scikit-learn (see ``digits``), so that a segmentation run needs no download."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.datasets.drawn.shapes import Array, Drawn, finished, grid, source

FULL = 16.0
"""The value of full intensity in the pictures."""

INK = 0.3
"""The share of full intensity from which a pixel belongs to its digit."""


def digits_seg(
    seed: int,
    index: int,
    pictures: Tensor,
    classes: Tensor,
    size: int = 48,
    most: int = 3,
    by_digit: bool = False,
    texture: float = 0.25,
    bias: float = 0.3,
    noise: float = 0.1,
) -> Drawn:
    """Image ``index`` of a set: (1, size, size) with one to ``most`` digits that do not touch.

    Args:
        seed, index: determine which digits, where and how large.
        pictures: (N, 1, 8, 8) uint8, 0 to 16: those that may be drawn; training and test take others.
        classes: (N,) the digits they show.
        size: height and width.
        most: digits on a canvas.
        by_digit: label a digit's pixels by 1 + the digit, otherwise by 1.
        texture, bias, noise: strengths, relative to the ink's contrast of 1.
    """
    random = source(seed, "digits_seg", index)
    bright, labels = np.zeros((size, size), np.float32), np.zeros((size, size), np.uint8)
    taken = np.zeros((size, size), bool)
    for _ in range(int(random.integers(1, most + 1))):
        chosen, side = int(random.integers(len(pictures))), int(random.integers(size // 4, size // 2))
        ink = enlarged(pictures[chosen, 0], side)
        row, column = (int(random.integers(0, size - side + 1)) for _ in range(2))
        part = (slice(row, row + side), slice(column, column + side))
        if taken[part].any():
            continue
        bright[part], taken[part] = ink, True
        labels[part] = np.where(ink >= INK, 1 + int(classes[chosen]) if by_digit else 1, 0)
    coordinates = grid((size, size), (1.0, 1.0))
    return Drawn(finished(random, bright, coordinates, texture, bias, noise), labels, np.eye(4))


def enlarged(picture: Tensor, side: int) -> Array:
    """A picture (8, 8) of 0..16 as (side, side) float32 of 0..1."""
    given = (picture.to(torch.float32) / FULL)[None, None]
    made: Array = F.interpolate(given, (side, side), mode="bilinear", align_corners=False)[0, 0].numpy()
    return made


def class_names(by_digit: bool) -> tuple[str, ...]:
    """The names of the labels, in order."""
    return ("background", *"0123456789") if by_digit else ("background", "digit")
