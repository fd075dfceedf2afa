"""Parallel: the processes of a run as one object, which knows how the network is wrapped, when gradients are exchanged,
and what else goes from process to process. With one process its methods do nothing, so that no caller asks first."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from healsg.errors import ConfigError, HealsgError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer


T = TypeVar("T")


class ElsewhereError(HealsgError):
    """Rank 0 met an error and has reported it; the other processes end with its status, in silence."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Parallel:
    """What one process knows of the processes of its run. Their group is joined and left in ``distributed``.

    Each process holds all weights (DistributedDataParallel), or its part of each (FSDP2; see ``training.sharded``).

    Args:
        rank, world: this process's number, from 0, and the number of processes.
        local_rank, local_world: the same on this machine, whose devices the processes share.
        sync_batchnorm: BatchNorm takes its statistics over the batch of all processes.
        shard: each process holds a part of the weights; without effect on one process.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        local_rank: int = 0,
        local_world: int = 1,
        sync_batchnorm: bool = False,
        shard: bool = False,
    ) -> None:
        self.rank = rank
        self.world = world
        self.local_rank = local_rank
        self.local_world = local_world
        self.sync_batchnorm = sync_batchnorm
        self.several = world > 1
        """Whether there are other processes."""
        self.shards = shard and self.several
        """Whether the weights are sharded over them."""

    @classmethod
    def of_launch(cls, sync_batchnorm: bool = False, shard: bool = False) -> Parallel:
        """The processes that a launcher such as torchrun started, from the environment alone."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world <= 1:
            return cls(sync_batchnorm=sync_batchnorm, shard=shard)
        rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        return cls(rank, world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), sync_batchnorm, shard)

    def require_one(self, mistake: str) -> None:
        """Refuse several processes, for what works in one alone. Raises ConfigError with this message."""
        if self.several:
            raise ConfigError(mistake)

    # --- the network and its gradients -------------------------------------------------------------------------------

    def synchronise_norms(self, device: torch.device, *modules: nn.Module) -> None:
        """Let BatchNorm in these modules, in place, take its statistics over all processes, where that is asked for.

        Raises ConfigError for a BatchNorm that computes in a way of its own.
        """
        if self.several and self.sync_batchnorm:
            from healsg.training.collectives import synchronise

            for module in modules:
                synchronise(module, device)

    def wrap(
        self, model: nn.Module, device: torch.device, find_unused_parameters: bool, blocks: Sequence[nn.Module] = ()
    ) -> nn.Module:
        """What a training step calls so that gradients are exchanged; the network itself where none are, or where it is
        sharded.

        Args:
            model: the network, on ``device``.
            find_unused_parameters: whether a step may leave parameters without a gradient.
            blocks: the modules in it that are sharded each by itself.
        """
        if self.shards:
            from healsg.training.sharded import shard

            shard(model, blocks, device, self.world)
            return model
        if not self.several or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        from torch.nn.parallel import DistributedDataParallel

        if any(parameter.dim() > 3 and math.prod(parameter.shape[2:]) == 1 for parameter in model.parameters()):
            # The strides of such a kernel say nothing along axes of one pixel, and those of its gradient, which depend
            # on torch's kernel for the layer, may be others. DDP copies it as any other, and warns all the same.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, devices, find_unused_parameters=find_unused_parameters)

    def forward_context(
        self, net: nn.Module, closes: bool, rows: int, inner: contextlib.AbstractContextManager[Any]
    ) -> contextlib.AbstractContextManager[Any]:
        """What surrounds a forward pass: ``inner``, and what the processes need.

        Args:
            net: what ``wrap`` gave.
            closes: whether the update follows; gradients are exchanged only then.
            rows: this process's own samples; one without any repeats those of another process, which the shared
                statistics of BatchNorm leave out.
            inner: what surrounds the pass in any case.
        """
        if not self.several:
            return inner
        if self.shards:  # FSDP2 asks as the backward pass runs, when a context of the forward pass has ended
            from healsg.training.sharded import synchronise_gradients

            synchronise_gradients(net, closes)
        repeats = self.sync_batchnorm and not rows
        if closes and not repeats:
            return inner
        contexts = [inner]
        if not closes and not self.shards:
            contexts.append(net.no_sync())  # type: ignore[operator]
        if repeats:
            from healsg.training.collectives import repeated_rows

            contexts.append(repeated_rows())
        return _all_of(contexts)

    def align(self, model: nn.Module) -> None:
        """Give every process rank 0's buffers before an evaluation, so that the numbers are those of what is saved."""
        if self.several:
            import torch.distributed as dist

            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    # --- sharded weights ---------------------------------------------------------------------------------------------

    def whole(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A context in which each process holds all weights of a network; all must enter and leave it."""
        if not self.shards:
            return contextlib.nullcontext()
        from healsg.training.sharded import whole

        return whole(model)

    def gathered(self, state: T) -> T:
        """A state dict with whole tensors, at rank 0 alone where they were sharded; all processes must call it."""
        if not self.shards:
            return state
        from healsg.training.sharded import gathered

        made: T = gathered(state, self.rank)
        return made

    def spread(self, model: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
        """Whole weights as ``model`` takes them: as shards, where it is sharded."""
        if not self.shards:
            return weights
        from healsg.training.sharded import spread

        return spread(model.state_dict(), weights)

    def spread_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The same of an optimizer's state."""
        if not self.shards:
            return state
        from healsg.training.sharded import spread_optimizer

        return spread_optimizer(optimizer, state)

    # --- tensors -----------------------------------------------------------------------------------------------------

    def sum(self, value: Tensor) -> Tensor:
        """The sum of each process's ``value``, in place; every process must call it."""
        if self.several:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def largest(self, value: Tensor) -> Tensor:
        """The largest of each process's ``value``, number by number and in place; every process must call it."""
        if self.several:
            import torch.distributed as dist

            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def row_counts(self, rows: int) -> list[int]:
        """How many rows each process has, by rank. The exchange goes over the CPU, so that no device is waited for."""
        if not self.several:
            return [rows]
        import torch

        counts = torch.zeros(self.world, dtype=torch.int64)
        counts[self.rank] = rows
        found: list[int] = self.sum(counts).tolist()
        return found

    def gather_rows(self, own: Tensor, rows: int | None = None) -> Tensor:
        """The rows of all processes, by rank, as one batch; with one process ``own`` as it is.

        The gradient of a process's rows is the sum of what all processes' losses give them. Where every process returns
        the same loss of the whole batch, and its own rows as ``count``, the runner's mean over processes is thus the
        gradient of that loss, as of one process with the joined batch.

        Args:
            own: (n, ...), the rows of this process; n may differ from process to process.
            rows: how many of them count, the first ones; all by default. A process without samples repeats those of
                others and has 0 that count.
        """
        if not self.several:
            return own
        from healsg.training.collectives import gather_rows

        return gather_rows(own, self.row_counts(len(own) if rows is None else rows), self.rank)

    # --- plain values ------------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Each process's small plain value, by rank."""
        if not self.several:
            return [value]
        import torch.distributed as dist

        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value)
        return box

    def share(self, make: Callable[[], T]) -> T:
        """Let rank 0 make a plain value and give it, or the error that came instead, to all."""
        if not self.several:
            return make()
        import torch.distributed as dist

        box: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.rank == 0:
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

    def barrier(self) -> None:
        """Wait for the others."""
        if self.several:
            import torch.distributed as dist

            dist.barrier()


@contextlib.contextmanager
def _all_of(contexts: list[contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Several surroundings as one."""
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
