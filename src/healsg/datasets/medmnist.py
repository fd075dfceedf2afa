"""MedMNIST: 12 sets of medical images and 6 of volumes, small, with published parts.

Source: J. Yang, R. Shi, D. Wei, Z. Liu, L. Zhao, B. Ke, H. Pfister and B. Ni, "MedMNIST v2 - A large-scale lightweight
benchmark for 2D and 3D biomedical image classification", Scientific Data 10, 2023, arXiv 2110.14795.
"""

from __future__ import annotations

import zipfile
import zlib
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch

from healsg.data.base import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import TensorSource, line
from healsg.datasets.classification import Classification
from healsg.datasets.published.files import MOST, Sums, checked_file, locate, log, obtain
from healsg.datasets.published.medmnist_info import ADDRESS, SETS, SIZES
from healsg.errors import ConfigError, DataError
from healsg.transforms.views import Augment, ImageViews, image_views
from healsg.transforms.volume import VolumeTransform
from healsg.types import Natural

HALF = 0.5
"""The mean and the standard deviation of every channel in the authors' experiments, with 255 as 1."""

PARTS = ("train", "val", "test")

Name = Literal[
    "pathmnist",
    "chestmnist",
    "dermamnist",
    "octmnist",
    "pneumoniamnist",
    "retinamnist",
    "breastmnist",
    "bloodmnist",
    "tissuemnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
    "organmnist3d",
    "nodulemnist3d",
    "adrenalmnist3d",
    "fracturemnist3d",
    "vesselmnist3d",
    "synapsemnist3d",
]


