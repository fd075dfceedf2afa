"""Volumes brought into a common space, and masks brought back: pure functions of (C, X, Y, Z) arrays and their affines.

Each step that changes a volume's grid has an inverse for masks; ``Steps`` holds what the inverses need. Orientation and
crop are undone voxel for voxel. Between two spacings, scores are interpolated before the largest is taken, slab by
slab.
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
"""First voxel and end along each axis."""

# --- orientation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """A change of axes: which axis each new one is, and whether it runs the other way.

    Args:
        order: of the old axes.
        flips: of the new ones.
    """

    order: tuple[int, ...]
    flips: tuple[bool, ...]

    @property
    def back(self) -> Turn:
        """The turn that undoes this one."""
        order = tuple(self.order.index(axis) for axis in range(len(self.order)))
        return Turn(order, tuple(self.flips[axis] for axis in order))


def to_ras(affine: Affine) -> Turn:
    """The turn after which a volume's axes point to the right, to the front and up, as nearly as an oblique one's
    can."""
    directions = affine[:3, :3] / np.asarray(spacing_of(affine))
    order, left = [0, 0, 0], list(range(3))
    strongest = sorted(np.ndindex(3, 3), key=lambda place: -abs(directions[place]))
    taken: set[int] = set()
    for world, axis in strongest:  # the pairs of world and voxel axis that fit best, each used once
        if world not in taken and axis in left:
            order[world] = axis
            taken.add(world)
            left.remove(axis)
    flips = tuple(bool(directions[world, axis] < 0) for world, axis in enumerate(order))
    return Turn(tuple(order), flips)


def turned(array: Array, turn: Turn) -> Array:
    """An array (C, ...) with its axes turned: a view, no number is changed."""
    moved = array.transpose(0, *(axis + 1 for axis in turn.order))
    return moved[(slice(None), *(slice(None, None, -1) if flip else slice(None) for flip in turn.flips))]


def turned_affine(affine: Affine, turn: Turn, shape: Sequence[int]) -> Affine:
    """The affine of a turned volume, whose ``shape`` was this before."""
    change = np.zeros((4, 4))
    change[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(turn.order, turn.flips, strict=True)):
        change[old, new] = -1.0 if flip else 1.0
        change[old, 3] = shape[old] - 1.0 if flip else 0.0
    return np.asarray(affine @ change)


def axis_codes(affine: Affine) -> str:
    """Where the axes point, such as ``RAS`` or ``LPI``."""
    turn = to_ras(affine)
    letters = [""] * 3
    for world, (axis, flip) in enumerate(zip(turn.order, turn.flips, strict=True)):
        letters[axis] = ("LR", "PA", "IS")[world][0 if flip else 1]
    return "".join(letters)


# --- crop ------------------------------------------------------------------------------------------------------------


def foreground(array: Array, above: float = 0.0, margin: int = 0) -> Box:
    """The smallest box around all voxels above a value in some channel, with a margin inside the volume; the whole
    volume where there is none."""
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
    """The part of an array (C, ...) in a box: a view."""
    return array[(slice(None), *(slice(low, high) for low, high in box))]


def cropped_affine(affine: Affine, box: Box) -> Affine:
    """The affine of the part of a volume in a box."""
    moved = np.eye(4)
    moved[:3, 3] = [low for low, _ in box]
    return np.asarray(affine @ moved)


# --- spacing ---------------------------------------------------------------------------------------------------------


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """The voxels along each axis at another spacing, at least one: nnU-Net's rounding."""
    return tuple(max(1, round(side * own / new)) for side, own, new in zip(shape, spacing, new_spacing, strict=True))


def resampled_affine(affine: Affine, shape: Sequence[int], new_shape: Sequence[int]) -> Affine:
    """The affine of a volume that was resampled from one shape to another, both of which fill the same box: the voxels'
    outer faces stay where they were, their centres move by half a voxel's difference."""
    scale = np.asarray(shape, dtype=np.float64) / np.asarray(new_shape)
    change = np.diag([*scale, 1.0])
    change[:3, 3] = (scale - 1) / 2
    return np.asarray(affine @ change)


def nearest(side: int, new_side: int) -> Array:
    """(wanted,) the voxel that contains the centre of each new voxel, in integer arithmetic."""
    indices: Array = (np.arange(new_side) * 2 + 1) * side // (2 * new_side)
    return indices


