"""Samples without labels from a user's files: images, folders of images, tables, arrays; one at a time.

Only names are kept in memory: each sample is read when it is needed.
"""

from __future__ import annotations

import csv
import logging
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from healsg.data.info import DataInfo, listed
from healsg.data.source import line
from healsg.datasets.images.decoding import decode
from healsg.datasets.images.folders import is_picture
from healsg.datasets.targets.columns import number
from healsg.errors import DataError

log = logging.getLogger("healsg")

TABLES, ARRAYS = (".csv", ".tsv"), (".npz", ".npy")
"""The endings of files that hold many samples; any other file is a picture."""

IMAGE_COLUMNS = ("image", "path", "file", "filename")
"""Names of columns that are used as image paths if the run's image column is missing."""

ARRAY_NAMES = ("input", "x", "images", "image", "data", "arr_0")
"""Arrays of an archive that are taken for its samples, the first of these that it has."""


class Sample(NamedTuple):
    """One sample that is not read yet.

    Args:
        file: the path, as it was given or found.
        row: its row in a table or array, from 1; None of a picture.
        read: makes the sample as the data set of a network stores it, without the dimension of a batch. It raises
            anything for a file that is damaged.
    """

    file: str
    row: int | None
    read: Callable[[DataInfo], Tensor]


def samples_of(paths: Sequence[str], info: DataInfo, image_column: str | None = None) -> Iterator[Sample]:
    """The samples of all paths in turn, those of a folder in the order of their names, all below it.

    Hidden files and files without an image's extension are skipped in a folder.

    Args:
        paths: pictures, folders, tables, arrays.
        info: what the network takes.
        image_column: the column of a table that holds paths of pictures, which are relative to the table.

    Raises:
        DataError: a path is not there, has nothing in it, or lacks what the network takes.
    """
    found = []
    for given in paths:  # all are checked before the first is read
        path = Path(given)
        if path.is_dir():
            found.append(_pictures_of(path))
        elif not path.exists():
            raise DataError(f"{given}: there is no such file or folder")
        elif path.suffix.lower() in (*TABLES, *ARRAYS) and not path.is_file():
            raise DataError(f"{given}: is no regular file")
        elif path.suffix.lower() in TABLES:
            found.append(_in_table(path, info, _column(path, info, image_column)))
        elif path.suffix.lower() in ARRAYS:
            found.append(_in_array(path, info))
        else:
            _refuse_pictures(given, info)
            found.append(iter([Sample(given, None, _picture(path))]))
    for path, given in zip(map(Path, paths), paths, strict=True):
        if path.is_dir():
            _refuse_pictures(given, info)
            if next(_in_folder(path, Counter()), None) is None:
                raise DataError(f"{given}: no pictures in it")
    return (sample for samples in found for sample in samples)


def _refuse_pictures(path: str, info: DataInfo) -> None:
    if len(info.input_shape) != 3 or info.input_shape[1] != info.input_shape[2] or info.input_names:
        expected = f"the columns {listed(info.input_names)}" if info.input_names else f"arrays of {info.input_shape}"
        raise DataError(f"{path}: is read as pictures, but the network takes {expected}")


def _picture(path: Path) -> Callable[[DataInfo], Tensor]:
    return lambda info: decode(str(path), info.input_shape[1], info.input_shape[0])


def _pictures_of(folder: Path) -> Iterator[Sample]:
    """The pictures below a folder; what else lies there is counted by its ending, in a warning after the last one."""
    others: Counter[str] = Counter()
    yield from _in_folder(folder, others)
    if others:
        endings = listed(sorted(ending or "without an ending" for ending in others))
        log.warning(
            "%s: files that are no pictures by their names are left out: %d (%s)", folder, others.total(), endings
        )


def _in_folder(folder: Path, others: Counter[str], seen: tuple[tuple[int, int], ...] = ()) -> Iterator[Sample]:
    """The pictures below a folder, in the order of their paths as text. A folder that contains itself is skipped.

    Args:
        folder: the folder.
        others: to which the endings of other files are added.
        seen: the folders above it.
    """
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return
    with os.scandir(folder) as entries:
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
    for name in names:
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from _in_folder(folder / name, others, (*seen, identity))
        elif is_picture(name):
            yield Sample(str(folder / name), None, _picture(folder / name))
        else:
            others[Path(name).suffix.lower()] += 1


