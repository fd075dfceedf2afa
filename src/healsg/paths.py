"""Paths that stay what they are: made absolute once, before the code of a task may change the current directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def current_folder() -> Path:
    """The current directory; where it has been removed, the one that the shell remembers of it."""
    try:
        return Path.cwd()
    except OSError:
        remembered = Path(os.environ.get("PWD", "/"))
        return remembered if remembered.is_absolute() else Path("/")


def project_folders() -> list[Path]:
    """The current directory, whose modules may be parts; none where it has been removed."""
    with contextlib.suppress(OSError):
        return [Path.cwd()]
    return []


def leave_removed_folder() -> None:
    """Go to ``/`` where the current directory has been removed: torch and numpy cannot do without one."""
    if not project_folders():
        os.chdir("/")


def absolute(path: str | Path) -> Path:
    """``path`` from the current directory."""
    return current_folder() / path


def shown(path: Path) -> Path:
    """``path`` as messages call it: from the current directory where it lies below that."""
    start = current_folder()
    return path.relative_to(start) if path.is_relative_to(start) else path


@contextlib.contextmanager
def returning() -> Iterator[None]:
    """Come back to the current directory at the end, wherever the code within has gone."""
    if not hasattr(os, "fchdir"):  # Windows, where the folder that a process is in can neither be moved nor removed
        before = current_folder()
        try:
            yield
        finally:
            os.chdir(before)
        return
    try:
        start = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    except OSError:  # there is none
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it may no longer be entered
            os.fchdir(start)
        os.close(start)
