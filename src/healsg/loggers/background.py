"""A thread for a logger that may be slow, hang or fail."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any

from healsg.parts import defines
from healsg.runs.logger import Logger

log = logging.getLogger("healsg")


class Background(Logger):
    """Runs ``logger`` in a thread of its own, so that however slow or broken it is the run waits a bounded time.

    ``start`` waits at most the seconds that the logger names as its ``patience``, and ``finish`` those of its
    ``grace``; when ``size`` lines wait, more are dropped. What it raises drops it, with one line of warning.
    """

    def __init__(self, logger: Logger, name: str, size: int = 9999) -> None:
        self.logger, self.name = logger, name
        self.patience: float = getattr(logger, "patience", 1.0)
        self.grace: float = getattr(logger, "grace", 5.0)
        self.calls: queue.Queue[tuple[Any, ...]] = queue.Queue(size)
        self.logs = defines(logger, Logger, "log")  # waking a thread for nothing costs a millisecond
        self.logs_media = defines(logger, Logger, "media")
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._work, name=f"healsg-{name}", daemon=True)

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        self.calls.put(("start", folder, record))
        self.thread.start()
        self.started.wait(self.patience)

    def log(self, line: dict[str, Any]) -> None:
        if self.logs and self.thread.is_alive() and not self.calls.full():
            self.calls.put_nowait(("log", dict(line)))

    def media(self, folder: Path, entry: dict[str, Any]) -> None:
        if self.logs_media and self.thread.is_alive() and not self.calls.full():
            self.calls.put_nowait(("media", folder, dict(entry)))

    def finish(self, status: str) -> None:
        end = time.monotonic() + self.grace
        if self.thread.is_alive():
            with contextlib.suppress(queue.Full):
                self.calls.put(("finish", status), timeout=self.grace)
            self.thread.join(max(0.0, end - time.monotonic()))
        if self.thread.is_alive():
            log.warning("%s is still busy; what it lacks is in metrics.jsonl", self.name)

    def _work(self) -> None:
        verb = ""
        while verb != "finish":
            verb, *arguments = self.calls.get()
            try:
                getattr(self.logger, verb)(*arguments)
            except (Exception, SystemExit) as error:
                detail = " ".join(str(error).split()) or repr(error)
                log.warning("logger %s is left out from here on: %s: %s", self.name, type(error).__name__, detail)
                break
            finally:
                self.started.set()
