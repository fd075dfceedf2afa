"""Archives of published data sets: unpacked in memory, or streamed to disk if they are too large.

A streamed archive is unpacked into a temporary folder, which gets its final name only when it is complete.
"""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from healsg.data.source import line
from healsg.datasets.published.files import CHUNK, MOST, Sums, checked_file, exclusive, log, obtain
from healsg.errors import DataError

MOST_UNPACKED = 1 << 34
"""The largest total size of an archive's files, in bytes."""


@dataclass(frozen=True)
class Archive:
    """A published tar.gz or zip archive and the folder to unpack from it.

    Args:
        url: where it is published; https.
        size: its bytes.
        sha256: its checksum.
        folder: the folder in it that is unpacked, under the same name.
        suffixes: the lower-case extensions of the files to unpack; others are skipped.
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


def provide(archives: Sequence[Archive], folder: Path, download: bool, verify: bool, mirror: str | None = None) -> None:
    """Ensure that each archive's folder exists in ``folder``: already unpacked, from the local archive, or by a
    download.

    Raises DataError, one line that says which file to put there by hand.
    """
    for archive in archives:
        unpacked, path = folder / archive.folder, folder / archive.name
        if unpacked.is_dir():
            continue
        sums = Sums(sha256=archive.sha256, size=archive.size)
        by_hand = f"put {path.name} (from {archive.url}) or its unpacked folder {unpacked.name} into {folder}"
        obtain([archive.url], path, sums, by_hand, download, mirror=mirror)
        with exclusive(folder):
            if not unpacked.is_dir():  # another process may have created it
                unpack_folder(path, sums if verify else Sums(), unpacked, archive.suffixes)


def unzip(packed: bytes, path: Path) -> bytes:
    """The content of the gzip file ``path``, whose bytes are ``packed``. Raises DataError if it is damaged."""
    content = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            while chunk := stream.read(CHUNK):
                content += chunk
                if len(content) > MOST:
                    raise ValueError(f"it holds more than {MOST} bytes")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged, cannot be unpacked ({line(error)}); delete it and download it again"
        ) from error
    return bytes(content)


def unpack(packed: bytes, archive: Path, folder: Path, files: Collection[str]) -> None:
    """Unpack the files ``files`` of the folder ``folder.name`` in a tar.gz archive into ``folder``, and nothing else.

    Raises DataError if the archive, whose bytes are ``packed``, is damaged or lacks one of them.
    """
    names = {f"{folder.name}/{name}": name for name in files}
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            for member, size in tar_files(stream):
                if name := names.pop(member.removeprefix("./"), None):
                    if len(content := stream.read(size)) < size:
                        raise EOFError
                    folder.mkdir(parents=True, exist_ok=True)
                    part = folder / f"{name}.part"
                    part.write_bytes(content)
                    part.replace(folder / name)
                if not names:
                    return
    except (gzip.BadGzipFile, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{archive}: the archive is damaged ({line(error)}); delete it and download it again"
        ) from error
    raise DataError(f"{archive}: the archive holds no {next(iter(names))}; delete it and download it again")


def tar_files(stream: gzip.GzipFile) -> Iterator[tuple[str, int]]:
    """The name and size of each regular file of a tar archive; ``stream`` is then positioned at its content.

    Links, devices, folders and extended headers are ignored. Raises ValueError if it is not an archive or too large,
    EOFError if it is truncated.
    """
    start = 0
    while True:
        header = stream.read(512)
        if len(header) < 512:
            raise EOFError
        if not header.strip(b"\0"):
            return
        size, checksum = (int(header[at].strip(b"\0 ") or b"0", 8) for at in (slice(124, 136), slice(148, 156)))
        if size < 0 or checksum != sum(header[:148] + b" " * 8 + header[156:]):
            raise ValueError("it is no tar archive")
        if start + size > MOST:
            raise ValueError(f"it holds more than {MOST} bytes")
        if header[156:157] in (b"0", b"\0"):
            yield header[:100].split(b"\0")[0].decode("latin1"), size
        start += 512 + -(-size // 512) * 512
        stream.seek(start)


def unpack_folder(path: Path, sums: Sums, folder: Path, suffixes: Collection[str]) -> None:
    """Unpack the files of the archive's folder ``folder.name`` with one of ``suffixes`` into ``folder``, and nothing
    else.

    Links, devices and names that lead out of the folder are skipped. Raises DataError if the archive is not the
    published one, is damaged, is too large, or contains no such file.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with checked_file(path, sums) as file:
        log.info("unpacking %s to %s", path, folder)
        try:
            room = MOST_UNPACKED
            for name, content in members(file):
                if (below := relative_path(name, folder.name, suffixes)) is not None:
                    room = _write(content, part / below, room)
        except Exception as error:  # a damaged archive can raise almost any exception
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise  # e.g. the disk is full
            raise DataError(
                f"{path}: the archive is damaged ({line(error)}); delete it and download it again"
            ) from error
    if not part.is_dir():
        raise DataError(
            f"{path}: the archive holds no {folder.name}/*{'/*'.join(suffixes)}; delete it and download it again"
        )
    part.replace(folder)


def _write(content: IO[bytes], target: Path, room: int) -> int:
    """Write one file; returns the remaining bytes of ``room``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while chunk := content.read(CHUNK):
            room -= len(chunk)
            if room < 0:
                raise ValueError(f"it holds more than {MOST_UNPACKED} bytes")
            file.write(chunk)
    return room


def relative_path(name: str, folder: str, suffixes: Collection[str]) -> PurePosixPath | None:
    """The path of an archive's file ``name`` below ``folder``; None if it is not to be unpacked."""
    parts = PurePosixPath(name.removeprefix("./")).parts
    plain = all(part[:1] not in (".", "/") and not set(part) & {"\\", "\0", ":"} for part in parts)
    if len(parts) < 2 or parts[0] != folder or not plain or not name.lower().endswith(tuple(suffixes)):
        return None
    return PurePosixPath(*parts[1:])


def members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """The name and content of each regular file of a zip or tar.gz archive, in order."""
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as content:
                        yield entry.filename, content
        return
    with gzip.GzipFile(fileobj=file) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if member.isreg() and (opened := tar.extractfile(member)):
                    yield member.name, opened
        while stream.read(CHUNK):  # the checksum follows the last file
            pass
