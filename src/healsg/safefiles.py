"""Files of a run folder, which may come from anybody: no link is followed, and only regular files are opened.

Everything that reads or writes in a run folder goes through this module. ``check_run_folder`` looks at all names that
a run knows before the first of them is opened; the functions that open a file look again, so that neither a link, nor
a FIFO that would block for ever, nor a device, nor a file that is shared with another folder is ever opened.
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
"""Files of a run that are only ever replaced whole, so that another hard link of the old one keeps its content."""

WRITTEN_IN_PLACE = (".lock", ".lock.held", "metrics.jsonl", "media.jsonl", "train.log", "trace.jsonl")
"""Files of a run that are appended to, or cut: what is written reaches every hard link of them."""

FOLDERS = ("checkpoints", ".hydra", "wandb", "swanlab", "tensorboard", "media", "ledger")

_HYDRA = ("config.yaml", "hydra.yaml", "overrides.yaml")
_OPEN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class IrregularFileError(RunError):
    """What lies under a name is no regular file, or no real folder, where one belongs."""


def kind_of(path: Path) -> str:
    """What lies under ``path`` itself, in words, links not followed; empty where nothing does. Raises OSError."""
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


def require(path: Path, wanted: str = FILE) -> bool:
    """Whether something lies under ``path``. Raises IrregularFileError where that is not what is ``wanted``."""
    kind = kind_of(path)
    if kind not in ("", wanted):
        raise IrregularFileError(f"{path}: is {kind}, and not {wanted}; nothing is read from it or written to it")
    return bool(kind)


def check_run_folder(path: Path, writing: bool = False) -> None:
    """Refuse a run folder in which a known name is a link, or not the kind of file that it should be.

    The folder itself may be reached through links: its place is the user's choice, its content may be another's.
    Checkpoints are left out: they are looked at when they are loaded, since the one before the last may be good.

    Args:
        path: the run folder; nothing needs to lie there.
        writing: whether files will be appended to, for which they must not be shared with other folders.

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
    """Raises IrregularFileError where a file has another hard link, which a write would change as well."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        status = path.lstat() if descriptor is None else os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            reason = "has another name elsewhere (a hard link), which a write would change too"
            raise IrregularFileError(f"{path}: {reason}; put a copy in its place")


def _open(path: Path, flags: int) -> int:
    """A descriptor of the regular file ``path``.

    It is looked at twice: before, since opening some devices already acts on them, and afterwards, since it may have
    been exchanged in between. A FIFO does not block, because of O_NONBLOCK.
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
    """The content of a regular file. Raises OSError, and RunError where it has more than ``most`` bytes."""
    with open_to_read(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise RunError(f"{path}: is larger than {most} bytes, which no such file is; it is not read")
    return content


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file that no other name shares, made where there is none; what is written goes to its end.

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
    """The same for text in UTF-8, which may already hold what is none. Raises IrregularFileError, OSError."""
    return io.TextIOWrapper(cast("IO[bytes]", open_to_append(path)), encoding="utf-8", errors="replace")


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` at the end, in one step, and vanishes where anything is raised.

    The new file has a name that nobody can guess, and must not exist before, so that it cannot be a planted link.

    Args:
        path: what is replaced: the name itself, whatever a link under it leads to.
        sync: whether the content is brought to the disk before.

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
    """A name beside ``path`` for a file that will replace it; ``RunFolder.sweep`` removes what a kill leaves."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def make_folder(path: Path) -> None:
    """Make a folder where there is none. Raises IrregularFileError where something else lies there."""
    if not require(path, FOLDER):
        path.mkdir(exist_ok=True)
        require(path, FOLDER)


def make_folders(path: Path, key: str) -> None:
    """Make a folder that the user named, and those above it, where they are missing.

    Args:
        path: of the folder.
        key: the flag or setting that names it.

    Raises:
        ConfigError: it cannot be made, such as where something else lies there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}: the folder {path} cannot be made ({error.strerror})") from error


def is_still(file: IO[Any], path: Path) -> bool:
    """Whether an open file is the one at ``path``, and was not replaced or removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def set_folder_aside(path: Path) -> Path | None:
    """Move a folder that lies where a file belongs out of the way, to ``NAME~1`` or the next that is free."""
    if kind_of(path) != FOLDER:
        return None
    return path.rename(aside_name(path))


def aside_name(path: Path) -> Path:
    """The first of ``NAME~1``, ``NAME~2``, ... under which nothing lies: where what has this name is moved aside to."""
    names = (path.with_name(f"{path.name}~{number}") for number in range(1, 10**6))
    return next(name for name in names if not kind_of(name))
