"""Mirrors: what shows a run's metrics elsewhere. The local files are the truth; a broken mirror never hurts a run."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger("healsg")


@dataclass
class Progress:
    """Where a run is. The loop changes the fields; a display only reads them, from a thread of its own."""

    phase: str = "preparing"  # train, val, test, or what is being prepared
    epoch: int = 0  # the epoch under way, from 1
    max_epoch: int = 0
    position: int = 0  # batches done of this pass
    length: int = 0
    samples: int = 0  # samples trained so far in this process
    step: int = 0  # updates done
    total_steps: int = 0
    numbers: dict[str, float] = field(default_factory=dict)  # the latest known metrics


class Mirror:
    """A place that is shown every line of ``metrics.jsonl``. What it raises drops it, with one line of warning."""

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        """The run begins or goes on; ``record`` holds its ``name``, ``config``, ``resumed`` and ``step``."""

    def log(self, line: dict[str, Any]) -> None:
        """One line, as it stands in ``metrics.jsonl``."""

    def finish(self, status: str) -> None:
        """The run ended: ``finished``, ``stopped`` or ``failed``."""


class Background(Mirror):
    """Runs ``mirror`` in a thread of its own, so that however slow or broken it is the run waits a bounded time.

    ``start`` waits at most ``patience`` seconds and ``finish`` ``grace``; when ``size`` lines wait, more are dropped.
    """

    def __init__(self, mirror: Mirror, name: str, patience: float = 9.0, grace: float = 5.0, size: int = 9999) -> None:
        self.mirror, self.name, self.patience, self.grace = mirror, name, patience, grace
        self.calls: queue.Queue[tuple[Any, ...]] = queue.Queue(size)
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._work, name=f"healsg-{name}", daemon=True)

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        self.calls.put((self.mirror.start, folder, record))
        self.thread.start()
        self.started.wait(self.patience)

    def log(self, line: dict[str, Any]) -> None:
        if self.thread.is_alive() and not self.calls.full():
            self.calls.put_nowait((self.mirror.log, dict(line)))

    def finish(self, status: str) -> None:
        end = time.monotonic() + self.grace
        if self.thread.is_alive():
            with contextlib.suppress(queue.Full):
                self.calls.put((self.mirror.finish, status), timeout=self.grace)
            self.thread.join(max(0.0, end - time.monotonic()))
        if self.thread.is_alive():
            log.warning("%s is still busy; what it lacks is in metrics.jsonl", self.name)

    def _work(self) -> None:
        call: Any = None
        while call != self.mirror.finish:
            call, *arguments = self.calls.get()
            try:
                call(*arguments)
            except (Exception, SystemExit) as error:
                log.warning("%s is left out from here on: %s", self.name, " ".join(str(error).split()) or repr(error))
                break
            finally:
                self.started.set()
