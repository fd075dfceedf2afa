"""RunFolder: the files of a run in ``runs/<name>/``, their lock, and functions that find a run by its name."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from healsg import safefiles, system
from healsg.errors import BusyError, RunError
from healsg.paths import absolute, current_folder, shown
from healsg.runs.record import read_record, row_of
from healsg.system import ProcessLock

log = logging.getLogger("healsg")
ROOT = Path("runs")
TOKEN = ".shared.tmp"
"""A file that exists for a moment while several processes start, to check that their nodes share the folder."""
VISIBLE = 5.0
"""Seconds within which another node must see a new file on a shared file system."""
_held: set[ProcessLock] = set()


def _let_go() -> None:
    """In a forked child, such as a loader worker: close the inherited locks, which must end with the parent."""
    for lock in _held:
        lock.let_go()


system.in_forked_child(_let_go)


class RunFolder:
    """The folder of one run. The process that trains holds its lock; other processes may read.

    Args:
        path: the folder. It is made absolute, since a task's code may change the current directory.
    """

    def __init__(self, path: Path) -> None:
        path = self.path = absolute(path)
        self.shown = shown(path)
        """The path as messages show it."""
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.previous = self.checkpoints / "previous.pt"
        self.best = self.checkpoints / "best.pt"
        self.config = path / "config.yaml"
        self.record_file = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.began = time.time()
        self._lock: ProcessLock | None = None

    def lock(self, patience: float = 0.5) -> None:
        """Acquire the exclusive right to train here; the folder is created if it does not exist.

        The lock is released when the process ends, however it ends. If the lock is held but its file names no living
        process, then its holder has not yet written its process number, or was killed while it started a child (such as
        git) that inherited the lock. Both pass within ``patience`` seconds, for which this waits.

        Raises:
            BusyError: another process holds the lock.
            RunError: the file system has no locks.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = safefiles.open_text_to_append(self.path / ".lock")
        except (FileExistsError, NotADirectoryError) as error:
            raise RunError(f"{shown(Path(error.filename))}: is no folder; use another name, or take it away") from None
        except FileNotFoundError:  # its last holder has removed the folder meanwhile
            return self.lock()
        lock = ProcessLock(file, self.path / ".lock")
        try:
            lock.acquire()
        except OSError as error:
            file.seek(0)
            holder = file.read(100).strip()
            if isinstance(error, BlockingIOError) and patience > 0 and not _lives(holder):
                file.close()
                time.sleep(0.05)
                return self.lock(patience - 0.05)
            file.close()
            if isinstance(error, BlockingIOError):
                reason = f"is being trained by {holder or 'another process'}; wait for it, or use another name"
                raise BusyError(f"{self.shown}: {reason}") from None
            reason = f"cannot be locked on this file system ({error.strerror}); start in a folder on another one"
            raise RunError(f"{self.shown}: {reason}") from None
        if not safefiles.is_still(file, self.path / ".lock"):
            lock.release()  # its last holder has removed the file meanwhile
            return self.lock()
        self._lock = lock
        _held.add(lock)
        with naming(self.path / ".lock"):
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()

    def unlock(self) -> None:
        if self._lock is not None:
            _held.discard(self._lock)
            self._lock.release()
            self._lock = None

    def is_locked(self) -> bool:
        """Whether a process of this machine trains here now. Nothing is written.

        Testing the lock means holding it for a moment, in which another process that starts would be refused. So it is
        tested only if the process whose number is in the file is alive.
        """
        try:
            with safefiles.open_to_read(self.path / ".lock") as file:
                holder = file.read(100).decode(errors="replace").strip()
                return _lives(holder) and system.is_locked(file)
        except (OSError, RunError):
            return False

    def leave_token(self) -> str:
        """Write a random token into the locked folder, by which other nodes verify that they see the same folder."""
        token = os.urandom(8).hex()
        write_text(self.path / TOKEN, token)
        return token

    def has_token(self, token: str) -> bool:
        """Whether this process can read that token here; waits, since network file systems may show it late."""
        deadline = time.monotonic() + VISIBLE
        while True:
            with contextlib.suppress(OSError, ValueError):
                if (self.path / TOKEN).read_text() == token:
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)

    def take_token(self) -> None:
        (self.path / TOKEN).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove temporary files that a save left behind when it was killed."""
        for leftover in [*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")]:
            if safefiles.kind_of(leftover) == safefiles.FILE:
                leftover.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Unlock and remove a folder in which no run has started."""
        lock_file = self.path / ".lock"
        still_open = False
        if self._lock and safefiles.is_still(self._lock.file, lock_file) and not self.config.exists():
            try:
                lock_file.unlink(missing_ok=True)  # while the lock is held, so that no other process can hold it
            except PermissionError:  # Windows cannot remove an open file
                still_open = True
        self.unlock()
        if still_open:
            with contextlib.suppress(OSError):
                lock_file.unlink(missing_ok=True)
        if not self.config.exists():
            above = self.path.parents[:2]  # runs, or a sweep in it; never any folder above
            named = [parent.name for parent in above]
            for empty in (self.path, *above[: named.index(ROOT.name) + 1 if ROOT.name in named else 0]):
                with contextlib.suppress(OSError):
                    empty.rmdir()

    # --- the record ------------------------------------------------------------------------------------------------

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``run.json``; empty if it does not exist or cannot be read.

        Raises RunError if a field has a value of a wrong type.
        """
        return read_record(self.record_file)

    def note(self, **facts: Any) -> None:
        """Set fields of ``run.json``, in one atomic step."""
        write_text(self.record_file, json.dumps(finite(self.record | facts), indent=2, default=str) + "\n")

    def ended(self, status: str, reason: str | None = None) -> None:
        """Record how the run ended: ``finished``, ``stopped`` or ``failed``."""
        seconds = round((self.record.get("seconds") or 0.0) + time.time() - self.began, 1)
        self.note(status=status, reason=reason, end=timestamp(), seconds=seconds)

    def finished(self, best: dict[str, Any] | None, test: dict[str, float], digest: str) -> None:
        """Record the results of a finished run."""
        self.note(best=best, test=test, digest=digest, last=self.last_line("epoch"))

    def last_line(self, event: str) -> dict[str, Any]:
        """The last line of ``metrics.jsonl`` of one kind of event."""
        lines = reversed(self.metrics.read_text(errors="replace").splitlines())
        found = (row_of(text) for text in lines if f'"event": "{event}"' in text)
        return next((row for row in found if row is not None), {})

    # --- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to continue from, intact or not."""
        return self.last.exists() or self.previous.exists()

    def drop_last(self) -> None:
        """Remove the state from which training of a finished run could continue. Raises OSError."""
        self.previous.unlink(missing_ok=True)
        self.last.unlink(missing_ok=True)

    def last_state(self) -> dict[str, Any] | None:
        """The state in ``last_checkpoint``."""
        return self.last_checkpoint()[1]

    def last_checkpoint(self) -> tuple[Path, dict[str, Any] | None]:
        """The newest intact checkpoint: its file, and its state, which is None if no save was ever completed.

        Raises:
            RunError: there are checkpoints, but none of them is intact.
        """
        from healsg.runs import checkpoint

        problems = []
        for path in (self.last, self.previous):
            if os.path.lexists(path):  # also a dangling link, which is reported instead of skipped
                try:
                    state = checkpoint.load(path)
                except RunError as error:
                    problems.append(str(error))
                    continue
                if problems:
                    log.warning("%s; going on from %s", problems[0], path.name)
                return path, state
        if problems:
            raise RunError(f"no good checkpoint is left: {'; '.join(problems)}; fresh=true starts anew")
        return self.last, None


