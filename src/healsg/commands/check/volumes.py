"""``healsg check`` for volumes: positions in space, intensities, and structures that are too small."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from healsg.commands.check.findings import Finding
from healsg.data.source import DatasetSource, Source, line
from healsg.datasets.targets.names import shown
from healsg.datasets.volumes.cases import Preparation, PreparedCases
from healsg.datasets.volumes.files import Array, read_geometry, read_image, read_mask
from healsg.datasets.volumes.lists import CaseFiles
from healsg.datasets.volumes.space import axis_codes
from healsg.errors import DataError

UNLIKE = 1.5
"""The factor between the least and the largest spacing along an axis from which voxels of one size are proposed."""

FEWEST = 5
"""Fewest cases for which an outlier is reported."""

OUTLYING = 6.0
"""The number of standard deviations, estimated by the median, from which a case's intensities are outliers."""


@dataclass(frozen=True)
class VolumeFacts:
    """Properties of a volume's file and its mask, before preprocessing.

    Args:
        split, name: of the case.
        file: its first file.
        shape, spacing: voxels and mm along each axis of the file.
        orientation: the directions of the axes, such as ``RAS``.
        intensity: the 0.5th, 50th and 99.5th percentiles of the intensities.
        small: by label, the number of structures smaller than a voxel of the common space.
        remarks: unusual properties in the headers of its images and its mask, each with the file.
    """

    split: str
    name: str
    file: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    intensity: tuple[float, float, float]
    small: Mapping[int, int] = field(default_factory=dict)
    remarks: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "case": self.name,
            "shape": list(self.shape),
            "spacing": [round(side, 4) for side in self.spacing],
            "orientation": self.orientation,
            "intensity": [round(value, 4) for value in self.intensity],
            "small": {str(label): count for label, count in self.small.items()},
        }


def volume_facts(sources: Mapping[str, Source]) -> list[VolumeFacts]:
    """Those of all cases that can be read; none of sets that are no files of volumes."""
    found = []
    for split, source in sources.items():
        if isinstance(source, DatasetSource) and isinstance(source.dataset, PreparedCases):
            numbers = source.numbers
            for case in (source.dataset.cases[number] for number in numbers):
                try:
                    found.append(_look(split, case, source.dataset.preparation))
                except DataError:
                    continue  # reported with the unreadable samples
    return found


def _look(split: str, case: CaseFiles, preparation: Preparation) -> VolumeFacts:
    image = read_image(case.images, preparation.trust)
    geometry = image.geometry
    low, middle, high = (float(value) for value in np.percentile(image.array, [0.5, 50, 99.5]))
    small: dict[int, int] = {}
    if case.label is not None and preparation.spacing is not None:
        mask = read_mask(case.label, trust=preparation.trust).array[0]
        own = [geometry.spacing[axis] for axis in preparation.steps(image).turn.order]
        voxel = math.prod(new or side for new, side in zip(preparation.spacing, own, strict=True))
        small = small_structures(mask, voxel / math.prod(own), preparation.ignore)
    spacing = tuple(geometry.spacing)
    files = (*case.images, *([case.label] if case.label is not None else []))
    remarks = tuple(
        (remark, line(str(path))) for path in files for remark in read_geometry(path, preparation.trust).remarks
    )
    facts = (geometry.shape, spacing, axis_codes(geometry.affine), (low, middle, high), small, remarks)
    return VolumeFacts(split, case.name, line(str(case.images[0])), *facts)


def small_structures(mask: Array, voxels: float, ignore: int | None) -> dict[int, int]:
    """By label the connected parts of a mask (X, Y, Z) with fewer than so many voxels. Empty without scipy."""
    try:
        from scipy import ndimage
    except ImportError:
        return {}
    found = {}
    for label in np.unique(mask).tolist():
        if label not in (0, ignore) and voxels > 1:
            parts, _ = ndimage.label(mask == label)
            if count := int((np.bincount(parts.ravel())[1:] < voxels).sum()):
                found[label] = count
    return found


def volume_findings(facts: Sequence[VolumeFacts], preparation: Preparation) -> Iterator[Finding]:
    """Suspicious facts of the positions, intensities and structures of volumes."""
    turns = Counter(one.orientation for one in facts)
    if len(turns) > 1:
        counted = ", ".join(f"{codes} ({count})" for codes, count in turns.most_common())
        if preparation.orient:
            yield Finding("note", "geometry", f"orientations differ, and all are turned to RAS: {counted}")
        else:
            yield Finding("warning", "geometry", f"orientations differ: {counted}; data.orient=true turns all to RAS")
    yield from _spacing_findings(facts, preparation)
    for remark, files in _grouped(pair for one in facts for pair in one.remarks).items():
        yield Finding("note", "geometry", f"{remark}: {shown(files, 3)}")
    for label, cases in _grouped((str(label), one.file) for one in facts for label in one.small).items():
        total = sum(one.small.get(int(label), 0) for one in facts)
        detail = f"label {label}: {total} structures are smaller than a voxel of data.spacing, and may vanish"
        yield Finding("warning", "masks", f"{detail}: {shown(cases, 3)}")
    for what, index in (("half", 1), ("99.5 %", 2)):
        if outliers := outlying([one.intensity[index] for one in facts]):
            names = shown([f"{facts[number].file} ({facts[number].intensity[index]:g})" for number in outliers], 3)
            usual = float(np.median([one.intensity[index] for one in facts]))
            message = f"intensities below which {what} of the voxels lie stand out (usual {usual:g}): {names}"
            yield Finding("warning", "intensities", message)
            return  # the same cases stand out in both, as a rule


def _spacing_findings(facts: Sequence[VolumeFacts], preparation: Preparation) -> Iterator[Finding]:
    for axis in range(3):
        sides = [one.spacing[axis] for one in facts]
        fixed = preparation.spacing is not None and bool(preparation.spacing[axis])
        if sides and not fixed and max(sides) > UNLIKE * min(sides):
            detail = f"spacing along axis {axis} is {min(sides):.3g} to {max(sides):.3g} mm"
            yield Finding("warning", "geometry", f"{detail}; data.spacing gives all one, and healsg plan proposes it")


def outlying(values: Sequence[float]) -> list[int]:
    """The indices of outliers: values farther from the median than ``OUTLYING`` standard deviations, which are
    estimated by the median absolute deviation (at least a twentieth of the median's size)."""
    if len(values) < FEWEST:
        return []
    middle = float(np.median(values))
    apart = np.abs(np.asarray(values) - middle)
    deviation = max(1.4826 * float(np.median(apart)), 0.05 * abs(middle), 1e-6)
    return np.flatnonzero(apart > OUTLYING * deviation).tolist()


def _grouped(pairs: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def summary(facts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Lines of the terminal: orientations, and the range of sizes and spacings along each axis."""
    turns = Counter(one["orientation"] for one in facts)
    yield "orientations", ", ".join(f"{codes} ({count})" for codes, count in turns.most_common())
    for key, unit in (("spacing", " mm"), ("shape", " voxels")):
        columns = list(zip(*(one[key] for one in facts), strict=True))
        yield key, " x ".join(_range(column) for column in columns) + unit


def _range(column: Sequence[float]) -> str:
    low, high = min(column), max(column)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
