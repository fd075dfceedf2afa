"""Base of tables from any source: numeric columns or an image column as input, labels or numbers as target."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from healsg.data import splits
from healsg.data.base import DataInfo
from healsg.data.info import ClassOrder, given_order, listed, order_classes, refuse_unknown_classes
from healsg.data.loader import Transform
from healsg.data.source import DatasetSource, Source, TensorSource
from healsg.datasets.classification import Classification
from healsg.datasets.imagefolder import MEAN, PICTURE, STD
from healsg.datasets.images.decoding import Decoder
from healsg.datasets.images.folders import is_picture
from healsg.datasets.published.files import log
from healsg.datasets.targets.columns import (
    ask_about_numbers,
    classes_of,
    has_label,
    indices,
    is_number,
    number,
    numbers,
)
from healsg.datasets.targets.names import shown
from healsg.errors import ConfigError, DataError
from healsg.transforms.standard import Standardise, statistics
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Count, Excludes, Finite, Natural, NonNegative, Share

Columns = Mapping[str, Sequence[Any]]
"""A table: its columns by name, all of the same length."""

NAMELESS = re.compile(r"|Unnamed: \d+(\.\d+)*|Unnamed: \d+_level_\d+|__index_level_\d+__")
"""Names of unnamed columns in files read or written by pandas."""

LEAST = 10
"""Fewest rows for which a column that counts them is taken to be a row index."""


def saved_scaling(saved: DataInfo, noise: float) -> Standardise:
    """The standardisation that was fitted when the weights of ``saved`` were trained. Raises DataError."""
    centre, spread = (saved.preprocessing.get(key) for key in ("mean", "std"))
    for values in (centre, spread):
        numbers_given = values if isinstance(values, list) else []
        complete = len(numbers_given) == len(saved.input_names)
        if not complete or not all(type(value) is float and math.isfinite(value) for value in numbers_given):
            raise DataError("data: the checkpoint lacks the mean and deviation of the columns that it takes")
    return Standardise(torch.tensor(centre), torch.tensor(spread), noise)


class Tables(Classification):
    """Rows of a table as samples. A subclass gives ``table`` and ``pictures``.

    Numeric columns are standardised by the mean and standard deviation of the training samples that are not held out;
    missing values become the mean. The statistics are fitted when a run starts, and later come from its checkpoint (see
    ``restored``). The classes are the different values of ``target`` in the training part, as numbers if they are
    numbers, else in the order of text.

    Args:
        target: the column of the label or number; several columns for several labels or numbers.
        kind: ``multiclass``; ``multilabel`` for columns of 0 and 1; ``regression`` for columns of numbers; None is
            multiclass unless the labels look numeric.
        columns: the numeric input columns; None takes every named column with no other role, since an unnamed column
            holds the row index that ``DataFrame.to_csv`` writes.
        image: the column of pictures that are the input; None for columns of numbers.
        image_size: input height and width, in pixels.
        channels: of pictures, 3 for colour, 1 for grey. They are normalised by ImageNet's mean and deviation.
        augment: of training pictures, by name; see ``ImageViews``.
        flip: flip training images horizontally at random.
        shift: the largest random shift of ``augment=standard``, in pixels.
        padding: fill of pixels outside the image, ``zero`` or ``reflect``.
        noise: standard deviation of Gaussian noise on each standardised column of a training sample.
        classes: the labels in their order, such as [none, mild, moderate, severe]: all that the training part has.
        test_fraction: the share of the training rows used as test part if there is none.
        missing_labels: what a row without a label means (empty, ``NA``, ``nan``, ``null``, ``?``): stop, leave the row
            out, or take such a word for a class of that name.
        decoder: of pictures that are JPEGs; see ``ImageFolder``.
        common: the arguments of Classification.
    """

    repeatable = True

    def __init__(
        self,
        target: str | list[str] = "label",
        kind: Literal["multiclass", "multilabel", "regression"] | None = None,
        columns: Annotated[list[str], Excludes("image")] | None = None,
        image: str | None = None,
        image_size: Count = 224,
        channels: Literal[1, 3] = 3,
        augment: Augment = "standard",
        flip: bool = True,
        shift: Natural = 16,
        padding: Literal["zero", "reflect"] = "reflect",
        noise: NonNegative = 0.0,
        test_fraction: Share = 0.0,
        missing_labels: Literal["raise", "drop", "keep"] = "raise",
        classes: list[str | Finite] | None = None,
        decoder: Decoder = "auto",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.decoder: Decoder = decoder
        self.target = [target] if isinstance(target, str) else list(target)
        self.kind = kind or "multiclass"
        self.kind_given = kind is not None
        self.missing_labels = missing_labels
        self.columns = columns
        self.image = image
        self.test_fraction = test_fraction
        self.image_size = image_size
        self.channels = channels
        self.noise = noise
        if not self.target or (self.kind == "multiclass" and len(self.target) > 1):
            raise ConfigError(f"data.target: {self.target} for a {self.kind} task; a class a sample is one column")
        if image and columns:
            raise ConfigError("data.columns: data.image names the input already; leave one out")
        if columns is not None and (not columns or len(set(columns)) < len(columns) or set(columns) & set(self.target)):
            raise ConfigError(f"data.columns: {columns}; name at least one, each once, and none that data.target names")
        mean, std = (MEAN, STD) if channels == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))
        size = image_size if image else shift + 1
        self.images = ImageViews(augment, flip, shift, mean, std, padding=padding, size=size, files=True)
        self._scaling = Standardise(torch.zeros(()), torch.ones(()), noise)
        self.given_classes = classes
        self._saved: DataInfo | None = None
        self._unread: dict[str, DataError] = {}
        if classes is not None and self.kind != "multiclass":
            raise ConfigError(
                f"data.classes: is for one class a sample; a {self.kind} task has the columns of data.target"
            )

    # --- what a subclass gives --------------------------------------------------------------------------------------

    def table(self, part: str) -> Columns | None:
        """The table of ``train``, ``val`` or ``test``; None if there is none. It is called once."""
        raise NotImplementedError

    def pictures(self, values: Sequence[Any], targets: Tensor) -> Any:
        """A map-style data set of the pictures that a column names or holds, with their targets."""
        raise NotImplementedError

    def where(self, part: str) -> str:
        """The name of the table of ``part`` in messages."""
        return f"the {part} part"

    @property
    def spent(self) -> set[str]:
        """Columns that are no input, in addition to ``target``."""
        return {name for name in (self.image, self.group) if name}

    # --- what is known of the rows ----------------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> dict[str, Columns]:
        found: dict[str, Columns] = {}
        for part in ("train", "val", "test"):
            try:
                table = self.table(part)
            except DataError as error:
                if self._saved is None:
                    raise
                self._unread[part] = error  # weights with fitted statistics need only the requested part
                continue
            if table is not None:
                found[part] = table
        if "train" not in found and self._saved is None:
            raise DataError(f"{type(self).__name__}: there is no training part")
        columns = [*self.target, *(self.columns or []), *([self.image] if self.image else [])]
        for part, table in found.items():
            if missing := [name for name in columns if name not in table]:
                names = ", ".join(list(table)[:20])
                mark = next((mark for mark in (";", "\t", "|") if len(table) == 1 and mark in names), None)
                way = f"; is it separated by {mark!r}? A .csv file has commas, a .tsv file tabs" if mark else ""
                raise DataError(f"data: the {part} part has no column {missing[0]!r}; it has {names}{way}")
        return found

    @cached_property
    def _parts(self) -> dict[str, tuple[Columns, Tensor]]:
        """By part its table, and the rows of that which are meant."""
        parts = {part: (table, self._labelled[part]) for part, table in self._tables.items()}
        if "test" not in parts and "train" in parts and self.test_fraction:
            table, rows = parts["train"]
            layers = splits.strata(self._targets("train", rows))
            groups = self._group_numbers(table, self.group)[rows] if self.group else None
            kept, tested = splits.split_off(layers, self.test_fraction, self.split_seed, groups)
            parts |= {"train": (table, rows[kept]), "test": (table, rows[tested])}
        return parts

    @cached_property
    def _labelled(self) -> dict[str, Tensor]:
        """By part the rows that have their targets. Raises DataError for one that has not, unless it is dropped."""
        found = {}
        for part, table in self._tables.items():
            whole = torch.arange(len(table[self.target[0]]))
            if self.kind == "multiclass":
                words = self.missing_labels != "keep"
                has = torch.tensor([has_label(value, words) for value in table[self.target[0]]], dtype=torch.bool)
            else:
                has = ~torch.stack([numbers(name, table[name]) for name in self.target], dim=1).isnan().any(dim=1)
            found[part] = whole[has]
            if self.missing_labels != "drop" and not bool(has.all()):
                self._refuse_missing(part, table, has)
        return found

    def _refuse_missing(self, part: str, table: Columns, has: Tensor) -> None:
        row = int((~has).nonzero()[0])
        known = has_label if self.kind == "multiclass" else is_number
        values = {name: table[name][row] for name in self.target if not known(table[name][row])}
        shown = ", ".join(f"{name!r} is {'' if value is None else str(value)!r}" for name, value in values.items())
        word = next((text for value in values.values() if (text := str(value).strip())), "")
        keep = f", keep takes {word!r} for a class" if word and self.kind == "multiclass" else ""
        count = int((~has).sum())
        way = f"data.missing_labels=drop leaves out the {count} rows without one{keep}"
        raise DataError(f"data.target: no label in row {row + 1} of {self.where(part)} ({shown}); {way}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, the labels' names, or those of the numbers."""
        return self._classes_and_order[0]

    @cached_property
    def _classes_and_order(self) -> tuple[tuple[str, ...], ClassOrder]:
        if self._saved is not None:
            return self._saved.class_names, self._saved.class_order
        if self.kind != "multiclass":
            return tuple(self.target), "given"
        column = self._tables["train"][self.target[0]]
        rows = self._labelled["train"].tolist()
        classes, order = order_classes(classes_of([column[row] for row in rows]))
        if not self.kind_given:
            ask_about_numbers(self.target[0], classes, len(rows))
        return (classes, order) if self.given_classes is None else (given_order(self.given_classes, classes), "given")

    @cached_property
    def inputs(self) -> list[str]:
        """The columns of numbers that are the input, in the order in which the network sees them."""
        if self._saved is not None:
            return list(self._saved.input_names)
        if self.columns is not None:
            return self.columns
        left = [name for name in self._tables["train"] if name not in {*self.target, *self.spent, *self._unnamed}]
        if not left:
            raise DataError("data.columns: no column is left for the input; name them, or data.image")
        return left

    @property
    def _unnamed(self) -> list[str]:
        """The columns without a name: row indices, with which tables are written."""
        return [name for name in self._tables["train"] if NAMELESS.fullmatch(name)]

    @property
    def info(self) -> DataInfo:
        """Known from the tables, which are read for it."""
        classes, order = self._classes_and_order
        if self.image:
            side = (self.channels, self.image_size, self.image_size)
            return DataInfo(side, len(classes), self.kind, classes, order, preprocessing=PICTURE)
        return DataInfo((len(self.inputs),), len(classes), self.kind, classes, order, tuple(self.inputs))

    def restored(self, saved: DataInfo) -> Tables:
        """The same rows with the classes, the input columns and the statistics of ``saved``, instead of those of the
        tables.

        Raises DataError if the tables have other classes, or lack a column.
        """
        scaling = saved_scaling(saved, self.noise) if saved.input_names else self._scaling
        made = self.as_new(_saved=saved, _unread={}, _scaling=scaling)
        if saved.kind != self.kind:
            raise DataError(f"data.kind: the weights were trained on a {saved.kind} task, not on {self.kind}")
        if bool(saved.input_names) == bool(self.image):
            there = "columns of numbers" if saved.input_names else "pictures"
            raise DataError(f"data.image: the weights were trained on {there}")
        if self.kind != "multiclass" and sorted(saved.class_names) != sorted(self.target):
            raise DataError(f"data.target: {listed(self.target)}; the weights predict {listed(saved.class_names)}")
        if self.columns is not None and sorted(self.columns) != sorted(saved.input_names):
            raise DataError(f"data.columns: {listed(self.columns)}; the weights take {listed(saved.input_names)}")
        if self.given_classes is not None:
            refuse_unknown_classes(saved.class_names, [str(name) for name in self.given_classes], "data.classes")
        for part, table in made._tables.items():
            made._check_table(part, table, saved)
        return made

    def _check_table(self, part: str, table: Columns, saved: DataInfo) -> None:
        """Refuse a table that lacks an input column of ``saved``, or has classes that it does not. Raises DataError."""
        if missing := [name for name in saved.input_names if name not in table]:
            raise DataError(f"data: the {part} part has no column {listed(missing)}, which the weights take as input")
        if self.kind == "multiclass":
            present = classes_of(table[self.target[0]])
            refuse_unknown_classes(saved.class_names, present, f"data.target: {self.target[0]!r} of the {part} part")

    def explain_single_class(self) -> str:
        column = f"{self.target[0]!r} of {self.where('train')}"
        return f"data.target: every label in {column} is {self.classes[0]!r}; two classes are needed to tell apart"

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
        number = {value: index for index, value in enumerate(known)}
        return torch.tensor([number[str(value)] for value in table[name]])

    # --- the samples ------------------------------------------------------------------------------------------------

    def _targets(self, part: str, rows: Tensor) -> Tensor:
        table = self._tables[part if part in self._tables else "train"]
        if self.kind == "multiclass":
            column, chosen = table[self.target[0]], rows.tolist()
            return indices(self.target[0], [column[row] for row in chosen], self.classes, chosen)
        found = torch.stack([numbers(name, table[name]) for name in self.classes], dim=1)[rows].float()
        if self.kind == "regression":
            return found[:, 0] if len(self.target) == 1 else found
        if not bool(((found == 0) | (found == 1)).all()):
            raise DataError(f"data.target: {' or '.join(self.target)} has a value that is neither 0 nor 1")
        return found

    def read(self, part: str) -> Source | None:
        if part not in self._parts:
            if part in self._unread:
                raise self._unread[part]
            return None
        table, rows = self._parts[part]
        target = self._targets(part, rows)
        if self.image:
            column = table[self.image]
            return DatasetSource(self.pictures([column[row] for row in rows.tolist()], target), targets=target)
        input = self._numbers(table)[rows].float()
        if part == "train":
            self._measure(input)
        return TensorSource(input, target)

    def _numbers(self, table: Columns) -> Tensor:
        """(N, F) float64 of the input's columns. Raises DataError that names what reads a column of another kind."""
        columns = []
        for name in self.inputs:
            try:
                columns.append(numbers(name, table[name]))
            except DataError as error:
                value = next((value for value in table[name] if value is not None), None)
                picture = isinstance(value, (bytes, dict)) or (isinstance(value, str) and is_picture(value))
                way = f"data.image={name} reads pictures" if picture else "data.columns=[...] names those of numbers"
                raise DataError(f"{error}; {way}") from None
        return torch.stack(columns, dim=1)

    def splits(self) -> dict[str, Source]:
        parts = super().splits()
        for part, table in self._tables.items():
            if dropped := len(table[self.target[0]]) - len(self._labelled[part]):
                log.warning("data: %d rows of %s have no label and are left out", dropped, self.where(part))
        if not self.image:
            self._report_inputs([source for source in parts.values() if isinstance(source, TensorSource)])
        return parts

    def _report_inputs(self, sources: Sequence[TensorSource]) -> None:
        """Log which columns are the input, their statistics, and which columns are not used."""
        log.info(
            "data: the inputs are the columns %s, scaled to mean 0 and deviation 1 by the training rows",
            shown(self.inputs),
        )
        if self.columns is None and self._unnamed:
            log.info("data: %s has no name and is no input; data.columns names it if it is", shown(self._unnamed))
        missing = sum((source.input.isnan().sum(dim=0).cpu() for source in sources), torch.zeros(len(self.inputs)))
        lacking = {name: int(count) for name, count in zip(self.inputs, missing.tolist(), strict=True) if count}
        if lacking:
            message = "data: %d missing numbers are set to the mean of their column: %s"
            log.info(message, sum(lacking.values()), shown(list(lacking)))
        if self.columns is None:
            for name in self.inputs:
                if counts_rows(self._tables["train"][name]):
                    log.warning("data: %r counts the rows and is an input; data.columns names those that are", name)

    def hold_out(self, train: Source) -> tuple[Source, Source | None]:
        kept, held = super().hold_out(train)
        if isinstance(kept, TensorSource):
            self._measure(kept.input)
        return kept, held

    def _measure(self, input: Tensor) -> None:
        """Fit the standardisation, unless the weights come with their own."""
        if self._saved is None:
            self._scaling = Standardise(*statistics(input), self.noise)

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split) if self.image else self._scaling.of(view, split)


def counts_rows(values: Sequence[Any]) -> bool:
    """Whether a column only counts the rows, from any start."""
    if len(values) < LEAST:
        return False
    try:
        first = int(number(values[0]))
        return all(number(value) == first + row for row, value in enumerate(values))
    except (TypeError, ValueError, OverflowError):
        return False
