"""Uncompressed tar archives of samples, in webdataset's naming: their members, and random access to their bytes.

Nothing is extracted. An archive may come from anybody: links, devices, sparse files, names that lead elsewhere,
truncated and oversized archives are refused with one line.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, cast

from healsg.data.source import line
from healsg.datasets.published.files import CHUNK, MOST
from healsg.errors import DataError

BLOCK = 512
"""Bytes of a tar archive's header, to which contents are filled up."""

OPEN = 64
"""Archives that a process keeps open."""

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Member(NamedTuple):
    """A file in an archive: its name, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """The files of one sample by their endings, in small letters; they lie one after the other in the archive."""

    key: str
    files: dict[str, Member]


def open_tar(path: str) -> int:
    """A descriptor of a regular file, which may be reached by links. Raises DataError that names it."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path}: is not a file")
    return descriptor


def members(path: str, descriptor: int) -> Iterator[Member]:
    """The files in an open archive, in their order; only its headers are read.

    Raises DataError, which names the archive, for what is no plain tar or is damaged, and for members that samples do
    not have.
    """
    size = os.fstat(descriptor).st_size
    if os.pread(descriptor, 2, 0) == b"\x1f\x8b":
        raise DataError(f"{path}: is compressed, and samples are read at random; unpack it by: gunzip {path}")
    try:
        with (
            os.fdopen(os.dup(descriptor), "rb", buffering=BLOCK) as file,
            tarfile.open(fileobj=cast("IO[bytes]", _Bounded(file)), mode="r:") as tar,
        ):
            reached = -1
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= reached:  # tarfile would seek back, and loop forever
                    raise ValueError(f"{member.name!r} has a size that no file has")
                reached = tar.offset
                tar.members.clear()  # type: ignore[attr-defined]  # a list that would hold every header
                if not member.isdir():
                    yield _checked(member, size)
            if os.pread(descriptor, BLOCK, tar.offset) != bytes(BLOCK):  # tarfile stops silently at a bad header
                raise ValueError("it is truncated or damaged after its last complete file")
    except Exception as error:  # a damaged archive can raise almost any exception
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is no intact tar archive ({line(error)}); download it again") from error


def _checked(member: tarfile.TarInfo, size: int) -> Member:
    """A member that is a plain file within an archive of ``size`` bytes. Raises ValueError."""
    name = member.name
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "a sparse file" if member.issparse() else "a device"
        raise ValueError(f"{name!r} is {kind}, and samples are plain files")
    if member.size > MOST:
        raise ValueError(f"{name!r} has {member.size} bytes, which no sample has")
    if member.offset_data + member.size > size:
        raise ValueError(f"it is cut within {name!r}")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or not parts:
        raise ValueError(f"{name!r} is a name that leads out of a folder")
    return Member("/".join(parts), member.offset_data, member.size)


class _Bounded:
    """A file as tarfile reads it. Raises ValueError for a long name that no file has, which it would read as a whole.

    Args:
        file: readable from its beginning.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise ValueError(f"it has a name of {size} bytes")
        return self.file.read(size)

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int) -> int:
        return self.file.seek(offset)


def samples(path: str, descriptor: int) -> Iterator[Sample]:
    """The samples of an open archive: files whose names are the same up to the first dot of their last part.

    Raises DataError: see ``members``; also where two samples, or two files of one, have the same name.
    """
    seen = set[str]()
    key, files = "", dict[str, Member]()
    for member in members(path, descriptor):
        folder, _, last = member.name.rpartition("/")
        stem, dot, ending = last.partition(".")
        if not stem or not dot:
            continue  # such as .DS_Store, and what has no ending: webdataset leaves these out too
        own = f"{folder}/{stem}" if folder else stem
        ending = ending.lower()
        if own != key:
            if files:
                yield Sample(key, files)
            if own in seen:
                raise DataError(f"{path}: has two samples of the name {own!r}")
            seen.add(own)
            key, files = own, {}
        if ending in files:
            raise DataError(f"{path}: has {member.name!r} twice")
        files[ending] = member
    if files:
        yield Sample(key, files)


class TarFiles:
    """Archives with random access, by one system call for each file.

    Args:
        paths: of the archives.
        states: of each its size in bytes and its time of modification in nanoseconds, as its index was made from it.
    """

    def __init__(self, paths: Sequence[str], states: Sequence[tuple[int, int]]) -> None:
        self.paths = list(paths)
        self.states = list(states)
        self._opened: OrderedDict[int, int] = OrderedDict()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """``size`` bytes of an archive, by its number. Raises DataError if it was changed or cut meanwhile."""
        content = os.pread(self._descriptor(number), size, offset)
        while len(content) < size and (
            more := os.pread(self._descriptor(number), size - len(content), offset + len(content))
        ):
            content += more  # Linux reads at most 2 GB at once, other systems less
        if len(content) < size:
            raise DataError(f"{self.paths[number]}: was cut since the run began")
        return content

    def _descriptor(self, number: int) -> int:
        found = self._opened.get(number)
        if found is not None:
            self._opened.move_to_end(number)
            return found
        descriptor = open_tar(self.paths[number])
        if state_of(descriptor) != self.states[number]:
            os.close(descriptor)
            raise DataError(f"{self.paths[number]}: was changed since the run began; start it again")
        if len(self._opened) >= OPEN:
            os.close(self._opened.popitem(last=False)[1])
        self._opened[number] = descriptor
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": OrderedDict()}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound, since modules may be gone by then
        for descriptor in self._opened.values():
            close(descriptor)


def state_of(descriptor: int) -> tuple[int, int]:
    """Size in bytes and time of modification in nanoseconds of an open file."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