# --- tables ----------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[list[str], str]]:
    """The rows of a table, the column names first, each with the reason why it cannot be read, usually empty."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        names: list[str] | None = None
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                yield [], line(error)
                return
            if names is None:
                names = row
            if row:
                short = f"has {len(row)} values, not {len(names)}"
                yield row, "" if len(row) == len(names) else short


def _column(path: Path, info: DataInfo, image_column: str | None) -> str | None:
    """The column of pictures that is read; None if the input is columns of numbers. Raises DataError."""
    try:
        header, problem = next(_rows(path), ([], "is empty"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a table ({line(error)})") from error
    if problem:
        raise DataError(f"{path}: cannot be read as a table ({problem})")
    names = [name.strip() for name in header]
    if info.input_names:
        if missing := [name for name in info.input_names if name not in names]:
            raise DataError(f"{path}: has no column {listed(missing)}, which the network takes")
        return None
    _refuse_pictures(str(path), info)
    candidates = [image_column] if image_column else []
    column = next((name for name in [*candidates, *IMAGE_COLUMNS] if name in names), None)
    if column is None and len(names) > 1:
        raise DataError(f"{path}: which column holds the pictures' paths? One is called {' or '.join(IMAGE_COLUMNS)}")
    return column or names[0]


def _in_table(path: Path, info: DataInfo, column: str | None) -> Iterator[Sample]:
    rows = _rows(path)
    names = [name.strip() for name in next(rows)[0]]
    for row_number, (row, problem) in enumerate(rows, 1):
        values = dict(zip(names, row, strict=False))
        if problem:
            yield Sample(str(path), row_number, _broken(problem))
        elif column is not None:
            yield Sample(str(path), row_number, _picture(path.parent / values[column]))
        else:
            yield Sample(str(path), row_number, _numbers(values))


def _numbers(values: Mapping[str, str]) -> Callable[[DataInfo], Tensor]:
    def read(info: DataInfo) -> Tensor:
        made = []
        for name in info.input_names:
            try:
                made.append(number(values[name]))
            except (ValueError, TypeError, OverflowError):
                raise ValueError(f"column {name!r} is {values[name][:40]!r}, which is no number") from None
        return torch.tensor(made, dtype=torch.float64).float()

    return read


def _broken(reason: str) -> Callable[[DataInfo], Tensor]:
    def read(info: DataInfo) -> Tensor:
        raise ValueError(reason)

    return read


# --- arrays ----------------------------------------------------------------------------------------------------------


def _in_array(path: Path, info: DataInfo) -> Iterator[Sample]:
    """The samples of an array (N, ...), read one by one from the file. Raises DataError."""
    try:
        with _opened(path) as file:
            shape = _head(file)[0]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an array ({line(error)})") from error
    if not shape or tuple(shape[1:]) != tuple(info.input_shape):
        raise DataError(f"{path}: holds an array of {tuple(shape)}; the network takes (N, *{info.input_shape})")
    return _array_rows(path, shape[0])


def _array_rows(path: Path, count: int) -> Iterator[Sample]:
    with _opened(path) as file:
        shape, dtype = _head(file)
        size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for row in range(1, count + 1):
            try:
                content = file.read(size)
            except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                yield Sample(str(path), row, _broken(line(error)))
                return
            if len(content) < size:
                yield Sample(str(path), row, _broken("the file ends before the array does"))
                return
            yield Sample(str(path), row, _held(np.frombuffer(content, dtype).reshape(shape[1:])))


def _held(values: np.ndarray[Any, Any]) -> Callable[[DataInfo], Tensor]:
    def read(info: DataInfo) -> Tensor:
        own = values if values.dtype == np.uint8 else values.astype(np.float32)
        return torch.from_numpy(own.copy())

    return read


def _opened(path: Path) -> IO[bytes]:
    """The one array of a .npy file, or that of an archive which holds the samples. Raises ValueError."""
    if path.suffix.lower() == ".npy":
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        chosen = next((name for name in ARRAY_NAMES if name in names), names[0] if len(names) == 1 else None)
        if chosen is None:
            raise ValueError(f"which array holds the samples? One of {listed(names)} is called {ARRAY_NAMES[0]}")
        return archive.open(f"{chosen}.npy")


def _head(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the kind of numbers of an array, of which the file then gives the bytes. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "uif" or fortran:
        raise ValueError(f"an array of {dtype}{' in columns' if fortran else ''}, not of plain numbers by rows")
    return shape, dtype
