"""Your own images with masks: folders, patterns and tables; PNG, TIFF, JPEG and other formats that Pillow reads
safely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from healsg.data.case import Case, names_of_files
from healsg.data.info import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import About, DatasetSource
from healsg.datasets.imagefolder import MEAN, STD
from healsg.datasets.masks.pairs import Pair, check_groups, listed_pictures, matched_pictures, paired_pictures
from healsg.datasets.masks.pictures import Array, Colours, MaskedSamples, Pictures, ReadMask, read_mask_picture
from healsg.datasets.masks.survey import Survey, survey_pictures
from healsg.datasets.published.files import locate, log
from healsg.datasets.segmentation import Segmentation, labels_of, require_onto
from healsg.errors import ConfigError, DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Count, Natural


class MaskedPictures(Segmentation):
    """Base class of image data sets with masks. A subclass defines ``found``, the pairs of each part.

    Args:
        folder: relative to the current directory or else to ``root``.
        image_size: input height and width: the shorter side is resized, then the centre is cropped.
        channels: 3 for colour, 1 for grey.
        classes: names of the classes in the order of their labels, the background first; None names them after the
            labels in the training masks, all of which are read.
        mapping: label values in the files to class indices 0, 1, 2, ..., such as ``{0: 0, 255: 1}``; None maps the
            values found, in ascending order.
        augment: the augmentation of training images; see ``ImageViews``.
        flip: flip training images horizontally at random.
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
        require_onto(mapping, self.ignore)
        self.classes, self.given_mapping = classes, mapping
        self._saved: DataInfo | None = None
        mean, std = (MEAN, STD) if channels == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))
        outside = 0 if self.ignore is None else self.ignore
        settings = {"size": image_size, "padding": "reflect", "outside": outside}
        self.views = ImageViews(augment, flip, shift, mean, std, **settings)  # type: ignore[arg-type]

    masks_as_stored: ClassVar[bool] = False
    """Whether masks are stored as images of labels or colours, so that ``healsg pack`` may copy their files."""

    colours: Colours | None = None
    """The colour of each class in masks of colours."""

    def found(self, folder: Path) -> Mapping[str, Sequence[Pair]]:
        """The pairs of each part. Raises DataError."""
        raise NotImplementedError

    def read_mask(self) -> ReadMask:
        """The function that reads the labels of a pair; it may be sent to other processes."""
        return partial(_read_file, colours=None)

    def known_labels(self) -> Sequence[int]:
        """The label of each class in the files, if the data set defines it; else empty."""
        return ()

    @cached_property
    def place(self) -> Path:
        """The folder. Raises DataError."""
        return locate("folder", self.folder, (self.start, self.root), "folder")

    @cached_property
    def _pairs(self) -> Mapping[str, Sequence[Pair]]:
        parts = self.found(self.place)
        if self.group is not None:
            check_groups(parts, self.group)
        return parts

    @cached_property
    def mapping(self) -> dict[int, int]:
        """The mapping from the labels of the files to class indices."""
        if self.given_mapping is not None:
            return dict(self.given_mapping)
        if (known := self.known_labels()) and not self.regions:
            return {label: index for index, label in enumerate(known)}
        if self.classes is not None and not self.regions:
            return {label: label for label in range(len(self.classes))}
        saved = self._saved.preprocessing.get("labels") if self._saved is not None else None
        if isinstance(saved, list) and all(type(label) is int for label in saved) and not self.regions:
            return {label: index for index, label in enumerate(saved)}
        found = {0}
        samples = self.samples("train", {})
        for number in range(len(samples)):
            found |= set(np.unique(samples.labels(number)).tolist())
        labels = sorted(found - {self.ignore})
        if len(labels) < 2:
            raise DataError(f"{samples.mask_name(0)}: no mask, neither this one, holds a foreground label")
        if self.regions:
            return {label: label for label in labels}
        if labels != list(range(len(labels))):
            log.info("data: labels %s are the classes 0 to %d", ", ".join(map(str, labels)), len(labels) - 1)
        return {label: index for index, label in enumerate(labels)}

    def restored(self, saved: DataInfo) -> MaskedPictures:
        """The same images with the labels of ``saved``, unless the settings define others; masks may contain fewer.
        Raises DataError."""
        made = self.as_new(_saved=saved)
        super(MaskedPictures, made).restored(saved)
        return made

    def described(self) -> DataInfo:
        mapping = self.mapping
        own = self.info_of(mapping, self.classes or [str(old) for old in labels_of(mapping)])
        if self.colours is None:
            return own
        shown = [list(colour) for colour in self.colours.values()]
        return replace(own, preprocessing={**own.preprocessing, "colours": shown})

    def info_of(self, mapping: Mapping[int, int], names: Sequence[str]) -> DataInfo:
        """The ``DataInfo`` of images whose labels have these classes. Raises ConfigError."""
        count = len(set(mapping.values()))
        if len(names) != count and not self.regions:
            raise ConfigError(f"data.classes: {len(names)} names for {count} labels {sorted(mapping)}")
        size = self.image_size
        facts = {"resize": "the shorter side", "crop": "the centre", "size": size, "labels": list(labels_of(mapping))}
        return DataInfo((self.channels, size, size), count, class_names=tuple(names), preprocessing=facts)

    def survey(self) -> Survey:
        samples = self.samples("train", {})
        return survey_pictures([samples.shape(number) for number in range(len(samples))])

    @property
    def parts(self) -> Mapping[str, Sized]:
        """The pairs of each part."""
        return self._pairs

    def samples(self, part: str, mapping: Mapping[int, int]) -> MaskedSamples:
        """The samples of one of ``parts``, with labels mapped by ``mapping``."""
        settings = (self.image_size, self.channels, mapping, self.ignore)
        return Pictures(self._pairs[part], self.read_mask(), *settings)

    def cases(self, part: str) -> list[Case]:
        """The ``Case`` of each sample of a part."""
        pairs = self._pairs[part]
        names = names_of_files([pair.image for pair in pairs])
        shape = (self.image_size, self.image_size)
        return [
            Case(name, pair.group, path=str(pair.image), shape=shape) for name, pair in zip(names, pairs, strict=True)
        ]

    @property
    def has_val(self) -> bool:
        return "val" in self.parts

    @property
    def has_test(self) -> bool:
        return "test" in self.parts

    def read(self, part: str) -> DatasetSource | None:
        if not self.parts.get(part):
            return None
        return DatasetSource(self.samples(part, self.mapping), about=About(self.cases(part)))

    def transform(self, view: str, split: str) -> Transform:
        return self.views.of(view, split)


