"""Sizes of patches, batches and networks for a data set by nnU-Net's rules, as pure functions.

Sources: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
Nature Methods 18 (2021), https://doi.org/10.1038/s41592-020-01008-z, supplementary note 2; for the presets of residual
encoders Isensee et al., "nnU-Net Revisited", MICCAI 2024, arXiv 2404.09556. The constants that the papers leave open
(memory, the factor 3 of anisotropy) are those of nnunetv2 2.8.1, whose plans ``tests/test_plan.py`` compares with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from healsg.errors import ConfigError

Sides = tuple[int, ...]
Spacing = tuple[float, ...]
Layers = tuple[Sides, ...]
"""One entry a stage, with one number for each axis: strides, or the sides of kernels."""

ANISOTROPIC = 3
"""The factor between the coarsest axis and the others, in spacing and in voxels, from which it is treated apart."""

LEAST_EDGE = 4
"""Pixels of an edge of the coarsest maps, below which nothing is halved."""

LEAST_BATCH = 2

CUBE = {2: 2048, 3: 256}
"""Sides of the first patch, by spatial axes: certainly larger than what fits."""

LOW_RESOLUTION = 0.25
"""The share of a median case in a patch below which nnU-Net plans a cascade with a low resolution too."""


@dataclass(frozen=True)
class Budget:
    """The memory budget of a training step, in elements of the feature maps of all convolutions for one sample.

    Args:
        memory: of the device in GB for which the following is meant; other sizes scale it.
        values: of one sample, by the number of spatial axes.
        batch: samples to which ``values`` is calibrated, by the number of spatial axes.
        covered: the largest share of a data set's voxels in one batch.
        for_two: whether ``values`` counts a batch of ``batch`` and not a sample of one of two.
    """

    memory: float
    values: tuple[float, float]
    covered: float
    for_two: bool
    batch: tuple[int, int] = (12, 2)

    def scaled(self, axes: int, memory: float) -> float:
        """The numbers that one sample may have on a device of ``memory`` GB."""
        return self.values[axes - 2] * memory / self.memory


@dataclass(frozen=True)
class Topology:
    """Stages for a patch.

    Args:
        patch: enlarged to what the strides divide.
        strides: by stage, the first one 1.
        kernels: by stage.
    """

    patch: Sides
    strides: Layers
    kernels: Layers

    @property
    def multiple(self) -> Sides:
        """What the sides of a patch are multiples of."""
        return tuple(math.prod(along) for along in zip(*self.strides, strict=True))


@dataclass(frozen=True)
class Layout:
    """What is planned for a data set.

    Args:
        spacing: of the common space.
        median: the shape of a median case in it.
        topology: patch, strides and kernels.
        batch: samples.
        values: that the maps of one sample have; see ``Budget``.
        limited: what bounds the batch: ``memory``, ``data`` or ``least``.
        coarsest: the axis that the spacing treats apart; None if there is none.
        covered: the share of a median case that a patch has.
    """

    spacing: Spacing
    median: tuple[float, ...]
    topology: Topology
    batch: int
    values: int
    limited: str
    coarsest: int | None
    covered: float


Count = Callable[[Topology], int]
"""The numbers that the maps of a network's convolutions have for one sample; see ``Budget``."""


def planned(
    spacings: Sequence[Spacing],
    shapes: Sequence[Sides],
    count: Count,
    budget: Budget,
    memory: float,
    spacing: Spacing | None = None,
) -> Layout:
    """Spacing, patch, strides, kernels and batch of a data set.

    Args:
        spacings: of the cases, in mm along their axes.
        shapes: of the cases, after they were cropped.
        count: of the network.
        budget: of the network.
        memory: of the device, in GB.
        spacing: of the common space, if it is given; None takes the median's rule.

    Raises:
        ConfigError: nothing fits into the memory.
    """
    # nnU-Net counts axes from the last one on, the coarsest first. The order decides between equals.
    reverse = slice(None, None, -1)
    own = np.asarray(spacings, dtype=np.float64)[:, reverse]
    sides = np.asarray(shapes, dtype=np.int64)[:, reverse]
    target, coarsest = (np.asarray(spacing)[reverse], None) if spacing else target_spacing(own, sides)
    axes = len(target)
    first = int(np.argmax(target))
    order = [first, *(axis for axis in range(axes) if axis != first)] if axes == 3 else list(range(axes))
    resampled = [
        [round(float(old / new * side)) for old, new, side in zip(*case, strict=True)]
        for case in ((one, target, shape) for one, shape in zip(own, sides, strict=True))
    ]
    median = np.median(resampled, axis=0)[order]
    aim = tuple(float(one) for one in target[order])
    back = [order.index(axis) for axis in range(axes)][reverse]

    def counted(topology: Topology) -> int:
        return count(_reordered(topology, back))

    found, values = fitted_patch(aim, median.tolist(), counted, budget, memory)
    most = budget.scaled(axes, memory)
    by_memory = round(most / values * budget.batch[axes - 2])
    voxels = float(np.prod(median)) * len(shapes)
    by_data = round(voxels * budget.covered / math.prod(found.patch))
    batch = max(min(by_memory, by_data), LEAST_BATCH)
    limited = "least" if min(by_memory, by_data) < LEAST_BATCH else "memory" if by_memory <= by_data else "data"
    return Layout(
        tuple(aim[axis] for axis in back),
        tuple(float(median[axis]) for axis in back),
        _reordered(found, back),
        batch,
        values,
        limited,
        None if coarsest is None else axes - 1 - coarsest,
        math.prod(found.patch) / float(np.prod(median)),
    )


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, int | None]:
    """The median of each axis; but the 10th percentile of one with thick slices, by spacing and by voxels, since most
    cases would lose slices to the median. It stays coarser than the other axes.

    Returns:
        The spacing, and the axis of thick slices, None if there is none.
    """
    target = np.percentile(spacings, 50, axis=0)
    median = np.percentile(shapes, 50, axis=0)
    coarsest = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != coarsest]
    next_spacing = float(max(target[others]))
    thick = target[coarsest] > ANISOTROPIC * next_spacing
    few = median[coarsest] * ANISOTROPIC < min(median[others])
    if not (thick and few):
        return target, None
    tenth = float(np.percentile(spacings[:, coarsest], 10))
    target[coarsest] = tenth if tenth >= next_spacing else next_spacing + 1e-5
    return target, coarsest


