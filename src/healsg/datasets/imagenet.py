"""ImageNet (ILSVRC 2012): 1,281,167 pictures of 1,000 classes, from your own copy; nothing is downloaded.

Source: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", arXiv 1409.0575, 2015.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from healsg.data.base import DataInfo
from healsg.data.source import line
from healsg.datasets.imagefolder import PICTURE
from healsg.datasets.pictures import Listed, PictureFiles, of_folders
from healsg.errors import DataError
from healsg.types import Count


class ImageNet(PictureFiles):
    """ImageNet: ``root/imagenet/train/<WordNet number>/*.JPEG``, ``root/imagenet/val/`` likewise; no test part.

    That is the form in which torchvision and timm read it; the development kit is not needed. The classes are the
    folders' names in sorted order, as everywhere.

    Args:
        classes: the number of class folders, such as 100 for a part of the set.
        common: the arguments of PictureFiles, but for ``download`` and ``verify``.
    """

    repeatable = True

    place = "imagenet"
    parts: ClassVar[Mapping[str, str]] = {"train": "train", "val": "val"}

    def __init__(self, classes: Count = 1000, **common: Any) -> None:
        super().__init__(download=False, verify=False, **common)
        self.classes = classes

    @property
    def info(self) -> DataInfo:
        """With the WordNet numbers as names of the classes, where the class folders lie there already."""
        folder, shape = self.root.absolute() / self.place / "train", (3, self.image_size, self.image_size)
        names = tuple(class_folders(folder)) if folder.is_dir() else ()
        names = names if len(names) == self.classes else ()  # which is refused when the pictures are listed
        return DataInfo(shape, self.classes, class_names=names, class_order="alphabetical", preprocessing=PICTURE)

    def listed(self, part: str, folder: Path) -> Listed:
        try:
            train = class_folders(folder / "train")
        except OSError as error:
            message = f"{folder / 'train'}: ImageNet's class folders are not there ({line(error)}); its terms forbid a "
            raise DataError(message + "download: put train/<WordNet number>/*.JPEG and val/ likewise there") from error
        if len(train) != self.classes:
            raise DataError(f"{folder / 'train'}: {len(train)} class folders, but data.classes is {self.classes}")
        return of_folders(folder / part, ".jpeg", train)


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders in the order of the classes. Raises OSError."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
