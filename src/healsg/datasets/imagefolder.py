"""ImageFolder: your own images, one folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from healsg.data.base import DataInfo
from healsg.data.info import ClassOrder, given_order, order_classes, refuse_unknown_classes
from healsg.data.loader import Transform
from healsg.data.source import DatasetSource
from healsg.data.splits import split_off, strata
from healsg.datasets.classification import Classification
from healsg.datasets.images.decoded import DecodedPictures
from healsg.datasets.images.decoding import Decoder, Remark, unremarked
from healsg.datasets.images.folders import (
    EXTENSIONS,
    class_folders,
    inner_folders,
    is_picture,
    meant,
    parts_in,
    pictures_in,
    unlisted,
)
from healsg.datasets.images.path_list import PathList
from healsg.datasets.images.stored import StoredFile, stored_file
from healsg.datasets.published.files import locate, log
from healsg.datasets.targets.groups import path_groups
from healsg.datasets.targets.names import shown
from healsg.errors import ConfigError, DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Count, Finite, Natural, Positive, Share

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, with 255 as 1: what torchvision's pretrained models were trained with."""

PICTURE = {"resize": "the shorter side, bilinear", "crop": "the centre"}
"""The preprocessing of ``decode`` from an image of any size to ``input_shape``; see ``DataInfo.preprocessing``."""