def resampled_labels(array: Array, shape: Sequence[int]) -> Array:
    """Labels (C, ...) at another shape, by nearest neighbour: exact for all whole numbers."""
    for axis, size in enumerate(shape, start=1):
        if array.shape[axis] != size:
            array = np.take(array, nearest(array.shape[axis], size), axis=axis)
    return array


def resampled_image(array: Array, shape: Sequence[int], empty: Empty = np.empty) -> Array:
    """Numbers (C, X, Y, Z) at another shape, float32, interpolated linearly along each axis.

    Args:
        array: of any whole or floating-point type.
        shape: the shape along the spatial axes.
        empty: makes the arrays of the volume's size.
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
"""Voxels whose scores are interpolated at once, in rows of at most 16."""


def labels_at(scores: Any, shape: Sequence[int], regions: Sequence[int] = ()) -> Iterator[tuple[int, Array]]:
    """The label of each voxel at another shape, as ``(first, labels)``: some rows (x, Y, Z), int64, from ``first`` on.
    Scores (K, X, Y, Z), a tensor or a (memory-mapped) array, are interpolated linearly as ``resampled_image`` does, and
    then ``label_map``."""
    depth, size = scores.shape[1], shape[0]
    rows = min(16, max(1, ROWS // max(1, math.prod(shape[1:]))))
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
"""Numbers that are scaled or summed at once, which fixes the order in which sums are rounded."""


def windowed(array: Array, low: float, high: float, empty: Empty = np.empty) -> Array:
    """Float32 in 0..1: the part of the intensities between two values, such as -200 and 300 HU of a CT. ``empty`` makes
    the result."""
    result = empty(array.shape, np.float32)
    for source, scaled in _chunks(array, result):
        scaled[...] = (np.clip(source, low, high).astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return result


def z_scored(array: Array, inside: Array | None = None, empty: Empty = np.empty) -> Array:
    """Float32: each channel (C, ...) less its mean, over its deviation; of the voxels ``inside`` (...), where given, as
    for an MR image without its black surroundings. ``empty`` makes the result."""
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
    """Mean and deviation, summed chunk by chunk in float64."""
    flat = np.ascontiguousarray(values).reshape(-1)
    firsts = range(0, flat.size, CHUNK)
    mean = sum(float(flat[first : first + CHUNK].sum(dtype=np.float64)) for first in firsts) / flat.size
    squares = sum(float(((flat[first : first + CHUNK].astype(np.float64) - mean) ** 2).sum()) for first in firsts)
    return mean, math.sqrt(squares / flat.size)


def percentile_window(values: Array, low: float = 0.5, high: float = 99.5) -> tuple[float, float, float, float]:
    """Of the foreground voxels of a training set: two percentiles to which a CT is clipped, then mean and deviation of
    all, by which it is scaled, as nnU-Net does."""
    ends = np.percentile(values, [low, high])
    return float(ends[0]), float(ends[1]), float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


# --- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """How a volume was brought into the common space, for the way back.

    Args:
        shape: of the file.
        turn: of its axes.
        box: that was cut out after the turn.
        wanted: the shape after resampling.
        affine: of the result.
    """

    shape: tuple[int, ...]
    turn: Turn
    box: Box
    wanted: tuple[int, ...]
    affine: Affine

    def forward(self, labels: Array) -> Array:
        """A mask (1, X, Y, Z) of the file's space in the common one."""
        return np.ascontiguousarray(resampled_labels(cropped(turned(labels, self.turn), self.box), self.wanted))

    def backward(self, labels: Array, fill: int = 0) -> Array:
        """A mask (1, X, Y, Z) of the common space in the file's; ``fill`` where nothing was predicted."""
        result = np.full((1, *self.shape), fill, dtype=labels.dtype)
        self.inside(result)[...] = resampled_labels(labels, self.sides)
        return result

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the box, in voxels of the file."""
        return tuple(high - low for low, high in self.box)

    def inside(self, array: Array) -> Array:
        """The box, turned, of an array (1, X, Y, Z) of the file's space: a view, to be written to."""
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
        spacing: wanted, in mm along the turned axes; None or an entry of 0 keeps the image's own.
        orient: turn it to RAS.
        above: cut out the box of what is above this value; None keeps all.
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
    wanted = resampled_shape(sides, own, aim)
    return Steps(shape, turn, box, wanted, resampled_affine(affine, sides, wanted))


def prepared(array: Array, steps: Steps, empty: Empty = np.empty) -> Array:
    """An image (C, X, Y, Z) of its file's space in the common one, float32; ``empty`` makes arrays of its size."""
    return resampled_image(cropped(turned(array, steps.turn), steps.box), steps.wanted, empty)
