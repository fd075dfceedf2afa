"""A worker of ``launcher=local``: trains jobs that it reads from standard input, and answers on standard output."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
from typing import Any

import yaml

from healsg import system
from healsg.commands.sweep.run import run_job
from healsg.config.schema import Composed
from healsg.sweeps.sharing import SharedData
from healsg.training.interrupt import StopSignal


class _Orders:
    """A thread that reads the jobs. At the end of the input it requests the current job to stop, since the parent
    process has ended."""

    def __init__(self) -> None:
        self.working = False
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(os.dup(0),), daemon=True).start()

    def _read(self, descriptor: int) -> None:
        begun = b""
        while block := os.read(descriptor, 1 << 16):
            *lines, begun = (begun + block).split(b"\n")
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)
        if self.working:
            os.kill(os.getpid(), signal.SIGTERM)

    def next(self) -> dict[str, Any] | None:
        self.working = False
        line = self._lines.get()
        self.working = line is not None
        return None if line is None else json.loads(line)


def main() -> int:
    """Train until the input ends, or a signal has stopped a job; returns the exit status."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers, StopSignal() as stop_signal:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)  # the displays of parallel runs would mix; each run has its train.log
        orders = _Orders()
        shared = SharedData()
        while (given := orders.next()) is not None:
            stop_signal.restart_clock()
            system.take_command_line(given["command"])
            composed = Composed.of_plain(yaml.safe_load(given["composed"]))
            row = run_job(given["name"], given["job"], composed, bool(given["verified"]), shared)
            print(json.dumps(row), file=answers, flush=True)
            if stop_signal.received is not None:
                return 128 + stop_signal.received
    return 0
