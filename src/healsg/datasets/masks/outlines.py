"""Outlines of objects as masks: polygons and COCO's run lengths, as pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def filled(polygon: Sequence[float], height: int, width: int) -> Array:
    """(H, W) bool: the pixels whose centre lies in a polygon, by the even-odd rule.

    Args:
        polygon: x0, y0, x1, y1, ...: the corners, where (0, 0) is the outer corner of the first pixel.
        height, width: of the mask.

    Raises:
        ValueError: it has less than three corners, or numbers that are not finite.
    """
    corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError(f"a polygon of {len(corners)} corners, or with numbers that are not finite")
    toggles = np.zeros((height, width + 1), dtype=np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = (y0, y1) if y0 <= y1 else (y1, y0)
        # rows whose centre lies in [low, high): each is crossed once, and a corner belongs to one of its two edges
        first, end = (int(np.clip(np.ceil(value - 0.5), 0, height)) for value in (low, high))
        if first >= end:
            continue
        rows = np.arange(first, end)
        crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
        np.add.at(toggles, (rows, columns), 1)
    inside: Array = np.cumsum(toggles[:, :width], axis=1) % 2 == 1
    return inside


def runs_filled(counts: Sequence[int], height: int, width: int) -> Array:
    """(H, W) bool of run lengths, column by column, outside and inside in turn. Raises ValueError if they do not add
    up to the mask."""
    lengths = np.asarray(counts, dtype=np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"run lengths of {int(lengths.sum())} pixels for a mask of {height} x {width}")
    inside = np.arange(len(lengths)) % 2 == 1
    made: Array = np.repeat(inside, lengths).reshape(width, height).T
    return made


def run_lengths(text: str) -> list[int]:
    """The run lengths of COCO's compressed text: six bits a letter, five of them of the number, the lowest first; from
    the third number on the difference to the one before the last. Raises ValueError for invalid text."""
    counts: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{letter!r} is no letter of run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("the run lengths end within a number")
    return counts
