"""Parallel: the communication between the processes of a run. It wraps the network, decides when gradients are
synchronised, and provides collective operations. With a single process its methods do nothing, so that callers need no
case distinction."""

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
    """Raised on the other ranks after an error on rank 0, which reports it; they exit with its status, without a
    message."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Parallel:
    """The processes of a run, as seen by one of them. ``distributed`` creates and destroys the process group.

    Each process holds all weights (DistributedDataParallel), or a shard of each (FSDP2; see ``training.sharded``).

    Args:
        rank, world: this process's rank, and the number of processes.
        local_rank, local_world: the same among the processes on this machine, which share its devices.
        sync_batchnorm: compute BatchNorm's statistics over the batch of all processes.
        shard: shard the weights over the processes; no effect with one process.
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
        """The processes that a launcher such as torchrun started, according to the environment variables."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world <= 1:
            return cls(sync_batchnorm=sync_batchnorm, shard=shard)
        rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        return cls(rank, world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), sync_batchnorm, shard)

    def require_single_process(self, message: str) -> None:
        """Raise ConfigError with ``message`` if there are several processes."""
        if self.several:
            raise ConfigError(message)

    # --- the network and its gradients -------------------------------------------------------------------------------

    def synchronise_norms(self, device: torch.device, *modules: nn.Module) -> None:
        """With ``sync_batchnorm``, make BatchNorm in these modules compute its statistics over all processes, in place.

        Raises ConfigError for a subclass of BatchNorm that overrides ``forward``.
        """
        if self.several and self.sync_batchnorm:
            from healsg.training.collectives import synchronise

            for module in modules:
                synchronise(module, device)

    def wrap(
        self, model: nn.Module, device: torch.device, find_unused_parameters: bool, blocks: Sequence[nn.Module] = ()
    ) -> nn.Module:
        """The module that a training step calls, so that gradients are synchronised: a DistributedDataParallel, or the
        network itself if there is nothing to synchronise or it is sharded.

        Args:
            model: the network, on ``device``.
            find_unused_parameters: whether a step may leave parameters without a gradient.
            blocks: its modules that are sharded one by one.
        """
        if self.shards:
            from healsg.training.sharded import shard

            shard(model, blocks, device, self.world)
            return model
        if not self.several or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        from torch.nn.parallel import DistributedDataParallel

        if any(parameter.dim() > 3 and math.prod(parameter.shape[2:]) == 1 for parameter in model.parameters()):
            # Strides along axes of size 1 are arbitrary, so a 1x1 kernel and its gradient may have different strides.
            # DDP copies the gradient correctly in any case, but warns.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, devices, find_unused_parameters=find_unused_parameters)

    def forward_context(
        self, net: nn.Module, closes: bool, rows: int, inner: contextlib.AbstractContextManager[Any]
    ) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass: ``inner``, and what several processes need in addition.

        Args:
            net: the module that ``wrap`` returned.
            closes: whether this is the last micro-batch of an update; gradients are synchronised only then.
            rows: the samples of this process. If it has none, it runs on copies of another process's samples, which
                are left out of the synchronised statistics of BatchNorm.
            inner: the context with a single process, such as autocast.
        """
        if not self.several:
            return inner
        if self.shards:  # a setting and not a context: FSDP2 reads it in the backward pass, after the context has ended
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
        return _nested(contexts)

    def align(self, model: nn.Module) -> None:
        """Broadcast rank 0's buffers before an evaluation, so that the saved state is evaluated."""
        if self.several:
            import torch.distributed as dist

            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    # --- sharded weights ---------------------------------------------------------------------------------------------

    def unsharded(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A context in which every process holds all weights of a network; all processes must enter and leave it."""
        if not self.shards:
            return contextlib.nullcontext()
        from healsg.training.sharded import unsharded

        return unsharded(model)

    def gathered(self, state: T) -> T:
        """A state dict with full tensors, on rank 0 only if it is sharded; all processes must call it."""
        if not self.shards:
            return state
        from healsg.training.sharded import gathered

        result: T = gathered(state, self.rank)
        return result

    def shard_state(self, model: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
        """A state dict of full tensors in the form that ``model`` loads: sharded, if the model is."""
        if not self.shards:
            return weights
        from healsg.training.sharded import shard_state

        return shard_state(model.state_dict(), weights)

    def shard_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The same for an optimizer's state."""
        if not self.shards:
            return state
        from healsg.training.sharded import shard_optimizer_state

        return shard_optimizer_state(optimizer, state)

    # --- tensors -----------------------------------------------------------------------------------------------------

    def sum(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over all processes, in place; all processes must call it."""
        if self.several:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def largest(self, value: Tensor) -> Tensor:
        """The elementwise maximum of ``value`` over all processes, in place; all processes must call it."""
        if self.several:
            import torch.distributed as dist

            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def row_counts(self, rows: int) -> list[int]:
        """The number of rows of each process, by rank. It is exchanged on the CPU, so that no device is
        synchronised."""
        if not self.several:
            return [rows]
        import torch

        counts = torch.zeros(self.world, dtype=torch.int64)
        counts[self.rank] = rows
        found: list[int] = self.sum(counts).tolist()
        return found

    def gather_rows(self, local: Tensor, rows: int | None = None) -> Tensor:
        """The rows of all processes, by rank, as one batch (all-gather); with one process, ``local``.

        The gradient of a process's rows is the sum of the gradients of all processes' losses. If every process returns
        the same loss of the global batch, with its own number of rows as weight, the runner's mean over processes is
        therefore the gradient of that loss, as in one process with the global batch.

        Args:
            local: (n, ...), the rows of this process; n may differ from process to process.
            rows: how many of them are used, from the first on; all by default. A process without samples of its own has
                copies of another process's, of which none is used.
        """
        if not self.several:
            return local
        from healsg.training.collectives import gather_rows

        return gather_rows(local, self.row_counts(len(local) if rows is None else rows), self.rank)

    # --- values ------------------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank; for small picklable values."""
        if not self.several:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def run_on_rank_zero(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 and return its result on all ranks; small and picklable. If it fails, rank 0 raises
        its error and the others ElsewhereError."""
        if not self.several:
            return function()
        import torch.distributed as dist

        message: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.rank == 0:
            try:
                message[0] = function()
            except BaseException as error:
                failure = error
                message[1] = (str(error), getattr(error, "status", 1))
        dist.broadcast_object_list(message, src=0)
        if failure is not None:
            raise failure
        if message[1] is not None:
            raise ElsewhereError(*message[1])
        value: T = message[0]
        return value

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.several:
            import torch.distributed as dist

            dist.barrier()


@contextlib.contextmanager
def _nested(contexts: list[contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Several contexts as one."""
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