def fitted_patch(
    spacing: Spacing, median: Sequence[float], count: Count, budget: Budget, memory: float
) -> tuple[Topology, int]:
    """The largest patch with its topology that fits, and its ``Count``: it begins as a cube in mm within the median
    shape, and is shortened along the axis that is longest relative to the median's. Raises ConfigError."""
    axes = len(spacing)
    inverse = [1 / along for along in spacing]
    cube = (CUBE[axes] ** axes / math.prod(inverse)) ** (1 / axes)
    initial = [min(round(along * cube), side) for along, side in zip(inverse, median, strict=True)]
    found = topology(spacing, initial)
    if len(found.strides) < 2:
        raise ConfigError(
            f"data: a median case has {'x'.join(f'{side:g}' for side in median)}, which a U-Net cannot halve; "
            f"it needs {2 * LEAST_EDGE} along two axes"
        )
    most = budget.scaled(axes, memory)
    share = LEAST_BATCH / budget.batch[axes - 2] if budget.for_two else 1.0
    while (values := count(found)) * share > most:
        ratios = [side / full for side, full in zip(found.patch, median, strict=True)]
        longest = int(np.argsort(ratios)[-1])
        # A shorter axis may be halved less often, so that a smaller step is enough; see ``Topology.multiple``.
        shorter = topology(spacing, _less(found.patch, longest, found.multiple[longest]))
        patch = _less(found.patch, longest, shorter.multiple[longest])
        smaller = topology(spacing, patch)
        if min(patch) < 1 or smaller.patch == found.patch or len(smaller.strides) < 2:
            raise ConfigError(
                f"--memory: {memory:g} GB does not hold {LEAST_BATCH} patches of {'x'.join(map(str, found.patch))}; "
                "give more, or a smaller network (model.width)"
            )
        found = smaller
    return found, values


def _less(patch: Sides, axis: int, step: int) -> Sides:
    return tuple(side - step * (dim == axis) for dim, side in enumerate(patch))


def topology(spacing: Spacing, patch: Sequence[float]) -> Topology:
    """Stages that halve an axis while half of it has ``LEAST_EDGE`` pixels, and while its spacing is within twice the
    finest of those; a kernel of 1 along an axis until its spacing is within twice the finest, then of 3."""
    at = list(spacing)
    size = [float(side) for side in patch]
    kernel = [1] * len(at)
    strides, kernels = [(1,) * len(at)], []
    while True:
        long = [axis for axis, side in enumerate(size) if side >= 2 * LEAST_EDGE]
        finest = min((at[axis] for axis in long), default=0.0)
        halved = [axis for axis in long if at[axis] / finest < 2]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * LEAST_EDGE):
            break
        kernel = [3 if along / min(at) < 2 else side for along, side in zip(at, kernel, strict=True)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(at))))
        for axis in halved:
            at[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * len(at))
    multiple = [math.prod(along) for along in zip(*strides, strict=True)]
    padded = tuple(math.ceil(side / step) * step for side, step in zip(patch, multiple, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels))


def _reordered(topology: Topology, order: Sequence[int]) -> Topology:
    def moved(entry: Sides) -> Sides:
        return tuple(entry[axis] for axis in order)

    return Topology(moved(topology.patch), tuple(map(moved, topology.strides)), tuple(map(moved, topology.kernels)))