class MedMNIST(Classification):
    """One of the 18 sets, kept in memory as uint8. chestmnist has 14 labels a sample; the others have one class each,
    binary ones two, and retinamnist's five are grades.

    The file is in ``root/medmnist``, under the name that the package medmnist gives it.

    Args:
        name: the set.
        size: the side of the images, in pixels; volumes are there in 28 and 64.
        augment: of training images, by name; see ``ImageViews``. Volumes know ``none`` and ``standard``.
        flip: flip training images horizontally at random, volumes along each axis.
        shift: the largest random shift of ``augment=standard``, in pixels.
        padding: fill of pixels outside the image, ``zero`` or ``reflect``.
        download: fetch the file if it is missing.
        verify: accept only a file with the published MD5.
        file: your own npz file in the same layout, relative to the current directory or else to ``root``, instead of a
            published one; ``name`` and ``size`` are then those of the file. Its classes are the labels of its training
            part, numbered from 0; several columns of 0 and 1 are labels.
        common: the arguments of Classification.
    """

    repeatable = True

    def __init__(
        self,
        name: Name = "pathmnist",
        size: Literal[28, 64, 128, 224] = 28,
        augment: Augment = "standard",
        flip: bool = False,
        shift: Natural = 2,
        padding: Literal["zero", "reflect"] = "zero",
        download: bool = True,
        verify: bool = True,
        file: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if name not in SETS:
            way = f"; data.file={name} reads one's own file" if name.endswith(".npz") else ""
            raise ConfigError(f"data.name: {name!r} is not one of {', '.join(SETS)}{way}")
        self.name = name
        self.size = size
        self.published = SETS[name]
        self.file = file
        self.download = download
        self.verify = verify
        self.is_volume = name.endswith("3d")
        self._views = (augment, flip, shift, padding)
        if file is not None:
            return
        if size not in self.published.md5:
            sizes = " and ".join(map(str, self.published.md5))
            raise ConfigError(f"data.size: {size}, but {name} is published in {sizes}")
        _ = self.images  # refuses augmentations that they do not support

    @cached_property
    def images(self) -> ImageViews | VolumeTransform:
        """The views of the images or volumes."""
        augment, flip, shift, padding = self._views
        what = f"{self.file or self.name} is"
        return image_views(augment, flip, shift, HALF, HALF, self.info.input_shape, padding, what)

    @property
    def info(self) -> DataInfo:
        if self.file is not None:
            return self._own[0]
        shape = (self.published.channels, *[self.size] * (3 if self.is_volume else 2))
        labels = self.published.labels
        return DataInfo(shape, len(labels), self.published.kind, class_names=labels)

    @property
    def has_val(self) -> bool:
        return self.file is None or "val" in self._own[1]

    @property
    def has_test(self) -> bool:
        return self.file is None or "test" in self._own[1]

    @cached_property
    def _own(self) -> tuple[DataInfo, dict[str, TensorSource]]:
        return read_own(locate("file", str(self.file), (self.start, self.root), "file"))

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    def read(self, part: str) -> TensorSource | None:
        return self._parts.get(part)

    @cached_property
    def _parts(self) -> dict[str, TensorSource]:
        if self.file is not None:
            return self._own[1]
        sums = Sums(md5=self.published.md5[self.size])
        folder = self.root.absolute() / "medmnist"
        file = self.name + (f"_{self.size}" if self.size != SIZES[0] else "") + ".npz"
        path = folder / file
        by_hand = f"put {file} (from {ADDRESS}{file}) into {folder}"
        if not self.download and not path.is_file():
            raise DataError(f"MedMNIST: {file} is not in {folder}; set data.download=true, or {by_hand}")
        # its size is not published: no more than its images have
        most = max(MOST, sum(self.published.samples) * (prod(self.info.input_shape) + 1024))
        obtain([f"{ADDRESS}{file}?download=1"], path, sums, by_hand, self.download, most, self.mirror)
        if not self.verify:
            log.warning("data.verify=false: %s is taken without a check", path)
        with checked_file(path, sums if self.verify else Sums()) as opened:
            return {part: self._read(opened, path, part) for part in PARTS}

    def _read(self, file: IO[bytes], path: Path, part: str) -> TensorSource:
        """The samples of a part, all from the one file that was checked."""
        info = self.info
        try:
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        except (KeyError, ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged, its {part} part cannot be read ({line(error)})") from error
        channels, *sides = info.input_shape
        expected_shape = (*sides, channels) if channels > 1 else tuple(sides)
        columns = info.num_classes if info.kind == "multilabel" else 1
        if images.dtype != np.uint8 or images.shape[1:] != expected_shape:
            raise DataError(
                f"{path}: its {part} images are {images.dtype} {images.shape}, not uint8 (N, {expected_shape})"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(images), columns):
            raise DataError(f"{path}: its {part} labels {labels.shape} do not go with {len(images)} images")
        top = info.num_classes - 1 if info.kind == "multiclass" else 1
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= top:
            raise DataError(f"{path}: a {part} label lies outside 0..{top}")
        return _source(images, labels, channels, info.kind)


def _source(images: Any, labels: Any, channels: int, kind: str) -> TensorSource:
    """Checked arrays as (N, C, ...) uint8 and their targets."""
    inputs = torch.from_numpy(np.ascontiguousarray(images))
    inputs = inputs.movedim(-1, 1).contiguous() if channels > 1 else inputs.unsqueeze(1)
    targets = torch.from_numpy(labels.astype(np.int64))
    return TensorSource(inputs, targets.float() if kind == "multilabel" else targets[:, 0])


def read_own(path: Path) -> tuple[DataInfo, dict[str, TensorSource]]:
    """A user's file in MedMNIST's layout: its ``DataInfo``, and its parts.

    ``train_images`` are uint8, (N, H, W), (N, H, W, 3) or (N, D, H, W); ``train_labels`` integers, (N,) or (N, 1) of
    classes from 0 on, (N, K) of 0 and 1 for K labels. ``val_`` and ``test_`` arrays are optional. Raises DataError that
    names the file and the array.
    """
    arrays: dict[str, Any] = {}
    try:
        with np.load(path, allow_pickle=False) as opened:
            for part in PARTS:
                if f"{part}_images" in opened.files:
                    arrays[part] = opened[f"{part}_images"], opened[f"{part}_labels"]
    except KeyError as error:
        raise DataError(f"data.file: {path} has images without labels ({line(error)})") from error
    except (ValueError, EOFError, OSError, MemoryError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"data.file: {path} cannot be read as an npz file of arrays ({line(error)})") from error
    if "train" not in arrays:
        raise DataError(f"data.file: {path} has no train_images; MedMNIST's files have train_images, train_labels, ...")
    arrays = {
        part: (images, labels[:, None] if labels.ndim == 1 else labels) for part, (images, labels) in arrays.items()
    }
    sides, columns = arrays["train"][0].shape[1:], arrays["train"][1].shape[-1]
    if len(sides) not in (2, 3) or 0 in sides:
        raise DataError(f"data.file: {path}: train_images {sides} are no (H, W), (H, W, 3) or (D, H, W)")
    for part, (images, labels) in arrays.items():
        if images.dtype != np.uint8 or images.shape[1:] != sides:
            raise DataError(
                f"data.file: {path}: {part}_images are {images.dtype} {images.shape}, not uint8 (N, {sides})"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(images), columns):
            raise DataError(f"data.file: {path}: {part}_labels {labels.shape} do not go with {len(images)} images")
        top = 1 if columns > 1 else int(arrays["train"][1].max(initial=0))
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= top:
            raise DataError(f"data.file: {path}: a {part} label lies outside 0..{top}, those of the training part")
    kind, channels = ("multilabel" if columns > 1 else "multiclass"), 3 if len(sides) == 3 and sides[-1] == 3 else 1
    shape = (channels, *(sides[:-1] if channels > 1 else sides))
    info = DataInfo(shape, columns if columns > 1 else int(arrays["train"][1].max(initial=0)) + 1, kind)
    return info, {part: _source(images, labels, channels, kind) for part, (images, labels) in arrays.items()}