def _read_file(pair: Pair, colours: Colours | None) -> Array:
    return read_mask_picture(pair.mask, colours)


class Seg2D(MaskedPictures):
    """Images with a mask each, in ``images/`` and ``labels/`` (or ``masks/``), or ``NAME`` and ``NAME_mask``; in
    ``train/``, ``val/`` and ``test/`` if these exist. Alternatively, the pairs of two patterns, or of a table.

    Args:
        images: the pattern of the images below ``folder``, such as ``*/rgb/*.png``; None pairs by name.
        masks: the pattern of the masks, in which each ``*`` stands for the same text.
        table: a .csv file with the columns ``image``, ``mask`` and, optionally, ``split`` and ``group``, relative to
            ``folder``; None uses no table.
        colours: the RGB colour of each class by name, in masks of colours, in the order of the labels, the background
            first.
        common: the arguments of MaskedPictures.
    """

    masks_as_stored = True

    def __init__(
        self,
        images: str | None = None,
        masks: str | None = None,
        table: str | None = None,
        colours: Mapping[str, Sequence[int]] | None = None,
        **common: Any,
    ) -> None:
        if (images is None) != (masks is None):
            raise ConfigError("data.images, data.masks: are two patterns that go together; give both or none")
        if table is not None and images is not None:
            raise ConfigError("data.table: names pictures and masks, and so does data.images; give one of them")
        if colours is not None:
            if any(len(colour) != 3 or not all(0 <= value < 256 for value in colour) for colour in colours.values()):
                raise ConfigError("data.colours: a class has red, green and blue from 0 to 255: {sky: [0, 0, 255]}")
            if len({tuple(colour) for colour in colours.values()}) < len(colours):
                raise ConfigError("data.colours: two classes have the same colour")
            if common.get("classes") is None and common.get("mapping") is None:
                common["classes"] = list(colours)
        super().__init__(**common)
        self.patterns = None if images is None or masks is None else (images, masks)
        self.table, self.colours = table, colours

    def read_mask(self) -> ReadMask:
        return partial(_read_file, colours=self.colours)

    def found(self, folder: Path) -> Mapping[str, Sequence[Pair]]:
        if self.table is not None:
            return listed_pictures(locate("table", self.table, (folder, self.start), "file"), folder)
        parts = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
        if "train" not in parts:
            parts = {"train": folder}
        if self.patterns is None:
            return {name: paired_pictures(inner) for name, inner in parts.items()}
        images, masks = self.patterns
        return {name: matched_pictures(inner, images, masks) for name, inner in parts.items()}
