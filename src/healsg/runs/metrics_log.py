"""MetricsLog: ``metrics.jsonl``, one line an event, each exactly once; and the loggers that get the same lines."""

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

FORCE = "resume.force=true goes on with the lines that are whole, and keeps the file as it is beside them"

LARGEST_LINE = 1 << 20
"""Bytes that are read of a damaged file beyond what it should hold."""


class MetricsLog:
    """Writes lines and remembers how far, so that a resumed run cuts off what it will write again.

    Args:
        path: the file.
        loggers: by name; one that raises is dropped with a line and never hurts the run.
    """

    def __init__(self, path: Path, loggers: dict[str, Logger] | None = None) -> None:
        self.path, self.loggers = path, dict(loggers or {})
        self.offset, self.history = 0, hashlib.sha256().hexdigest()
        self._written = hashlib.sha256()  # of the file's bytes
        self._file = safefiles.open_to_append(path)
        self.started = False

    def start(self, record: dict[str, Any]) -> None:
        """Open the loggers."""
        self.started = True
        for name in list(self.loggers):
            self._tell(name, "start", self.path.parent, record)

    def write(self, line: dict[str, Any]) -> None:
        """Append one event. The history, a chained hash of all lines, leaves times out."""
        line = finite(line)
        text = json.dumps(line).encode() + b"\n"
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); the last checkpoint is good") from error
        self.offset += len(text)
        self._written.update(text)
        lasting = json.dumps({key: value for key, value in line.items() if key != "seconds"})
        self.history = hashlib.sha256((self.history + lasting).encode()).hexdigest()
        for name in list(self.loggers) if self.started else []:
            self._tell(name, "log", line)

    def clear(self) -> None:
        """Begin again with no line."""
        self._cut(0, hashlib.sha256())

    def check(self) -> None:
        """See to it that the file is still the one that this run writes.

        Where it was removed or replaced while the run went on, it is written again from the file that is still open.
        Raises RunError where lines were taken from it or put into it.
        """
        own = os.fstat(self._file.fileno())
        if own.st_size != self.offset:
            sizes = f"{own.st_size} bytes where {self.offset} were written"
            raise RunError(f"{self.path}: was changed while the run went on ({sizes}); {FORCE}")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(own, self.path.lstat()):
                return
        log.warning("%s was removed or replaced while the run went on; it is written again", self.path)
        self._replace(os.pread(self._file.fileno(), own.st_size, 0))

    def sync(self) -> None:
        """Bring all lines to the disk, before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self, status: str) -> None:
        """Close the file, and the loggers that were opened."""
        for name in list(self.loggers) if self.started else []:
            self._tell(name, "finish", status)
        with contextlib.suppress(OSError):
            self._file.close()

    def _tell(self, name: str, verb: str, *values: Any) -> None:
        try:
            getattr(self.loggers[name], verb)(*values)
        except (Exception, SystemExit) as error:
            told = " ".join(str(error).split())
            log.warning("logger %s is left out from here on: %s: %s", name, type(error).__name__, told)
            del self.loggers[name]

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset, "history": self.history, "sha256": self._written.hexdigest()}

    def load_state_dict(self, state: dict[str, Any], step: int = 0, force: bool = False) -> None:
        """Cut the file back to where it was at a save, after a look at whether its lines are still those.

        Lines that only came in twice, or whose ends were changed, are put right. Where others were changed or lost, the
        file is kept aside if ``force`` is set, and the run goes on with the lines that are whole.

        Args:
            state: as ``state_dict`` gave it at the save.
            step: the update at which that was.
            force: whether the run may go on without some of its lines.

        Raises:
            RunError: lines are missing or changed.
        """
        offset, wanted = state["offset"], state.get("sha256")
        size = os.fstat(self._file.fileno()).st_size
        written, lines = self._hashed(offset), b""
        whole = size >= offset and wanted in (None, written.hexdigest())
        if not whole:
            lines = recovered(os.pread(self._file.fileno(), min(size, 4 * offset + LARGEST_LINE), 0), step, offset)
            written = hashlib.sha256(lines)
            mended = wanted == written.hexdigest()
            if not (mended or force):
                how = f"lines are missing, {size} of {offset} bytes are left" if size < offset else "lines were changed"
                raise RunError(f"{self.path}: {how}, or are of another run, since its checkpoint was written; {FORCE}")
            told = "its lines are restored" if mended else f"{lines.count(10)} lines of it are whole and stay"
            kept = f"; what it was is {self._keep_aside().name}" if size else ""
            log.warning("%s: lines were changed or lost; %s%s", self.path, told, kept)
            self._replace(lines)
            offset = len(lines)
        self.history = state["history"]
        self._cut(offset, written)

    def _hashed(self, size: int) -> Any:
        """The SHA-256 of the file's first ``size`` bytes."""
        total, at = hashlib.sha256(), 0
        while chunk := os.pread(self._file.fileno(), min(size - at, 1 << 20), at):
            total.update(chunk)
            at += len(chunk)
        return total

    def _cut(self, size: int, written: Any) -> None:
        os.ftruncate(self._file.fileno(), size)
        self.offset, self._written = size, written

    def _keep_aside(self) -> Path:
        """Copy the file as it is to a name of its own."""
        names = (f"{self.path.name}.damaged{number or ''}" for number in range(10**6))
        kept = next(path for path in map(self.path.with_name, names) if not os.path.lexists(path))
        with naming(kept), safefiles.open_to_read(self.path) as file, safefiles.replacing(kept) as copy:
            shutil.copyfileobj(file, copy)
        return kept

    def _replace(self, content: bytes) -> None:
        """Let the file hold ``content``, in one atomic step. Raises RunError."""
        try:
            with safefiles.replacing(self.path, sync=True) as file:
                file.write(content)
            self._file.close()
            self._file = safefiles.open_to_append(self.path)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror})") from error


def recovered(content: bytes, step: int, size: int) -> bytes:
    """The whole lines of a damaged ``metrics.jsonl`` as they were written, each once, up to ``step`` and ``size``."""
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
