"""Synthetic images and volumes with masks: a pure function of (seed, index), generated on the fly.

Bodies are randomly rotated ellipsoids and boxes: one class, or two that differ only in shape. Decoys (rods and small
balls) of the same brightness are background, so that brightness does not determine the class. A texture, a bias field
and noise are added. Volumes differ in size and have longer voxels along the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from healsg.seeding import mix

Array = np.ndarray[Any, Any]
Random = np.random.Generator

CLASSES = ("background", "ellipsoid", "box")
BODIES = ("background", "body")
"""The names of the labels by form, and where all bodies have one."""


@dataclass(frozen=True)
class Drawn:
    """A sample.

    Args:
        image: (1, ...) float32.
        labels: (...) uint8.
        affine: (4, 4) for volumes, to millimetres; the unit matrix for images.
    """

    image: Array
    labels: Array
    affine: Array


def source(seed: int, purpose: str, index: int) -> Random:
    """A generator seeded by (seed, what, index)."""
    return np.random.Generator(np.random.PCG64(mix(seed, purpose, index)))


# --- parts of a picture ----------------------------------------------------------------------------------------------


def grid(shape: Sequence[int], spacing: Sequence[float]) -> Array:
    """(axes, ...) the position of each voxel, in mm from the centre of the volume."""
    along = [(np.arange(side) - (side - 1) / 2) * size for side, size in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*along, indexing="ij")).astype(np.float32)


def rotation(random: Random, axes: int) -> Array:
    """(axes, axes) a random rotation: the orthogonal part of a normal matrix (Mezzadri 2007, arXiv math-ph/0609050)."""
    orthogonal, triangle = np.linalg.qr(random.normal(size=(axes, axes)))
    return (orthogonal * np.sign(np.diag(triangle))).astype(np.float32)


def smooth_noise(random: Random, shape: Sequence[int], scale: int) -> Array:
    """Noise of deviation about 1 that changes over ``scale`` pixels: a coarse grid of normal numbers, interpolated."""
    coarse = random.normal(size=[-(-side // scale) + 1 for side in shape]).astype(np.float32)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    made = F.interpolate(torch.from_numpy(coarse)[None, None], tuple(shape), mode=mode, align_corners=True)
    return made[0, 0].numpy()


def bias_field(random: Random, places: Array, strength: float) -> Array:
    """A factor around 1 that is a second-degree polynomial of the place, as the coils of an MR scanner make one."""
    unit = places / np.abs(places).max()
    terms = [*unit, *(first * second for n, first in enumerate(unit) for second in unit[n:])]
    weights = random.uniform(-1, 1, size=len(terms)).astype(np.float32)
    field = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    return np.asarray(1 + strength * field / np.sqrt(len(terms)), dtype=np.float32)


def ellipsoid(local: Array, radii: Array) -> Array:
    """1 on the surface, less inside: of places (axes, ...) in the body's own axes."""
    return np.asarray(np.sqrt(((local.T / radii) ** 2).sum(axis=-1)).T)


def box(local: Array, radii: Array) -> Array:
    """The same of a box of these half sides."""
    return np.asarray(np.abs(local.T / radii).max(axis=-1).T)


def occupied(measure: Array, sharpness: float) -> Array:
    """0..1: how much of each voxel a body fills, from its ``measure`` of 1 on the surface."""
    return np.asarray(1 / (1 + np.exp(np.clip((measure - 1) * sharpness, -30, 30))), dtype=np.float32)


def finished(random: Random, bright: Array, places: Array, texture: float, bias: float, noise: float) -> Array:
    """(1, ...) float32: brightness with texture, bias field and noise."""
    shape = bright.shape
    image = bright + texture * smooth_noise(random, shape, 6) + texture / 2 * smooth_noise(random, shape, 3)
    image = image * bias_field(random, places, bias)
    return np.asarray(image + noise * random.normal(size=shape), dtype=np.float32)[None]


# --- shapes ----------------------------------------------------------------------------------------------------------