def _lives(holder: str) -> bool:
    """Whether the process in a text such as ``process 123`` is alive on this machine."""
    number = holder.removeprefix("process ")
    return number.isdecimal() and system.lives(int(number))


def finite(value: Any) -> Any:
    """A plain value with None in place of inf and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def timestamp() -> str:
    """The time now, as ISO 8601 with the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def began_at(record: dict[str, Any]) -> float:
    """The start of a run according to its ``run.json``, as a Unix time; infinity if that is missing."""
    try:
        return datetime.strptime(record["begin"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (KeyError, TypeError, ValueError):
        return math.inf


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an OSError: that of a full disk does not name the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: a reader sees the old or the new content, never a part. Raises OSError."""
    with naming(path), safefiles.replacing(path) as file:
        file.write(text.encode("utf-8"))


def is_run(run: str) -> bool:
    """Whether ``run`` is the folder of a run, or a name under ``runs/``."""
    return any(_is_run(path) for path in (Path(run), ROOT / run))


def is_setting(word: str) -> bool:
    """Whether a word is ``key=value`` and not a run; the name of a sweep's job also contains an equals sign."""
    return "=" in word.partition("/")[0] and not is_run(word)


def _is_run(path: Path) -> bool:
    """Whether a folder contains a ``config.yaml``, even if it is not a regular file, which is reported later."""
    try:
        return bool(safefiles.kind_of(path / "config.yaml"))
    except (OSError, ValueError):  # not a possible file name
        return False


def find(run: str, start: Path | None = None, root: Path = ROOT) -> RunFolder:
    """The folder of a run: a path, or a name under ``runs/``, relative to ``start`` or else the current directory.

    If the user named another ``root`` than ``runs/``, the name is searched there first.

    Raises RunError if there is no such run, or if one of its files is a link.
    """
    start = start or current_folder()
    candidates = (start / run, start / root / run)
    for path in candidates if root == ROOT else candidates[::-1]:
        if _is_run(path):
            safefiles.check_run_folder(path)
            return RunFolder(path)
    named, root = root, start / root
    found = (path.parent.relative_to(root) for path in root.glob("**/config.yaml") if ".hydra" not in path.parts)
    known = sorted(map(str, found))
    names = ", ".join(get_close_matches(str(run), known, 5) or known[-5:]) or "none yet"
    raise RunError(f"{run}: is no run; give a folder or a name under {named}/ ({names})")


def weights_file(source: str, start: Path | None = None) -> Path:
    """The checkpoint that ``init_from`` names: a file, or the best weights of a run, relative to ``start``.

    A path that the user gave may contain links, which are resolved; files inside a run may not be links.

    Raises RunError.
    """
    path = (start or current_folder()) / Path(source).expanduser()
    if path.is_file():
        return path.resolve() if path.is_symlink() or path.parent.is_symlink() else path
    if path.exists() and not path.is_dir():
        raise RunError(f"{source}: is neither a regular file nor the folder of a run")
    best = find(str(Path(source).expanduser()), start).best
    safefiles.require(best)
    return best
