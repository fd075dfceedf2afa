"""Samples as files: access to a data set's stored files, so that they can be packed without decoding."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from stat import S_ISREG
from typing import NamedTuple, Protocol, runtime_checkable

from healsg.datasets.published.files import MOST


class StoredFile(NamedTuple):
    """A file of a sample.

    Args:
        name: its path or another name.
        read: gives its bytes; raises OSError and ValueError.
        size: how many these are.
        state: distinguishes them from others of this size: the modification time, or a checksum.
    """

    name: str
    read: Callable[[], bytes]
    size: int
    state: int


@runtime_checkable
class Stored(Protocol):
    """A map-style data set whose samples are a file each."""

    def stored(self, index: int) -> StoredFile:
        """The file of a sample. Raises OSError."""


def stored_file(path: str) -> StoredFile:
    """A file as it lies. Raises OSError."""
    status = os.stat(path)  # noqa: PTH116
    return StoredFile(path, partial(read_stored, path), status.st_size, status.st_mtime_ns)


def read_stored(path: str) -> bytes:
    """The bytes of a regular file. Raises OSError, and ValueError for other files, or one too large for an image."""
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if status.st_size > MOST:
            raise ValueError(f"has {status.st_size} bytes, which no picture has")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
