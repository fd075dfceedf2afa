"""Stopping a run early: a signal sets a flag, ``runner.max_time`` is a limit; the loop checks both between steps."""

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
"""Seconds within which a second signal counts as the first one delivered twice: a terminal or scheduler sends it both
to torchrun and to the ranks, and torchrun forwards it to them."""
_EXCHANGE = 1.0
"""Seconds, about, between two steps at which several processes exchange whether they received a stop signal."""
_MOST_STEPS = 1000
"""Steps, at most, between two such exchanges."""
_LEAVING = 4.0
"""Seconds reserved before ``max_time`` for what follows the last save: ``run.json``, the report, the exit."""

_entered: list[StopSignal] = []
"""The StopSignals whose ``with`` block the main thread is in, the outermost first."""


class StopSignal:
    """A context around a run that handles stop signals. The first signal requests a save and a stop at the next step; a
    second one ends the process at once.

    A signal that is already ignored on entry stays ignored: a shell ignores SIGINT for background jobs of a script, and
    nohup ignores SIGHUP.

    Contexts may be nested, such as that of a run within that of its command. A signal that the outer one has received
    counts for the inner one, and the other way round. ``max_time`` is counted from the start of the outer one.

    Args:
        max_time: seconds within which the run must have saved and stopped; None for no limit.
        parallel: the processes that stop together; None stands for all processes of the launch.
    """

    def __init__(self, max_time: float | None = None, parallel: Parallel | None = None) -> None:
        self.parallel = parallel or Parallel.of_launch()
        self._echo = _ECHO if self.parallel.several else -math.inf
        self.max_time = max_time
        self.began = time.monotonic()
        self.received: int | None = None
        self.received_at = 0.0
        self.asked_at: float | None = None
        self.saving = 0.0
        """Seconds that a save takes, which are reserved before the limit."""
        self._before: dict[int, Any] = {}
        self._outer: StopSignal | None = None
        self._exchanged: tuple[float, int] | None = None  # when, and at which step
        self._next_step = 0

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in system.STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
            self._outer = _entered[-1] if _entered else None
            _entered.append(self)
        if outer := self._outer:
            self.began = outer.began
            self._take_over_signal_of(outer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self in _entered:
            _entered.remove(self)
        if (outer := self._outer) and self.received is not None:
            outer._take_over_signal_of(self)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _take_over_signal_of(self, other: StopSignal) -> None:
        """Take over the signal that ``other`` received."""
        self.received = other.received
        self.received_at = other.received_at

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received_at = time.monotonic()  # first, since another signal may come in between
            self.received = number
        elif time.monotonic() > self.received_at + self._echo:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def restart_clock(self, began: float | None = None) -> None:
        """Count ``max_time`` from now, or from ``began``, the ``time.monotonic`` at which another process started."""
        self.began = time.monotonic() if began is None else began

    def expect_saving(self, seconds: float) -> None:
        """Reserve ``seconds`` for a save, an estimate until there is a measurement."""
        self.saving = seconds

    def saving_took(self, seconds: float) -> None:
        """Record the duration of a save; the longest so far is reserved before the limit."""
        self.saving = max(self.saving, seconds)

    def asked(self) -> bool:
        """Whether this process has to stop; the loop calls it between steps.

        ``max_time`` is kept if the next step, or evaluation, takes no longer than the one between the last two calls.
        """
        if self.received is None and peers.orphaned():
            # torchrun was killed, and nothing restarts it: treated like a hang-up of the terminal
            self.received = system.HANGUP
            self.received_at = time.monotonic()
        if self.received is not None or self.max_time is None:
            return self.received is not None
        now, before = time.monotonic(), self.asked_at
        self.asked_at = now
        ahead = 2 * self.saving + (now - (before or now)) + _LEAVING
        return now + ahead >= self.began + self.max_time

    def asked_within(self) -> bool:
        """The same within an evaluation.

        A stop there is useful only if this process has trained some steps, which would be lost otherwise. Several
        processes do not exchange anything during an evaluation, so they never stop within one.
        """
        if self.parallel.several:
            return False
        if self.received is not None or self.max_time is None or self.asked_at is None:
            return self.received is not None
        return time.monotonic() + 2 * self.saving + _LEAVING >= self.began + self.max_time

    def agreed(self) -> bool:
        """Whether any process has to stop. A collective: every process must call it."""
        return any(self.parallel.gather(self.asked()))

    def agreed_at(self, step: int) -> bool:
        """Whether any process has to stop. A collective: every process must call it at each step.

        The processes exchange about once a second, and must do so at the same step. Each exchange therefore includes
        the duration of a step, from which all processes compute the same next step at which to exchange.
        """
        if not self.parallel.several:
            return self.asked()
        if step < self._next_step:
            return False
        now = time.monotonic()
        pace = _EXCHANGE  # seconds a step takes; unknown before the second exchange
        if self._exchanged:
            began, first = self._exchanged
            pace = max(1e-6, now - began) / (step - first)
        exchanged = self.parallel.gather((self.asked(), pace))
        slowest = max(pace for _, pace in exchanged)
        self._exchanged = now, step
        self._next_step = step + max(1, min(_MOST_STEPS, int(_EXCHANGE / slowest)))
        return any(asked for asked, _ in exchanged)

    def stopped(self) -> Stopped:
        """The exception to raise once everything is saved."""
        if peers.orphaned():
            return Stopped("stopped, since torchrun, which started it, is gone", 128 + system.HANGUP)
        numbers = [number for number in self.parallel.gather(self.received) if number is not None]
        if numbers:
            return Stopped(f"stopped by {system.signal_name(numbers[0])}", 128 + numbers[0])
        return Stopped("stopped by runner.max_time", 0)


def _owner(handler: Any) -> StopSignal | None:
    """The StopSignal that a signal handler belongs to."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopSignal) else None


def _leave_to_parent() -> None:
    """In a forked child, such as a loader worker: ignore a SIGTERM that does not come from the parent.

    A scheduler sends SIGTERM to every process of a job; the run itself handles it, and needs its workers until then.
    """
    if _owner(signal.getsignal(signal.SIGTERM)):
        system.end_only_by(os.getppid())


system.in_forked_child(_leave_to_parent)
