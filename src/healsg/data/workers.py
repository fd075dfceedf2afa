"""Workers: processes that prepare batches in advance. If one dies, hangs or raises, the run ends with a message.

torch's DataLoader shares one queue between its workers, so that a worker that is killed while writing can block all of
them. Here each worker has its own pipe, and records in a row of shared memory which sample it is reading.
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

Item = TypeVar("Item")

LARGEST_KEPT = 1 << 30
"""The most bytes of a freed block that a worker keeps for its next batch."""


class Workers:
    """Processes that run ``prepare`` in advance, in turn.

    Args:
        prepare: from an epoch and a position to the result that is sent.
        count: number of processes.
        reading: settings; a worker records the sample it is reading in ``at``. ``prefetch`` and ``timeout`` apply here.
        sources: by the number of the stream, for the names of samples in messages.
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
        dataset: Any = getattr(sources[0], "dataset", None)
        for number in range(count):
            parent_end, worker_end = Pipe()
            become = partial(become_worker, number, count, dataset)
            arguments = (prepare, reading, self.at[number], worker_end, number, become, begin)
            process = Process(target=_work, args=arguments, daemon=True)
            process.start()
            worker_end.close()
            self.processes.append((process, parent_end))

    def results(self, positions: Sequence[tuple[int, int]]) -> Iterator[Any]:
        """The result of ``prepare`` for each (epoch, position), in order. Raises DataError if a worker is lost."""
        self.turn += 1
        turn, count = self.turn, len(self.processes)
        ahead = count * min(self.reading.prefetch, 64)
        for number in range(-ahead, len(positions)):  # a request runs ``ahead`` results before its own
            if turn != self.turn:
                raise DataError("a loader with workers yields one pass at a time, and another was begun")
            if number + ahead < len(positions):
                with contextlib.suppress(OSError):  # a dead worker is reported when its result is due
                    self.processes[number % count][1].send((turn, positions[number + ahead]))
            if number >= 0:
                yield self._receive(number % count, turn)

    def _receive(self, number: int, turn: int) -> Any:
        process, pipe = self.processes[number]
        received = 0
        waited = 0.0
        try:
            while received != turn:  # older results belong to a pass that was not finished
                while not pipe.poll(0.5):
                    waited += 0.5  # counted in polls, so that the time while this process is suspended is not included
                    if not process.is_alive():
                        raise EOFError
                    if 0 < self.reading.timeout <= waited:
                        raise TimeoutError
                received, user_error, prepared = pipe.recv()
        except (OSError, EOFError) as error:
            raise DataError(self._lost(number, error)) from error
        if user_error is None:
            return prepared
        self.end()
        message, trace = prepared
        raise (DataError if user_error else RuntimeError)(message) from RuntimeError(trace)

    def _lost(self, number: int, error: Exception) -> str:
        """Why a worker was lost, and the sample that it was reading; also ends all workers."""
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


def prepared_ahead(items: Iterator[Item], prepare: Callable[[Item], Item], device: torch.device) -> Iterator[Item]:
    """Apply ``prepare`` to each of ``items``, one in advance, in another thread: page-locking memory takes as long as
    copying it, and the loop's thread has to keep a GPU busy.

    Exceptions in the thread are raised here. The thread ends with the iterator, even if that is closed early.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
    closed = threading.Event()

    def put(ends: bool, value: Any) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put((ends, value), timeout=0.1)

    def work() -> None:
        try:
            if device.type == "cuda" and torch.cuda.is_available():
                torch.cuda.set_device(device)  # set per thread; otherwise the memory would be pinned for the first GPU
            for batch in items:
                if closed.is_set():
                    return
                put(False, prepare(batch))
            put(True, None)
        except BaseException as error:  # raised again in the loop's thread
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
        closed.set()
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
    """The main function of a worker. It ignores stop signals, which its parent handles, and ends with its parent.

    It answers each request with (turn, None, result), or after an error with (turn, whether the user can fix the error,
    (message, traceback)).
    """
    for number_of_signal in system.STOP_SIGNALS:
        signal.signal(number_of_signal, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    system.keep_freed_memory(LARGEST_KEPT)
    gc.freeze()  # a collection would write to, and so copy, every memory page with objects of the parent
    become()
    reading.write_to(at.numpy().data)
    with contextlib.suppress(EOFError, OSError):  # the parent has ended
        while True:
            turn, position = pipe.recv()
            try:
                if begin:
                    begin(number)
                    begin = None
                pipe.send((turn, None, prepare(*position)))
            except Exception as error:
                pipe.send((turn, isinstance(error, HealsgError), (line(error), traceback.format_exc())))


def _exit_with_parent() -> None:
    if parent := parent_process():
        wait([parent.sentinel])
    os._exit(1)
