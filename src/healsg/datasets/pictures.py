"""Base of published data sets of labelled image files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from healsg.data.base import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import DatasetSource, line
from healsg.datasets.classification import Classification
from healsg.datasets.imagefolder import MEAN, PICTURE, STD, Pictures
from healsg.datasets.images.decoding import Decoder
from healsg.datasets.published.archives import Archive, provide
from healsg.datasets.published.files import log
from healsg.errors import DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Count, Natural

Listed = tuple[list[str], list[int]]
"""The files of a part, and the class index of each."""


class PictureFiles(Classification):
    """Pictures of any size in files: the shorter side is resized, then the centre is cut out; ImageNet's mean and
    standard deviation. A set defines its folder, the names of its parts, and the files of a part.

    Args:
        image_size: input height and width, in pixels.
        augment: of training pictures, by name; see ``ImageViews``.
        flip: flip training images horizontally at random.
        shift: the largest random shift of ``augment=standard``, in pixels.
        padding: fill of pixels outside the image, ``zero`` or ``reflect``.
        download: fetch the archives if neither they nor their contents are under ``root``.
        verify: accept only archives with the published checksums. Files that are unpacked already are not checked.
        workers: loader processes that decode the pictures.
        decoder: of JPEGs; see ``ImageFolder``.
        common: the arguments of Classification.
    """

    repeatable = True

    place: ClassVar[str] = ""
    """The folder of the set, below ``root``."""

    archives: ClassVar[Sequence[Archive]] = ()
    """What is unpacked there."""

    parts: ClassVar[Mapping[str, str]] = {}
    """The set's own name of each part that it has."""

    def __init__(
        self,
        image_size: Count = 224,
        augment: Augment = "standard",
        flip: bool = True,
        shift: Natural = 16,
        padding: Literal["zero", "reflect"] = "reflect",
        download: bool = True,
        verify: bool = True,
        workers: Natural = 2,
        decoder: Decoder = "auto",
        **common: Any,
    ) -> None:
        super().__init__(workers=workers, **common)
        self.decoder: Decoder = decoder
        self.image_size = image_size
        self.download = download
        self.verify = verify
        self.images = ImageViews(augment, flip, shift, MEAN, STD, padding=padding, size=image_size, files=True)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their indices."""
        raise NotImplementedError

    def listed(self, part: str, folder: Path) -> Listed:
        """The files of a part, by the set's own name of it, where the set lies in ``folder``."""
        raise NotImplementedError

    @property
    def info(self) -> DataInfo:
        names = self.class_names
        return DataInfo((3, self.image_size, self.image_size), len(names), class_names=names, preprocessing=PICTURE)

    @property
    def has_val(self) -> bool:
        return "val" in self.parts

    @property
    def has_test(self) -> bool:
        return "test" in self.parts

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    def read(self, part: str) -> DatasetSource | None:
        if part not in self.parts:
            return None
        folder = self.root.absolute() / self.place
        self.provide(folder)
        paths, targets = self.listed(self.parts[part], folder)
        log.info("%s: %d %s pictures", folder, len(paths), part)
        classes = self.info.num_classes
        if wrong := [path for path, target in zip(paths, targets, strict=True) if not 0 <= target < classes]:
            raise DataError(f"{folder}: the label of {wrong[0]} lies outside the set's {classes} classes")
        dataset = Pictures(paths, targets, self.image_size, 3, self.reading.remark, self.decoder)
        return DatasetSource(dataset, targets=dataset.targets)

    def provide(self, folder: Path) -> None:
        """Ensure that the files are in ``folder``."""
        provide(self.archives, folder, self.download, self.verify, self.mirror)


def parsed(path: Path, parse: Callable[[str], Listed]) -> Listed:
    """What ``parse`` makes of a text file. Raises DataError that names it where it cannot be read or is damaged."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({line(error)}); get the set anew") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: damaged, not a list of pictures ({line(error)}); get the set anew") from error


def of_folders(folder: Path, suffix: str, classes: Sequence[str]) -> Listed:
    """The files with an ending of ``folder/<class>/``, by class and name, as torchvision lists them.

    Raises DataError that names the folder if it is missing, a class in it is, or one has no files.
    """
    from torchvision.datasets.folder import make_dataset

    try:
        for name in classes:
            if not (folder / name).is_dir():
                raise DataError(f"{folder / name}: no such folder, and the set has one of that name")
        samples = make_dataset(str(folder), {name: label for label, name in enumerate(classes)}, extensions=suffix)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({line(error)})") from error
    return [path for path, _ in samples], [label for _, label in samples]
