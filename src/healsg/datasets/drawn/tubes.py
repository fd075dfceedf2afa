"""Synthetic volumes of thin branching vessels with masks: a pure function of (seed, index), generated on the fly.

A tree grows from one face of the volume: segments bend, taper and bifurcate. The thinnest branches are about a voxel
wide, to which Dice is hardly sensitive, but clDice is. Bright blobs that are not vessels lie among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from healsg.datasets.drawn.shapes import Array, Drawn, Random, ellipsoid, finished, grid, occupied, placed, source

CLASSES = ("background", "vessel")

STEPS = 6
"""Straight pieces of a branch."""


class Piece(NamedTuple):
    """A straight piece of a vessel: its ends in mm from the centre of the volume, and its radius."""

    start: Array
    end: Array
    radius: float


def grown(random: Random, extent: Array, radius: float, depth: int) -> list[Piece]:
    """The segments of a tree in a volume of ``extent`` mm. Murray's law gives the radii at bifurcations.

    Args:
        random: the generator.
        extent: the sides of the volume.
        radius: of the trunk, in mm.
        depth: levels of branching.
    """
    start = np.array([random.uniform(-0.2, 0.2) * extent[0], random.uniform(-0.2, 0.2) * extent[1], -extent[2] / 2])
    pieces: list[Piece] = []
    growing = [(start, np.array([0.0, 0.0, 1.0]), radius, extent.min() * 0.4, depth)]
    while growing:
        position, direction, wide, length, splits = growing.pop()
        for _ in range(STEPS):
            direction = direction + 0.25 * random.normal(size=3)
            direction = direction / np.linalg.norm(direction)
            end = position + direction * length / STEPS
            pieces.append(Piece(position, end, wide))
            position = end
        if splits and (np.abs(position) < extent / 2).all():
            share = random.uniform(0.35, 0.65)
            side = np.cross(direction, random.normal(size=3))
            side = side / np.linalg.norm(side)
            for part, sign in ((share, 1.0), (1 - share, -1.0)):
                turned = direction + sign * random.uniform(0.5, 0.9) * side
                growing.append(
                    (position, turned / np.linalg.norm(turned), wide * part ** (1 / 3), length * 0.8, splits - 1)
                )
    return pieces


def filled(pieces: Sequence[Piece], places: Array, spacing: Sequence[float]) -> Array:
    """The distance of each voxel from the vessels' middles over their radius: 1 on the surface, less inside."""
    measure = np.full(places.shape[1:], 99.0, np.float32)
    low_corner = places[:, 0, 0, 0]
    for start, end, radius in pieces:
        reach = 3 * radius
        low = np.floor((np.minimum(start, end) - reach - low_corner) / spacing).astype(int).clip(0)
        high = np.ceil((np.maximum(start, end) + reach - low_corner) / spacing).astype(int) + 1
        part = tuple(slice(first, max(first, last)) for first, last in zip(low, high, strict=True))
        near = places[(slice(None), *part)] - start.reshape(3, 1, 1, 1)
        if not near.size:
            continue
        along = end - start
        share = np.clip(np.tensordot(along, near, axes=1) / (along @ along), 0, 1)
        apart = np.sqrt(((near - along.reshape(3, 1, 1, 1) * share) ** 2).sum(axis=0)) / radius
        measure[part] = np.minimum(measure[part], apart)
    return measure


def tubes3d(
    seed: int,
    index: int,
    size: int = 48,
    depth: int = 4,
    thick: float = 2.2,
    blobs: int = 4,
    texture: float = 0.15,
    bias: float = 0.3,
    noise: float = 0.15,
) -> Drawn:
    """Volume ``index`` of a set: (1, size, size, about size) float32.

    Args:
        seed, index: determine the sample.
        size: voxels along the first two axes.
        depth: levels of branching of a vessel.
        thick: the radius of the trunk, in voxels of the first two axes.
        blobs: bright balls that are no vessels.
        texture, bias, noise: strengths, relative to the vessels' contrast of 1.
    """
    random = source(seed, "tubes3d", index)
    within = random.uniform(0.5, 0.8)
    spacing = (within, within, within * random.uniform(1.0, 1.6))
    shape = (size, size, max(8, round(size * spacing[0] / spacing[2])))
    extent = np.array([side * length for side, length in zip(shape, spacing, strict=True)])
    coordinates = grid(shape, spacing)
    measure = filled(grown(random, extent, thick * within, depth), coordinates, spacing)
    bright = occupied(measure, 4.0)
    for _ in range(blobs):
        centre = (random.uniform(-0.4, 0.4, size=3) * extent).reshape(3, 1, 1, 1).astype(np.float32)
        radii = np.full(3, within * random.uniform(2.0, 3.5), np.float32)
        bright = np.maximum(bright, occupied(ellipsoid(coordinates - centre, radii), 4.0))
    labels = (measure <= 1).astype(np.uint8)
    return Drawn(finished(random, bright, coordinates, texture, bias, noise), labels, placed(shape, spacing))
