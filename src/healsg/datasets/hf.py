"""Data sets of the Hugging Face hub by name, and parquet files in their form."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from healsg.data.source import line
from healsg.datasets.images.decoded import DecodedPictures
from healsg.datasets.images.decoding import Decoder, Remark, unremarked
from healsg.datasets.images.stored import StoredFile
from healsg.datasets.published.files import locate
from healsg.datasets.tables import Columns, Tables
from healsg.errors import ConfigError, DataError
from healsg.paths import shown


class HuggingFace(Tables):
    """A data set of columns: of numbers, or of pictures as the hub stores them, ``{bytes, path}``.

    ``name`` is a parquet file, or a folder with ``train*.parquet``, ``test*.parquet`` and so on anywhere below it, or
    else the name of a set on the hub. A data set with a loading script is refused.

    Args:
        name: of the set, or the file or folder, relative to the current directory or else to ``root``.
        config: the set's configuration (subset), if it has several.
        revision: the set's version, a commit or a branch.
        train, val, test: the set's own names of the parts; None if there is none.
        common: the arguments of Tables.
    """

    repeatable = True

    def __init__(
        self,
        name: str,
        config: str | None = None,
        revision: str | None = None,
        train: str = "train",
        val: str | None = None,
        test: str | None = "test",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.name = name
        self.config = config
        self.revision = revision
        self.parts = {"train": train, "val": val, "test": test}
        self.place: Path | None = None
        try:
            self.place = locate("name", name, (self.start, self.root), "file or folder")
        except DataError:
            if name.count("/") > 1 or name.endswith(".parquet") or Path(name).expanduser().is_absolute():
                raise
        for needed in ["pyarrow", *(["datasets"] if self.place is None else [])]:
            if find_spec(needed) is None:
                raise ConfigError(f"data: {needed} is not installed; pip install 'healsg[hf]'")

    def table(self, part: str) -> Columns | None:
        split = self.parts[part]
        if split is None:
            return None
        found = self._downloaded(split) if self.place is None else self._read_files(self.place, split)
        if found is None and part == "train":
            raise DataError(f"data.train: {shown(self.place) if self.place else self.name} has no part {split!r}")
        return None if found is None else {name: self._column(found, name) for name in found.column_names}

    def _read_files(self, path: Path, split: str) -> Any:
        """The parquet files of a part as one Arrow table; None if there are none."""
        from pyarrow import ArrowException, concat_tables, parquet

        files = [path] if path.is_file() else sorted(path.rglob(f"{split}*.parquet"))
        if path.is_file() and split != self.parts["train"]:
            return None
        try:
            tables = []
            for file in files:
                with parquet.ParquetFile(file) as opened:
                    tables.append(opened.read())
            return concat_tables(tables) if files else None
        except (OSError, ValueError, ArrowException) as error:
            raise DataError(f"{path}: its {split} part cannot be read as parquet ({line(error)})") from error

    def _downloaded(self, split: str) -> Any:
        """A part of a set of the hub as one Arrow table, from its cache or the network; None if it has none."""
        import datasets

        cache = str(self.root.absolute() / "huggingface")
        try:
            sets = datasets.load_dataset(self.name, self.config, revision=self.revision, cache_dir=cache)
        except Exception as error:  # errors of the network, the cache or the set's files
            raise DataError(f"data.name: {self.name} cannot be loaded from the hub ({line(error)})") from error
        return sets[split].with_format("arrow")[:] if split in sets else None

    def _column(self, table: Any, name: str) -> Sequence[Any]:
        """A column as plain values: pictures as they are stored, labels by the names that the set gives them."""
        column = table.column(name)
        if name == self.image:
            return column  # type: ignore[no-any-return]
        names = label_names(table.schema.metadata).get(name)
        if names and self.kind == "multiclass" and name == self.target[0]:
            return [
                names[value] if value is not None and 0 <= value < len(names) else value for value in column.to_pylist()
            ]
        values: list[Any] = column.to_pylist()
        return values

    def pictures(self, values: Sequence[Any], targets: Tensor) -> Any:
        return StoredPictures(values, targets, self.image_size, self.channels, self.reading.remark, self.decoder)


def label_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """The class names of each column, from the metadata of the hub's files."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(one["names"]) for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


class StoredPictures(DecodedPictures):
    """A data set of pictures in memory.

    Args:
        values: Arrow's ``{bytes, path}`` or bytes.
        targets: of each.
        size, channels, remark, decoder: see ``DecodedPictures``.
    """

    def __init__(
        self,
        values: Sequence[Any],
        targets: Tensor,
        size: int,
        channels: int,
        remark: Remark = unremarked,
        decoder: Decoder = "auto",
    ) -> None:
        super().__init__(targets, size, channels, remark, decoder)
        self.values = values

    def opened(self, index: int) -> io.BytesIO:
        return io.BytesIO(self._content(index))

    def stored(self, index: int) -> StoredFile:
        """A sample's encoded image, named by its path if it has one."""
        stored = self.values[index].as_py()
        path = stored.get("path") if isinstance(stored, dict) else None
        content = self._content(index)
        return StoredFile(str(path or index), lambda: content, len(content), zlib.crc32(content))

    def _content(self, index: int) -> bytes:
        stored = self.values[index].as_py()
        content: bytes | None = stored.get("bytes") if isinstance(stored, dict) else stored
        return content or b""

    def fingerprint(self) -> str:
        """A digest of the stored pictures, or, for many images, of a thousand at regular intervals."""
        total, step = hashlib.sha256(), max(1, len(self) // 1000)
        for index in range(0, len(self), step):
            content = self._content(index)
            total.update(f"{len(content)} ".encode() + content)
        return total.hexdigest()
