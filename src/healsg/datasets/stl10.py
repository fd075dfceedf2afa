"""STL-10: 13,000 colour images of 96x96 pixels in ten classes, and 100,000 without labels, of these classes and others.

Source: A. Coates, H. Lee and A. Y. Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning",
AISTATS 2011.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from healsg.data.base import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import TensorSource
from healsg.datasets.classification import Classification
from healsg.datasets.published.archives import Archive, provide
from healsg.datasets.published.files import Sums, checked_file, log
from healsg.errors import DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Natural

MEAN, STD = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
"""Each channel's over the pixels of the 5,000 training images, with 255 as 1."""

ARCHIVE = Archive(
    "https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    2_640_397_119,
    "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
    "stl10_binary",
    (".bin", ".txt"),
)
"""Size and SHA-256 as in tensorflow/datasets, url_checksums/stl10.txt; the MD5 of the files in it are torchvision's."""

FILES = {
    "train": ("train_X.bin", "train_y.bin"),
    "test": ("test_X.bin", "test_y.bin"),
    "unlabelled": ("unlabeled_X.bin",),
}

NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

IMAGE = 3 * 96 * 96


class STL10(Classification):
    """STL-10: 5,000 images for training and 8,000 for testing, kept in memory as uint8, and 100,000 without labels.

    The unlabelled ones (2.8 GB) are read for methods that ask for the stream ``unlabelled``. The files lie in
    ``root/stl10_binary``, as in torchvision.

    Args:
        augment: of training images, by name; see ``ImageViews``.
        flip: flip training images horizontally at random.
        shift: the largest random shift of ``augment=standard``, in pixels.
        padding: fill of pixels outside the image, ``zero`` or ``reflect``.
        download: fetch the archive if neither it nor its files are under ``root``.
        verify: accept only files with the published checksums.
        common: the arguments of Classification.
    """

    repeatable = True

    def __init__(
        self,
        augment: Augment = "standard",
        flip: bool = True,
        shift: Natural = 12,
        padding: Literal["zero", "reflect"] = "zero",
        download: bool = True,
        verify: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.download, self.verify = download, verify
        self.images = ImageViews(augment, flip, shift, MEAN, STD, padding=padding, size=96)

    @property
    def info(self) -> DataInfo:
        return DataInfo((3, 96, 96), 10, class_names=NAMES)

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    def read(self, part: str) -> TensorSource | None:
        """The samples of ``train``, ``test`` or ``unlabelled``, whose targets are all -1."""
        if part not in FILES:
            return None
        folder = self.root.absolute() / ARCHIVE.folder
        provide([ARCHIVE], folder.parent, self.download, self.verify, self.mirror)
        if not self.verify:
            log.warning("data.verify=false: the %s files in %s are taken without a check", part, folder)
        paths = [folder / name for name in FILES[part]]
        images = self._images(paths[0])
        if part == "unlabelled":
            return TensorSource(images, torch.full((len(images),), -1))
        with checked_file(paths[1], self._sums(paths[1])) as file:
            labels = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).long() - 1
        if len(labels) != len(images):
            raise DataError(
                f"{folder}: {len(images)} {part} images do not go with {len(labels)} labels; download it again"
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(NAMES):
            raise DataError(f"{paths[1]}: a label lies outside 1..{len(NAMES)}; download it again")
        return TensorSource(images.contiguous(), labels)

    def _images(self, path: Path) -> Tensor:
        """(N, 3, 96, 96) uint8, which are not copied: stored by channel, column and row."""
        with checked_file(path, self._sums(path)) as file:
            size = file.seek(0, 2)
            if not size or size % IMAGE:
                raise DataError(f"{path}: damaged, {size} bytes are no whole number of images of {IMAGE} bytes")
            stored = np.memmap(file, np.uint8, mode="c", shape=(size // IMAGE, 3, 96, 96))
        return torch.from_numpy(stored).transpose(2, 3)

    def _sums(self, path: Path) -> Sums:
        from torchvision import datasets

        published = dict(datasets.STL10.train_list + datasets.STL10.test_list)
        return Sums(published[path.name] if self.verify else "")