def drawn_shapes(
    random: Random,
    shape: Sequence[int],
    spacing: Sequence[float],
    number: int = 3,
    decoys: int = 3,
    texture: float = 0.15,
    bias: float = 0.3,
    noise: float = 0.1,
) -> tuple[Array, Array]:
    """An image (1, ...) and its labels (...): bodies of classes 1 and 2, and decoys among them.

    Args:
        random: the generator.
        shape: in pixels.
        spacing: of these, in mm.
        number: of bodies; a first one is of a class in turn, so that few samples miss one.
        decoys: rods and balls of the bodies' brightness.
        texture, bias, noise: strengths, relative to the bodies' contrast of 1.
    """
    axes, coordinates = len(shape), grid(shape, spacing)
    extent = np.array([side * size for side, size in zip(shape, spacing, strict=True)])
    scale = float(extent.min())
    bright, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    taken = np.zeros(shape, bool)
    first = int(random.integers(2))
    for index in range(number + decoys):
        label = 1 + (first + index) % 2 if index < number else 0
        turn = rotation(random, axes)
        centre = random.uniform(-0.35, 0.35, size=axes) * extent
        radii = _radii(random, axes, scale, label, index)
        local = np.tensordot(turn, coordinates - centre.reshape(-1, *[1] * axes).astype(np.float32), axes=1)
        measure = (box if label == 2 else ellipsoid)(local, radii)
        inside = (measure <= 1) & ~taken  # bodies do not overlap: the first one is kept
        if label and inside.sum() < 0.7 * max(1, (measure <= 1).sum()):
            continue
        bright = np.maximum(bright, occupied(measure, 8.0) * ~taken)
        labels[inside] = label
        taken |= measure <= 1.15
    return finished(random, bright, coordinates, texture, bias, noise), labels


def _radii(random: Random, axes: int, scale: float, label: int, body_index: int) -> Array:
    """Half the lengths of a body along its axes, in mm; of a decoy, a rod's or a ball's."""
    if label:
        return (scale * random.uniform(0.13, 0.24, size=axes)).astype(np.float32)
    thin = scale * random.uniform(0.03, 0.05)
    if body_index % 2:
        return np.full(axes, 1.6 * thin, np.float32)
    return np.array([scale * random.uniform(0.25, 0.4), *[thin] * (axes - 1)], np.float32)


def shapes2d(seed: int, index: int, size: int = 64, by_form: bool = False, **strengths: Any) -> Drawn:
    """Image ``index`` of a set: (1, size, size); see ``shapes3d`` for ``by_form`` and ``strengths``."""
    image, labels = drawn_shapes(source(seed, "shapes2d", index), (size, size), (1.0, 1.0), **strengths)
    return Drawn(image, labels if by_form else labels.clip(max=1), np.eye(4))


def shapes3d(
    seed: int, index: int, size: int = 40, by_form: bool = False, spread: float = 0.25, **strengths: Any
) -> Drawn:
    """Volume ``index`` of a set, of a size and a spacing of its own.

    Args:
        seed, index: determine the sample.
        size: the mean number of voxels along the first two axes.
        by_form: label ellipsoids by 1 and boxes by 2; else both by 1.
        spread: relative spread of the sizes.
        strengths: those of ``drawn_shapes``.
    """
    random = source(seed, "shapes3d", index)
    within = random.uniform(0.7, 1.0)
    across = within * random.uniform(1.0, 2.0)
    sides = size * random.uniform(1 - spread, 1 + spread, size=3)
    shape = (round(sides[0]), round(sides[1]), max(8, round(sides[2] * within / across)))
    spacing = (within, within, across)
    image, labels = drawn_shapes(random, shape, spacing, **strengths)
    return Drawn(image, labels if by_form else labels.clip(max=1), placed(shape, spacing))


def placed(shape: Sequence[int], spacing: Sequence[float]) -> Array:
    """An affine with the origin in the middle of the volume, its axes to the left, to the back and up (LPS)."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine
