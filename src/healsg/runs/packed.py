"""A run as one file: a tar.gz archive of the files that make it whole, with their checksums; written and unpacked.

An archive may come from anybody. It is unpacked into a folder that is made for it, which appears under its name only
when every file has the checksum that the archive names; links, devices, other names than a run's files have, and what
would grow beyond bounds are refused.
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
"""Bytes of a JSON or YAML file that is looked through for secrets as a whole."""

SMALL = 1 << 26
"""Bytes that an archive may unpack to whatever its own size is; beyond, ``SPARSE`` times its size at most."""

_NAME = r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]{0,199}"
_FILES = re.compile(
    r"config\.yaml|run\.json|metrics\.jsonl|media\.jsonl|train\.log|report\.html|eval-[\w.=-]+\.json"
    r"|\.hydra/(?:config|hydra|overrides)\.yaml"
    rf"|checkpoints/{_NAME}\.pt|(?:media|ledger)(?:/{_NAME}){{1,4}}"
)
"""The files of a run that an archive holds. Left out are locks, traces and what belongs to a logger's own service."""


@dataclass(frozen=True)
class Packed:
    """What was written or unpacked.

    Args:
        path: the archive, or the folder that was made of it.
        files: how many the run has.
        size: their bytes together.
        redacted: those in which a secret was found that their run had left.
    """

    path: Path
    files: int
    size: int
    redacted: tuple[str, ...] = ()


def pack(folder: RunFolder, out: Path) -> Packed:
    """Write the archive of a run. The same files give the same bytes.

    Args:
        folder: of the run.
        out: the file to be made, which takes the place of one of that name in one step.

    Raises:
        RunError: one of the run's files is a link or no regular file.
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
    """The files of a run that belong into its archive, in order. Raises RunError where one is a link."""
    found = []
    waiting = [folder]
    while waiting:
        for entry in sorted(waiting.pop().iterdir()):
            name = entry.relative_to(folder).as_posix()
            kind = safefiles.kind_of(entry)
            if kind == safefiles.FOLDER:
                waiting += [entry] if name.split("/")[0] in (".hydra", "checkpoints", "media", "ledger") else []
            elif _FILES.fullmatch(name):
                safefiles.require(entry)
                found.append(name)
    return sorted(found)


def _add(tar: tarfile.TarFile, name: str, content: BinaryIO) -> tuple[str, int]:
    """Write a file into the archive; gives its SHA-256 and its bytes."""
    length = content.seek(0, 2)
    content.seek(0)
    total = hashlib.sha256()
    member = tarfile.TarInfo(name)
    member.size = length
    member.mode = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH
    tar.addfile(member, _Summed(content, total))
    return total.hexdigest(), length


class _Summed:
    """A file whose bytes go into a checksum as they are read."""

    def __init__(self, file: BinaryIO, total: hashlib._Hash) -> None:
        self.file = file
        self.total = total

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        self.total.update(content)
        return content


def _public(path: Path, source: BinaryIO) -> BinaryIO:
    """The file itself, or one without the secrets that are found in it.

    A run's texts are written without the secrets that were known then; more may be known now.
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
    """A JSON or YAML file without secrets; None where it holds none. A damaged one is looked through as a text."""
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
        with contextlib.suppress(ValueError, RecursionError):  # what a kill has left of a line is a text
            value = parse(line)
            public = redact.config(value)
            return line if public == value else json.dumps(public).encode() + b"\n"
    text = line.decode("utf-8", "surrogateescape")
    return redact.text(text).encode("utf-8", "surrogateescape")


# --- unpacking -------------------------------------------------------------------------------------------------------


def unpack(path: Path, to: Path) -> Packed:
    """Unpack the archive of a run into a new folder below ``to``, which has the run's name.

    Raises:
        RunError: it is no archive of a run, is damaged, or holds what no run has; nothing is left of it.
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
    """The permissions that new folders of this process lack."""
    made = folder / "made"
    made.mkdir()
    mode = stat.S_IMODE(made.stat().st_mode)
    made.rmdir()
    return 0o777 & ~mode


def _unpack_into(path: Path, part: Path) -> tuple[str, int, int]:
    """Write the files of an archive into an empty folder; gives the run's name, their number and their bytes.

    Raises ValueError and what tarfile, gzip and zlib raise for damaged files.
    """
    tops = set[str]()
    found: dict[str, str] = {}
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
                found[name] = _write(content, part / name)
                size += length
            while bounded.read(CHUNK // 16):  # gzip's own checksum stands at the end
                pass
    if found != listed:
        odd = next((name for name in {**listed, **found} if listed.get(name) != found.get(name)), "all")
        raise ValueError(f"{odd} is not as its list of checksums says")
    if "config.yaml" not in found or "run.json" not in found:
        raise ValueError("there is no config.yaml or run.json")
    return tops.pop(), len(found), size


def _members(stream: _Bounded) -> Iterator[tuple[str, str, int, IO[bytes]]]:
    """Run, name, bytes and content of each file of an archive. Raises ValueError for what no run has."""
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
    """An unpacked stream as tarfile reads it. Raises ValueError beyond bounds: of it all, and of one read, since
    tarfile reads the long names of an archive as a whole.

    Args:
        stream: readable from its beginning.
        room: bytes that may be read of it.
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

    def seek(self, place: int) -> int:
        if not 0 <= place <= self.room:
            raise ValueError("it unpacks to more than a run has")
        return self.stream.seek(place)


def _write(content: IO[bytes], target: Path) -> str:
    """Write a file that does not exist yet; gives its SHA-256. Raises ValueError where the name is taken."""
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
    """By file its SHA-256. Raises ValueError."""
    if length > LARGEST_SUMS:
        raise ValueError("its list of checksums is too long")
    text = b""
    while chunk := content.read(CHUNK // 2):
        text += chunk
    found = re.findall(r"^([0-9a-f]{64})  (.+)$", text.decode(), re.MULTILINE)
    return {name: digest for digest, name in found}
