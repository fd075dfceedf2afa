"""Scratch: large arrays in files that are mapped into memory, for work whose own memory must not grow with its data."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from healsg import system
from healsg.errors import DataError

Array = np.ndarray[Any, Any]
Empty = Callable[[Sequence[int], Any], Array]
"""Makes an array of a shape and a dtype, whose numbers are not set: ``np.empty``, or ``Scratch.empty``."""


class Scratch:
    """Arrays in files without a name, which vanish with the process, also with one that is killed.

    The pages of such an array belong to the page cache: the system writes them to the disk where memory is short.

    Args:
        folder: on whose disk the files lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = ExitStack()

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """An array of zeros. Raises DataError where the disk has no place for it."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - closed with all others
        self.files.callback(file.close)
        try:
            system.reserve(file, max(1, size))  # a full disk would end the process at a write
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DataError(f"{self.folder}: its disk has no {size:,} bytes left for intermediate numbers") from error
        return np.memmap(file, dtype=dtype, mode="r+", shape=tuple(shape))
