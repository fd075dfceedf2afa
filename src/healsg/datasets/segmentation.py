"""Segmentation: what all data sets offer whose targets are masks: cases, patches, pixels to be ignored, regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from healsg.data.base import Needs
from healsg.data.case import Case
from healsg.data.info import SEGMENTATION, DataInfo
from healsg.data.patches import padding, patches_of
from healsg.data.source import DatasetSource, Source, TensorSource
from healsg.datasets.labelled import LabelledData
from healsg.datasets.masks.survey import Survey
from healsg.datasets.published.files import log
from healsg.datasets.targets.groups import numbers
from healsg.errors import ConfigError, DataError
from healsg.types import Count, Fraction


def labels_of(mapping: Mapping[int, int]) -> tuple[int, ...]:
    """One label of the files for each class, in the order of the classes: the smallest, where several are one class."""
    first: dict[int, int] = {}
    for old in sorted(mapping):
        first.setdefault(mapping[old], old)
    return tuple(first[new] for new in sorted(first))


def region_labels(regions: Mapping[str, Sequence[int]]) -> list[tuple[int, int]]:
    """How masks of one label a pixel are made of overlapping regions: ``(place, label)`` of each, in the order in which
    they are written, later ones over earlier ones.

    Larger regions come first, and each writes the smallest of its labels that no smaller region within it has, such as
    1, 2 and 3 of ``{"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}``.
    """
    sets = [frozenset(labels) for labels in regions.values()]
    order = sorted(range(len(sets)), key=lambda index: (-len(sets[index]), index))
    written = []
    for index in order:
        inner = {label for other in sets if other < sets[index] for label in other}
        written.append((index, min(sets[index] - inner or sets[index])))
    return written


LARGEST_LABEL = 255
"""Masks are held as bytes."""


def require_onto(mapping: Mapping[int, int] | None, ignore: int | None) -> None:
    """Raise ConfigError unless ``data.mapping`` gives the classes 0, 1, 2, ... without a gap.

    Args:
        mapping: from the labels of the files to those of the classes; None is not checked.
        ignore: the label that counts as no class.
    """
    if mapping is None:
        return
    if odd := [label for label in mapping if type(label) is not int]:
        raise ConfigError(f"data.mapping: {odd[0]!r} is no label; labels are whole numbers, as in {{0: 0, 255: 1}}")
    found = sorted({new for new in mapping.values() if new != ignore})
    if found != list(range(len(found))) or not found:
        raise ConfigError(f"data.mapping: maps to {found}; the classes are 0, 1, 2, ... without a gap")


class Segmentation(LabelledData):
    """Images or volumes with a mask each. ``labels``, ``fraction``, ``val_fraction``, ``fold`` and ``group`` count
    cases, stratified by what the set says of them (``About.strata``).

    A subclass gives ``read``, whose sources tell their cases (``About.cases``), ``described`` and ``transform``.
    A training epoch deals patches where ``patch`` is given, an evaluation always whole cases.

    Args:
        patch: the size of a training patch along each spatial axis; None trains on whole samples.
        patches_per_case: patches of each case in a training epoch.
        samples_per_epoch: patches of a training epoch in the place of ``patches_per_case``; each case gives as many.
        foreground: the share of patches around a pixel of a foreground class that is drawn evenly.
        ignore: the label of pixels that count in no loss and no metric; None if all count.
        regions: overlapping regions in the place of classes, by name the labels of each; None has one class a pixel.
        common: the arguments of LabelledData.
    """

    def __init__(
        self,
        patch: Sequence[Count] | None = None,
        patches_per_case: Count = 1,
        samples_per_epoch: Count | None = None,
        foreground: Fraction = 0.0,
        ignore: int | None = None,
        regions: Mapping[str, Sequence[int]] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.patch = None if patch is None else tuple(patch)
        self.patches_per_case, self.samples_per_epoch = patches_per_case, samples_per_epoch
        self.foreground, self.ignore = foreground, ignore
        self._group_numbers: dict[str, int] = {}
        self.regions = {name: tuple(labels) for name, labels in (regions or {}).items()}
        if self.patch is None and (samples_per_epoch is not None or patches_per_case > 1 or foreground):
            key = "samples_per_epoch" if samples_per_epoch else "foreground" if foreground else "patches_per_case"
            raise ConfigError(f"data.{key}: is for patches, and data.patch gives no size; set that, or leave it out")

    def survey(self) -> Survey:
        """What ``healsg plan`` needs to know of the training cases: here those of ``read``, as they are. Raises
        DataError."""
        source = self.read("train")
        if not isinstance(source, (TensorSource, DatasetSource)):
            raise DataError("data: has no training cases that could be planned for")
        shapes, spacings = [], []
        cases = source.about.cases or [Case("")] * len(source)
        for number, case in enumerate(cases):
            sides = tuple(source.fetch(torch.tensor([number]))["input"].shape[2:])
            shapes.append(sides)
            spacings.append(case.spacing[: len(sides)] or (1.0,) * len(sides))
        return Survey(tuple(shapes), tuple(spacings))

    def described(self) -> DataInfo:
        """What is known of the set before samples are read, without ``ignore`` and ``regions``: the shape of an input,
        the number and names of its labels."""
        raise NotImplementedError

    @property
    def info(self) -> DataInfo:
        own = self.described()
        shape = own.input_shape
        if self.patch is not None:
            if len(self.patch) != len(shape) - 1:
                axes = len(shape) - 1
                raise ConfigError(
                    f"data.patch: {list(self.patch)} for inputs of {axes} spatial axes; give {axes} sizes"
                )
            shape = (shape[0], *self.patch)
        self._check_labels(own.num_classes)
        names = tuple(self.regions) if self.regions else own.class_names
        return DataInfo(
            shape,
            len(self.regions) or own.num_classes,
            SEGMENTATION,
            names,
            own.class_order,
            preprocessing=own.preprocessing,
            ignore=self.ignore,
            regions=self.regions,
        )

    def _check_labels(self, classes: int) -> None:
        """Refuse labels that no mask of ``classes`` classes can hold. Raises ConfigError."""
        if self.ignore is not None and not 0 <= self.ignore <= LARGEST_LABEL:
            raise ConfigError(f"data.ignore: {self.ignore} is no label of a mask; give one from 0 to {LARGEST_LABEL}")
        for name, labels in self.regions.items():
            unknown = [label for label in labels if not 0 <= label < classes]
            if unknown:
                known = f"the labels of this set are 0 to {classes - 1}"
                raise ConfigError(f"data.regions.{name}: {unknown[0]} is no label of the masks; {known}")

    def streams(self, needs: Needs, train: Source) -> dict[str, Source]:
        streams = super().streams(needs, train)
        if self.patch is not None and (remark := padding(streams.values(), self.patch)):
            log.info("data.patch: %s", remark)
        return streams

    def sampled(self, source: Source) -> Source:
        if self.patch is None:
            return source
        outside = 0 if self.ignore is None else self.ignore
        count, per_case = self.samples_per_epoch, self.patches_per_case
        return patches_of(source, self.patch, per_case, count, self.foreground, outside, self.ignore)

    def groups(self, name: str, part: str = "train") -> Tensor | None:
        """The groups that the cases name, such as patients, whatever ``name`` calls them."""
        source = self.read(part)
        cases = source.about.cases if isinstance(source, (TensorSource, DatasetSource)) else None
        if source is None or cases is None:
            return None
        if not all(case.group for case in cases):
            raise ConfigError(f"data.group: the cases of {type(self).__name__} name no {name}; leave it out")
        return numbers([case.group for case in cases], self._group_numbers)
