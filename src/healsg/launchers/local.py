"""``launcher=local``: a pool of worker processes on this machine, each of which trains one job after the other."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from healsg import system
from healsg.sweeps.launcher import LOST, Answer, JobLauncher, Order
from healsg.types import Count

_POLL = 0.1
"""Seconds between two checks for a stop signal."""
_PATIENCE = 30.0
"""Seconds that an idle worker has to end."""


class LocalPool(JobLauncher):
    """Runs the jobs of a sweep in processes of this machine.

    The workers are fresh processes, so that a job that crashes, or is killed for its memory, ends one worker and no
    other job. They end with the process that started them: they save, and the same command resumes.

    Args:
        workers: jobs that run in parallel.
        devices: indices of GPUs. Worker i sees only the one at index i modulo their number; None: all see all.
    """

    def __init__(self, workers: Count = 2, devices: list[int] | None = None) -> None:
        self.workers = workers
        self.devices = devices
        self._events: queue.SimpleQueue[tuple[_Worker, str | None]] = queue.SimpleQueue()
        self._slots: list[_Worker | None] = [None] * workers

    def results(self, orders: Sequence[Order], stop_signal: Callable[[], int | None]) -> Iterator[tuple[int, Answer]]:
        waiting = deque(range(len(orders)))
        signalled = None
        while True:
            if signalled is None and (signalled := stop_signal()):
                waiting.clear()
                for busy in filter(None, self._slots):
                    busy.stop(signalled)
            for slot, free in enumerate(self._slots):
                if waiting and (free is None or free.job is None):
                    worker = self._slots[slot] = free or _Worker(slot, self._environment(slot), self._events)
                    index = waiting.popleft()
                    worker.take(index, orders[index])
            if not any(worker and worker.job is not None for worker in self._slots):
                return
            with contextlib.suppress(queue.Empty):
                worker, line = self._events.get(timeout=_POLL)
                ended = worker.free()
                if self._slots[worker.slot] is worker and (line is None or _was_stopped(line)):
                    self._slots[worker.slot] = None
                if ended is not None:
                    yield ended, json.loads(line) if line else _lost(worker, signalled)

    def close(self) -> None:
        for worker in filter(None, self._slots):
            worker.close()

    def _environment(self, slot: int) -> dict[str, str]:
        if not self.devices:
            return dict(os.environ)
        return {**os.environ, "CUDA_VISIBLE_DEVICES": str(self.devices[slot % len(self.devices)])}


def _was_stopped(line: str) -> bool:
    """Whether a worker's report is its last one, since a signal has stopped its job."""
    return int(json.loads(line)["exit"]) >= 128


def _lost(worker: _Worker, signalled: int | None) -> Answer:
    code = worker.process.wait()
    if signalled is not None:
        return {"status": "stopped", "exit": 128 + signalled}
    ended = f"by {system.signal_name(-code)}" if code < 0 else f"with status {code}"
    return {"status": LOST, "exit": 1, "reason": f"its process was ended {ended}; the same command continues it"}


class _Worker:
    """One process of the pool.

    Args:
        slot: its number in the pool.
        environment: its environment variables.
        events: where its answers go, with None at the end of the process.
    """

    def __init__(
        self, slot: int, environment: dict[str, str], events: queue.SimpleQueue[tuple[_Worker, str | None]]
    ) -> None:
        self.slot = slot
        self.job: int | None = None
        line = system.program("healsg.commands.launch.worker", "main")
        # A new session: Ctrl-C reaches only the pool, which forwards it to its workers once.
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._orders: IO[bytes] = self.process.stdin
        threading.Thread(target=self._listen, args=(self.process.stdout, events), daemon=True).start()

    def _listen(self, answers: IO[bytes], events: queue.SimpleQueue[tuple[_Worker, str | None]]) -> None:
        with answers:
            for line in answers:
                if line.endswith(b"\n"):  # a killed worker may leave a truncated line
                    events.put((self, line.decode()))
        self.process.wait()
        events.put((self, None))

    def take(self, job_index: int, order: Order) -> None:
        """Assign it a job."""
        self.job = job_index
        with contextlib.suppress(OSError):  # it has just ended, as its last event will say
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()

    def free(self) -> int | None:
        """Mark its job as ended; returns the job, None if it had none."""
        ended = self.job
        self.job = None
        return ended

    def stop(self, number: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(OSError):
            self.process.send_signal(signal.Signals(number))

    def close(self) -> None:
        """Shut it down and wait: it saves a job in progress."""
        with contextlib.suppress(OSError):
            self._orders.close()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            system.kill_family(self.process)
            self.process.wait()
