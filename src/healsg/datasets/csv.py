"""CSV: your own table: image paths or numeric columns as input, labels or numbers as target."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from healsg.data.source import line
from healsg.datasets.imagefolder import Pictures
from healsg.datasets.published.files import locate
from healsg.datasets.tables import Columns, Tables
from healsg.errors import ConfigError, DataError

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Values of the column ``split``, and their parts."""


class Csv(Tables):
    """A file whose first row names the columns, or a file a part.

    Args:
        file: the table, relative to the current directory or else to ``root``.
        val_file: that of the validation part; None takes it from ``file``.
        test_file: that of the test part; None takes it from ``file``.
        split: the column with ``train``, ``val`` or ``test`` for each row of ``file``.
        delimiter: of the columns.
        common: the arguments of Tables; a picture's path is relative to its table's folder.
    """

    repeatable = True

    def __init__(
        self,
        file: str,
        val_file: str | None = None,
        test_file: str | None = None,
        split: str | None = None,
        delimiter: str = ",",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.files = {"train": file, "val": val_file, "test": test_file}
        self.split, self.delimiter = split, delimiter
        if len(delimiter) != 1:
            raise ConfigError(f"data.delimiter: {delimiter!r} is not one character; '\\t' is a tab")
        if split and (val_file or test_file):
            raise ConfigError("data.split: the parts lie in files of their own already; leave one out")

    def where(self, part: str) -> str:
        file = self.files[part] if not self.split else self.files["train"]
        return f"{file}, {part} part" if self.split else str(file)

    @property
    def spent(self) -> set[str]:
        return super().spent | ({self.split} if self.split else set())

    def table(self, part: str) -> Columns | None:
        file = self.files[part] if not self.split else self.files["train"]
        if file is None:
            return None
        key = "file" if self.split or part == "train" else f"{part}_file"
        path = locate(key, file, (self.start, self.root), "file")
        table = read_csv(path, self.delimiter)
        if self.split:
            table = self._rows_of(part, table, path)
        if self.image in table:
            table[self.image] = [str(path.parent / value) for value in table[self.image]]
        return table if next(iter(table.values())) or not self.split else None

    def _rows_of(self, part: str, table: dict[str, list[str]], path: Path) -> dict[str, list[str]]:
        if self.split not in table:
            raise DataError(f"data.split: {path} has no column {self.split!r}; it has {', '.join(list(table)[:20])}")
        parts = [PARTS.get(value.strip().lower()) for value in table[self.split]]
        if None in parts:
            row = parts.index(None)
            raise DataError(f"data.split: row {row + 1} says {table[self.split][row]!r}, not train, val or test")
        return {name: [v for v, of in zip(values, parts, strict=True) if of == part] for name, values in table.items()}

    def pictures(self, values: Sequence[Any], targets: Tensor) -> Any:
        return Pictures(values, targets, self.image_size, self.channels, self.reading.remark, self.decoder)


def read_csv(path: Path, delimiter: str) -> dict[str, list[str]]:
    """The columns of a file by name, as text; one without a name is ``Unnamed: 0`` by its place.

    Raises DataError that names the file and the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            names = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(next(rows, []))]  # as pandas does
            columns: list[list[str]] = [[] for _ in names]
            for row in rows:
                if row and len(row) != len(names):
                    raise ValueError(f"line {rows.line_num} has {len(row)} values, not {len(names)}")
                for column, value in zip(columns, row, strict=False):
                    column.append(value)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({line(error)})") from error
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path}: its first row must name the columns, each with another name")
    return dict(zip(names, columns, strict=True))
