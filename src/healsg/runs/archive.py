"""The archive inside a checkpoint, which may come from anybody: looked at without reading or unpacking all of it."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from healsg import system
from healsg.errors import RunError

CHUNK = 1 << 20
"""Bytes that are read at a time."""

SPARSE = 64
"""How many times the bytes that a file takes on the disk it may have, where it is large. What compressing file systems
reach with the weights of a network, which are noise, is far less."""


def require_size(file: BinaryIO, path: Path) -> None:
    """Refuse a file that is larger than the memory of this machine, or that hardly has any content.

    Raises RunError. File systems that do not tell how much a file takes on the disk say 0, which decides nothing.
    """
    status = os.fstat(file.fileno())
    size = status.st_size
    memory = system.physical_memory()
    if memory is not None and size > memory:
        raise RunError(f"{path}: has {size:,} bytes, more than the memory of this machine ({memory:,}); it is not read")
    stored = getattr(status, "st_blocks", 0) * 512
    if size > 1 << 26 and 0 < stored < size // SPARSE:
        raise RunError(f"{path}: has {size:,} bytes, of which only {stored:,} lie on the disk; it is not read")


def sha256(file: BinaryIO, size: int) -> bytes:
    """The SHA-256 of the next ``size`` bytes."""
    total = hashlib.sha256()
    while size > 0:
        chunk = file.read(min(CHUNK, size))
        if not chunk:  # it has become shorter meanwhile
            break
        total.update(chunk)
        size -= len(chunk)
    return total.digest()


def require_stored(archive: io.BufferedIOBase, size: int) -> None:
    """Refuse a zip archive that would take more memory than the ``size`` of its file.

    torch stores its entries as they are: one that is compressed, or that shares its bytes with others, is not torch's.
    The archive must end where the file does, so that every reader takes the same end for it.

    Raises:
        ValueError, zipfile.BadZipFile: it is no such archive.
    """
    with zipfile.ZipFile(cast("BinaryIO", archive)) as content:
        entries = content.infolist()
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if content.comment or compressed or sum(entry.file_size for entry in entries) > size:
            raise ValueError("the archive would grow when it is read")


class Part(io.BufferedIOBase):
    """The first ``size`` bytes of a file, as a file of their own. Closing it leaves the file open."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        self.place = max(0, start + offset)
        return self.place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self.place)
        self.file.seek(self.place)
        content = self.file.read(left if size is None or size < 0 else min(size, left))
        self.place += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        left = max(0, self.size - self.place)
        self.file.seek(self.place)
        count = cast("io.BufferedReader", self.file).readinto(view[:left]) or 0
        self.place += count
        return count
