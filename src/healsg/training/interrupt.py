"""When to stop: signals set a flag, ``runner.max_time`` watches the clock, and the loop asks at its step boundaries."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from healsg import peers, system
from healsg.errors import Stopped
from healsg.training.parallel import Parallel

_ECHO = 1.0
"""Seconds in which a signal that comes again is the same one: a terminal or scheduler and torchrun both send it."""
_EXCHANGE = 1.0
"""Seconds between two steps at which several processes tell each other whether they were asked to stop."""
_MOST_STEPS = 1000
_LEAVING = 4.0
"""Seconds kept in hand before ``max_time`` for what follows the last save: the record, the report, the exit."""

_entered: list[StopSignal] = []
"""Those that the main thread is in, the outermost first."""


class StopSignal:
    """Surrounds a run. The first signal asks for a save and a stop at the next step; a second one ends at once.

    A signal that is ignored when it is entered, as a shell does with SIGINT for what runs in the background of a
    script and nohup with SIGHUP, stays ignored.

    One may lie within another, as that of a run in that of its command: a signal that came before the inner one was
    entered counts for it, one that came to the inner counts for the outer, and the time runs since the outer began.

    Args:
        max_time: seconds after which the run has saved and stopped; None for no limit.
        parallel: the processes that stop together; those of the launch where it is None.
    """

    def __init__(self, max_time: float | None = None, parallel: Parallel | None = None) -> None:
        self.parallel = parallel or Parallel.of_launch()
        self._echo = _ECHO if self.parallel.several else -math.inf
        self.max_time, self.began = max_time, time.monotonic()
        self.received: int | None = None
        self.received_at = 0.0
        self.asked_at: float | None = None
        self.saving = 0.0
        """The seconds that the last save took: kept in hand before the limit."""
        self._before: dict[int, Any] = {}
        self._outer: StopSignal | None = None
        self._exchanged: tuple[float, int] | None = None  # when, and at which step
        self._next_step = 0

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in system.STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
            self._outer = _entered[-1] if _entered else None
            _entered.append(self)
        if outer := self._outer:
            self.began = outer.began
            self._hear_of(outer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self in _entered:
            _entered.remove(self)
        if (outer := self._outer) and self.received is not None:
            outer._hear_of(self)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hear_of(self, other: StopSignal) -> None:
        """A signal that the other received counts here."""
        self.received = other.received
        self.received_at = other.received_at

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.received_at = number, time.monotonic()
        elif time.monotonic() > self.received_at + self._echo:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def restart_clock(self) -> None:
        """Let ``max_time`` count from now."""
        self.began = time.monotonic()

    def expect_saving(self, seconds: float) -> None:
        """A save takes about so long, which is kept in hand before the limit."""
        self.saving = seconds

    def saving_took(self, seconds: float) -> None:
        """A save took so long: the longest one is kept in hand."""
        self.saving = max(self.saving, seconds)

    def asked(self) -> bool:
        """Whether this process was asked to stop; the loop calls it at each step boundary.

        The limit is kept if the next step, or the evaluation, takes no longer than what lay before this call did.
        """
        if self.received is None and peers.orphaned():
            # torchrun may have been killed, and nobody restarts it: its end is taken for a hang-up
            self.received = system.HANGUP
            self.received_at = time.monotonic()
        if self.received is not None or self.max_time is None:
            return self.received is not None
        now, before = time.monotonic(), self.asked_at
        self.asked_at = now
        ahead = 2 * self.saving + (now - (before or now)) + _LEAVING
        return now + ahead >= self.began + self.max_time

    def asked_within(self) -> bool:
        """The same within an evaluation, where a stop gains nothing unless steps were taken since the process began.

        Several processes do not ask each other within an evaluation.
        """
        if self.parallel.several:
            return False
        if self.received is not None or self.max_time is None or self.asked_at is None:
            return self.received is not None
        return time.monotonic() + 2 * self.saving + _LEAVING >= self.began + self.max_time

    def agreed(self) -> bool:
        """Whether any process was asked to stop; every process must call it."""
        return any(self.parallel.gather(self.asked()))

    def agreed_at(self, step: int) -> bool:
        """Whether any process was asked to stop; every process must call it at each step.

        Several ask each other about once a second, at the same steps: the next one follows from the time that steps
        took, which all exchange.
        """
        if not self.parallel.several:
            return self.asked()
        if step < self._next_step:
            return False
        now = time.monotonic()
        pace = _EXCHANGE  # of a step, in seconds, which is not known before the second call
        if self._exchanged:
            began, first = self._exchanged
            pace = max(1e-6, now - began) / (step - first)
        exchanged = self.parallel.gather((self.asked(), pace))
        slowest = max(pace for _, pace in exchanged)
        self._exchanged = now, step
        self._next_step = step + max(1, min(_MOST_STEPS, int(_EXCHANGE / slowest)))
        return any(asked for asked, _ in exchanged)

    def stopped(self) -> Stopped:
        """What to raise once all is saved."""
        if peers.orphaned():
            return Stopped("stopped, since torchrun, which started it, is gone", 128 + system.HANGUP)
        numbers = [number for number in self.parallel.gather(self.received) if number is not None]
        if numbers:
            return Stopped(f"stopped by {system.signal_name(numbers[0])}", 128 + numbers[0])
        return Stopped("stopped by runner.max_time", 0)


def _owner(handler: Any) -> StopSignal | None:
    """The StopSignal whose handler of signals this is."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopSignal) else None


def _spare() -> None:
    """In a forked child, such as a loader worker: a SIGTERM that a scheduler sends to all is for the run to answer."""
    if _owner(signal.getsignal(signal.SIGTERM)):
        system.end_only_by(os.getppid())


system.in_forked_child(_spare)
