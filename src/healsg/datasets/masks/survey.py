"""Survey: the facts of a segmentation set for planning: shapes, spacings and intensities of its training cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from healsg.datasets.volumes.cases import Preparation
from healsg.datasets.volumes.files import Array, read_image, read_mask, require_same_space
from healsg.datasets.volumes.lists import CaseFiles
from healsg.datasets.volumes.space import Box, foreground, percentile_window, turned

SAMPLES = 10_000
"""Foreground voxels of a case whose intensities count, as in nnU-Net."""

HOUNSFIELD = -500.0
"""Intensities below this in most cases indicate CT (air)."""


@dataclass(frozen=True)
class Survey:
    """The training cases of a data set.

    Args:
        shapes: voxels or pixels along each axis, after the crop.
        spacings: of the cases, in mm; 1 along each axis of what says none.
        remarks: further facts, in words.
        settings: further settings for the data set, by key: the value and the reason.
    """

    shapes: tuple[tuple[int, ...], ...]
    spacings: tuple[tuple[float, ...], ...]
    remarks: tuple[str, ...] = ()
    settings: Mapping[str, tuple[Any, str]] = field(default_factory=dict)


@dataclass
class _Seen:
    """Statistics of one pass over the volumes."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    lowest: list[float] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)


def survey_volumes(cases: Sequence[CaseFiles], preparation: Preparation, channels: Sequence[str]) -> Survey:
    """Read all volumes with a mask once, one at a time.

    Args:
        cases: of the training part.
        preparation: with the crop that is set, if any.
        channels: what the set's list calls them; empty where nothing says.

    Raises:
        DataError: a file cannot be read.
    """
    seen = _Seen()
    for case in cases:
        if case.label is not None:
            _look(case, preparation, seen)
    settings: dict[str, tuple[Any, str]] = {}
    shrink = any(_sides(box) != shape for box, shape in zip(seen.boxes, seen.shapes, strict=True))
    crop = preparation.crop
    if crop is None and shrink and min(seen.lowest) >= 0:
        crop = 0.0
        settings["crop"] = (crop, "no intensity is negative, and around the scans lies nothing but 0")
    shapes = seen.shapes if crop is None else [_sides(box) for box in seen.boxes]
    settings |= _intensity(seen, channels)
    return Survey(tuple(shapes), tuple(seen.spacings), (), settings)


def _look(case: CaseFiles, preparation: Preparation, seen: _Seen) -> None:
    image = read_image(case.images, preparation.trust)
    mask = read_mask(case.label, trust=preparation.trust)  # type: ignore[arg-type]
    require_same_space(image, mask)
    steps = preparation.steps(image)
    shown = turned(image.array, steps.turn)
    seen.shapes.append(tuple(shown.shape[1:]))
    above = 0.0 if preparation.crop is None else preparation.crop
    seen.boxes.append(foreground(shown, above))
    seen.spacings.append(tuple(image.geometry.spacing[axis] for axis in steps.turn.order))
    seen.lowest.append(float(image.array.min()))
    inside = np.flatnonzero((mask.array[0] > 0) & (mask.array[0] != preparation.ignore))
    if len(inside):
        chosen = inside[np.linspace(0, len(inside) - 1, min(SAMPLES, len(inside))).astype(np.int64)]
        seen.values.append(image.array.reshape(len(image.array), -1)[:, chosen].astype(np.float32))


def _sides(box: Box) -> tuple[int, ...]:
    return tuple(high - low for low, high in box)


def _intensity(seen: _Seen, channels: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """``intensity`` and, of a CT, ``window``: one rule for all channels, as the data sets have it."""
    if channels:
        ct = all(name.casefold() == "ct" for name in channels)
        why = f"the list calls the channels {', '.join(channels)}"
    else:
        ct = float(np.median(seen.lowest)) < HOUNSFIELD
        why = f"the least intensity of a median case is {np.median(seen.lowest):g}: {'a CT' if ct else 'no CT'}"
    if not ct or not seen.values:
        return {"intensity": ("zscore", why)}
    low, high, mean, deviation = percentile_window(np.concatenate(seen.values, axis=1))
    detail = f"0.5 and 99.5 % of the foreground's intensities, whose mean is {mean:.0f} and deviation {deviation:.0f}"
    if low >= high:
        return {"intensity": ("zscore", f"{why}; but all of the foreground has one intensity")}
    return {"intensity": ("window", why), "window": ([round(low, 1), round(high, 1)], detail)}


def survey_pictures(sides: Sequence[tuple[int, int]]) -> Survey:
    """Pictures of these heights and widths: each is resized on its shorter side, the median of all, and its centre cut
    out."""
    median = round(float(np.median([min(pair) for pair in sides])))
    heights, widths = ([pair[axis] for pair in sides] for axis in (0, 1))
    detail = f"heights of {min(heights)} to {max(heights)}, widths of {min(widths)} to {max(widths)} pixels"
    settings = {"image_size": (median, f"the median of the shorter sides; {detail}")}
    return Survey(((median, median),) * len(sides), ((1.0, 1.0),) * len(sides), (), settings)
