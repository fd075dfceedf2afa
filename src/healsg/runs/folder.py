"""RunFolder: the files that a run leaves behind, under ``runs/<name>/``."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from healsg import safefiles, system
from healsg.errors import RunError
from healsg.paths import absolute, current_folder, shown
from healsg.runs.record import read_record
from healsg.system import ProcessLock

log = logging.getLogger("healsg")
ROOT = Path("runs")
TOKEN = ".shared.tmp"
"""A file that is there for a moment, as several processes begin."""
VISIBLE = 5.0
"""Seconds within which another node sees a new file."""
_held: set[ProcessLock] = set()


def _let_go() -> None:
    """In a forked child, such as a loader worker: a lock is its parent's alone, and must end with it."""
    for lock in _held:
        lock.let_go()


system.in_forked_child(_let_go)


class RunFolder:
    """One run's folder. The process that trains holds its lock; others may read.

    Args:
        path: the folder. It is made absolute, since the code of a task may change the current directory.
    """

    def __init__(self, path: Path) -> None:
        path = self.path = absolute(path)
        self.shown = shown(path)
        """Its path as messages call it."""
        self.checkpoints = path / "checkpoints"
        self.last, self.previous = self.checkpoints / "last.pt", self.checkpoints / "previous.pt"
        self.best = self.checkpoints / "best.pt"
        self.config = path / "config.yaml"
        self.record_file = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.began = time.time()
        self._lock: ProcessLock | None = None

    def lock(self, patience: float = 0.5) -> None:
        """Become the one process that trains here, in a folder that is made where there is none.

        The lock ends with the process, however it ends. Where it names no process that lives, its holder has yet to
        say its number, or was killed as it began a child, such as git: for that this waits ``patience`` seconds.
        Raises RunError where another process has it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = safefiles.open_text_to_append(self.path / ".lock")
        except (FileExistsError, NotADirectoryError) as error:
            raise RunError(f"{shown(Path(error.filename))}: is no folder; use another name, or take it away") from None
        except FileNotFoundError:  # whoever held it has taken the folder away in between
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
            told = f"is being trained by {holder or 'another process'}; wait for it, or use another name"
            if not isinstance(error, BlockingIOError):
                told = f"cannot be locked on this file system ({error.strerror}); start in a folder on another one"
            file.close()
            raise RunError(f"{self.shown}: {told}") from None
        if not _is_still(file, self.path / ".lock"):
            lock.release()  # whoever held it has taken the file away in between
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

        The lock is tried only where the process whose number stands in its file lives, since another one that begins at
        that moment would be refused.
        """
        try:
            with safefiles.open_to_read(self.path / ".lock") as file:
                holder = file.read(100).decode(errors="replace").strip()
                return _lives(holder) and system.is_locked(file)
        except (OSError, RunError):
            return False

    def leave_token(self) -> str:
        """Write something into the locked folder by which other nodes know that they see the same one."""
        token = secrets.token_hex(8)
        write_text(self.path / TOKEN, token)
        return token

    def has_token(self, token: str) -> bool:
        """Whether this process sees that token here, which a file system over the network may show late."""
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
        """Remove what a killed save left behind."""
        for leftover in [*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")]:
            if safefiles.kind_of(leftover) == safefiles.FILE:
                leftover.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leave a folder in which no run has begun, and take it away."""
        lock_file = self.path / ".lock"
        still_open = False
        if self._lock and _is_still(self._lock.file, lock_file) and not self.config.exists():
            try:
                lock_file.unlink(missing_ok=True)  # while it is held, so that it is no other process's
            except PermissionError:  # Windows removes no file that is open, this process's or another's
                still_open = True
        self.unlock()
        if still_open:
            with contextlib.suppress(OSError):
                lock_file.unlink(missing_ok=True)
        if not self.config.exists():
            above = self.path.parents[:2]  # runs, or a sweep in it; never what lies above
            named = [parent.name for parent in above]
            for empty in (self.path, *above[: named.index(ROOT.name) + 1 if ROOT.name in named else 0]):
                with contextlib.suppress(OSError):
                    empty.rmdir()

    # --- the record ------------------------------------------------------------------------------------------------

    @property
    def record(self) -> dict[str, Any]:
        """What ``run.json`` holds; empty where there is none or it cannot be read.

        Raises RunError where a field that is read back has a value of another type.
        """
        return read_record(self.record_file)

    def note(self, **facts: Any) -> None:
        """Add to ``run.json``, or change what it says, in one atomic step."""
        write_text(self.record_file, json.dumps(finite(self.record | facts), indent=2, default=str) + "\n")

    def ended(self, status: str, reason: str | None = None) -> None:
        """Record how the run ended: ``finished``, ``stopped`` or ``failed``."""
        seconds = round((self.record.get("seconds") or 0.0) + time.time() - self.began, 1)
        self.note(status=status, reason=reason, end=timestamp(), seconds=seconds)

    def finished(self, best: dict[str, Any] | None, test: dict[str, float], digest: str) -> None:
        """Record the results of a run that came to its end."""
        self.note(best=best, test=test, digest=digest, last=self.last_line("epoch"))

    def last_line(self, event: str) -> dict[str, Any]:
        """The last line of ``metrics.jsonl`` of one kind of event."""
        for text in reversed(self.metrics.read_text(errors="replace").splitlines()):
            if f'"event": "{event}"' in text:
                with contextlib.suppress(ValueError):
                    return dict(json.loads(text))
        return {}

    # --- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a file of a state to go on from, good or not."""
        return self.last.exists() or self.previous.exists()

    def last_state(self) -> dict[str, Any] | None:
        """The newest good state; None where no save was ever completed. Raises RunError, see ``last_checkpoint``."""
        return self.last_checkpoint()[1]

    def last_checkpoint(self) -> tuple[Path, dict[str, Any] | None]:
        """The newest good state and the file that holds it; None where no save was ever completed.

        Raises:
            RunError: there are checkpoints, and none of them is good.
        """
        from healsg.runs import checkpoint

        problems = []
        for path in (self.last, self.previous):
            if os.path.lexists(path):  # also a link that leads nowhere: it is not passed over in silence
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
    """Whether ``process NUMBER`` is there, on this machine."""
    number = holder.removeprefix("process ")
    return number.isdecimal() and system.lives(int(number))


def _is_still(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that lies at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def finite(value: Any) -> Any:
    """A plain value as JSON can hold it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def timestamp() -> str:
    """The time now, as ISO 8601 with the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def began_at(record: dict[str, Any]) -> float:
    """When a run began, in seconds since the epoch, by what its ``run.json`` says; infinity where it does not."""
    try:
        return datetime.strptime(record["begin"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (KeyError, TypeError, ValueError):
        return math.inf


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError tell which file it is about; a full disk's own does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new one, never a part. Raises OSError."""
    with naming(path), safefiles.replacing(path) as file:
        file.write(text.encode("utf-8"))


def is_run(run: str) -> bool:
    """Whether ``run`` is the folder of a run, or a name under ``runs/``."""
    return any(_is_run(path) for path in (Path(run), ROOT / run))


def _is_run(path: Path) -> bool:
    """Whether a ``config.yaml`` lies in a folder, of whatever kind: what is no regular file is refused by name."""
    try:
        return bool(safefiles.kind_of(path / "config.yaml"))
    except (OSError, ValueError):  # no name of a file
        return False


def find(run: str, start: Path | None = None, root: Path = ROOT) -> RunFolder:
    """The folder of a run given as a path or as a name under ``runs/``, from ``start`` or the current directory.

    No known file in it is a link. Another ``root`` than ``runs/`` was named by the user: there it is looked for first.
    Raises RunError.
    """
    start = start or current_folder()
    places = (start / run, start / root / run)
    for path in places if root == ROOT else places[::-1]:
        if _is_run(path):
            safefiles.check_run_folder(path)
            return RunFolder(path)
    named, root = root, start / root
    known = sorted(path.parent.relative_to(root) for path in root.glob("**/config.yaml") if ".hydra" not in path.parts)
    names = ", ".join(str(name) for name in known[-5:]) or "none yet"
    raise RunError(f"{run}: is no run; give a folder or a name under {named}/ ({names})")


def weights_file(source: str, start: Path | None = None) -> Path:
    """The checkpoint that ``init_from`` names: a file, or the best weights of a run, from ``start`` on.

    A path that the user gave may lead through links, and comes back without them; what lies in a run may not.

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
