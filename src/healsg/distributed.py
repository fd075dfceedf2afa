"""Several processes, as torchrun starts them: who am I, tell all, add over all. With one process all of it is free."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from healsg.errors import HealsgError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@cache
def world() -> int:
    """The number of processes that a launcher started, from the environment alone; it never changes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@cache
def launched() -> bool:
    """Whether this process is one of several."""
    return world() > 1


@cache
def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0")) if launched() else 0


@cache
def local_rank() -> int:
    """This process's number on its machine: which of its devices it uses."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def connect() -> None:
    """Join the others: gloo for tensors on the CPU, nccl for those on a GPU."""
    if not launched():
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


class ElsewhereError(HealsgError):
    """Rank 0 met an error and has reported it; the other processes end with its status, in silence."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def share(make: Callable[[], T]) -> T:
    """Let rank 0 make a plain value and give it, or the error that came instead, to all."""
    if not launched():
        return make()
    import torch.distributed as dist

    box: list[Any] = [None, None]
    failure: BaseException | None = None
    if rank() == 0:
        try:
            box[0] = make()
        except BaseException as error:
            failure = error
            box[1] = (str(error), getattr(error, "status", 1))
    dist.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise ElsewhereError(*box[1])
    value: T = box[0]
    return value


def sum_tensor(value: Tensor) -> Tensor:
    """The sum of each process's ``value``; every process must call it."""
    if launched():
        import torch.distributed as dist

        dist.all_reduce(value)
    return value


def gather(value: T) -> list[T]:
    """Each process's small plain value, by rank."""
    if not launched():
        return [value]
    import torch.distributed as dist

    box: list[Any] = [None] * world()
    dist.all_gather_object(box, value)
    return box


def barrier() -> None:
    """Wait for the others."""
    if launched():
        import torch.distributed as dist

        dist.barrier()
