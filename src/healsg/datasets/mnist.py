"""MNIST: 70,000 handwritten digits of 28x28 pixels.

Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from healsg.data.base import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import TensorSource
from healsg.datasets.classification import Classification
from healsg.datasets.published.archives import unzip
from healsg.datasets.published.files import Sums, checked_bytes, download, exclusive, log
from healsg.errors import DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Natural

MEAN, STD = (0.1307,), (0.3081,)
"""Over the pixels of the 60,000 training images, with 255 as 1."""

PACKED = {
    "train-images-idx3-ubyte.gz": (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
"""Each file's size in bytes and SHA-256; its MD5 is torchvision's."""

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


@dataclass(frozen=True)
class Published:
    """A set in MNIST's format: torchvision's name of it and of its folder, its files, their addresses, its statistics.

    ``packed`` holds each file's size in bytes and SHA-256; the MD5 are torchvision's. ``mean`` and ``std`` are those of
    the pixels of the training images, with 255 as 1.
    """

    name: str
    packed: Mapping[str, tuple[int, str]]
    mirrors: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    def sums(self, name: str) -> Sums:
        """The published facts of a packed file."""
        from torchvision import datasets

        size, sha256 = self.packed[name]
        return Sums(dict(getattr(datasets, self.name).resources)[name], sha256, size)


class MNIST(Classification):
    """MNIST: 60,000 digits for training and 10,000 for testing, kept in memory as uint8.

    The files are in ``root/MNIST/raw``, as in torchvision.

    Args:
        augment: of training images, by name; see ``ImageViews``.
        flip: flip training images horizontally at random; unsuitable for digits.
        shift: the largest random shift of ``augment=standard``, in pixels.
        download: fetch missing files.
        verify: accept only files with the published checksums, which exist for the packed ones.
        common: the arguments of Classification.
    """

    repeatable = True

    published: ClassVar[Published] = Published("MNIST", PACKED, MIRRORS, MEAN, STD, tuple("0123456789"))

    def __init__(
        self,
        augment: Augment = "standard",
        flip: bool = False,
        shift: Natural = 2,
        download: bool = True,
        verify: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.download, self.verify = download, verify
        self.images = ImageViews(augment, flip, shift, self.published.mean, self.published.std, size=28)

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 28, 28), 10, class_names=self.published.class_names)

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    def read(self, part: str) -> TensorSource | None:
        if part not in FILES:
            return None
        folder = self.root.absolute() / self.published.name / "raw"
        self._provide(folder)
        if not self.verify:
            log.warning("data.verify=false: the %s files in %s are taken without a check", part, folder)
        images, labels = (self._read_file(folder / name) for name in FILES[part])
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise DataError(
                f"{folder}: {part} images {tuple(images.shape)} do not go with labels {tuple(labels.shape)}"
            )
        if len(labels) and int(labels.max()) > 9:
            raise DataError(f"{folder / FILES[part][1]}: a label lies outside 0..9")
        return TensorSource(images.unsqueeze(1), labels.long())

    def _provide(self, folder: Path) -> None:
        """Ensure that the files exist; each packed, or with ``verify=false`` unpacked."""
        packed, mirrors = self.published.packed, self.published.mirrors

        def missing() -> list[str]:
            return [name for name in packed if not self._present(folder / name)]

        if not missing():
            return
        by_hand = f"put {' '.join(packed)} (from {mirrors[0]}) into {folder}"
        if any((folder / name).with_suffix("").is_file() for name in missing()):
            by_hand += ", or set data.verify=false to take the unpacked files that lie there"
        if not self.download:
            name = self.published.name
            raise DataError(f"{name}: {missing()[0]} is not in {folder}; set data.download=true, or {by_hand}")
        with exclusive(self.root.absolute()):
            for name in missing():
                urls = [address + name for address in mirrors]
                download(urls, folder / name, self.published.sums(name), by_hand, mirror=self.mirror)

    def _present(self, path: Path) -> bool:
        return path.is_file() or (not self.verify and path.with_suffix("").is_file())

    def _read_file(self, path: Path) -> Tensor:
        if not path.is_file():
            return parse_idx(checked_bytes(path.with_suffix(""), Sums()), path.with_suffix(""))
        sums = self.published.sums(path.name) if self.verify else Sums()
        return parse_idx(unzip(checked_bytes(path, sums), path), path)


def parse_idx(content: bytes, path: Path) -> Tensor:
    """An array of bytes in the idx format: two zeros, the type (8), the number of axes, their big-endian sizes, data.

    Raises DataError, with ``path``, where the content is something else or too short or long.
    """
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    if not axes or len(content) < start:
        raise DataError(f"{path}: damaged, not an idx file of bytes")
    sizes = [int.from_bytes(content[offset : offset + 4], "big") for offset in range(4, start, 4)]
    if len(content) - start != prod(sizes):
        raise DataError(f"{path}: damaged, {len(content) - start} bytes where {prod(sizes)} were announced")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy())