class OwnPictures(Classification):
    """Your own images of any size, one class each; a subclass defines where they are and what is known of them.

    How a picture is read: see ``decode``.

    Args:
        folder: of the images, relative to the current directory or else to ``root``.
        image_size: input height and width, in pixels.
        channels: 3 for colour, 1 for grey.
        augment: of training pictures, by name; see ``ImageViews``.
        flip: flip training images horizontally at random.
        shift: the largest random shift of ``augment=standard``, in pixels.
        padding: fill of pixels outside the image, ``zero`` or ``reflect``.
        mean: each channel's mean, with full intensity as 1; None is ImageNet's.
        std: each channel's standard deviation, with full intensity as 1; None is ImageNet's.
        test_fraction: the share of the training images used as test part if there is none.
        classes: the class names in order, such as [none, mild, moderate, severe]; must be complete.
        decoder: of JPEGs; all give equal pixels. ``auto`` is torchvision, the faster one, from 5000 images on.
        common: the arguments of Classification.
    """

    def __init__(
        self,
        folder: str,
        image_size: Count = 224,
        channels: Literal[1, 3] = 3,
        augment: Augment = "standard",
        flip: bool = True,
        shift: Natural = 16,
        padding: Literal["zero", "reflect"] = "reflect",
        mean: list[Finite] | None = None,
        std: list[Positive] | None = None,
        test_fraction: Share = 0.0,
        classes: list[str | Finite] | None = None,
        decoder: Decoder = "auto",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.given_classes = classes
        self.decoder: Decoder = decoder
        self._saved: DataInfo | None = None
        self._group_names: dict[str, int] = {}
        self.folder = folder
        self.image_size = image_size
        self.channels = channels
        self.test_fraction = test_fraction
        means, stds = _per_channel("mean", mean, MEAN, channels), _per_channel("std", std, STD, channels)
        if min(stds) <= 0:
            raise ConfigError(f"data.std: {list(stds)}, but a standard deviation is above 0")
        self.images = ImageViews(augment, flip, shift, means, stds, padding=padding, size=image_size, files=True)

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    @property
    def _places(self) -> Mapping[str, object]:
        """By part where its pictures lie."""
        raise NotImplementedError

    def _part(self, part: str) -> DatasetSource:
        """The pictures of one of ``_places``."""
        raise NotImplementedError

    def _group_numbers(self, dataset: Any, name: str) -> Tensor:
        """(N,) int64 the numbers of the groups of this ``name``, of the samples of a part's data set."""
        raise NotImplementedError

    @property
    def has_val(self) -> bool:
        """Whether there is a validation part."""
        return "val" in self._places

    @property
    def has_test(self) -> bool:
        """Whether there is a test part, or a share for testing."""
        return "test" in self._places or self.test_fraction > 0

    def read(self, part: str) -> DatasetSource | None:
        return self._parts.get(part)

    @cached_property
    def _parts(self) -> dict[str, DatasetSource]:
        parts = {part: self._part(part) for part in self._places}
        if "test" not in parts and "train" in parts and self.test_fraction:
            dataset = parts["train"].dataset
            numbers = self._group_numbers(dataset, self.group) if self.group else None
            kept, tested = split_off(strata(dataset.targets), self.test_fraction, self.split_seed, numbers)
            parts |= {"train": parts["train"].subset(kept), "test": parts["train"].subset(tested)}
        return parts

    def groups(self, name: str, part: str = "train") -> Tensor | None:
        """By ``folder`` or ``prefix`` (see ``path_groups``), and by the set's own groups."""
        if (source := self._parts.get(part)) is None:
            return None
        numbers = self._group_numbers(source.dataset, name)
        return numbers if source.indices is None else numbers[source.indices]


class ImageFolder(OwnPictures):
    """Pictures in ``folder/train/<class>/``, ``folder/val/<class>/`` and, if it exists, ``folder/test/``.

    These may also be called ``training``, ``valid``, ``validation`` and ``testing``. Without them, ``folder/<class>/``
    is split by ``val_fraction`` and ``test_fraction``, stratified by class. The classes are the names of the
    training part's folders, ordered as numbers if they are numbers, else as text; ``val`` and ``test`` need not have
    all of them.
    """

    repeatable = True

    @property
    def info(self) -> DataInfo:
        """Known from the names of the class folders. Raises DataError if there are none."""
        classes, order = self._classes_and_order
        shape = (self.channels, self.image_size, self.image_size)
        return DataInfo(shape, len(classes), class_names=classes, class_order=order, preprocessing=PICTURE)

    @cached_property
    def _classes_and_order(self) -> tuple[tuple[str, ...], ClassOrder]:
        if self._saved is not None:
            return self._saved.class_names, self._saved.class_order
        classes, order = order_classes(class_folders(self._folders["train"]))
        return (classes, order) if self.given_classes is None else (given_order(self.given_classes, classes), "given")

    def restored(self, saved: DataInfo) -> ImageFolder:
        """The same pictures with the classes of ``saved`` in their order; a part may have fewer. Raises DataError."""
        made = self.as_new(_saved=saved)
        if saved.kind != "multiclass" or not saved.class_names:
            raise DataError("data: the weights were not trained on named classes, one a sample")
        if self.given_classes is not None:
            refuse_unknown_classes(saved.class_names, [str(name) for name in self.given_classes], "data.classes")
        for folder in made._folders.values():
            refuse_unknown_classes(saved.class_names, inner_folders(folder), str(folder))
        return made

    def explain_single_class(self) -> str:
        folder = self._folders["train"]
        inner = meant(folder)
        way = (
            f"did you mean data.folder={inner}?"
            if inner
            else "put the pictures of each class into a folder of its name"
        )
        return f"data.folder: {folder} has one class folder alone, {self.info.class_names[0]!r}; {way}"

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """The folder of each part that has one."""
        found = locate("folder", self.folder, (self.start, self.root), "folder").absolute()
        parts = parts_in(found)
        if parts and "train" not in parts and self._saved is None:
            raise DataError(f"data.folder: {found} has {' and '.join(parts)} but no train folder")
        return parts or {"train": found}

    @property
    def _places(self) -> Mapping[str, Path]:
        return self._folders

    def _part(self, part: str) -> DatasetSource:
        return self._list(part, self._folders[part], self.info.class_names)

    def _group_numbers(self, dataset: Any, name: str) -> Tensor:
        return path_groups(dataset.paths, name, self.info.class_names, self._group_names)

    def _list(self, part: str, folder: Path, classes: Sequence[str]) -> DatasetSource:
        present = inner_folders(folder)
        if unknown := sorted(set(present) - set(classes)):
            raise DataError(f"{folder}: the class {unknown[0]!r} is not in the training part")
        counts: list[int] = []
        skipped: list[int] = []

        def pictures() -> Iterator[str]:
            for name in classes:
                found, others = _pictures(folder / name) if name in present else ([], 0)
                counts.append(len(found))
                skipped.append(others)
                yield from found

        paths = PathList.of(pictures())  # class by class, so that there never are strings for all of them
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
        if empty and (not paths or (part == "train" and self._saved is None)):
            kinds = ", ".join(EXTENSIONS)
            raise DataError(f"{folder / empty[0]}: no pictures in it ({kinds}); put some there, or remove the folder")
        if empty:
            log.warning("%s: no %s pictures of the classes %s", folder, part, shown(empty))
        if beside := sum(1 for _ in pictures_in(folder)):
            log.warning("%s: %d pictures lie beside the class folders and are left out", folder, beside)
        log.info(
            "%s: %d %s pictures in %d classes, %d other files skipped",
            folder,
            len(paths),
            part,
            len(classes),
            sum(skipped),
        )
        dataset = Pictures(paths, targets, self.image_size, self.channels, self.reading.remark, self.decoder)
        return DatasetSource(dataset, targets=dataset.targets)


class Pictures(DecodedPictures):
    """A data set of picture files.

    Paths and targets lie in tensors: a list of a million strings or numbers would be copied into each loader process.

    Args:
        paths: the files.
        targets: the class index of each, or a tensor of targets.
        size, channels, remark, decoder: see ``DecodedPictures``.
    """

    def __init__(
        self,
        paths: Iterable[str],
        targets: Sequence[int] | Tensor,
        size: int,
        channels: int,
        remark: Remark = unremarked,
        decoder: Decoder = "auto",
    ) -> None:
        super().__init__(torch.as_tensor(targets), size, channels, remark, decoder)
        self.paths = paths if isinstance(paths, PathList) else PathList.of(paths)

    def opened(self, index: int) -> str:
        return self.paths[index]

    def stored(self, index: int) -> StoredFile:
        """A sample's file, without decoding."""
        return stored_file(self.paths[index])


def _per_channel(key: str, values: list[float] | None, usual: Sequence[float], channels: int) -> tuple[float, ...]:
    if values is None:
        return tuple(usual) if channels == len(usual) else (sum(usual) / len(usual),) * channels
    if len(values) != channels:
        raise ConfigError(f"data.{key}: {len(values)} numbers for {channels} channels")
    return tuple(float(value) for value in values)


def _pictures(folder: Path) -> tuple[list[str], int]:
    """The picture files below ``folder``, sorted, and the number of other files. A folder in itself counts once."""
    found = []
    others = 0
    seen = set()

    def fail(error: OSError) -> None:
        raise unlisted(error) from error

    for current, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(current)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:  # a link to a parent folder would be followed forever
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        pictures = [name for name in names if is_picture(name)]
        found += [os.path.join(current, name) for name in pictures]  # noqa: PTH118, a Path for each of a million is slow
        others += len(names) - len(pictures)
    return sorted(found), others
