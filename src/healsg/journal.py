"""Journal: ``metrics.jsonl``, one line an event, each exactly once; and the mirrors that get the same lines."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from healsg import safefiles
from healsg.errors import RunError
from healsg.folder import finite
from healsg.mirror import Mirror

log = logging.getLogger("healsg")


class Journal:
    """Writes lines and remembers how far, so that a resumed run cuts off what it will write again.

    Args:
        path: the file.
        mirrors: by name; one that raises is dropped with a line and never hurts the run.
    """

    def __init__(self, path: Path, mirrors: dict[str, Mirror] | None = None) -> None:
        self.path, self.mirrors = path, dict(mirrors or {})
        self.offset, self.history = 0, hashlib.sha256().hexdigest()
        self._file = safefiles.open_to_append(path)
        self.started = False

    def start(self, record: dict[str, Any]) -> None:
        """Open the mirrors."""
        self.started = True
        for name in list(self.mirrors):
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
        lasting = json.dumps({key: value for key, value in line.items() if key != "seconds"})
        self.history = hashlib.sha256((self.history + lasting).encode()).hexdigest()
        for name in list(self.mirrors) if self.started else []:
            self._tell(name, "log", line)

    def clear(self) -> None:
        """Begin again with no line."""
        self.load_state_dict({"offset": 0, "history": self.history})

    def sync(self) -> None:
        """Bring all lines to the disk, before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self, status: str) -> None:
        """Close the file, and the mirrors that were opened."""
        for name in list(self.mirrors) if self.started else []:
            self._tell(name, "finish", status)
        with contextlib.suppress(OSError):
            self._file.close()

    def _tell(self, name: str, verb: str, *values: Any) -> None:
        try:
            getattr(self.mirrors[name], verb)(*values)
        except (Exception, SystemExit) as error:
            told = " ".join(str(error).split())
            log.warning("logger %s is left out from here on: %s: %s", name, type(error).__name__, told)
            del self.mirrors[name]

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the file back to where it was at a save. Raises RunError if it has become shorter."""
        size, wanted = os.fstat(self._file.fileno()).st_size, state["offset"]
        if size < wanted:
            raise RunError(f"{self.path}: lines are missing that its checkpoint counts on ({size} of {wanted} bytes)")
        self.offset, self.history = state["offset"], state["history"]
        os.ftruncate(self._file.fileno(), self.offset)
