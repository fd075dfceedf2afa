"""Checks of a checkpoint file from an untrusted source, made before its archive is read or unpacked."""

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
"""The largest ratio of a large file's size to the space that it takes on the disk. A sparse file exceeds it; with a
network's weights, which are noise, a compressing file system reaches far less."""


def require_size(file: BinaryIO, path: Path) -> None:
    """Raise RunError if a file is larger than this machine's memory, or is sparse.

    Some file systems report that every file takes 0 bytes on disk, which is not counted as sparse.
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
        if not chunk:  # the file was truncated meanwhile
            break
        total.update(chunk)
        size -= len(chunk)
    return total.digest()


def require_stored(archive: io.BufferedIOBase, size: int) -> None:
    """Raise an error for a zip archive that would expand to more than the ``size`` of its file.

    torch does not compress the entries of an archive. Compressed entries, and entries that share their bytes (so that
    their sizes add up to more than the file), come from elsewhere. A comment is refused too, so that the archive ends
    where the file does and every reader finds the same directory of entries.

    Raises:
        ValueError, zipfile.BadZipFile: the archive is not as torch writes it.
    """
    with zipfile.ZipFile(cast("BinaryIO", archive)) as content:
        entries = content.infolist()
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if content.comment or compressed or sum(entry.file_size for entry in entries) > size:
            raise ValueError("the archive would grow when it is read")


class Part(io.BufferedIOBase):
    """A readable file made of the first ``size`` bytes of another one. Closing it leaves the other one open."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self.position)
        self.file.seek(self.position)
        content = self.file.read(left if size is None or size < 0 else min(size, left))
        self.position += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        left = max(0, self.size - self.position)
        self.file.seek(self.position)
        count = cast("io.BufferedReader", self.file).readinto(view[:left]) or 0
        self.position += count
        return count
