"""Embeddings of all processes as one batch, with gradient, for losses over a whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from healsg import distributed


def row_counts(rows: int) -> list[int]:
    """How many rows each process has, by rank. The exchange goes over the CPU, so that nothing waits for a device."""
    if not distributed.launched():
        return [rows]
    counts = torch.zeros(distributed.world(), dtype=torch.int64)
    counts[distributed.rank()] = rows
    found: list[int] = distributed.sum_tensor(counts).tolist()
    return found


def gather(own: Tensor, rows: int | None = None) -> Tensor:
    """The rows of all processes, by rank, as one batch; with one process ``own`` as it is.

    The gradient of a process's rows is the sum of what all processes' losses give them. Where every process returns the
    same loss of the whole batch, and its own rows as ``count``, the runner's mean over processes is thus the gradient
    of that loss, as of one process with the joined batch.

    Args:
        own: (n, ...), the rows of this process; n may differ from process to process.
        rows: how many of them count, the first ones; all by default. A process without samples repeats those of others
            and has 0 that count.
    """
    if not distributed.launched():
        return own
    counts = row_counts(len(own) if rows is None else rows)
    gathered: Tensor = _Gather.apply(own, counts)
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather of the first ``counts[rank]`` rows; backwards the sum over processes of the gradients of these."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int]) -> Tensor:
        ctx.counts, ctx.rows, ctx.rank = counts, len(own), distributed.rank()
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: counts[ctx.rank]] = own[: counts[ctx.rank]]
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = distributed.sum_tensor(gradients[0].contiguous().clone())
        start, count = sum(ctx.counts[: ctx.rank]), ctx.counts[ctx.rank]
        own = total.new_zeros(ctx.rows, *total.shape[1:])
        own[:count] = total[start : start + count]
        return own, None
