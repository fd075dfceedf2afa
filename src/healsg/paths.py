"""Paths that stay what they are: made absolute once, before the code of a task may change the current directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def current_folder() -> Path:
    """The current directory; if it has been removed, its former path as in ``$PWD``."""
    try:
        return Path.cwd()
    except OSError:
        former = Path(os.environ.get("PWD", "/"))
        return former if former.is_absolute() else Path("/")


def project_folders() -> list[Path]:
    """The current directory, whose modules may be parts; empty if it has been removed."""
    with contextlib.suppress(OSError):
        return [Path.cwd()]
    return []


def leave_removed_folder() -> None:
    """Change to ``/`` if the current directory has been removed: torch and numpy fail without one."""
    if not project_folders():
        os.chdir("/")


def absolute(path: str | Path) -> Path:
    """``path`` made absolute from the current directory."""
    return current_folder() / path


def shown(path: Path) -> Path:
    """``path`` as messages show it: relative to the current directory if it lies below it."""
    start = current_folder()
    return path.relative_to(start) if path.is_relative_to(start) else path


@contextlib.contextmanager
def returning() -> Iterator[None]:
    """A context manager that restores the current directory at the end."""
    if not hasattr(os, "fchdir"):  # Windows, where the folder that a process is in can neither be moved nor removed
        before = current_folder()
        try:
            yield
        finally:
            os.chdir(before)
        return
    try:
        start = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    except OSError:  # the current directory has been removed
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it may no longer be entered
            os.fchdir(start)
        os.close(start)
