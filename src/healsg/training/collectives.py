"""Collectives that gradients flow through: gathering the rows of a batch, and BatchNorm's statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.errors import ConfigError

# --- rows ------------------------------------------------------------------------------------------------------------


def gather_rows(local: Tensor, counts: list[int], rank: int) -> Tensor:
    """The first ``counts[rank]`` rows of every process, by rank, as one batch; see ``Parallel.gather_rows``."""
    gathered: Tensor = _GatherRows.apply(local, counts, rank)
    return gathered


class _GatherRows(torch.autograd.Function):
    """All-gather of rows. The gradient of a process's own rows is the sum of their gradients over all processes."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts = counts
        ctx.rows = len(local)
        ctx.rank = rank
        padded = local.new_zeros(max(counts), *local.shape[1:])
        padded[: counts[rank]] = local[: counts[rank]]
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        start, count = sum(ctx.counts[: ctx.rank]), ctx.counts[ctx.rank]
        local = total.new_zeros(ctx.rows, *total.shape[1:])
        local[:count] = total[start : start + count]
        return local, None, None


# --- BatchNorm -------------------------------------------------------------------------------------------------------

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_repeated: ContextVar[bool] = ContextVar("repeated", default=False)


@contextlib.contextmanager
def repeated_rows() -> Iterator[None]:
    """A context for a forward pass on copies of another process's rows, which BatchNorm's statistics leave out."""
    token = _repeated.set(True)
    try:
        yield
    finally:
        _repeated.reset(token)


class GPUBatchNorm(nn.SyncBatchNorm):
    """torch's BatchNorm over the batch of all processes, for GPUs."""

    process_group = None


class CPUBatchNorm(nn.BatchNorm1d):
    """The same for CPUs, where torch has none, and for inputs of any number of dimensions. Mean and variance are
    computed with one all-reduce each, so that they equal those of a single process to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            running = self.running_mean, self.running_var
            return F.batch_norm(input, *running, self.weight, self.bias, running[0] is None, 0.0, self.eps)
        axes = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        counts = 0.0 if _repeated.get() else 1.0  # whether this process's rows enter the statistics
        rows = values.new_full((1,), counts * (input.numel() // input.shape[1]))
        sums = _sum_over_processes(torch.cat([counts * values.sum(axes), rows]))
        count = sums[-1]
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        squares = _sum_over_processes(counts * centred.square().sum(axes))
        output = centred * (squares / count + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        if self.track_running_stats:
            self._follow(mean.detach(), squares.detach() / (count - 1).clamp(min=1))
        return output.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's mean and unbiased variance, as ``nn.BatchNorm2d`` does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of the gradients over processes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(value: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(value)
    return total


SYNCED = (GPUBatchNorm, CPUBatchNorm)


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm in a module compute its statistics over all processes. The modules are changed in place, so
    that references to them stay valid.

    Args:
        device: where the module runs.

    Raises:
        ConfigError: a subclass of BatchNorm overrides ``forward``.
    """
    for part in module.modules():
        if not isinstance(part, BATCH_NORMS) or isinstance(part, SYNCED):
            continue
        if type(part).forward is not nn.BatchNorm1d.forward:
            name = type(part).__name__
            raise ConfigError(f"runner.sync_batchnorm: {name} has a forward of its own; set it to false")
        # torch's lazy modules change their class in the same way: parameters, buffers and hooks are kept.
        part.__class__ = CPUBatchNorm if device.type == "cpu" else GPUBatchNorm  # type: ignore[assignment]
