"""A run as one file: a tar.gz archive of its files with their checksums, which is written and unpacked here.

An archive may come from anybody. It is unpacked into a new temporary folder, which gets its final name only after the
checksums of all files have been verified. Links, devices, names that no file of a run has, and archives that would
expand beyond the limits are refused.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import re
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

import yaml

from healsg import safefiles
from healsg.config.yamlfiles import check_file
from healsg.errors import RunError, one_line
from healsg.runs import redact
from healsg.runs.acquire import check_name
from healsg.runs.archive import CHUNK, SPARSE
from healsg.runs.folder import RunFolder
from healsg.runs.record import parse

SUMS = "SHA256SUMS"
"""The last file of an archive: the checksums of the others, in the form that ``sha256sum -c`` reads."""

MOST_FILES = 1 << 17
LARGEST_SUMS = 1 << 25
LARGEST_TEXT = 1 << 27
"""The most bytes of a JSON or YAML file that is searched for secrets."""

SMALL = 1 << 26
"""Bytes that any archive may expand to; a larger result may be at most ``SPARSE`` times the size of the archive."""

_NAME = r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]{0,199}"
_FILES = re.compile(
    r"config\.yaml|run\.json|metrics\.jsonl|media\.jsonl|train\.log|report\.html|eval-[\w.=-]+\.json"
    r"|\.hydra/(?:config|hydra|overrides)\.yaml"
    rf"|checkpoints/{_NAME}\.pt|(?:media|ledger)(?:/{_NAME}){{1,4}}"
)
"""The files of a run that an archive contains. Locks, traces and the files of loggers' services are excluded."""


@dataclass(frozen=True)
class Packed:
    """The result of packing or unpacking.

    Args:
        path: the archive, or the unpacked folder.
        files: the number of files of the run.
        size: their total size in bytes.
        redacted: the files in which secrets were found and removed.
    """

    path: Path
    files: int
    size: int
    redacted: tuple[str, ...] = ()


