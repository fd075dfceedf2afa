"""MetricsLog: writes ``metrics.jsonl``, one line for each event, and passes the lines on to the loggers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from healsg import safefiles
from healsg.errors import RunError
from healsg.runs.folder import finite, naming
from healsg.runs.logger import Logger

log = logging.getLogger("healsg")

FORCE = "resume.force=true continues with the intact lines, and keeps a copy of the damaged file"

LARGEST_LINE = 1 << 20
"""The most bytes of a damaged file that are read beyond its expected size."""


class MetricsLog:
    """Writes ``metrics.jsonl`` such that each event is in it exactly once, even if a run was killed and resumed.

    A checkpoint holds the length of the file at the save; a resumed run truncates the file to it, since it will write
    the later lines again.

    Args:
        path: the file.
        loggers: by name; a logger that raises is removed with a warning, and the run continues.
    """

    def __init__(self, path: Path, loggers: dict[str, Logger] | None = None) -> None:
        self.path = path
        self.loggers = dict(loggers or {})
        self.offset = 0
        self.history = hashlib.sha256().hexdigest()
        self._written = hashlib.sha256()  # of the file's bytes
        self._file = safefiles.open_to_append(path)
        self._opened = os.fstat(self._file.fileno())
        self._name = str(path)
        self.started = False

    def start(self, record: dict[str, Any]) -> None:
        """Open the loggers."""
        self.started = True
        for name in list(self.loggers):
            self._call(name, "start", self.path.parent, record)

    def write(self, line: dict[str, Any]) -> None:
        """Append one event. The hash of all lines (``history``) is over everything but the times."""
        line = finite(line)
        text = json.dumps(line).encode() + b"\n"
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); the last checkpoint is good") from error
        self.offset += len(text)
        self._written.update(text)
        without_times = json.dumps({key: value for key, value in line.items() if key != "seconds"})
        self.history = hashlib.sha256((self.history + without_times).encode()).hexdigest()
        for name in list(self.loggers) if self.started else []:
            self._call(name, "log", line)

    def forward_media(self, entry: dict[str, Any]) -> None:
        """Pass the line of an image, a table or a plot in ``media.jsonl`` to the loggers."""
        for name in list(self.loggers) if self.started else []:
            self._call(name, "media", self.path.parent, entry)

    def clear(self) -> None:
        """Remove all lines."""
        self._cut(0, hashlib.sha256())

    def check(self) -> None:
        """Check that nobody else has changed the file since this run opened it.

        If it was removed or replaced, it is written again from the file that is still open.

        Raises:
            RunError: lines were added or removed.
        """
        try:
            named = os.lstat(self._name)  # one call tells both, which counts, since each save waits for it
        except FileNotFoundError:
            named = None
        if named and named.st_size == self.offset and os.path.samestat(named, self._opened):
            return
        status = os.fstat(self._file.fileno())
        if status.st_size != self.offset:
            sizes = f"{status.st_size} bytes where {self.offset} were written"
            raise RunError(f"{self.path}: was changed during the run ({sizes}); {FORCE}")
        log.warning("%s was removed or replaced during the run; it is written again", self.path)
        self._replace(os.pread(self._file.fileno(), status.st_size, 0))

    def sync(self) -> None:
        """Flush all lines to the disk; called before the checkpoint that records their length."""
        os.fsync(self._file.fileno())

    def close(self, status: str) -> None:
        """Close the file, and the loggers that were opened."""
        for name in list(self.loggers) if self.started else []:
            self._call(name, "finish", status)
        with contextlib.suppress(OSError):
            self._file.close()

    def _call(self, name: str, method: str, *values: Any) -> None:
        """Call a method of a logger, and remove the logger if it raises."""
        try:
            getattr(self.loggers[name], method)(*values)
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())
            log.warning("logger %s is left out from here on: %s: %s", name, type(error).__name__, reason)
            del self.loggers[name]

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset, "history": self.history, "sha256": self._written.hexdigest()}

    def load_state_dict(self, state: dict[str, Any], step: int = 0, force: bool = False) -> None:
        """Truncate the file to its length at a save, after a check of its content against the hash in ``state``.

        Duplicated lines and changed line ends are repaired. If lines were changed or lost otherwise, ``force`` decides:
        with it the damaged file is copied to another name, and the run continues with the lines that are intact.

        Args:
            state: the result of ``state_dict`` at the save.
            step: the update at which that was.
            force: whether the run may continue without some of its lines.

        Raises:
            RunError: lines are missing or changed.
        """
        offset, expected = state["offset"], state.get("sha256")
        size = os.fstat(self._file.fileno()).st_size
        written, lines = self._hashed(offset), b""
        intact = size >= offset and expected in (None, written.hexdigest())
        if not intact:
            lines = recovered(os.pread(self._file.fileno(), min(size, 4 * offset + LARGEST_LINE), 0), step, offset)
            written = hashlib.sha256(lines)
            repaired = expected == written.hexdigest()
            if not (repaired or force):
                how = f"lines are missing, {size} of {offset} bytes are left" if size < offset else "lines were changed"
                raise RunError(f"{self.path}: {how}, or are of another run, since its checkpoint was written; {FORCE}")
            outcome = "its lines are restored" if repaired else f"{lines.count(10)} lines of it are whole and stay"
            kept = f"; what it was is {self._keep_aside().name}" if size else ""
            log.warning("%s: lines were changed or lost; %s%s", self.path, outcome, kept)
            self._replace(lines)
            offset = len(lines)
        self.history = state["history"]
        self._cut(offset, written)

    def _hashed(self, size: int) -> Any:
        """The SHA-256 object of the file's first ``size`` bytes, which later lines update."""
        total, at = hashlib.sha256(), 0
        while chunk := os.pread(self._file.fileno(), min(size - at, 1 << 20), at):
            total.update(chunk)
            at += len(chunk)
        return total

    def _cut(self, size: int, written: Any) -> None:
        os.ftruncate(self._file.fileno(), size)
        self.offset = size
        self._written = written

    def _keep_aside(self) -> Path:
        """Copy the file to an unused name next to it; returns the copy's path."""
        names = (f"{self.path.name}.damaged{number or ''}" for number in range(10**6))
        backup = next(path for path in map(self.path.with_name, names) if not os.path.lexists(path))
        with naming(backup), safefiles.open_to_read(self.path) as file, safefiles.replacing(backup) as copy:
            shutil.copyfileobj(file, copy)
        return backup

    def _replace(self, content: bytes) -> None:
        """Replace the file's content in one atomic step. Raises RunError."""
        try:
            with safefiles.replacing(self.path, sync=True) as file:
                file.write(content)
            self._file.close()
            self._file = safefiles.open_to_append(self.path)
            self._opened = os.fstat(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror})") from error


def recovered(content: bytes, step: int, size: int) -> bytes:
    """The intact lines of a damaged ``metrics.jsonl``, each once, up to update ``step`` and at most ``size`` bytes."""
    lines = dict[bytes, None]()
    left = size
    for text in content.split(b"\n"):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and row["step"] <= step:
            line = json.dumps(row).encode() + b"\n"
            if line not in lines and len(line) <= left:
                lines[line] = None
                left -= len(line)
    return b"".join(lines)
