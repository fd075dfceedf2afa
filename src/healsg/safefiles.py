"""Files of a run folder, which may come from anybody: no link is followed, and only regular files are opened.

Everything that reads or writes in a run folder goes through this module. ``check_run_folder`` checks all file names of
a run before the first of them is opened; the functions that open a file check again, so that neither a link, nor a FIFO
that would block forever, nor a device, nor a file with a hard link in another folder is ever opened.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from healsg.errors import ConfigError, RunError

FILE = "a regular file"
FOLDER = "a folder"
LINK = "a symbolic link"

REPLACED = ("config.yaml", "run.json", "report.html", "wandb.json", "swanlab.json")
"""Files of a run that are only replaced as a whole, so that another hard link to the old file keeps its content."""

WRITTEN_IN_PLACE = (".lock", ".lock.held", "metrics.jsonl", "media.jsonl", "train.log", "trace.jsonl")
"""Files of a run that are appended to or truncated, which changes the content of all their hard links."""

FOLDERS = ("checkpoints", ".hydra", "wandb", "swanlab", "tensorboard", "media", "ledger")

_HYDRA = ("config.yaml", "hydra.yaml", "overrides.yaml")
_OPEN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class IrregularFileError(RunError):
    """A path is a link, a device or the like where a regular file or a folder is expected."""


def kind_of(path: Path) -> str:
    """The type of the file at ``path`` in words, links not followed; empty if there is none. Raises OSError."""
    try:
        return _kind(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return FILE
    if stat.S_ISDIR(mode):
        return FOLDER
    if stat.S_ISLNK(mode):
        return LINK
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def require(path: Path, expected: str = FILE) -> bool:
    """Whether ``path`` exists. Raises IrregularFileError if it is not of the type ``expected``."""
    kind = kind_of(path)
    if kind not in ("", expected):
        raise IrregularFileError(f"{path}: is {kind}, and not {expected}; nothing is read from it or written to it")
    return bool(kind)


def check_run_folder(path: Path, writing: bool = False) -> None:
    """Raise RunError if a known file name in a run folder is a link, or a file of another type than it should be.

    The folder itself may be reached through links: the user chose its path, but its content may come from somebody
    else. Checkpoints are checked when they are loaded and not here, since ``previous.pt`` may be intact.

    Args:
        path: the run folder; it need not exist.
        writing: whether files will be appended to, which must then have no other hard links.

    Raises:
        RunError: one line that names the file.
    """
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in path.name):
        raise RunError(f"{str(path)!r}: the name of this folder holds control characters; rename it")
    for name in FOLDERS:
        require(path / name, FOLDER)
    for name in (*REPLACED, *WRITTEN_IN_PLACE):
        require(path / name)
    for name in _HYDRA:
        require(path / ".hydra" / name)
    for result in path.glob("eval-*.json"):
        require(result)
    for events in _entries(path / "tensorboard"):
        if kind_of(events) != FOLDER:
            require(events)
    inside = (path / "wandb").resolve()
    for entry in _entries(path / "wandb"):  # wandb itself makes links to the newest of its folders
        if kind_of(entry) == LINK and not entry.resolve().is_relative_to(inside):
            raise IrregularFileError(f"{entry}: is a link that leads out of its folder; remove it")
    if writing:
        for name in WRITTEN_IN_PLACE:
            _refuse_shared(path / name)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if kind_of(folder) == FOLDER else []


def _refuse_shared(path: Path, descriptor: int | None = None) -> None:
    """Raise IrregularFileError if a file has another hard link, whose content a write would change as well."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        status = path.lstat() if descriptor is None else os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            reason = "has another name elsewhere (a hard link), which a write would change too"
            raise IrregularFileError(f"{path}: {reason}; put a copy in its place")


def _open(path: Path, flags: int) -> int:
    """A descriptor of the regular file ``path``.

    Its type is checked twice: before, because opening some devices already has an effect, and afterwards, because the
    file may have been replaced in between. A FIFO does not block, because of O_NONBLOCK.
    """
    if path.parent.name in FOLDERS:
        require(path.parent, FOLDER)
    require(path)
    descriptor = os.open(path, flags | _OPEN, 0o666)
    kind = _kind(os.fstat(descriptor).st_mode)
    if kind != FILE:
        os.close(descriptor)
        raise IrregularFileError(f"{path}: is {kind}, and not {FILE}; nothing is read from it or written to it")
    return descriptor


def open_to_read(path: Path) -> BinaryIO:
    """Open a regular file. Raises IrregularFileError, OSError."""
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file. Raises OSError, and RunError if it has more than ``most`` bytes."""
    with open_to_read(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise RunError(f"{path}: is larger than {most} bytes, the limit for such a file; it is not read")
    return content


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file without other hard links to append to it; it is created if it does not exist.

    Raises IrregularFileError, OSError.
    """
    descriptor = _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        _refuse_shared(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return cast("BinaryIO", os.fdopen(descriptor, "a+b"))


def open_text_to_append(path: Path) -> io.TextIOWrapper:
    """``open_to_append`` for UTF-8 text; invalid bytes in the file are replaced. Raises IrregularFileError, OSError."""
    return io.TextIOWrapper(cast("IO[bytes]", open_to_append(path)), encoding="utf-8", errors="replace")


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[BinaryIO]:
    """A new file that atomically replaces ``path`` at the end, or is removed if an exception is raised.

    The new file has a name that nobody can guess and must not exist before, so that it cannot be a planted link.

    Args:
        path: the path to replace; if it is a link, the link itself is replaced and not its target.
        sync: whether to flush the content to disk before.

    Raises:
        OSError: it cannot be written.
    """
    if path.parent.name in FOLDERS:
        require(path.parent, FOLDER)
    temporary = temporary_name(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """A path next to ``path`` for a file that will replace it; ``RunFolder.sweep`` removes those left by a kill."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def make_folder(path: Path) -> None:
    """Create a folder if it does not exist. Raises IrregularFileError if ``path`` is something else."""
    if not require(path, FOLDER):
        path.mkdir(exist_ok=True)
        require(path, FOLDER)


def make_folders(path: Path, key: str) -> None:
    """Create a folder that the user named, and its parents, if they do not exist.

    Args:
        path: the folder.
        key: the flag or setting that names it.

    Raises:
        ConfigError: it cannot be created, e.g. because a file has this path.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}: the folder {path} cannot be made ({error.strerror})") from error


def is_still(file: IO[Any], path: Path) -> bool:
    """Whether an open file is still the one at ``path``, i.e. was neither replaced nor removed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def set_folder_aside(path: Path) -> Path | None:
    """Rename a folder that is in the place of a file to ``NAME~1``, or the next name that is free."""
    if kind_of(path) != FOLDER:
        return None
    return path.rename(aside_name(path))


def aside_name(path: Path) -> Path:
    """The first of ``NAME~1``, ``NAME~2``, ... that does not exist."""
    names = (path.with_name(f"{path.name}~{number}") for number in range(1, 10**6))
    return next(name for name in names if not kind_of(name))
