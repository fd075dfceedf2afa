"""One job of a sweep in a process of its own, on the machine that a scheduler chose."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from typing import IO

from healsg import system
from healsg.sweeps.launcher import Answer, Order


class OneJob:
    """Trains a job. Its process saves and stops when this one ends or requests it.

    Args:
        order: of the job.
        folder: in which it runs; None is the current one.
    """

    def __init__(self, order: Order, folder: str | None = None) -> None:
        self.order = order
        line = system.program("healsg.commands.launch.worker", "main")
        self._child = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd=folder
        )

    def answer(self) -> Answer:
        """The process's final report. Raises RuntimeError if it ended without one."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with self._child.stdin as orders, self._child.stdout as answers:
            answer = self._ask(orders, answers)
        code = self._child.wait()
        if answer is None:
            ended = f"by {system.signal_name(-code)}" if code < 0 else f"with status {code}"
            raise RuntimeError(f"its process was ended {ended}")
        return answer

    def _ask(self, orders: IO[bytes], answers: IO[bytes]) -> Answer | None:
        with contextlib.suppress(OSError):  # it has ended already, as its exit status will show
            orders.write(json.dumps(self.order).encode() + b"\n")
            orders.flush()
        line = answers.readline()
        answer: Answer | None = None
        with contextlib.suppress(ValueError):  # a killed worker may leave a truncated line
            answer = json.loads(line)
        return answer

    def stop(self, patience: float) -> None:
        """Let it save and stop within this many seconds."""
        self._child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(patience)
        system.kill_family(self._child)
