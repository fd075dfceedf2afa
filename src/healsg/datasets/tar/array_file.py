"""A file of named arrays that is mapped into memory: facts as JSON, then the numbers as they are, with a SHA-256."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from healsg.errors import DataError
from healsg.safefiles import open_to_read, replacing

Array = np.ndarray[Any, Any]

MAGIC = b"healsg arrays 1\n"

TYPES = ("|u1", "<i8", "<f4")
"""The types that a file may name."""

LARGEST_FACTS = 1 << 26
"""Bytes that the facts of a file may have."""

ALIGNED = 64


def write_arrays(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a file in one atomic step.

    Args:
        path: what is replaced.
        facts: plain values.
        arrays: by name, of the ``TYPES``.

    Raises:
        OSError: it cannot be written.
    """
    parts = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    layout = [[name, part.dtype.str, list(part.shape)] for name, part in parts.items()]
    total = hashlib.sha256(json.dumps([facts, layout]).encode())
    for part in parts.values():
        total.update(part.data.cast("B") if part.size else b"")
    head = json.dumps({"facts": facts, "arrays": layout, "sha256": total.hexdigest()}).encode()
    with replacing(path, sync=True) as file:
        file.write(MAGIC + len(head).to_bytes(8, "little") + head)
        for part in parts.values():
            file.write(bytes(-file.tell() % ALIGNED))
            file.write(part.data.cast("B") if part.size else b"")


def read_arrays(
    path: Path, wanted: Callable[[dict[str, Any]], bool] = lambda facts: True
) -> tuple[dict[str, Any], dict[str, Array]] | None:
    """The facts, and the arrays by name, mapped: nothing that is written to them reaches the file. The file is opened
    once.

    Args:
        path: of the file.
        wanted: called with the facts, before any array is read; if it returns false, the result is None.

    Raises OSError, IrregularFileError, and DataError where the file is cut, damaged or of another kind.
    """
    with open_to_read(path) as file:
        facts, layout, checksum, start = _head(path, file)
        if not wanted(facts):
            return None
        found = {}
        total = hashlib.sha256(json.dumps([facts, [list(part) for part in layout]]).encode())
        size = file.seek(0, 2)
        for name, kind, shape in layout:
            start += -start % ALIGNED
            length = math.prod(shape) * np.dtype(kind).itemsize
            if start + length > size:
                raise DataError(f"{path}: is cut")
            found[name] = np.memmap(file, kind, "c", start, tuple(shape)) if length else np.zeros(shape, kind)
            total.update(found[name].data.cast("B") if length else b"")
            start += length
    if total.hexdigest() != checksum:
        raise DataError(f"{path}: is damaged")
    return facts, found


def _head(path: Path, file: BinaryIO) -> tuple[dict[str, Any], list[tuple[str, str, list[int]]], str, int]:
    """Facts, layout and checksum of the arrays, and where these begin, of a file at its beginning."""
    magic, length = file.read(len(MAGIC)), int.from_bytes(file.read(8), "little")
    if magic != MAGIC or length > LARGEST_FACTS:
        raise DataError(f"{path}: is no such file")
    text = file.read(length)
    start = file.tell()
    try:
        head = json.loads(text)
        layout = [(str(name), str(kind), [int(side) for side in shape]) for name, kind, shape in head["arrays"]]
        facts, expected = dict(head["facts"]), str(head["sha256"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: is damaged") from error
    if any(kind not in TYPES or min([0, *shape]) < 0 for _, kind, shape in layout):
        raise DataError(f"{path}: is damaged")
    return facts, layout, expected, start
