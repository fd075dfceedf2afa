"""Workers: processes that prepare batches in advance. If one dies, hangs or raises, the run ends with a message.

torch's DataLoader shares one queue between its workers, so that a worker that is killed while it writes can block all
of them. Here each worker has a pipe of its own, and a row of shared memory holds the sample that it is reading.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import torch
from torch.multiprocessing import Pipe, Process

from healsg import system
from healsg.data.source import Reading, line
from healsg.errors import DataError, HealsgError
from healsg.torch_private import become_worker

Given = TypeVar("Given")

LARGEST_KEPT = 1 << 30
"""Bytes of a batch up to which a worker uses the memory of the one before again."""


class Workers:
    """Processes that run ``prepare`` ahead, in turn.

    Args:
        prepare: from an epoch and a position to what is to be sent.
        count: how many.
        reading: its ``at`` is where a worker writes what it reads; ``prefetch`` and ``timeout`` count here.
        sources: by the number of the stream, which know the names of samples.
        begin: called in each worker with its number, before the first batch.
    """

    def __init__(
        self,
        prepare: Callable[[int, int], Any],
        count: int,
        reading: Reading,
        sources: Sequence[Any],
        begin: Callable[[int], None] | None = None,
    ) -> None:
        self.reading = reading
        self.sources = sources
        self.turn = 0
        self.at = torch.tensor([[0, -1, 0]] * count)
        self.at.share_memory_()  # type: ignore[no-untyped-call]
        self.processes: list[tuple[Any, Any]] = []
        self.end = Finalize(self, _end, (self.processes,), exitpriority=10)
        shown: Any = getattr(sources[0], "dataset", None)
        for number in range(count):
            ours, theirs = Pipe()
            become = partial(become_worker, number, count, shown)
            given = (prepare, reading, self.at[number], theirs, number, become, begin)
            process = Process(target=_work, args=given, daemon=True)
            process.start()
            theirs.close()
            self.processes.append((process, ours))

    def results(self, places: Sequence[tuple[int, int]]) -> Iterator[Any]:
        """What the workers make of each of ``places``, in their order. Raises DataError where one is lost."""
        self.turn += 1
        turn, count = self.turn, len(self.processes)
        ahead = count * min(self.reading.prefetch, 64)
        for place in range(-ahead, len(places)):
            if turn != self.turn:
                raise DataError("a loader with workers deals one pass at a time, and another was begun")
            if place + ahead < len(places):
                with contextlib.suppress(OSError):  # a dead one is missed when its answer is
                    self.processes[place % count][1].send((turn, places[place + ahead]))
            if place >= 0:
                yield self._receive(place % count, turn)

    def _receive(self, number: int, turn: int) -> Any:
        process, pipe = self.processes[number]
        got = 0
        waited = 0.0
        try:
            while got != turn:  # older answers belong to a pass that was left early
                while not pipe.poll(0.5):
                    waited += 0.5  # a process that is stopped for a while does not count
                    if not process.is_alive():
                        raise EOFError
                    if 0 < self.reading.timeout <= waited:
                        raise TimeoutError
                got, ours, prepared = pipe.recv()
        except (OSError, EOFError) as error:
            raise DataError(self._lost(number, error)) from error
        if ours is None:
            return prepared
        self.end()
        message, trace = prepared
        raise (DataError if ours else RuntimeError)(message) from RuntimeError(trace)

    def _lost(self, number: int, error: Exception) -> str:
        process, (stream, index, more) = self.processes[number][0], self.at[number].tolist()
        how = f"gave no batch for {self.reading.timeout:g} seconds (data.timeout)"
        if not isinstance(error, TimeoutError):
            process.join(1)
            code = process.exitcode
            how = f"ended by itself with status {code}" if code is not None else f"cannot be reached ({line(error)})"
            if code and code < 0:
                how = f"was killed by signal {-code} ({signal.strsignal(-code)}); fewer workers need less memory"
        self.end()
        where = f"; it was last at {self.sources[stream].name(index)}" if index >= 0 else ""
        return f"loader worker {number} {how}{where}{f' and {more} more' if more else ''}"


def prepared_ahead(given: Iterator[Given], prepare: Callable[[Given], Given], device: torch.device) -> Iterator[Given]:
    """``prepare`` of each of ``given``, one ahead, in a thread of its own: page-locking memory takes as long as copying
    it, and the loop's thread has a GPU to keep busy.

    What is raised in the thread is raised here. The thread ends with the iterator, also where that is left early.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
    left = threading.Event()

    def put(ends: bool, value: Any) -> None:
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put((ends, value), timeout=0.1)

    def work() -> None:
        try:
            if device.type == "cuda" and torch.cuda.is_available():
                torch.cuda.set_device(device)  # of this thread, whose memory would otherwise be the first GPU's
            for each in given:
                if left.is_set():
                    return
                put(False, prepare(each))
            put(True, None)
        except BaseException as error:  # raised in the loop's thread
            put(True, error)

    thread = threading.Thread(target=work, name="pinning", daemon=True)
    thread.start()
    try:
        ends, value = ready.get()
        while not ends:
            yield value
            ends, value = ready.get()
        if value is not None:
            raise value
    finally:
        left.set()
        thread.join()


def _end(processes: list[tuple[Any, Any]]) -> None:
    for process, pipe in processes:
        process.kill()
        process.join()
        pipe.close()


def _work(
    prepare: Callable[[int, int], Any],
    reading: Reading,
    at: torch.Tensor,
    pipe: Any,
    number: int,
    become: Callable[[], None],
    begin: Callable[[int], None] | None,
) -> None:
    """A worker's life: it leaves signals to its parent, answers (turn, whose error it is, what), and ends with it."""
    for each in system.STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_outlive, daemon=True).start()
    torch.set_num_threads(1)
    system.keep_freed_memory(LARGEST_KEPT)
    gc.freeze()  # a collection would write to, and so copy, every page on which the parent's objects lie
    become()
    reading.write_to(at.numpy().data)
    with contextlib.suppress(EOFError, OSError):  # a parent that is gone
        while True:
            turn, place = pipe.recv()
            try:
                if begin:
                    begin(number)
                    begin = None
                pipe.send((turn, None, prepare(*place)))
            except Exception as error:
                pipe.send((turn, isinstance(error, HealsgError), (line(error), traceback.format_exc())))


def _outlive() -> None:
    if parent := parent_process():
        wait([parent.sentinel])
    os._exit(1)
