"""The temporary folder of a server. Its name begins with ``healsg-serve-``; a file in it is locked by the server as
long as that runs, so that the next one can tell what a killed one left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import weakref
from pathlib import Path

from healsg import system
from healsg.errors import RunError
from healsg.safefiles import open_to_read

PREFIX = "healsg-serve-"

OWNER = "owner"
"""The file that the server of a folder keeps locked."""


class ServerFolder:
    """A new folder below ``TMPDIR``, which goes with this object or at the end of the process. Folders of servers that
    were killed are removed first.

    Raises:
        OSError: there is no place for it.
    """

    def __init__(self) -> None:
        remove_stale(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        new = self.path / f"{OWNER}.new"
        lock = system.ProcessLock(new.open("w"), new)
        weakref.finalize(self, _end, self.path, lock)
        with contextlib.suppress(OSError):  # no locks on this file system: it could not be told from one in use
            lock.acquire()
            new.rename(self.path / OWNER)  # locked from the moment that it can be seen


def _end(path: Path, lock: system.ProcessLock) -> None:
    with contextlib.suppress(OSError):
        lock.release()
    shutil.rmtree(path, ignore_errors=True)


def remove_stale(parent: Path) -> list[Path]:
    """Remove this user's folders whose servers have ended. Links are not followed, and what cannot be told to be such a
    folder stays, as all do on systems without ``flock``."""
    removed = []
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        if _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _is_stale(folder: Path) -> bool:
    try:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            return False
        with open_to_read(folder / OWNER) as file:
            return not system.is_locked(file)
    except (OSError, AttributeError, RunError):  # there is none, it is no regular file, or there are no users
        return False
