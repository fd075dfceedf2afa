"""Bringing volumes into a common space, and masks back: pure functions of (C, X, Y, Z) arrays and their affines.

Each step that changes the voxel grid has an inverse for masks; ``Steps`` holds what the inverses need. Reorientation
and cropping are undone exactly. Between two spacings, scores are interpolated before the argmax, slab by slab.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.data.scratch import Empty
from healsg.datasets.volumes.files import Affine, Array, spacing_of
from healsg.evaluation.sliding_window import label_map
from healsg.torch_private import interpolate_into

Box = tuple[tuple[int, int], ...]
"""The first voxel and the end (exclusive) along each axis."""

# --- orientation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """A reorientation: a permutation of the axes, and flips.

    Args:
        order: the old axis at each new position.
        flips: by new axis, whether it is reversed.
    """

    order: tuple[int, ...]
    flips: tuple[bool, ...]

    @property
    def back(self) -> Turn:
        """The inverse reorientation."""
        order = tuple(self.order.index(axis) for axis in range(len(self.order)))
        return Turn(order, tuple(self.flips[axis] for axis in order))


def to_ras(affine: Affine) -> Turn:
    """The reorientation after which a volume's axes point to the right, to the front and up; for an oblique volume,
    as nearly as possible."""
    directions = affine[:3, :3] / np.asarray(spacing_of(affine))
    order, left = [0, 0, 0], list(range(3))
    strongest = sorted(np.ndindex(3, 3), key=lambda pair: -abs(directions[pair]))
    taken: set[int] = set()
    for world, axis in strongest:  # the pairs of world and voxel axis that fit best, each used once
        if world not in taken and axis in left:
            order[world] = axis
            taken.add(world)
            left.remove(axis)
    flips = tuple(bool(directions[world, axis] < 0) for world, axis in enumerate(order))
    return Turn(tuple(order), flips)


def turned(array: Array, turn: Turn) -> Array:
    """An array (C, ...) reoriented: a view of the same numbers."""
    moved = array.transpose(0, *(axis + 1 for axis in turn.order))
    return moved[(slice(None), *(slice(None, None, -1) if flip else slice(None) for flip in turn.flips))]


def turned_affine(affine: Affine, turn: Turn, shape: Sequence[int]) -> Affine:
    """The affine of a reoriented volume; ``shape`` is its shape before."""
    change = np.zeros((4, 4))
    change[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(turn.order, turn.flips, strict=True)):
        change[old, new] = -1.0 if flip else 1.0
        change[old, 3] = shape[old] - 1.0 if flip else 0.0
    return np.asarray(affine @ change)


def axis_codes(affine: Affine) -> str:
    """The directions of the axes, such as ``RAS`` or ``LPI``."""
    turn = to_ras(affine)
    letters = [""] * 3
    for world, (axis, flip) in enumerate(zip(turn.order, turn.flips, strict=True)):
        letters[axis] = ("LR", "PA", "IS")[world][0 if flip else 1]
    return "".join(letters)


# --- crop ------------------------------------------------------------------------------------------------------------


def foreground(array: Array, above: float = 0.0, margin: int = 0) -> Box:
    """The bounding box of all voxels above a value in any channel, with a margin inside the volume; the entire
    volume if there are none."""
    sides = array.shape[1:]
    held = [np.zeros(side, dtype=bool) for side in sides]
    for row in range(sides[0]):
        inside = np.any(array[:, row] > above, axis=0)
        held[0][row] = inside.any()
        held[1] |= inside.any(axis=1)
        held[2] |= inside.any(axis=0)
    box = []
    for side, along_axis in zip(sides, held, strict=True):
        along = np.flatnonzero(along_axis)
        box.append(
            (max(0, int(along[0]) - margin), min(side, int(along[-1]) + 1 + margin)) if len(along) else (0, side)
        )
    return tuple(box)


def cropped(array: Array, box: Box) -> Array:
    """An array (C, ...) cropped to a box: a view."""
    return array[(slice(None), *(slice(low, high) for low, high in box))]


def cropped_affine(affine: Affine, box: Box) -> Affine:
    """The affine of a volume cropped to a box."""
    moved = np.eye(4)
    moved[:3, 3] = [low for low, _ in box]
    return np.asarray(affine @ moved)


# --- spacing ---------------------------------------------------------------------------------------------------------


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """The shape after resampling to another spacing, at least 1 along each axis, rounded as in nnU-Net."""
    return tuple(max(1, round(side * own / new)) for side, own, new in zip(shape, spacing, new_spacing, strict=True))


def resampled_affine(affine: Affine, shape: Sequence[int], new_shape: Sequence[int]) -> Affine:
    """The affine of a volume that was resampled to another shape. Both grids fill the same box: the outer faces of
    the voxels stay, and the centres of the outermost voxels move."""
    scale = np.asarray(shape, dtype=np.float64) / np.asarray(new_shape)
    change = np.diag([*scale, 1.0])
    change[:3, 3] = (scale - 1) / 2
    return np.asarray(affine @ change)


def nearest(side: int, new_side: int) -> Array:
    """(new_side,) the voxel that contains the centre of each new voxel, in integer arithmetic."""
    indices: Array = (np.arange(new_side) * 2 + 1) * side // (2 * new_side)
    return indices


def resampled_labels(array: Array, shape: Sequence[int]) -> Array:
    """Labels (C, ...) resampled by nearest neighbour; exact for all integers."""
    for axis, size in enumerate(shape, start=1):
        if array.shape[axis] != size:
            array = np.take(array, nearest(array.shape[axis], size), axis=axis)
    return array


def resampled_image(array: Array, shape: Sequence[int], empty: Empty = np.empty) -> Array:
    """An image (C, X, Y, Z) resampled linearly along each axis, float32.

    Args:
        array: of any integer or floating-point type.
        shape: the new shape along the spatial axes.
        empty: allocates arrays of the volume's size.
    """
    source = array
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        source = empty(array.shape, np.float32)
        source[...] = array
    if array.shape[1:] == tuple(shape):
        return source
    result = empty((len(array), *shape), np.float32)
    interpolate_into(torch.from_numpy(result)[None], torch.from_numpy(source)[None])
    return result


ROWS = 1 << 17
"""The number of voxels whose scores are interpolated at once, in at most 16 rows."""


def rows_at_once(shape: Sequence[int]) -> int:
    """The number of rows (x, Y, Z) that ``labels_at`` yields at once."""
    return min(16, max(1, ROWS // max(1, math.prod(shape[1:]))))


def labels_at(scores: Any, shape: Sequence[int], regions: Sequence[int] = ()) -> Iterator[tuple[int, Array]]:
    """The label of each voxel at another shape: yields ``(first, labels)`` with rows (x, Y, Z), int64, from
    ``first`` on. Scores (K, X, Y, Z), a tensor or a (memory-mapped) array, are interpolated linearly as in
    ``resampled_image`` before ``label_map``."""
    depth, size = scores.shape[1], shape[0]
    rows = rows_at_once(shape)
    for first in range(0, size, rows):
        position = (torch.arange(first, min(first + rows, size), dtype=torch.float64) + 0.5) * depth / size - 0.5
        position = position.clamp(0, depth - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=depth - 1)
        start = int(low[0])
        part = torch.as_tensor(scores[:, start : int(high[-1]) + 1]).float()
        share = (position - low).float().view(1, -1, 1, 1)
        between: Tensor = part[:, low - start] * (1 - share) + part[:, high - start] * share
        planes = F.interpolate(between, tuple(shape[1:]), mode="bilinear", align_corners=False)
        yield first, label_map(planes, regions).numpy()


# --- intensity -------------------------------------------------------------------------------------------------------


CHUNK = 1 << 16
"""How many numbers are scaled or summed at once; it fixes the order in which sums are rounded."""


def windowed(array: Array, low: float, high: float, empty: Empty = np.empty) -> Array:
    """Float32 in 0..1: intensities between two values, such as -200 and 300 HU of a CT, mapped linearly and clipped.
    ``empty`` allocates the result."""
    result = empty(array.shape, np.float32)
    for source, scaled in _chunks(array, result):
        scaled[...] = (np.clip(source, low, high).astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return result


def z_scored(array: Array, inside: Array | None = None, empty: Empty = np.empty) -> Array:
    """Float32: each channel (C, ...) minus its mean, divided by its standard deviation; computed over the voxels
    ``inside`` (...) if given, such as an MR image without its black background. ``empty`` allocates the result."""
    result = empty(array.shape, np.float32)
    for values, scaled in zip(array, result, strict=True):
        mean, deviation = _moments(values if inside is None or not inside.any() else values[inside])
        for source, target in _chunks(values, scaled):
            target[...] = (source.astype(np.float32) - np.float32(mean)) / np.float32(max(deviation, 1e-8))
    return result


def _chunks(source: Array, destination: Array) -> Iterator[tuple[Array, Array]]:
    """Chunks of two arrays of the same shape; ``destination`` is contiguous."""
    flat_source, flat_destination = np.ascontiguousarray(source).reshape(-1), destination.reshape(-1)
    for first in range(0, flat_source.size, CHUNK):
        yield flat_source[first : first + CHUNK], flat_destination[first : first + CHUNK]


def _moments(values: Array) -> tuple[float, float]:
    """Mean and standard deviation, summed chunk by chunk in float64."""
    flat = np.ascontiguousarray(values).reshape(-1)
    firsts = range(0, flat.size, CHUNK)
    mean = sum(float(flat[first : first + CHUNK].sum(dtype=np.float64)) for first in firsts) / flat.size
    squares = sum(float(((flat[first : first + CHUNK].astype(np.float64) - mean) ** 2).sum()) for first in firsts)
    return mean, math.sqrt(squares / flat.size)


def percentile_window(values: Array, low: float = 0.5, high: float = 99.5) -> tuple[float, float, float, float]:
    """For the foreground voxels of a training set: the two percentiles to which a CT is clipped, then the mean and
    standard deviation of all, by which nnU-Net scales it."""
    ends = np.percentile(values, [low, high])
    return float(ends[0]), float(ends[1]), float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


# --- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """How a volume was brought into the common space; needed to bring its mask back.

    Args:
        shape: of the file.
        turn: the reorientation.
        box: to which the reoriented volume was cropped.
        new_shape: the shape after resampling.
        affine: of the result.
    """

    shape: tuple[int, ...]
    turn: Turn
    box: Box
    new_shape: tuple[int, ...]
    affine: Affine

    def forward(self, labels: Array) -> Array:
        """A mask (1, X, Y, Z) from the space of the file to the common space."""
        return np.ascontiguousarray(resampled_labels(cropped(turned(labels, self.turn), self.box), self.new_shape))

    def backward(self, labels: Array, fill: int = 0) -> Array:
        """A mask (1, X, Y, Z) from the common space to that of the file, ``fill`` outside the box."""
        result = np.full((1, *self.shape), fill, dtype=labels.dtype)
        self.inside(result)[...] = resampled_labels(labels, self.sides)
        return result

    @property
    def sides(self) -> tuple[int, ...]:
        """The shape of the box, in voxels of the file."""
        return tuple(high - low for low, high in self.box)

    def inside(self, array: Array) -> Array:
        """The reoriented box of an array (1, X, Y, Z) in the space of the file: a view that can be written to."""
        return cropped(turned(array, self.turn), self.box)


def steps_for(
    array: Array,
    affine: Affine,
    spacing: Sequence[float] | None = None,
    orient: bool = True,
    above: float | None = None,
    margin: int = 0,
) -> Steps:
    """The steps for an image.

    Args:
        array, affine: of its file.
        spacing: the target spacing, in mm along the reoriented axes; None, or 0 along an axis, keeps the image's own.
        orient: reorient it to RAS.
        above: crop to the bounding box of voxels above this value; None does not crop.
        margin: voxels around that box.
    """
    shape = tuple(array.shape[1:])
    turn = to_ras(affine) if orient else Turn((0, 1, 2), (False, False, False))
    affine = turned_affine(affine, turn, shape)
    shown = turned(array, turn)
    box = tuple((0, side) for side in shown.shape[1:]) if above is None else foreground(shown, above, margin)
    affine, sides = cropped_affine(affine, box), [high - low for low, high in box]
    own = spacing_of(affine)
    aim = own if spacing is None else [new or old for new, old in zip(spacing, own, strict=True)]
    new_shape = resampled_shape(sides, own, aim)
    return Steps(shape, turn, box, new_shape, resampled_affine(affine, sides, new_shape))


def prepared(array: Array, steps: Steps, empty: Empty = np.empty) -> Array:
    """An image (C, X, Y, Z) in the common space, float32; ``empty`` allocates arrays of its size."""
    return resampled_image(cropped(turned(array, steps.turn), steps.box), steps.new_shape, empty)
