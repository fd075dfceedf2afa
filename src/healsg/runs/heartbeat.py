"""Heartbeat: a run's ``run.json`` is touched while its process is alive, so that other machines on a shared file system
can distinguish it from a killed run, even in an epoch that takes hours."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

EVERY = 30.0
"""Seconds between two touches."""


class Heartbeat:
    """A context in which a file is touched by a thread.

    Args:
        file: the file whose modification time is set; a missing file is ignored.
        every: seconds between two touches.
    """

    def __init__(self, file: Path, every: float = EVERY) -> None:
        self.file = file
        self.every = every
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def _beat(self) -> None:
        while not self.ended.wait(self.every):
            with suppress(OSError, NotImplementedError):
                os.utime(self.file, follow_symlinks=os.utime not in os.supports_follow_symlinks)

    def __enter__(self) -> Heartbeat:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()
