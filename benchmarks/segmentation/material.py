"""The data of the measurements as files: drawn volumes as nii.gz, and real ones out of the wheels of nilearn and
stardist, which are unpacked and not imported."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

PARTS = {"train": 56, "val": 8, "test": 16}
"""Drawn volumes of each part."""

MIDLINE, VAL, TEST = 98, 112, 140
"""The first column right of the symmetric template's middle, and the first coronal slices of val and test."""


def write_shapes(folder: Path) -> None:
    """``shapes3d`` as nii.gz files of unlike sizes and spacings, written by the library."""
    from healsg.datasets.drawn.shapes import shapes3d
    from healsg.seeding import mix

    for part, count in PARTS.items():
        for index in range(count):
            drawn = shapes3d(mix(0, part) >> 1, index, 40, False, texture=0.15, bias=0.3, noise=0.1)
            _write(folder / part, f"case{index:02}", drawn.image[0], drawn.labels, drawn.affine)


def write_tissue(folder: Path, wheel: Path) -> None:
    """The right half of the MNI152 T1 template (ICBM 2009a, 1 mm), the label of each voxel the largest of nothing, grey
    and white matter. Its front is for test, what lies behind for training, the slices between for validation."""
    import nibabel

    maps = {}
    with zipfile.ZipFile(wheel) as archive:
        for what in ("t1", "gm", "wm"):
            content = archive.read(f"nilearn/datasets/data/mni_icbm152_{what}_tal_nlin_sym_09a_converted.nii.gz")
            maps[what] = nibabel.Nifti1Image.from_bytes(_unpacked(content))
    t1, grey, white = (np.asanyarray(maps[what].dataobj)[MIDLINE:].astype(np.int16) for what in ("t1", "gm", "wm"))
    labels = np.stack([255 - grey - white, grey, white]).argmax(axis=0).astype(np.uint8)
    ends = {"train": [(0, VAL // 2), (VAL // 2, VAL)], "val": [(VAL, TEST)], "test": [(TEST, t1.shape[1])]}
    for part, blocks in ends.items():
        for low, high in blocks:
            affine = maps["t1"].affine @ _moved(MIDLINE, low)
            _write(folder / part, f"y{low}", t1[:, low:high], labels[:, low:high], affine)


def write_nuclei(folder: Path, wheel: Path) -> None:
    """A picture of 512 x 512 pixels with nuclei: the upper quadrants are for training, the lower ones for val and
    test."""
    from PIL import Image

    with zipfile.ZipFile(wheel) as archive:
        image, mask = (
            np.asarray(Image.open(io.BytesIO(archive.read(f"stardist/data/images/{name}2d.tif"))))
            for name in ("img", "mask")
        )
    places = {"train": [(0, 0), (0, 256)], "val": [(256, 0)], "test": [(256, 256)]}
    for part, corners in places.items():
        for row, column in corners:
            box = (slice(row, row + 256), slice(column, column + 256))
            for name, values in (("images", image[box]), ("masks", mask[box] > 0)):
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                path = folder / part / name / f"r{row}c{column}.png"
                Image.fromarray(values.astype(np.uint8)).save(path)


def _unpacked(content: bytes) -> bytes:
    import gzip

    return gzip.decompress(content)


def _moved(*first: int) -> Array:
    made = np.eye(4)
    made[: len(first), 3] = first
    return made


def _write(folder: Path, name: str, image: Array, labels: Array, affine: Array) -> None:
    from healsg.datasets.volumes.files import Geometry, Volume, write_volume

    for what, values in (("images", image), ("labels", labels)):
        (folder / what).mkdir(parents=True, exist_ok=True)
        path = folder / what / f"{name}.nii.gz"
        geometry = Geometry(values.shape, affine, 1, values.dtype, None)
        write_volume(path, values, Volume(path, values[None], geometry))
