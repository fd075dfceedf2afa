"""Pictures of one's own with masks: folders paired by name; PNG, TIFF, JPEG and what else Pillow reads safely."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from healsg.data.case import Case
from healsg.data.info import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import About, DatasetSource, line
from healsg.datasets.decoding import FORMATS, PIXELS, decode
from healsg.datasets.files import locate, log
from healsg.datasets.folders import is_picture
from healsg.datasets.imagefolder import MEAN, STD
from healsg.datasets.segmentation import Segmentation, labels_of
from healsg.datasets.volume_lists import IMAGES, LABELS, MASK_ENDS
from healsg.errors import ConfigError, DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Count, Natural

Pair = tuple[Path, Path]


def paired_pictures(folder: Path) -> list[Pair]:
    """Pictures and masks of ``images/`` and ``labels/`` (or ``masks/``), or ``NAME`` and ``NAME_mask`` side by side, by
    name. Raises DataError for an empty folder and for what has no partner."""
    images = next((folder / name for name in IMAGES if (folder / name).is_dir()), folder)
    masks = next((folder / name for name in LABELS if (folder / name).is_dir()), folder)
    if (images == folder) != (masks == folder):
        lacking = "masks (labels/ or masks/)" if masks == folder else "pictures (images/)"
        raise DataError(f"{folder}: has no folder of {lacking}")
    together = images == folder
    own = {path.stem: path for path in _pictures(images) if not (together and _is_mask(path))}
    others = {_bare(path): path for path in _pictures(masks) if not together or _is_mask(path)}
    if not own:
        raise DataError(f"{images}: there is no picture in it")
    alone = sorted(set(own) - set(others))
    if alone:
        more = f", and so have {len(alone) - 1} more" if alone[1:] else ""
        raise DataError(f"{own[alone[0]]}: has no mask of its name{more}")
    if lost := sorted(set(others) - set(own)):
        raise DataError(f"{others[lost[0]]}: there is no picture of its name")
    return [(own[name], others[name]) for name in sorted(own)]


def _pictures(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_picture(path.name) and path.is_file())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a folder ({error.strerror})") from error


def _is_mask(path: Path) -> bool:
    return path.stem.lower().endswith(MASK_ENDS)


def _bare(path: Path) -> str:
    end = next((end for end in MASK_ENDS if path.stem.lower().endswith(end)), "")
    return path.stem[: len(path.stem) - len(end)]


def read_mask_picture(path: Path, size: int | None = None) -> np.ndarray[Any, Any]:
    """(H, W) the labels of a mask: a palette's indices, or grey values of 8 or 16 bits; with ``size`` resized on the
    shorter side by nearest neighbour and cut to its centre, as ``decode`` does with the picture.

    Raises DataError for what cannot be read, and for colours.
    """
    from PIL import Image
    from PIL.Image import Resampling

    try:
        if not S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            raise ValueError("not a file")
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels")
            opened.load()
            shown: Image.Image = opened
            if opened.mode not in ("P", "L", "1", "I;16", "I", "I;16B"):
                values = np.asarray(opened.convert("RGB"))
                if (values != values[..., :1]).any():
                    raise ValueError(f"a mask is grey or has a palette, and this has colours ({opened.mode})")
                shown = Image.fromarray(values[..., 0])
            elif opened.mode == "1":
                shown = opened.convert("L")
            if size is not None:
                shorter = min(shown.size)
                width, height = (size * side // shorter for side in shown.size)
                shown = shown.resize((width, height), Resampling.NEAREST)
                left, top = round((width - size) / 2), round((height - size) / 2)
                shown = shown.crop((left, top, left + size, top + size))
            return np.asarray(shown).astype(np.int32)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a mask ({line(error)[:200]})") from error


class Pictures:
    """A map-style data set of pictures and masks: ``(input, target)``, (C, size, size) and (size, size) uint8.

    Args:
        pairs: of files.
        size: height and width.
        channels: 3 for colour, 1 for grey.
        mapping: from the labels of the files to 0, 1, 2, ...
        ignore: the label that is left as it is.
    """

    def __init__(
        self, pairs: Sequence[Pair], size: int, channels: int, mapping: Mapping[int, int], ignore: int | None
    ) -> None:
        self.pairs = list(pairs)
        self.size = size
        self.channels = channels
        self.mapping = mapping
        self.ignore = ignore
        self.paths, self.mask_paths = ([str(path) for path in column] for column in zip(*pairs, strict=True))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.pairs[index]
        found = read_mask_picture(mask)
        shape = picture_shape(image)
        if found.shape != shape:
            raise DataError(
                f"{mask}: the mask is {found.shape[0]} x {found.shape[1]}, its picture {shape[0]} x {shape[1]}"
            )
        labels = read_mask_picture(mask, self.size)
        known = dict(self.mapping) | ({} if self.ignore is None else {self.ignore: self.ignore})
        there = np.unique(labels).tolist()
        if others := [label for label in there if label not in known]:
            hint = "; is 255 the foreground? 'data.mapping={0: 0, 255: 1}'" if there in ([0, 255], [255]) else ""
            raise DataError(f"{mask}: holds the label {others[0]}, and those known are {sorted(known)}{hint}")
        target = np.zeros(labels.shape, np.uint8)
        for old, new in known.items():
            target[labels == old] = new
        return decode(str(image), self.size, self.channels), torch.from_numpy(target)


def picture_shape(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, from its header. Raises DataError."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as opened:
            return opened.height, opened.width
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a picture ({line(error)[:200]})") from error


class Seg2D(Segmentation):
    """Pictures with a mask each, in ``images/`` and ``labels/`` (or ``masks/``), or ``NAME`` and ``NAME_mask``; in
    ``train/``, ``val/`` and ``test/`` where there are such.

    Args:
        folder: relative to the current directory or else to ``root``.
        image_size: height and width that the network sees: the shorter side is resized, the centre cut out.
        channels: 3 for colour, 1 for grey.
        classes: names of the classes in the order of their labels, the background first; None calls them by the labels
            that the training masks hold, for which all of them are read.
        mapping: from the labels of the files to 0, 1, 2, ..., such as ``{0: 0, 255: 1}``; None maps those that are
            found in their order.
        augment: of training pictures, by name; see ``ImageViews``.
        flip: mirror training pictures left to right at random.
        shift: the largest random shift of ``augment=standard``, in pixels.
        common: the arguments of Segmentation.
    """

    def __init__(
        self,
        folder: str,
        image_size: Count = 256,
        channels: Literal[1, 3] = 3,
        classes: list[str] | None = None,
        mapping: Mapping[int, int] | None = None,
        augment: Augment = "standard",
        flip: bool = True,
        shift: Natural = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.folder = folder
        self.image_size = image_size
        self.channels = channels
        self.classes, self.given_mapping = classes, mapping
        self._saved: DataInfo | None = None
        mean, std = (MEAN, STD) if channels == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))
        outside = 0 if self.ignore is None else self.ignore
        settings = {"size": image_size, "padding": "reflect", "outside": outside}
        self.views = ImageViews(augment, flip, shift, mean, std, **settings)  # type: ignore[arg-type]

    @cached_property
    def _pairs(self) -> dict[str, list[Pair]]:
        folder = locate("folder", self.folder, (self.start, self.root), "folder")
        parts = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
        if "train" not in parts:
            return {"train": paired_pictures(folder)}
        return {name: paired_pictures(inner) for name, inner in parts.items()}

    @cached_property
    def mapping(self) -> dict[int, int]:
        """From the labels of the files to those of the classes."""
        if self.given_mapping is not None:
            return dict(self.given_mapping)
        if self.classes is not None and not self.regions:
            return {label: label for label in range(len(self.classes))}
        saved = self._saved.preprocessing.get("labels") if self._saved is not None else None
        if isinstance(saved, list) and all(type(label) is int for label in saved) and not self.regions:
            return {label: place for place, label in enumerate(saved)}
        found = {0}
        for _, mask in self._pairs["train"]:
            found |= set(np.unique(read_mask_picture(mask)).tolist())
        labels = sorted(found - {self.ignore})
        if len(labels) < 2:
            raise DataError(f"{self._pairs['train'][0][1]}: no mask, neither this one, holds a foreground label")
        if self.regions:
            return {label: label for label in labels}
        if labels != list(range(len(labels))):
            log.info("data: labels %s are the classes 0 to %d", ", ".join(map(str, labels)), len(labels) - 1)
        return {label: place for place, label in enumerate(labels)}

    def restored(self, saved: DataInfo) -> Seg2D:
        """The same pictures with the labels of ``saved`` where the settings give no others; masks may hold fewer.
        Raises DataError."""
        made = copy.copy(self)
        made.__dict__.pop("mapping", None)
        made._saved = saved
        super(Seg2D, made).restored(saved)
        return made

    def described(self) -> DataInfo:
        mapping = self.mapping
        count = len(set(mapping.values()))
        names = self.classes or [str(old) for old in labels_of(mapping)]
        if len(names) != count and not self.regions:
            raise ConfigError(f"data.classes: {len(names)} names for {count} labels {sorted(mapping)}")
        size, said = (
            self.image_size,
            {"resize": "the shorter side", "crop": "the centre", "labels": list(labels_of(mapping))},
        )
        return DataInfo((self.channels, size, size), count, class_names=tuple(names), preprocessing=said)

    @property
    def has_val(self) -> bool:
        return "val" in self._pairs

    @property
    def has_test(self) -> bool:
        return "test" in self._pairs

    def read(self, part: str) -> DatasetSource | None:
        pairs = self._pairs.get(part)
        if not pairs:
            return None
        cases = [Case(image.stem, path=str(image)) for image, _ in pairs]
        made = Pictures(pairs, self.image_size, self.channels, self.mapping, self.ignore)
        return DatasetSource(made, about=About(cases))

    def transform(self, view: str, split: str) -> Transform:
        return self.views.of(view, split)
