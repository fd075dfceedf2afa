"""Archives of published data sets that are too large to be held in memory: downloaded, checked and unpacked in pieces.

What is unpacked lies in a folder that appears under its name only when it is whole.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import urllib.error
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from healsg.datasets.files import CHUNK, MOST, Sums, exclusive, fetch, log
from healsg.errors import DataError
from healsg.source import line

MOST_UNPACKED = 1 << 34
"""Bytes that the files of an archive may have together: more is refused."""


@dataclass(frozen=True)
class Archive:
    """A published tar.gz or zip archive and the folder that is wanted of it.

    Args:
        url: where it is published; https.
        size: its bytes.
        sha256: its checksum.
        folder: the folder in it that is unpacked, under the same name.
        suffixes: the endings of the files that are wanted, in lower case; the others are left in the archive.
    """

    url: str
    size: int
    sha256: str
    folder: str
    suffixes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


def provide(archives: Sequence[Archive], place: Path, download: bool, verify: bool) -> None:
    """See to it that each archive's folder lies in ``place``: unpacked already, from the archive, or from the network.

    Raises DataError of one line, which says what can be put there by hand.
    """
    if all((place / archive.folder).is_dir() for archive in archives):
        return
    with exclusive(place):
        for archive in archives:
            folder, path = place / archive.folder, place / archive.name
            if folder.is_dir():  # also where another process has just put it there
                continue
            by_hand = f"put {path.name} (from {archive.url}) or its unpacked folder {folder.name} into {place}"
            if not path.is_file():
                get(archive.url, path, Sums(sha256=archive.sha256, size=archive.size), download, by_hand)
            sums = Sums(sha256=archive.sha256, size=archive.size) if verify else Sums()
            unpack_folder(path, sums, folder, archive.suffixes)


def get(url: str, target: Path, sums: Sums, download: bool, by_hand: str) -> None:
    """Fetch ``target``, whatever its size, as ``files.download`` does; where that is not wanted, raise DataError."""
    if not download:
        raise DataError(f"{target}: not there; set data.download=true, or {by_hand}")
    part, reason = target.with_name(target.name + ".part"), ""
    for _ in range(2):
        log.info("downloading %s to %s", url, target)
        try:
            fetch(url, part, sums.size or MOST)
            with part.open("rb") as file:
                reason = problem(file, sums)
            if sums.size and part.stat().st_size < sums.size:  # the next call goes on from there
                continue
        except Exception as error:  # whatever a network can do
            reason = line(error)
            if isinstance(error, urllib.error.HTTPError):  # no such range, say
                part.unlink(missing_ok=True)
            continue
        if not reason:
            part.replace(target)
            return
        part.unlink()
    raise DataError(f"{target.name} is not in {target.parent} and its download failed ({reason}); {by_hand}")


def problem(file: IO[bytes], sums: Sums) -> str:
    """In what an open file is not the published one; nothing where it is. The file then stands at its begin."""
    size = file.seek(0, 2)
    if sums.size is not None and size != sums.size:
        return f"it has {size} bytes, not {sums.size}"
    for name, wanted in (("MD5", sums.md5), ("SHA-256", sums.sha256)):
        file.seek(0)
        made = hashlib.md5(usedforsecurity=False) if name == "MD5" else hashlib.sha256()
        while wanted and (chunk := file.read(CHUNK)):
            made.update(chunk)
        if wanted and made.hexdigest() != wanted:
            return f"its {name} is not {wanted}"
    file.seek(0)
    return ""


@contextmanager
def checked_file(path: Path, sums: Sums) -> Iterator[IO[bytes]]:
    """``path``, open, which must be the published file. Raises DataError that names the file and the setting."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({line(error)})") from error
    with file:
        if wrong := problem(file, sums):
            raise DataError(f"{path}: not the published file, {wrong}; get it anew, or take it with data.verify=false")
        yield file


def unpack_folder(path: Path, sums: Sums, folder: Path, suffixes: Collection[str]) -> None:
    """Put the files of the archive's folder ``folder.name`` that end in ``suffixes`` into ``folder``, and nothing else.

    Links, devices and names that lead elsewhere are left in the archive. Raises DataError where the archive is not the
    published one, is damaged, holds too much or nothing of that.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with checked_file(path, sums) as file:
        log.info("unpacking %s to %s", path, folder)
        try:
            room = MOST_UNPACKED
            for name, content in members(file):
                if (below := wanted(name, folder.name, suffixes)) is not None:
                    room = _write(content, part / below, room)
        except Exception as error:  # a damaged archive raises almost anything
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise  # the disk is full, say
            raise DataError(f"{path}: the archive is damaged ({line(error)}); delete it and get it anew") from error
    if not part.is_dir():
        raise DataError(f"{path}: the archive holds no {folder.name}/*{'/*'.join(suffixes)}; delete it and get it anew")
    part.replace(folder)


def _write(content: IO[bytes], target: Path, room: int) -> int:
    """Write one file; gives the bytes that remain of ``room``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while chunk := content.read(CHUNK):
            room -= len(chunk)
            if room < 0:
                raise ValueError(f"it holds more than {MOST_UNPACKED} bytes")
            file.write(chunk)
    return room


def wanted(name: str, folder: str, suffixes: Collection[str]) -> PurePosixPath | None:
    """Where below ``folder`` an archive's file ``name`` belongs; None where it does not."""
    parts = PurePosixPath(name.removeprefix("./")).parts
    plain = all(part[:1] not in (".", "/") and not set(part) & {"\\", "\0", ":"} for part in parts)
    if len(parts) < 2 or parts[0] != folder or not plain or not name.lower().endswith(tuple(suffixes)):
        return None
    return PurePosixPath(*parts[1:])


def members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each plain file of a zip or tar.gz archive, in its order, read to its end."""
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed:
        with zipfile.ZipFile(file) as whole:
            for entry in whole.infolist():
                if not entry.is_dir():
                    with whole.open(entry) as content:
                        yield entry.filename, content
        return
    with gzip.GzipFile(fileobj=file) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if member.isreg() and (opened := tar.extractfile(member)):
                    yield member.name, opened
        while stream.read(CHUNK):  # the checksum stands behind the last file
            pass
