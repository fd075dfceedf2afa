"""SVHN: 99,289 house numbers' digits of 32x32 pixels, seen from the street.

Source: Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu and A. Y. Ng, "Reading Digits in Natural Images with
Unsupervised Feature Learning", NIPS Workshop on Deep Learning and Unsupervised Feature Learning, 2011.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from healsg.data.base import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import TensorSource
from healsg.datasets.classification import Classification
from healsg.datasets.published.files import Sums, log, obtain
from healsg.datasets.published.matlab import labels_of, read_mat
from healsg.errors import DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Natural

MEAN, STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
"""Each channel's over the pixels of the 73,257 training images, with 255 as 1."""

PAGE = "https://ufldl.stanford.edu/housenumbers/"

FILES = {
    "train": (182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
    "test": (64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
}
"""By part the size of its file in bytes and SHA-256, as in tensorflow/datasets, url_checksums/svhn_cropped.txt."""


class SVHN(Classification):
    """SVHN, cropped digits: 73,257 to train with and 26,032 to test, kept in memory as uint8.

    The two files lie in ``root``, as torchvision puts them; the 531,131 further ones are not used. Reading needs SciPy
    (``healsg[mat]``). The digit 0 has the index 0, though the files call it 10.

    Args:
        augment: of training images, by name; see ``ImageViews``.
        flip: flip training images horizontally at random; unsuitable for digits.
        shift: the largest random shift of ``augment=standard``, in pixels.
        padding: fill of pixels outside the image, ``zero`` or ``reflect``.
        download: fetch missing files.
        verify: accept only files with the published checksums.
        common: the arguments of Classification.
    """

    repeatable = True

    def __init__(
        self,
        augment: Augment = "standard",
        flip: bool = False,
        shift: Natural = 4,
        padding: Literal["zero", "reflect"] = "reflect",
        download: bool = True,
        verify: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.download, self.verify = download, verify
        self.images = ImageViews(augment, flip, shift, MEAN, STD, padding=padding, size=32)

    @property
    def info(self) -> DataInfo:
        return DataInfo((3, 32, 32), 10, class_names=tuple("0123456789"))

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    def read(self, part: str) -> TensorSource | None:
        if part not in FILES:
            return None
        path, (size, sha256) = self.root.absolute() / f"{part}_32x32.mat", FILES[part]
        sums = Sums(sha256=sha256, size=size)
        by_hand = f"put {path.name} (from {PAGE}) into {path.parent}"
        obtain([PAGE + path.name], path, sums, by_hand, self.download, mirror=self.mirror)
        if not self.verify:
            log.warning("data.verify=false: %s is taken without a check", path)
        images, labels = read_mat(path, sums if self.verify else Sums(), ("X", "y"))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
            raise DataError(f"{path}: holds no images of 32 x 32 x 3 bytes; download it again")
        target = labels_of(labels, path, 1, 10) % 10
        if len(target) != images.shape[3]:
            raise DataError(f"{path}: {images.shape[3]} images do not go with {len(target)} labels; download it again")
        inputs = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
        return TensorSource(torch.from_numpy(inputs), torch.from_numpy(target))
