"""Masks as pictures: an image, its mask, the predicted mask and the errors in colour, side by side. Of a volume three
planes, and below them three maximum projections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from healsg.loggers.thumbnails import SHARE, shown_levels, with_mask

Array = np.ndarray[Any, Any]

CELL = {2: 96, 3: 72}
"""Pixels of a cell's sides, by the number of spatial axes."""

RIGHT, OTHER, ADDED, MISSED = 1, 2, 3, 4
"""What a pixel of a foreground class is; in a projection the highest is seen."""

ERRORS = {RIGHT: (70, 180, 90), OTHER: (240, 200, 40), ADDED: (230, 70, 60), MISSED: (60, 130, 240)}
"""Their colours."""

CAPTION = (
    "image, mask, prediction, errors: green is right, red predicted and not there, blue missed, yellow of another class"
)
PLANES = (
    "three planes through most errors (across the last axis, the middle and the first) and three maximum projections"
)


def errors(truth: Array, predicted: Array, ignore: int | None = None) -> Array:
    """(*spatial) uint8: 0 where both are background or ``ignore`` says so, else one of the codes above."""
    made = np.zeros(truth.shape, np.uint8)
    made[(truth > 0) & (predicted == truth)] = RIGHT
    made[(truth > 0) & (predicted > 0) & (predicted != truth)] = OTHER
    made[(truth == 0) & (predicted > 0)] = ADDED
    made[(truth > 0) & (predicted == 0)] = MISSED
    if ignore is not None:
        made[truth == ignore] = 0
    return made


def panel(
    input: Any,
    truth: Any,
    predicted: Any,
    ignore: int | None = None,
    spacing: Sequence[float] = (),
    scale: tuple[Any, Any] = (None, None),
) -> Array | None:
    """(H, W, 3) uint8; None if the input cannot be shown.

    Args:
        input: (C, H, W), or (C, X, Y, Z).
        truth, predicted: labels of its pixels.
        ignore: the label whose pixels count nowhere.
        spacing: of a volume's voxels, by which its planes are stretched; empty shows them as cubes.
        scale: mean and deviation by which the channels of an image were normalised.
    """
    labels = np.asarray(truth)
    found = np.asarray(predicted)
    codes = errors(labels, found, ignore)
    labels = labels if ignore is None else np.where(labels == ignore, 0, labels)
    if labels.ndim == 2:
        picture = shown_levels(input, *scale)
        return None if picture is None else joined([_row(picture, labels, found, codes, (1.0, 1.0))], CELL[2])
    grey = grey_levels(np.asarray(input)[0])
    return joined(list(_volume_rows(grey, labels, found, codes, spacing or (1.0, 1.0, 1.0))), CELL[3])


def _volume_rows(
    grey: Array, labels: Array, found: Array, codes: Array, spacing: Sequence[float]
) -> Iterator[list[tuple[Array, tuple[float, float]]]]:
    for projected in (False, True):
        for axis in (2, 1, 0):
            plane = telling_plane(codes, axis)
            flat = [
                values.max(axis=axis) if projected else np.moveaxis(values, axis, 0)[plane]
                for values in (grey, labels, found, codes)
            ]
            # up is the end of the second axis that is left
            picture, mask, prediction, wrong = (values.T[::-1] for values in flat)
            across, up = (length for at, length in enumerate(spacing) if at != axis)
            yield _row(np.repeat(picture[..., None], 3, axis=2), mask, prediction, wrong, (up, across))


def telling_plane(codes: Array, axis: int) -> int:
    """The plane across an axis that has most errors, else most foreground; the middle one if there is none."""
    others = tuple(at for at in range(codes.ndim) if at != axis)
    for counted in (codes > RIGHT, codes > 0):
        along = counted.sum(axis=others)
        if along.any():
            return int(along.argmax())
    middle: int = codes.shape[axis] // 2
    return middle


def _row(
    picture: Array, labels: Array, found: Array, codes: Array, pixel: tuple[float, float]
) -> list[tuple[Array, tuple[float, float]]]:
    """The four pictures of one view, each with the height and width of its pixels."""
    coloured = picture.astype(np.float64)
    for code, colour in ERRORS.items():
        coloured[codes == code] = (1 - SHARE) * coloured[codes == code] + SHARE * np.array(colour)
    pictures = [picture, with_mask(picture, labels), with_mask(picture, found), coloured.round().astype(np.uint8)]
    return [(one, pixel) for one in pictures]


def joined(rows: list[list[tuple[Array, tuple[float, float]]]], side: int) -> Array:
    """Pictures in square cells of ``side`` pixels, each as large as fits."""
    from PIL import Image

    sheet = Image.new("RGB", (len(rows[0]) * side, len(rows) * side))
    for line, row in enumerate(rows):
        for index, (picture, pixel) in enumerate(row):
            extent = [picture.shape[axis] * pixel[axis] for axis in (0, 1)]
            height, width = (max(1, round((side - 2) * length / max(extent))) for length in extent)
            kind = Image.Resampling.BILINEAR if max(picture.shape) > side else Image.Resampling.NEAREST
            made = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), kind)
            sheet.paste(made, (index * side + (side - width) // 2, line * side + (side - height) // 2))
    return np.asarray(sheet)


def grey_levels(values: Array) -> Array:
    """Intensities of a volume, or of a plane of one, as levels, from the 0.5th to the 99.5th percentile of some."""
    numbers = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    some = numbers.reshape(-1)[:: max(1, numbers.size // 100_000)]
    low, high = (float(end) for end in np.percentile(some, (0.5, 99.5)))
    levels: Array = ((numbers - low) / ((high - low) or 1.0) * 255).clip(0, 255).astype(np.uint8)
    return levels
