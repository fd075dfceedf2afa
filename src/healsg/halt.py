"""When to stop: signals set a flag, ``runner.max_time`` watches the clock, and the loop asks at its step boundaries."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from healsg import distributed
from healsg.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ECHO = 1.0
"""Seconds in which a signal that comes again is the same one: a terminal or scheduler and torchrun both send it."""


class Halt:
    """Surrounds a run. The first signal asks for a save and a stop at the next step; a second one ends at once.

    Args:
        max_time: seconds after which the run saves and stops; None for no limit.
    """

    def __init__(self, max_time: float | None = None) -> None:
        self.deadline = None if max_time is None else time.monotonic() + max_time
        self.received: int | None = None
        self.received_at = 0.0
        self.saving = 0.0
        """The seconds that the last save took: kept in hand before the limit."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Halt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.received_at = number, time.monotonic()
        elif not distributed.launched() or time.monotonic() > self.received_at + _ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        if self.received is not None:
            return True
        return self.deadline is not None and time.monotonic() + 2 * self.saving >= self.deadline

    def agreed(self) -> bool:
        """Whether any process was asked to stop; every process must call it."""
        return any(distributed.gather(self.asked()))

    def stopped(self) -> Stopped:
        """What to raise once all is saved."""
        numbers = [number for number in distributed.gather(self.received) if number is not None]
        if numbers:
            return Stopped(f"stopped by {signal.Signals(numbers[0]).name}", 128 + numbers[0])
        return Stopped("stopped by runner.max_time", 0)
