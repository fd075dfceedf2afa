"""Small pictures inside a page: a sample as a JPEG or PNG in a ``data:`` address, so that the page is one file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

SIDE = 96
"""Pixels of the longer side."""

COLOURS = ((230, 80, 60), (60, 140, 230), (70, 180, 90), (230, 170, 40), (160, 90, 200), (40, 180, 180))
"""Of the labels of a mask from 1 on, in turn."""

SHARE = 0.5
"""Of a label's colour over the picture."""


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of a label, by its number from 1."""
    return COLOURS[(number - 1) % len(COLOURS)]


def shown_levels(values: Any, mean: Any = None, std: Any = None) -> np.ndarray[Any, Any] | None:
    """A sample as a picture: (H, W, 3) uint8; None of what has no two spatial axes.

    Args:
        values: (C, H, W), or (C, D, H, W) of which the middle slice is shown; uint8 levels, or numbers.
        mean, std: of each channel by which numbers were normalised, with full intensity as 1; without these the
            numbers are spread over all levels.
    """
    array = np.asarray(values)
    if array.ndim == 4:
        array = array[:, array.shape[1] // 2]
    if array.ndim != 3 or not array.size:
        return None
    if array.dtype != np.uint8:
        array = _levels(array.astype(np.float64), mean, std)
    array = array[:3] if len(array) >= 3 else array[:1].repeat(3, axis=0)
    return np.ascontiguousarray(array.transpose(1, 2, 0))


def _levels(array: np.ndarray[Any, Any], mean: Any, std: Any) -> np.ndarray[Any, Any]:
    """(C, H, W) uint8."""
    finite = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
    if mean is not None and std is not None and len(mean) == len(std) == len(array):
        finite = finite * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))
    else:
        low = finite.min()
        finite = (finite - low) / ((finite.max() - low) or 1.0)
    levels: np.ndarray[Any, Any] = (finite * 255).round().clip(0, 255).astype(np.uint8)
    return levels


def with_mask(picture: np.ndarray[Any, Any], mask: Any) -> np.ndarray[Any, Any]:
    """A picture (H, W, 3) with the labels of a mask (H, W), or of the middle slice of (D, H, W), in colours over it."""
    labels = np.asarray(mask)
    if labels.ndim == 3:
        labels = labels[labels.shape[0] // 2]
    made = picture.astype(np.float64)
    for label in np.unique(labels):
        if label > 0:
            colour = np.array(colour_of(int(label)))
            made[labels == label] = (1 - SHARE) * made[labels == label] + SHARE * colour
    return made.round().astype(np.uint8)


def thumbnail(picture: np.ndarray[Any, Any], side: int = SIDE) -> bytes:
    """A picture (H, W, 3) uint8 as JPEG, at most ``side`` pixels long; small ones are enlarged without smoothing."""
    from PIL import Image
    from PIL.Image import Resampling

    height, width = picture.shape[:2]
    longer = max(height, width)
    size = max(1, width * side // longer), max(1, height * side // longer)
    image = Image.fromarray(picture).resize(size, Resampling.NEAREST if longer < side else Resampling.BILINEAR)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def contact_sheet(jpegs: Sequence[bytes], columns: int = 4) -> bytes:
    """Small pictures as one PNG, row by row on white, each in a cell as large as the largest."""
    from PIL import Image

    pictures = []
    for jpeg in jpegs:
        with Image.open(BytesIO(jpeg)) as opened:
            pictures.append(opened.convert("RGB"))
    width, height = (max(picture.size[axis] for picture in pictures) + 4 for axis in (0, 1))
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width + 2, index // columns * height + 2))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def address(jpeg: bytes) -> str:
    """A ``data:`` address of a JPEG."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
