"""What tables share, wherever they come from: columns of numbers or of pictures to a column of labels or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from healsg.data import DataInfo
from healsg.datasets import splits
from healsg.datasets.classification import Classification
from healsg.datasets.columns import classes_of, indices, numbers
from healsg.datasets.imagefolder import MEAN, STD
from healsg.errors import ConfigError, DataError
from healsg.loader import Transform
from healsg.source import DatasetSource, Source, TensorSource
from healsg.transforms.standard import Standardise, statistics
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Count, Natural, NonNegative, Share

Columns = Mapping[str, Sequence[Any]]
"""A table: its columns by name, all of the same length."""


class Tables(Classification):
    """Rows of a table as samples. A subclass gives ``table`` and ``pictures``.

    Numbers are standardised by the mean and deviation of the training samples that are not held out; what is missing
    is their mean. The classes are the different values of ``target`` in the training part, in sorted order.

    Args:
        target: the column of the label, or of the number to be predicted; several columns of labels or of numbers.
        kind: ``multiclass``; ``multilabel`` for columns of 0 and 1; ``regression`` for columns of numbers.
        columns: those of numbers that are the input; None takes all that are nothing else.
        image: the column of pictures that are the input; None for columns of numbers.
        image_size: height and width that the network sees, in pixels.
        channels: of pictures, 3 for colour, 1 for grey. They are normalised by ImageNet's mean and deviation.
        augment: of training pictures, by name; see ``ImageViews``.
        flip: mirror training pictures left to right at random.
        shift: the largest random shift of ``augment=standard``, in pixels.
        padding: what comes in from outside.
        noise: deviation of the noise that each standardised number of a training sample gets.
        test_fraction: the share of the training rows that serves as test part where there is none.
        common: the arguments of Classification.
    """

    def __init__(
        self,
        target: str | list[str] = "label",
        kind: Literal["multiclass", "multilabel", "regression"] = "multiclass",
        columns: list[str] | None = None,
        image: str | None = None,
        image_size: Count = 224,
        channels: Literal[1, 3] = 3,
        augment: Augment = "standard",
        flip: bool = True,
        shift: Natural = 16,
        padding: Literal["zero", "reflect"] = "reflect",
        noise: NonNegative = 0.0,
        test_fraction: Share = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.target = [target] if isinstance(target, str) else list(target)
        self.kind, self.columns, self.image, self.test_fraction = kind, columns, image, test_fraction
        self.image_size, self.channels, self.noise = image_size, channels, noise
        if not self.target or (kind == "multiclass" and len(self.target) > 1):
            raise ConfigError(f"data.target: {self.target} for a {kind} task; a class a sample is one column")
        if image and columns:
            raise ConfigError("data.columns: data.image names the input already; leave one out")
        if columns is not None and (not columns or len(set(columns)) < len(columns) or set(columns) & set(self.target)):
            raise ConfigError(f"data.columns: {columns}; name at least one, each once, and none that data.target names")
        mean, std = (MEAN, STD) if channels == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))
        size = image_size if image else shift + 1
        self.images = ImageViews(augment, flip, shift, mean, std, padding=padding, size=size)
        self._scaling = Standardise(torch.zeros(()), torch.ones(()), noise)

    # --- what a subclass gives --------------------------------------------------------------------------------------

    def table(self, part: str) -> Columns | None:
        """The table of ``train``, ``val`` or ``test``; None where there is none. It is asked for once."""
        raise NotImplementedError

    def pictures(self, values: Sequence[Any], targets: Tensor) -> Any:
        """A map-style data set of the pictures that a column names or holds, with their targets."""
        raise NotImplementedError

    @property
    def spent(self) -> set[str]:
        """Columns that are no input, beside ``target``."""
        return {name for name in (self.image, self.group) if name}

    # --- what is known of the rows ----------------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> dict[str, Columns]:
        found = {part: table for part in ("train", "val", "test") if (table := self.table(part)) is not None}
        if "train" not in found:
            raise DataError(f"{type(self).__name__}: there is no training part")
        wanted = [*self.target, *(self.columns or []), *([self.image] if self.image else [])]
        for part, table in found.items():
            if missing := [name for name in wanted if name not in table]:
                names = ", ".join(list(table)[:20])
                raise DataError(f"data: the {part} part has no column {missing[0]!r}; it has {names}")
        return found

    @cached_property
    def _parts(self) -> dict[str, tuple[Columns, Tensor]]:
        """By part its table, and the rows of that which are meant."""
        parts = {part: (table, torch.arange(len(table[self.target[0]]))) for part, table in self._tables.items()}
        if "test" not in parts and self.test_fraction:
            table, rows = parts["train"]
            layers = splits.strata(self._targets("train", rows))
            groups = self._group_numbers(table, self.group) if self.group else None
            kept, tested = splits.split_off(layers, self.test_fraction, self.split_seed, groups)
            parts |= {"train": (table, kept), "test": (table, tested)}
        return parts

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes, the labels' names, or those of the numbers."""
        return classes_of(self._tables["train"][self.target[0]]) if self.kind == "multiclass" else tuple(self.target)

    @cached_property
    def inputs(self) -> list[str]:
        """The columns of numbers that are the input."""
        if self.columns is not None:
            return self.columns
        left = [name for name in self._tables["train"] if name not in {*self.target, *self.spent}]
        if not left:
            raise DataError("data.columns: no column is left for the input; name them, or data.image")
        return left

    @property
    def info(self) -> DataInfo:
        """Known from the tables, which are read for it."""
        side = (self.channels, self.image_size, self.image_size)
        shape = side if self.image else (len(self.inputs),)
        return DataInfo(shape, len(self.classes), self.kind, class_names=self.classes)

    @property
    def has_val(self) -> bool:
        return "val" in self._tables

    @property
    def has_test(self) -> bool:
        return "test" in self._tables or self.test_fraction > 0

    def groups(self, name: str, part: str = "train") -> Tensor | None:
        if part not in self._parts:
            return None
        table, rows = self._parts[part]
        return self._group_numbers(table, name)[rows]

    def _group_numbers(self, table: Columns, name: str) -> Tensor:
        if name not in table:
            raise ConfigError(f"data.group: there is no column {name!r}; there is {', '.join(list(table)[:20])}")
        known = sorted({str(value) for other in self._tables.values() for value in other.get(name, ())})
        number = {value: place for place, value in enumerate(known)}
        return torch.tensor([number[str(value)] for value in table[name]])

    # --- the samples ------------------------------------------------------------------------------------------------

    def _targets(self, part: str, rows: Tensor) -> Tensor:
        table = self._tables.get(part, self._tables["train"])
        if self.kind == "multiclass":
            return indices(self.target[0], table[self.target[0]], self.classes)[rows]
        found = torch.stack([numbers(name, table[name]) for name in self.target], dim=1)[rows].float()
        if bool(found.isnan().any()):
            raise DataError(f"data.target: a value of {' or '.join(self.target)} is missing in the {part} part")
        if self.kind == "regression":
            return found[:, 0] if len(self.target) == 1 else found
        if not bool(((found == 0) | (found == 1)).all()):
            raise DataError(f"data.target: {' or '.join(self.target)} has a value that is neither 0 nor 1")
        return found

    def read(self, part: str) -> Source | None:
        if part not in self._parts:
            return None
        table, rows = self._parts[part]
        target = self._targets(part, rows)
        if self.image:
            column = table[self.image]
            return DatasetSource(self.pictures([column[row] for row in rows.tolist()], target), targets=target)
        input = torch.stack([numbers(name, table[name]) for name in self.inputs], dim=1)[rows].float()
        if part == "train":
            self._measure(input)
        return TensorSource(input, target)

    def hold_out(self, train: Source) -> tuple[Source, Source | None]:
        kept, held = super().hold_out(train)
        if isinstance(kept, TensorSource):
            self._measure(kept.input)
        return kept, held

    def _measure(self, input: Tensor) -> None:
        self._scaling = Standardise(*statistics(input), self.noise)

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split) if self.image else self._scaling.of(view, split)