def pack(folder: RunFolder, out: Path) -> Packed:
    """Write the archive of a run. The same files give the same bytes.

    Args:
        folder: the run's folder.
        out: the file to write; an existing one is replaced in one step.

    Raises:
        RunError: one of the run's files is a link or not a regular file.
    """
    top = PurePosixPath(folder.path.name)
    sums: dict[str, str] = {}
    redacted = []
    size = 0
    with (
        safefiles.replacing(out) as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in _names(folder.path):
            with safefiles.open_to_read(folder.path / name) as source, _public(folder.path / name, source) as content:
                if content is not source:
                    redacted.append(name)
                sums[name], length = _add(tar, str(top / name), content)
                size += length
        text = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
        _add(tar, str(top / SUMS), io.BytesIO(text))
    return Packed(out, len(sums), size, tuple(redacted))


def _names(folder: Path) -> list[str]:
    """The files of a run that belong in its archive, in order. Raises RunError if one is a link."""
    names = []
    folders = [folder]
    while folders:
        for entry in sorted(folders.pop().iterdir()):
            name = entry.relative_to(folder).as_posix()
            kind = safefiles.kind_of(entry)
            if kind == safefiles.FOLDER:
                folders += [entry] if name.split("/")[0] in (".hydra", "checkpoints", "media", "ledger") else []
            elif _FILES.fullmatch(name):
                safefiles.require(entry)
                names.append(name)
    return sorted(names)


def _add(tar: tarfile.TarFile, name: str, content: BinaryIO) -> tuple[str, int]:
    """Write a file into the archive; returns its SHA-256 and its size in bytes."""
    length = content.seek(0, 2)
    content.seek(0)
    total = hashlib.sha256()
    member = tarfile.TarInfo(name)
    member.size = length
    member.mode = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH
    tar.addfile(member, _Summed(content, total))
    return total.hexdigest(), length


class _Summed:
    """A file that updates a checksum with the bytes that are read."""

    def __init__(self, file: BinaryIO, total: hashlib._Hash) -> None:
        self.file = file
        self.total = total

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        self.total.update(content)
        return content


def _public(path: Path, source: BinaryIO) -> BinaryIO:
    """The file itself, or a copy without the secrets that are found in it.

    A run writes its texts without the secrets known at that time; more may be known now.
    """
    if path.suffix in (".json", ".yaml"):
        content = safefiles.read_bytes(path, LARGEST_TEXT)
        public = _public_document(path, content)
    elif path.suffix in (".jsonl", ".log", ".html", ".csv", ".txt"):
        public = None
        if any(line != _public_line(path, line) for line in source):
            source.seek(0)
            public = b"".join(_public_line(path, line) for line in source)
        source.seek(0)
    else:
        return source
    if public is None:
        return source
    return io.BytesIO(public)


def _public_document(path: Path, content: bytes) -> bytes | None:
    """A JSON or YAML file without secrets; None if it contains none. A damaged file is searched as plain text."""
    try:
        if path.suffix == ".yaml":
            check_file(path)
            value = yaml.safe_load(content)
        else:
            value = parse(content)
        public = redact.config(value)
    except (ValueError, RecursionError, yaml.YAMLError):
        text = b"".join(_public_line(path, line) for line in content.splitlines(keepends=True))
        return None if text == content else text
    if public == value:
        return None
    if path.suffix == ".yaml":
        written: str = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
        return written.encode()
    return (json.dumps(public, indent=2) + "\n").encode()


def _public_line(path: Path, line: bytes) -> bytes:
    """A line of a text, with its end, without secrets."""
    if path.suffix == ".jsonl":
        with contextlib.suppress(ValueError, RecursionError):  # a partial line, left by a kill, is plain text
            value = parse(line)
            public = redact.config(value)
            return line if public == value else json.dumps(public).encode() + b"\n"
    text = line.decode("utf-8", "surrogateescape")
    return redact.text(text).encode("utf-8", "surrogateescape")


# --- unpacking -------------------------------------------------------------------------------------------------------


def unpack(path: Path, to: Path) -> Packed:
    """Unpack the archive of a run into a new folder in ``to`` with the run's name.

    Raises:
        RunError: it is not an archive of a run, is damaged, or contains files that no run has; nothing is left behind.
    """
    to.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".unpacked-", suffix=".tmp", dir=to))
    try:
        part.chmod(0o777 & ~_umask(part))
        name, files, size = _unpack_into(path, part)
        target = to / name
        if safefiles.kind_of(target):
            raise RunError(f"{target}: exists; unpack it into another folder, or move that away")
        part.rename(target)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, ValueError, zlib.error) as error:
        raise RunError(f"{path}: is no intact archive of a run: {one_line(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Packed(target, files, size)


def _umask(folder: Path) -> int:
    """The umask of this process, read from a new folder: ``os.umask`` cannot read it without changing it."""
    probe = folder / "made"
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    return 0o777 & ~mode


def _unpack_into(path: Path, part: Path) -> tuple[str, int, int]:
    """Write the files of an archive into an empty folder; returns the run's name, their number and total size in bytes.

    Raises ValueError, and the exceptions of tarfile, gzip and zlib for damaged files.
    """
    tops = set[str]()
    computed: dict[str, str] = {}  # checksums by file
    listed: dict[str, str] = {}
    size = 0
    with safefiles.open_to_read(path) as file:
        packed = file.seek(0, 2)
        file.seek(0)
        room = min(max(SMALL, SPARSE * packed), shutil.disk_usage(part).free)
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            bounded = _Bounded(stream, room)
            for top, name, length, content in _members(bounded):
                tops.add(top)
                if listed or len(tops) > 1:
                    raise ValueError("it holds more than one run, or files that its list of checksums does not have")
                if name == SUMS:
                    listed = _read_sums(content, length)
                    continue
                computed[name] = _write(content, part / name)
                size += length
            while bounded.read(CHUNK // 16):  # to the end, where gzip verifies its own checksum
                pass
    if computed != listed:
        different = next((name for name in {**listed, **computed} if listed.get(name) != computed.get(name)), "all")
        raise ValueError(f"{different} is not as its list of checksums says")
    if "config.yaml" not in computed or "run.json" not in computed:
        raise ValueError("there is no config.yaml or run.json")
    return tops.pop(), len(computed), size


def _members(stream: _Bounded) -> Iterator[tuple[str, str, int, IO[bytes]]]:
    """Run, name, size and content of each file of an archive. Raises ValueError for files that no run has."""
    with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:") as tar:
        for count, member in enumerate(tar):
            if count > MOST_FILES:
                raise ValueError("it has more files than a run has")
            if member.isdir():
                continue
            top, _, name = member.name.partition("/")
            if not member.isreg() or member.issparse():
                raise ValueError(f"{member.name!r} is a link, or no regular file")
            if not (_FILES.fullmatch(name) or name == SUMS):
                raise ValueError(f"{member.name!r} is no file of a run")
            check_name(top)
            content = tar.extractfile(member)
            assert content is not None
            yield top, name, member.size, content


class _Bounded:
    """An unpacked stream for tarfile. Raises ValueError if the total or a single read exceeds its limit; the latter
    because tarfile reads long member names at once.

    Args:
        stream: readable from its start.
        room: the most bytes that may be read from it.
    """

    def __init__(self, stream: gzip.GzipFile, room: int) -> None:
        self.stream = stream
        self.room = room

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK or self.stream.tell() + size > self.room:
            raise ValueError("it unpacks to more than a run has")
        return self.stream.read(size)

    def tell(self) -> int:
        return self.stream.tell()

    def seek(self, offset: int) -> int:
        if not 0 <= offset <= self.room:
            raise ValueError("it unpacks to more than a run has")
        return self.stream.seek(offset)


def _write(content: IO[bytes], target: Path) -> str:
    """Write a file that does not exist yet; returns its SHA-256. Raises ValueError if it exists."""
    total = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("xb")
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{target.name} is in it twice") from None
    with file:
        while chunk := content.read(CHUNK // 2):
            file.write(chunk)
            total.update(chunk)
    return total.hexdigest()


def _read_sums(content: IO[bytes], length: int) -> dict[str, str]:
    """The listed SHA-256 of each file. Raises ValueError."""
    if length > LARGEST_SUMS:
        raise ValueError("its list of checksums is too long")
    text = b""
    while chunk := content.read(CHUNK // 2):
        text += chunk
    pairs = re.findall(r"^([0-9a-f]{64})  (.+)$", text.decode(), re.MULTILINE)
    return {name: digest for digest, name in pairs}
