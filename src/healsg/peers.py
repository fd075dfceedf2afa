"""Failure detection among the processes of one launch: which ranks are alive, where each one is, who failed first.

The processes exchange this through the key-value store of the launch, not through the process group, because it is
needed most when a collective fails. A failed collective raises only "connection closed" or "timed out", often minutes
after the cause and on another rank.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from healsg.errors import RunError, one_line
from healsg.runs import redact
from healsg.training.progress import Progress

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

log = logging.getLogger("healsg")

BEAT = 1.0
"""Seconds between two heartbeats, and between two readings of those of the others."""
STALE = 3.5
"""Seconds without a heartbeat after which a process counts as dead, once a collective has failed."""
PATIENCE = 2.0
"""Seconds that a process whose collective failed waits for another one to record the error behind it."""
JOINING = 300.0
"""Seconds, at least, by which processes may start after the first one: nodes differ in how fast they import torch."""
GRACE = 10.0
"""Seconds that the main thread has to end by itself after another rank failed or the launcher died."""

_PARENT = os.getppid()  # read at import, since torchrun may be killed before this process has joined the others

Ended = Callable[[str, str], object]
"""Called with status and reason when the process must be ended although its main thread hangs; it records the run."""


class PeerError(RunError):
    """Another process of the launch failed, died or does not answer; the message names rank, phase and cause."""


def orphaned() -> bool:
    """Whether torchrun started this process and is no longer alive.

    Only torchrun is watched. Other launchers, such as srun and mpirun, end their processes themselves, and a shell may
    well end before its background jobs.
    """
    return os.getppid() != _PARENT and "TORCHELASTIC_RUN_ID" in os.environ


class Peers:
    """This process's view of the other processes. A thread publishes a heartbeat and reads those of the others.

    Args:
        store: the key-value store of the launch, with a prefix that is unique to this process group.
        rank, world: this process's rank and the number of processes.
        timeout: seconds without a heartbeat from a process after which the run fails.
        hosted: whether the store is part of rank 0's process, and not of the launcher's.
    """

    def __init__(self, store: Store, rank: int, world: int, timeout: float, hosted: bool) -> None:
        self.rank = rank
        self.world = world
        self.timeout = timeout
        self._hosted = hosted
        self._store = _own_connection(store)
        self._reported = False
        self._noticed = False
        self._progress = Progress()
        self._ended: Ended | None = None
        self._meetings = 0
        self._beats = 0
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}
        self._beat(self._store)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="healsg-peers", daemon=True)

    def gather(self) -> None:
        """Wait a limited time until all processes have joined. Raises PeerError, which names the missing ranks."""
        if not self._all("gathering", max(self.timeout, JOINING)):
            absent = [rank for rank in range(self.world) if not self._store.check([f"beat/{rank}"])]
            names = ", ".join(map(str, absent)) or "another one"
            raise PeerError(f"rank {names} has not joined the other processes within {max(self.timeout, JOINING):g} s")

    def start(self) -> None:
        """Start the thread, once ``gather`` has returned."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it, since it must not outlive the store or the interpreter."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(GRACE)

    def follow(self, progress: Progress, ended: Ended | None) -> None:
        """Publish from now on the position in ``progress``; ``ended`` records a run whose main thread hangs."""
        self._progress = progress
        self._ended = ended

    @property
    def where(self) -> str:
        """This process's phase, epoch and step, as text."""
        return _position(self._state())

    # --- errors ----------------------------------------------------------------------------------------------------

    def record(self, text: str, where: str | None) -> None:
        """Publish an error to all processes.

        Args:
            text: the error.
            where: the position of this process; None if the error is that another process is missing.
        """
        value = json.dumps({"rank": self.rank, "where": where, "text": text})
        try:
            number = self._store.add("errors", 1)
            self._store.set(f"error/{number}", value)
        except RuntimeError as error:  # the store went with the launcher, or with rank 0
            log.debug("the error could not be shown to the other ranks: %s", error)

    def first_error(self, store: Store | None = None) -> PeerError | None:
        """The first error that another process has recorded. Raises RuntimeError where the store is gone."""
        store = store or self._store
        for number in range(1, store.add("errors", 0) + 1):
            if not store.check([f"error/{number}"]):  # counted, and about to be written
                continue
            error = json.loads(store.get(f"error/{number}"))
            if error["rank"] != self.rank:
                where = "" if error["where"] is None else f"rank {error['rank']}, {error['where']}: "
                return PeerError(f"{where}{error['text']}")
        return None

    def cause_of(self, error: BaseException) -> BaseException:
        """The error to raise instead of ``error``: that of another process, if ``error`` is only a consequence of it.

        If the error arose in this process, it is published to the others and returned as it is.
        """
        self._noticed = True
        if not is_lost(error):
            kind = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
            self.record(f"{kind}{one_line(error)}", self.where)
            return error
        if orphaned():
            return PeerError("torchrun, which started this process, is gone")
        try:
            return self._lost(error)
        except RuntimeError as closed:
            log.debug("the store of the launch is gone too: %s", closed)
            return PeerError(f"rank 0 or the launcher is gone without a word; {one_line(error)}")

    def _lost(self, error: BaseException) -> PeerError:
        """Why the connection to the others was lost: the error that another one published, or which one is missing."""
        self._store.set(f"noticed/{self.rank}", "1")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := self.first_error():
                return found
            time.sleep(0.05)
        deadline = time.monotonic() + STALE
        missing = self._missing(STALE)
        while missing is None and time.monotonic() < deadline:
            time.sleep(0.1)
            missing = self._missing(STALE)
        timed_out = "timed out" in str(error).lower()
        if missing is None and timed_out:
            missing = self._furthest_behind()
        if missing is None and timed_out:
            missing = self._only_unaware()
        if found := self.first_error():  # another survivor was faster
            return found
        if missing is None:
            return PeerError(f"the connection to another rank was lost: {one_line(error)}")
        text = self._silent(missing) if timed_out else self._gone(missing)
        self.record(text, None)
        return PeerError(text)

    def _silent(self, rank: int) -> str:
        where = _position(self._seen[rank][0])
        return f"rank {rank} has not answered for {self.timeout:g} s (runner.timeout), last heard of in: {where}"

    def _gone(self, rank: int) -> str:
        where = _position(self._seen[rank][0])
        return f"rank {rank} is gone without a word (killed, or out of memory?), last heard of in: {where}"

    # --- which process reports to the user -------------------------------------------------------------------------

    def reports(self) -> bool:
        """Whether this process is the one that prints the error: rank 0 or, if that is dead, the first of the others.

        The others wait until rank 0 has printed it, since a launcher kills all processes as soon as one has ended.
        """
        if self.rank == 0:
            first, self._reported = not self._reported, True
            return first
        try:
            deadline = time.monotonic() + GRACE / 2
            while not self._reported and time.monotonic() < deadline:
                self._reported = self._store.check(["reported"])
                time.sleep(0.02)
            return not self._reported and self._store.add("reporters", 1) == 1
        except RuntimeError:
            return not self._reported

    def reported(self) -> None:
        """Publish that the error has been printed, so that the other processes may end."""
        self._reported = True
        if self.rank != 0:
            return
        try:
            self._store.set("reported", "1")
        except RuntimeError:
            log.debug("the store of the launch is gone")

    def leave(self) -> None:
        """Use the store for the last time, just before the process ends after an error.

        If rank 0 hosts the store, it waits for the other live processes: torch prints a stack trace in a process whose
        store disappears during a request.
        """
        self.stop()
        try:
            if self.rank != 0:
                self._store.set(f"left/{self.rank}", "1")
            deadline = time.monotonic() + GRACE
            while self._hosted and self.rank == 0 and time.monotonic() < deadline and self._awaited():
                time.sleep(0.02)
        except RuntimeError:
            log.debug("the store of the launch is gone")

    def _awaited(self) -> bool:
        """Whether a live process may still use the store."""
        self._look(self._store)
        silent = self._silent_ranks(STALE)
        alive = (rank for rank in range(self.world) if rank != self.rank and rank not in silent)
        return not all(self._store.check([f"left/{rank}"]) for rank in alive)

    # --- a barrier without a time limit ----------------------------------------------------------------------------

    def meet(self) -> None:
        """Wait for all other processes as long as they are alive; every process must call it. Raises PeerError.

        A collective fails after ``timeout``. This barrier is for work that may take one process longer than that, such
        as reading, caching or downloading data.
        """
        self._meetings += 1
        self._all("meeting", None)

    def all_failed(self, seconds: float) -> bool:
        """Whether all processes call this within ``seconds`` of each other."""
        self._meetings += 1
        try:
            return self._all("failed", seconds)
        except RuntimeError:
            return False

    def _all(self, name: str, seconds: float | None) -> bool:
        key = f"{name}/{self._meetings}"
        began = time.monotonic()
        pause = 0.001
        arrived = self._store.add(key, 1)
        while arrived < self.world:
            if seconds is not None and time.monotonic() > began + seconds:
                return False
            if seconds is None and (found := self.first_error()):
                raise found
            if (missing := self._missing(self.timeout)) is not None:
                raise PeerError(self._silent(missing))
            time.sleep(pause)
            pause = min(0.1, 2 * pause)
            arrived = self._store.add(key, 0)
        return True

    # --- the thread ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Publish a heartbeat each second, and end this process where its main thread cannot.

        The main thread may hang in a collective, in CUDA or in a file system, where neither a signal nor an exception
        reaches it.
        """
        store = _own_connection(self._store)
        failure: tuple[str, str, float] | None = None  # status, reason, since when
        while not self._stop.wait(BEAT):
            if failure is None:
                failure = self._failure(store)
            elif time.monotonic() > failure[2] + (3 if self._noticed and failure[0] == "failed" else 1) * GRACE:
                self._leave(*failure[:2])
            elif failure[0] == "failed" and self.rank == 0 and time.monotonic() > failure[2] + 2 * BEAT:
                self._report(failure[1])

    def _failure(self, store: Store) -> tuple[str, str, float] | None:
        """The status, the reason and the time if the run cannot continue; None if it can."""
        now = time.monotonic()
        if orphaned():
            log.warning("torchrun, which started this process, is gone: the run is saved and stopped")
            return "stopped", "torchrun, which started this process, is gone", now
        try:
            self._beat(store)
            self._look(store)
            if found := self.first_error(store):
                return "failed", str(found), now
            if (missing := self._missing(self.timeout + GRACE / 2)) is not None:
                text = self._silent(missing)
                self.record(text, None)
                return "failed", text, now
        except RuntimeError as error:
            if not self._stop.is_set():
                return "failed", f"rank 0 or the launcher is gone without a word: {one_line(error)}", now
        return None

    def _report(self, reason: str) -> None:
        """Print another rank's error if the main thread has not done so, since it may hang in a collective."""
        if not self._reported:
            self._reported = True
            text = redact.text(reason)
            if log.handlers:
                log.error("%s", text)
            else:
                print(f"error: {text}", file=sys.stderr, flush=True)
        self.reported()

    def _leave(self, status: str, reason: str) -> None:
        """End the process from this thread, since the main thread hangs and cannot be reached."""
        try:
            if self._ended:
                self._ended(status, reason)
        finally:
            if self.rank == 0 and not self._reported:
                print(f"error: {redact.text(reason)}", file=sys.stderr, flush=True)
            os._exit(129 if status == "stopped" else 1)

    def _state(self) -> dict[str, Any]:
        progress = self._progress
        return {"phase": progress.phase, "epoch": progress.epoch, "step": progress.step, "batch": progress.position}

    def _beat(self, store: Store) -> None:
        self._beats += 1
        store.set(f"beat/{self.rank}", json.dumps({"beat": self._beats, **self._state()}))

    def _look(self, store: Store) -> None:
        """Read the others' heartbeats, and note when each of them last changed."""
        ranks = [rank for rank in range(self.world) if rank != self.rank]
        beats = store.multi_get([f"beat/{rank}" for rank in ranks])
        now = time.monotonic()
        for rank, text in zip(ranks, beats, strict=True):
            state = json.loads(text)
            if rank not in self._seen or self._seen[rank][0]["beat"] != state["beat"]:
                self._seen[rank] = state, now

    def _silent_ranks(self, seconds: float) -> list[int]:
        """The ranks without a heartbeat in the last ``seconds``, in order."""
        now = time.monotonic()
        return [rank for rank, (_, since) in sorted(self._seen.items()) if now > since + seconds]

    def _missing(self, seconds: float) -> int | None:
        """The lowest rank without a heartbeat in the last ``seconds``; None if there is none."""
        return next(iter(self._silent_ranks(seconds)), None)

    def _furthest_behind(self) -> int | None:
        """The rank that is the furthest behind this one, if any: its main thread hangs, but its heartbeat goes on."""
        own = self._state()
        behind = [(_order(state), rank) for rank, (state, _) in self._seen.items() if _order(state) < _order(own)]
        return min(behind)[1] if behind else None

    def _only_unaware(self) -> int | None:
        """The only rank that has not noticed the lost connection, if there is exactly one: if all are at the same step,
        it is the rank that the others waited for."""
        unaware = [rank for rank in range(self.world) if not self._store.check([f"noticed/{rank}"])]
        return unaware[0] if len(unaware) == 1 else None


def is_lost(error: BaseException) -> bool:
    """Whether an error, or one of its causes, means only that another process could not be reached."""
    from torch.distributed import DistError

    seen = set[int]()  # a chain of causes may be circular
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        text = str(cause)
        if isinstance(cause, DistError) or (isinstance(cause, RuntimeError) and ("gloo/" in text or "NCCL" in text)):
            return True
        seen.add(id(cause))
        cause = cause.__cause__
    return False


def _own_connection(store: Store) -> Store:
    """The same store through a separate connection, so that one thread's waiting does not block another thread."""
    connection = store.clone()
    connection.set_timeout(timedelta(seconds=GRACE / 2))
    return connection


def _order(state: dict[str, Any]) -> tuple[int, int, int]:
    return state["epoch"], state["step"], state["batch"]


def _position(state: dict[str, Any]) -> str:
    if not state["epoch"]:
        return str(state["phase"])
    return f"{state['phase']}, epoch {state['epoch']}, step {state['step']}"
