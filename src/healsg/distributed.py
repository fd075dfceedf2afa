"""Several processes, as torchrun starts them: their process group from its beginning to its end. What is exchanged
through it stands in ``training.parallel``. With one process all of it is free."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING

from healsg.errors import HealsgError, Stopped
from healsg.peers import Ended, PeerError, Peers, orphaned
from healsg.runs import redact
from healsg.training.parallel import ElsewhereError, Parallel
from healsg.training.progress import Progress

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

TIMEOUT = 300.0
"""Seconds that a process waits for another one in a collective, before ``runner.timeout`` is known: its default."""

TOGETHER = 6.0
"""Seconds within which all processes meet an error that is the same in all of them."""


@cache
def processes() -> Parallel:
    """The processes of this launch, for what has no runner at hand; the environment is read once."""
    return Parallel.of_launch()


class Group:
    """The default process group, and what its processes know of each other.

    Args:
        store: of the launch.
        number: of the groups before this one in this process, the same in all processes.
        timeout: seconds that a process waits for another one in a collective.
    """

    def __init__(self, store: Store, number: int, timeout: float) -> None:
        import torch
        import torch.distributed as dist

        # Ten functions in here have the default group of the moment of their import as the default of an argument.
        # DistributedDataParallel imports them too; after init_process_group they would hold the group for ever. Then
        # destroying it would not end gloo's threads, and one that gives back its last tensor while the interpreter
        # ends aborts the process ("terminate called without an active exception").
        import torch.distributed.nn.functional
        from torch.distributed.distributed_c10d import PrefixStore

        self.store = store
        self.timeout = timeout
        self.failed = False
        self.parted = False  # by another process's error, so that no collective can be expected to work
        own = PrefixStore(f"healsg/{number}", store)
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        own_rank, world = processes().rank, processes().world
        self.peers = Peers(own, own_rank, world, timeout, hosted)
        self.peers.gather()  # those that are late would have no more than the timeout of gloo
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("group", own),
            rank=own_rank,
            world_size=world,
            timeout=timedelta(seconds=timeout),
        )
        self.peers.start()

    def fail(self, parted: bool = False) -> None:
        """An error has left this process without the others; ``parted`` where it came from another process."""
        self.failed = True
        self.parted = self.parted or parted

    def close(self, met: bool = False) -> None:
        """Leave the group, all processes together; ``met`` where they have just found each other."""
        import torch.distributed as dist

        if not met and not orphaned():  # else the store is gone too
            self.peers.meet()
        dist.barrier()  # none reads the store any more, which rank 0 may hold
        self.peers.stop()
        gc.collect()  # a network under DistributedDataParallel holds the group, and often lies in a cycle
        dist.destroy_process_group()


_group: Group | None = None
_groups = 0


def connect(timeout: float | None = None) -> None:
    """Join the others: gloo for tensors on the CPU, nccl for those on a GPU. Every process must call it.

    Args:
        timeout: seconds to wait for another process in a collective; None is what there is, or ``TIMEOUT``.
    """
    global _group, _groups
    if not processes().several or (_group and timeout in (None, _group.timeout)):
        return
    if _group:
        store = _group.store
        _group.close()
    else:
        store = _join()
    _groups += 1
    _group = Group(store, _groups, timeout or TIMEOUT)


def _join() -> Store:
    """The store of the launch, which the launcher keeps or else rank 0."""
    from torch.distributed.rendezvous import rendezvous

    atexit.unregister(close)
    atexit.register(close)  # for programs of the user's own; the commands close by themselves
    joined: tuple[Store, int, int] = next(rendezvous("env://", timeout=timedelta(seconds=TIMEOUT)))
    return joined[0]


def close(status: int = 1) -> None:
    """Leave the process group at the end of a program; after an error this ends the process with ``status``.

    After an error collectives may be under way that never end. The group's destructor waits for them, and so would the
    end of the interpreter. So all that was written is flushed, and the process is ended without destructors.
    """
    global _group
    if _group is None:
        return
    group, _group = _group, None
    if not group.failed:
        try:
            with first_cause(group=group):
                group.close()
            return
        except (HealsgError, RuntimeError) as error:
            status = status or 1
            if group.peers.reports():
                print(f"error: {redact.text(str(error))}", file=sys.stderr)
    group.peers.reported()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # it may be closed
            stream.flush()
    os._exit(status)


class Command:
    """Surrounds a command: its processes leave together, or after an error each ends with the command's status."""

    def __init__(self) -> None:
        self.status = 1

    def __enter__(self) -> Command:
        return self

    def ends(self, status: int) -> int:
        """The command ends with this exit status, which is returned."""
        self.status = status
        return status

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close(self.status)


@contextlib.contextmanager
def first_cause(
    progress: Progress | None = None, ended: Ended | None = None, group: Group | None = None
) -> Iterator[None]:
    """Surrounds what the processes do together. An error in here is shown to the others; an error that only follows
    from another process's, such as a closed connection, is replaced by that one.

    Args:
        progress: where this process is, which messages name.
        ended: called with status and reason where the run must be left while the main thread hangs.
        group: the group to look at; the one that is connected where it is None.

    Raises:
        PeerError: another process met an error, is gone, or does not answer.
    """
    if progress is not None and _group:
        _group.peers.follow(progress, ended)
    try:
        yield
    except (Stopped, PeerError, ElsewhereError) as error:
        if (group := group or _group) and not isinstance(error, Stopped):
            group.fail(parted=isinstance(error, PeerError))
        raise
    except BaseException as error:
        if (group := group or _group) is None:
            raise
        group.fail()
        if not isinstance(error, (Exception, SystemExit)):
            raise
        cause = group.peers.cause_of(error)
        if cause is error:
            raise
        group.fail(parted=True)
        raise cause from error


def connected() -> bool:
    """Whether this process has joined the others."""
    return _group is not None


def reports() -> bool:
    """Whether this process is the one that reports the error which ends the command."""
    return _group.peers.reports() if _group else True


def reported() -> None:
    """The error has been reported: the other processes need not wait any longer."""
    if _group:
        _group.peers.reported()


def failed() -> bool:
    """Whether an error has left this process without the others."""
    return _group is not None and _group.failed


def recovered() -> bool:
    """After an error: whether all processes have met one, so that they could begin anew together.

    Where one failed alone, the others still wait for it in a collective, which only the end of its process ends.
    """
    global _group, _groups
    if not processes().several:
        return True
    if _group is None or _group.parted or not _group.peers.all_failed(TOGETHER):
        return False
    store = _group.store
    timeout = _group.timeout
    _group.close(met=True)
    _groups += 1
    _group = Group(store, _groups, timeout)
    return True


def meet() -> None:
    """Wait for the others, for as long as they live; every process must call it. Raises PeerError.

    For what may take one process longer than ``runner.timeout``: reading, caching or downloading data.
    """
    if _group:
        _group.peers.meet()
