"""Cases as network inputs: volumes are read, brought into a common space and normalised; predictions are brought
back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from healsg.data.info import DataInfo
from healsg.data.scratch import Empty
from healsg.data.source import line
from healsg.datasets.volumes.files import (
    FLAT,
    NIFTI,
    Array,
    Geometry,
    Trusted,
    Volume,
    extension,
    read_geometry,
    read_image,
    read_mask,
    require_same_space,
)
from healsg.datasets.volumes.lists import CaseFiles
from healsg.datasets.volumes.space import (
    Steps,
    labels_at,
    prepared,
    resampled_shape,
    rows_at_once,
    steps_for,
    to_ras,
    windowed,
    z_scored,
)
from healsg.errors import DataError
from healsg.evaluation.sliding_window import PIECE, Predict, Windows, label_map, slab_axis, slabs
from healsg.evaluation.sliding_window import memory as averaging

Intensity = Literal["zscore", "window", "none"]


@dataclass(frozen=True)
class Preparation:
    """How volumes become inputs.

    Args:
        spacing: of the common space, in mm along each axis; None, or 0 along an axis, keeps a volume's own.
        orient: reorient volumes to RAS.
        intensity: the normalisation: ``zscore`` (MR), ``window`` (CT) or ``none``.
        window: the two intensities that are mapped to 0 and 1 with ``window``.
        crop: crop to the bounding box of voxels above this intensity; None does not crop.
        mapping: from the labels of the files to 0, 1, 2, ...
        ignore: the label of the files that is not mapped.
        trust: see ``read_geometry``.
    """

    spacing: tuple[float, ...] | None = None
    orient: bool = True
    intensity: Intensity = "zscore"
    window: tuple[float, float] = (0.0, 1.0)
    crop: float | None = None
    mapping: Mapping[int, int] = field(default_factory=dict)
    ignore: int | None = None
    trust: Trusted = "agreeing"

    def shape(self, geometry: Geometry) -> tuple[int, ...]:
        """The shape of a volume in the common space, before it is cropped."""
        order = to_ras(geometry.affine).order if self.orient else (0, 1, 2)
        sides = [geometry.shape[axis] for axis in order]
        own = [geometry.spacing[axis] for axis in order]
        aim = own if self.spacing is None else [new or old for new, old in zip(self.spacing, own, strict=True)]
        return resampled_shape(sides, own, aim)

    def steps(self, image: Volume) -> Steps:
        """The steps that bring the image into the common space."""
        return steps_for(image.array, image.geometry.affine, self.spacing, self.orient, self.crop)

    def input(self, image: Volume, steps: Steps, empty: Empty = np.empty) -> Array:
        """The input (C, X, Y, Z), float32, in the common space; ``empty`` allocates arrays of its size."""
        made = prepared(image.array, steps, empty)
        if self.intensity == "window":
            return windowed(made, *self.window, empty)
        return z_scored(made, empty=empty) if self.intensity == "zscore" else made

    def target(self, mask: Volume, steps: Steps) -> Array:
        """The labels (X, Y, Z), 0, 1, 2, ..., in the common space. Raises DataError for a label that is not mapped."""
        known = dict(self.mapping) | ({} if self.ignore is None else {self.ignore: self.ignore})
        found = np.unique(mask.array).tolist()
        if self.mapping and (others := [label for label in found if label not in known]):
            hint = "; is 255 the foreground? data.mapping={0: 0, 255: 1}" if found in ([0, 255], [255]) else ""
            raise DataError(f"{mask.path}: holds the label {others[0]}, and those known are {sorted(known)}{hint}")
        found_labels = relabelled(mask.array, known) if self.mapping else mask.array
        made: Array = steps.forward(found_labels)[0]
        return made

    def restored(self, labels: Array) -> Array:
        """Labels 0, 1, 2, ... mapped back to the labels of the files."""
        return relabelled(labels, {new: old for old, new in self.mapping.items()}) if self.mapping else labels


def relabelled(array: Array, mapping: Mapping[int, int]) -> Array:
    """Labels replaced according to a mapping, as uint8 or int32."""
    highest = max([0, *mapping.values()])
    result = np.zeros(array.shape, dtype=np.uint8 if highest < 256 else np.int32)
    for old, new in mapping.items():
        if new:
            result[array == old] = new
    return result


def preparation_of(info: DataInfo) -> Preparation:
    """The preparation that a checkpoint describes. If it describes none, as for generated volumes, volumes are not
    changed."""
    how = info.preprocessing
    labels = how.get("labels") or ()
    mapping = {} if info.regions else {label: position for position, label in enumerate(labels)}
    if "intensity" not in how:
        return Preparation(orient=False, intensity="none", mapping=mapping)
    spacing, window = how.get("spacing"), how.get("window") or (0.0, 1.0)
    return Preparation(
        spacing=None if spacing is None else tuple(spacing),
        orient=how["orient"],
        intensity=how["intensity"],
        window=(window[0], window[1]),
        crop=how.get("crop"),
        mapping=mapping,
        trust=how.get("trust", "agreeing"),
    )


class PreparedCases:
    """A map-style data set of complete cases: ``(input, target)``; the target of a case without a mask is background.

    Args:
        cases: images and masks.
        preparation: how they become inputs.
    """

    def __init__(self, cases: Sequence[CaseFiles], preparation: Preparation) -> None:
        self.cases, self.preparation = list(cases), preparation
        self.paths = [str(case.images[0]) for case in cases]
        self.mask_paths = [str(case.label or case.images[0]) for case in cases]

    def every_path(self) -> list[str]:
        """The files of all cases without duplicates: the images by channel, then the masks."""
        images = [str(image) for case in self.cases for image in case.images]
        return list(dict.fromkeys([*images, *self.mask_paths]))

    def __len__(self) -> int:
        return len(self.cases)

    def name(self, index: int) -> str:
        """The file of a case, for messages."""
        return self.paths[index]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        case = self.cases[index]
        image = read_image(case.images, self.preparation.trust)
        steps = self.preparation.steps(image)
        input = torch.from_numpy(self.preparation.input(image, steps))
        if case.label is None:
            return input, torch.zeros(input.shape[1:], dtype=torch.uint8)
        mask = read_mask(case.label, trust=self.preparation.trust)
        require_same_space(image, mask)
        return input, torch.from_numpy(self.preparation.target(mask, steps))


def flat_files(cases: Sequence[CaseFiles], trust: Trusted) -> list[Path]:
    """The images and masks that are stored as 4D with one channel, according to their headers; only NIfTI has this.
    Files that cannot be read are skipped here; they are reported when their numbers are read."""
    paths = [path for case in cases for path in (*case.images, case.label) if path is not None]
    found = []
    for path in paths:
        with contextlib.suppress(DataError):
            if extension(path) in NIFTI and FLAT in read_geometry(path, trust).remarks:
                found.append(path)
    return found


def steps_of_file(path: Path, preparation: Preparation) -> Steps:
    """The steps for a case: from its header only, unless it is cropped, which needs the numbers."""
    if preparation.crop is not None:
        return preparation.steps(read_image([path], preparation.trust))
    geometry = read_geometry(path, preparation.trust)
    empty = np.broadcast_to(np.zeros((), np.float32), (1, *geometry.shape))
    return steps_for(empty, geometry.affine, preparation.spacing, preparation.orient)


# --- prediction ------------------------------------------------------------------------------------------------------


def segmented(
    predict: Predict,
    image: Volume,
    preparation: Preparation,
    windows: Windows,
    device: torch.device | str = "cpu",
    regions: Sequence[int] = (),
    empty: Empty = np.empty,
) -> Array:
    """The mask (1, X, Y, Z) of an image, in the space and with the labels of its file.

    Without resampling, labels are computed slab by slab and mapped back directly. Otherwise the scores in the common
    space are kept as float16, and interpolated and compared some rows at a time.

    Args:
        predict: the network, from (N, C, ...) windows to scores.
        image: the volume.
        preparation: how the network's inputs were made.
        windows: the sliding window.
        device: the device of the network.
        regions: see ``sliding_window.labels``.
        empty: allocates all arrays of the volume's size; with that of a ``Scratch``, memory does not grow with the
            volume.
    """
    steps = preparation.steps(image)
    input = preparation.input(image, steps, empty)
    axis = slab_axis(input.shape[1:])
    outputs = slabs(predict, input, windows, device, axis, empty)
    parts: Iterable[tuple[int, Array]]
    if steps.new_shape == steps.sides:
        parts = ((first, label_map(output, regions).cpu().numpy()) for first, output in outputs)
    else:
        scores = _scores(outputs, input.shape[1:], axis, empty)
        axis, parts = 0, labels_at(scores, steps.sides, regions)
    made: Array | None = None
    for first, labels in parts:
        restored = preparation.restored(labels)
        if made is None:
            made = empty((1, *image.geometry.shape), restored.dtype)
            made[...] = preparation.restored(np.zeros((), dtype=restored.dtype))
        rows = slice(first, first + labels.shape[axis])
        position = tuple(rows if at == axis else slice(None) for at in range(3))
        steps.inside(made)[(0, *position)] = restored
    assert made is not None
    return made


def _scores(outputs: Iterable[tuple[int, Tensor]], sides: Sequence[int], axis: int, empty: Empty) -> Array:
    """The scores (K, X, Y, Z), float16, from slabs along ``axis``."""
    scores: Array | None = None
    for first, output in outputs:
        if scores is None:
            scores = empty((len(output), *sides), np.float16)
        rows = slice(first, first + output.shape[axis + 1])
        scores[(slice(None), *(rows if at == axis else slice(None) for at in range(3)))] = output.cpu().numpy()
    assert scores is not None
    return scores


LIBRARIES = 8 << 20
"""About the bytes that reading and writing a volume leave in its libraries and in the heap."""


def needs(geometry: Geometry, preparation: Preparation, windows: Windows, outputs: int) -> tuple[int, int]:
    """An estimate of the bytes that ``segmented`` needs at most with a ``Scratch`` on the CPU: of memory, in
    addition to the network's own for a batch of windows, and of disk space."""
    empty = np.broadcast_to(np.zeros((), np.float32), (1, *geometry.shape))
    steps = steps_for(empty, geometry.affine, preparation.spacing, preparation.orient)
    own, common = math.prod(geometry.shape), math.prod(steps.new_shape)
    plane, own_plane = outputs * (common // max(steps.new_shape)), outputs * math.prod(steps.sides[1:])
    rows = 0 if steps.new_shape == steps.sides else 1 + rows_at_once(steps.sides)
    window = math.prod(windows.size) * (geometry.channels * windows.batch + outputs * (windows.batch + 2))
    memory = LIBRARIES + 4 * (window + 6 * max(PIECE, plane) + 4 * rows * max(plane, own_plane))
    images = 4 * geometry.channels * (2 * own + 2 * common)
    return memory, images + averaging(steps.new_shape, windows, outputs) + 2 * outputs * common + own


def labels_in(cases: Sequence[CaseFiles], preparation: Preparation) -> tuple[int, ...]:
    """All labels in the masks of cases except ``ignore``, sorted. Reads every mask. Raises DataError."""
    found: set[int] = set()
    for case in cases:
        if case.label is not None:
            found |= set(np.unique(read_mask(case.label, trust=preparation.trust).array).tolist())
    found.discard(-1 if preparation.ignore is None else preparation.ignore)
    if not found - {0}:
        shown = line(str(cases[0].label)) if cases else "no case"
        raise DataError(f"data: no mask holds a foreground label ({shown} and all others are empty)")
    return tuple(sorted(found | {0}))
