"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32x32 pixels in 10 or 100 classes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, in its version for Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from healsg.data.base import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import TensorSource
from healsg.datasets.classification import Classification
from healsg.datasets.published.archives import unpack
from healsg.datasets.published.files import Sums, checked_bytes, download, exclusive, load_arrays, log
from healsg.errors import ConfigError, DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Natural

STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Each channel's mean and standard deviation over the pixels of the 50,000 training images, with 255 as 1."""

ARCHIVES = {
    10: (170_498_071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    100: (169_001_437, "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
}
"""Each archive's size in bytes and SHA-256; its MD5, and those of the files in it, are torchvision's."""

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"

NAMES = {
    10: "airplane automobile bird cat deer dog frog horse ship truck",
    100: """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""",
}


class Cifar(Classification):
    """CIFAR-10 or CIFAR-100: 50,000 images for training and 10,000 for testing, kept in memory as uint8.

    Args:
        classes: 10 or 100.
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
        classes: Literal[10, 100] = 10,
        augment: Augment = "standard",
        flip: bool = True,
        shift: Natural = 4,
        padding: Literal["zero", "reflect"] = "zero",
        download: bool = True,
        verify: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if classes not in STATISTICS:
            raise ConfigError(f"data.classes: {classes}, but CIFAR has 10 or 100")
        self.classes = classes
        self.download = download
        self.verify = verify
        self.images = ImageViews(augment, flip, shift, *STATISTICS[classes], padding=padding, size=32)

    @property
    def info(self) -> DataInfo:
        return DataInfo((3, 32, 32), self.classes, class_names=tuple(NAMES[self.classes].split()))

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    def read(self, part: str) -> TensorSource | None:
        if part not in ("train", "test"):
            return None
        from torchvision import datasets

        published = datasets.CIFAR10 if self.classes == 10 else datasets.CIFAR100
        folder = self.root.absolute() / published.base_folder
        self._provide(published, folder)
        files = published.train_list if part == "train" else published.test_list
        if not self.verify:
            log.warning("data.verify=false: the %s files in %s are taken without a check", part, folder)
        batches = [_read_batch(folder / name, Sums(md5 if self.verify else ""), self.classes) for name, md5 in files]
        inputs = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32)
        targets = [label for _, labels in batches for label in labels]
        return TensorSource(torch.from_numpy(inputs), torch.tensor(targets))

    def _provide(self, published: Any, folder: Path) -> None:
        """Ensure that the files exist: unpacked already, from the archive, or from the network."""
        names = [name for name, _ in published.train_list + published.test_list]
        archive, (size, sha256) = folder.parent / published.filename, ARCHIVES[self.classes]
        sums = Sums(published.tgz_md5, sha256, size)
        by_hand = f"put {archive.name} (from {PAGE}) or its unpacked folder {folder.name} into {archive.parent}"
        if not _missing(folder, names):
            return
        if not self.download and not archive.is_file():
            raise DataError(f"CIFAR-{self.classes} is not in {folder}; set data.download=true, or {by_hand}")
        with exclusive(archive.parent):
            missing = _missing(folder, names)  # another process may have created them
            if missing and not archive.is_file():
                download([published.url], archive, sums, by_hand, mirror=self.mirror)
            if missing:
                unpack(checked_bytes(archive, sums if self.verify else Sums()), archive, folder, missing)


def _missing(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def _read_batch(path: Path, sums: Sums, classes: int) -> tuple[np.ndarray[Any, Any], list[int]]:
    """One file's images, (N, 3072) uint8, and their classes."""
    batch = load_arrays(checked_bytes(path, sums), path)
    batch = batch if isinstance(batch, dict) else {}
    images, labels = batch.get("data"), batch.get("labels" if classes == 10 else "fine_labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise DataError(f"{path}: not a batch of CIFAR-{classes}, it holds no images of 3 x 32 x 32 bytes")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise DataError(f"{path}: not a batch of CIFAR-{classes}, its {len(images)} images have not as many labels")
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise DataError(f"{path}: not a batch of CIFAR-{classes}, a label lies outside 0..{classes - 1}")
    return images, labels
