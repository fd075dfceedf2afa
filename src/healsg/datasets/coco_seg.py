"""COCO annotations as masks: polygons and run lengths, as written by COCO, CVAT and Label Studio.

Source: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv 1405.0312.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from healsg.data.info import DataInfo
from healsg.data.source import line
from healsg.datasets.masks.outlines import filled, run_lengths, runs_filled
from healsg.datasets.masks.pairs import Pair
from healsg.datasets.masks.pictures import Array, ReadMask, picture_header
from healsg.datasets.published.files import locate
from healsg.datasets.seg2d import MaskedPictures
from healsg.errors import ConfigError, DataError

Object = tuple[int, bool, Any]
"""The category of an object, whether it is a crowd, and its outline."""


def read_list(path: Path, images: Path) -> tuple[dict[int, str], list[Pair]]:
    """The categories by number, and the pictures with their objects, the largest first, of one file of annotations.

    Args:
        path: the file.
        images: the folder to which the names of its pictures are relative.

    Raises:
        DataError: one line that names the file.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
        names = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        objects: dict[Any, list[tuple[float, Object]]] = {one["id"]: [] for one in content["images"]}
        for one in content["annotations"]:
            outline, category = one.get("segmentation"), int(one["category_id"])
            if category not in names or one["image_id"] not in objects:
                raise ValueError(f"annotation {one.get('id')} names a category or picture that is not there")
            if outline:  # an object with only a box has none
                size = float(one.get("area") or 0)
                objects[one["image_id"]].append((size, (category, bool(one.get("iscrowd")), _compact(outline))))
        pairs = []
        for one in content["images"]:
            drawn = sorted(objects[one["id"]], key=lambda pair: -pair[0])  # small objects over large ones
            name = Path(str(one["file_name"]))
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(f"file_name {name} leads out of the folder")
            height, width = one.get("height"), one.get("width")
            sides = (int(height), int(width)) if height and width else None
            pairs.append(Pair(images / name, path, objects=tuple(inner for _, inner in drawn), sides=sides))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: is no list of COCO annotations ({type(error).__name__}: {line(error)[:200]})"
        ) from error
    if missing := next((pair.image for pair in pairs if not pair.image.is_file()), None):
        raise DataError(f"{path}: there is no picture {missing}")
    return names, sorted(pairs, key=lambda pair: str(pair.image))


def _compact(outline: Any) -> Any:
    """Polygons as arrays, which take a tenth of the memory; run lengths as they are. Raises ValueError."""
    if isinstance(outline, dict):
        return outline
    return [np.asarray(polygon, dtype=np.float64) for polygon in outline]


def drawn(pair: Pair, ignore: int | None = None) -> Array:
    """(H, W) int32: the category of the last object over each pixel, 0 if there is none.

    Args:
        pair: a picture and its objects; the polygons of an object are joined, holes are in run lengths.
        ignore: the label of crowds; None gives them their category.

    Raises:
        DataError: an outline does not fit the picture.
    """
    (height, width), _ = picture_header(pair.image)
    if pair.sides not in (None, (height, width)):
        raise DataError(f"{pair.image}: is {height} x {width}, and {pair.mask} says {'{} x {}'.format(*pair.sides)}")
    mask = np.zeros((height, width), dtype=np.int32)
    for category, crowd, outline in pair.objects:
        try:
            if isinstance(outline, dict):
                if list(outline["size"]) != [height, width]:
                    raise ValueError(f"run lengths of {outline['size']} for a picture of {[height, width]}")
                counts = outline["counts"]
                inside = runs_filled(run_lengths(counts) if isinstance(counts, str) else counts, height, width)
            else:
                inside = np.zeros((height, width), dtype=bool)
                for polygon in outline:
                    inside |= filled(polygon, height, width)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{pair.mask}: an outline of {pair.image.name}: {line(error)[:200]}") from error
        mask[inside] = ignore if crowd and ignore is not None else category
    return mask


class CocoSeg(MaskedPictures):
    """Images with COCO annotations as masks with one label a pixel: 0 for background, else the category, with smaller
    objects over larger ones.

    Args:
        train_list: the annotations of the training part, below ``folder``.
        train_images: the folder of its pictures, below ``folder``.
        val_list: those of the validation part; None takes it from the training part.
        val_images: likewise; None is ``train_images``.
        test_list: those of the test part; None has none.
        test_images: likewise.
        common: the arguments of MaskedPictures. With ``ignore``, crowds are excluded from loss and metrics.
    """

    def __init__(
        self,
        train_list: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_list: str | None = None,
        val_images: str | None = None,
        test_list: str | None = "annotations/instances_val2017.json",
        test_images: str | None = "val2017",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        lists = {"train": (train_list, train_images), "val": (val_list, val_images), "test": (test_list, test_images)}
        self.lists = {part: (name, images or train_images) for part, (name, images) in lists.items() if name}
        self._categories: dict[int, str] = {}

    def read_mask(self) -> ReadMask:
        return partial(drawn, ignore=self.ignore)

    def found(self, folder: Path) -> Mapping[str, Sequence[Pair]]:
        parts = {}
        for part, (name, images) in self.lists.items():
            path = locate(f"{part}_list", name, (folder,), "file")
            image_folder = locate(f"{part}_images", images, (folder,), "folder")
            names, parts[part] = read_list(path, image_folder)
            if part != "train" and names != self._categories:
                raise DataError(f"{path}: has other categories than {self.lists['train'][0]}")
            self._categories = names
        if 0 in self._categories:
            raise ConfigError("data.train_list: a category has the number 0, which is that of no object")
        return parts

    def known_labels(self) -> Sequence[int]:
        return [0, *sorted(self.categories)]

    @property
    def categories(self) -> Mapping[int, str]:
        """The names of the categories by number. Raises DataError."""
        assert self._pairs, "the lists are read"
        return self._categories

    def described(self) -> DataInfo:
        if self.classes is not None or self.given_mapping is not None:
            return super().described()
        return self.info_of(self.mapping, ["background", *(name for _, name in sorted(self.categories.items()))])
