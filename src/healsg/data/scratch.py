"""Scratch: large arrays in memory-mapped temporary files, for computations with bounded memory."""

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
"""Creates an uninitialised array of a shape and a dtype: ``np.empty``, or ``Scratch.empty``."""


class Scratch:
    """Arrays in unnamed files, which are deleted when the process ends, even if it is killed.

    The pages of such an array belong to the page cache: the system writes them to disk when memory is short.

    Args:
        folder: the folder whose disk is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = ExitStack()

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """An array of zeros. Raises DataError if the disk is full."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - closed with all others
        self.files.callback(file.close)
        try:
            system.reserve(file, max(1, size))  # otherwise a full disk would kill the process at a later write
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DataError(f"{self.folder}: its disk has no {size:,} bytes left for intermediate numbers") from error
        return np.memmap(file, dtype=dtype, mode="r+", shape=tuple(shape))
