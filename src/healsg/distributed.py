"""The process group of a launch by torchrun: joining it, leaving it, and what happens to it after an error.

The collectives themselves are in ``training.parallel``. With a single process nothing here does anything.
"""

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
"""Seconds that a process waits for another one in a collective, until the configuration with ``runner.timeout``, whose
default this is, is known."""

TOGETHER = 6.0
"""Seconds within which an error that occurs in every process has occurred in all of them."""


@cache
def processes() -> Parallel:
    """The processes of this launch, for code that has no runner; the environment is read once."""
    return Parallel.of_launch()


class Group:
    """torch's default process group together with its failure detection (``Peers``).

    Args:
        store: the key-value store of the launch.
        number: how many groups this process has joined, with this one; the same in all processes.
        timeout: seconds that a process waits for another one in a collective.
    """

    def __init__(self, store: Store, number: int, timeout: float) -> None:
        import torch
        import torch.distributed as dist

        # Imported before init_process_group on purpose: ten functions of this module have the default group, as it is
        # at import, as the default of an argument. DistributedDataParallel imports the module too. Imported later, they
        # would keep the group alive forever; destroying it would not end gloo's threads, and a thread that frees its
        # last tensor while the interpreter exits aborts the process ("terminate called without an active exception").
        import torch.distributed.nn.functional
        from torch.distributed.distributed_c10d import PrefixStore

        self.store = store
        self.timeout = timeout
        self.failed = False
        self.parted = False  # failed because of another process's error, so that collectives cannot be expected to work
        group_store = PrefixStore(f"healsg/{number}", store)
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        own_rank, world = processes().rank, processes().world
        self.peers = Peers(group_store, own_rank, world, timeout, hosted)
        self.peers.gather()  # otherwise gloo's timeout would apply to a process that starts late
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("group", group_store),
            rank=own_rank,
            world_size=world,
            timeout=timedelta(seconds=timeout),
        )
        self.peers.start()

    def fail(self, parted: bool = False) -> None:
        """Mark the group as unusable after an error; ``parted`` if the error is another process's."""
        self.failed = True
        self.parted = self.parted or parted

    def close(self, met: bool = False) -> None:
        """Leave the group, all processes together; ``met`` if they have just passed a barrier."""
        import torch.distributed as dist

        if not met and not orphaned():  # without torchrun the store is gone too
            self.peers.meet()
        dist.barrier()  # after it no process reads the store any more, which may be part of rank 0
        self.peers.stop()
        gc.collect()  # a DistributedDataParallel wrapper holds the group, and is often part of a reference cycle
        dist.destroy_process_group()


_group: Group | None = None
_groups = 0


def connect(timeout: float | None = None) -> None:
    """Join the process group: gloo for tensors on the CPU, nccl for those on a GPU. Every process must call it.

    Args:
        timeout: seconds to wait for another process in a collective; None keeps that of the current group or, where
            there is none, is ``TIMEOUT``.
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
    """The key-value store of the launch, which the launcher or else rank 0 hosts."""
    from torch.distributed.rendezvous import rendezvous

    atexit.unregister(close)
    atexit.register(close)  # for users' programs; the commands of HEALSg call it themselves
    joined: tuple[Store, int, int] = next(rendezvous("env://", timeout=timedelta(seconds=TIMEOUT)))
    return joined[0]


def close(status: int = 1) -> None:
    """Leave the process group at the end of a program; after an error this ends the process with ``status``.

    After an error, collectives may be pending that never complete. The group's destructor waits for them, and so would
    the exit of the interpreter. Therefore the output is flushed and the process ended without destructors.
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
    group.peers.leave()
    os._exit(status)


class Command:
    """A context around a command: its processes leave the group together, or after an error end with its status."""

    def __init__(self) -> None:
        self.status = 1

    def __enter__(self) -> Command:
        return self

    def ends(self, status: int) -> int:
        """Set the exit status of the command and return it."""
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
    """A context around the joint work of the processes, after which all of them raise the first error.

    An error in here is published to the other processes. An error that is only a consequence of another process's, such
    as a closed connection, is replaced by that one.

    Args:
        progress: the position of this process, which messages name.
        ended: called with status and reason where the process must be ended while its main thread hangs.
        group: the group; None is the current one.

    Raises:
        PeerError: another process failed, died, or does not answer.
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
    """Whether this process has joined a process group."""
    return _group is not None


def reports() -> bool:
    """Whether this process is the one that prints the error which ends the command."""
    return _group.peers.reports() if _group else True


def reported() -> None:
    """Publish that the error has been printed, so that the other processes need not wait any longer."""
    if _group:
        _group.peers.reported()


def failed() -> bool:
    """Whether the group cannot be used any more because of an error."""
    return _group is not None and _group.failed


def recovered() -> bool:
    """After an error: whether it occurred in all processes, in which case they have joined a new group.

    If one process failed alone, the others wait for it in a collective, which ends only when its process does.
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
    """Wait for all other processes as long as they are alive; every process must call it. Raises PeerError.

    This barrier is for work that may take one process longer than ``runner.timeout``, such as downloading data.
    """
    if _group:
        _group.peers.meet()
