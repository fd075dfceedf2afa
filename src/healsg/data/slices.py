"""Batches of one stream of tensors: several small ones are prepared at once and then split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from healsg.data.order import Ordering
from healsg.data.source import Batch, TensorSource
from healsg.data.views import Transform, make_views
from healsg.parts import declares

TOGETHER = 1 << 20
"""The most bytes, as float32, of the inputs of small batches that are prepared at once."""

JOINED = 8
"""The most small batches that an evaluation joins into one."""

ALIGNED = 64
"""The alignment in bytes of each tensor that torch allocates on the CPU."""


def is_by_sample(views: Mapping[str, Transform | None]) -> bool:
    """Whether every transform declares that a sample's result does not depend on the others of its batch."""
    return all(declares(transform, "per_sample") for transform in views.values() if transform)


def sliced(ordering: Ordering, epoch: int, start: int, joined: bool) -> Iterator[tuple[Batch, int]]:
    """The batches of the only stream of ``ordering`` from position ``start``, each with its number of rows.

    Batches of up to ``TOGETHER`` bytes are prepared at once. The result is the same as for each of them separately,
    because transforms handle each sample independently (``is_by_sample``).

    Args:
        ordering: of one stream in memory.
        epoch, start: the epoch, and the position of the first batch.
        joined: whether up to ``JOINED`` batches are joined into one, as in an evaluation by a single process.
    """
    order = ordering.of(epoch)
    ((stream, source),) = ordering.sources.items()
    assert isinstance(source, TensorSource)
    each = 4 * source.input[0].numel() * ordering.sizes[stream] // ordering.sharding.world
    positions = [position for position in range(start, len(ordering)) if ordering.is_own(position)]
    count = max(1, min(TOGETHER // max(1, each), JOINED if joined else len(ordering)))
    for first in range(0, len(positions), count):
        shards = [order.shards[stream][position] for position in positions[first : first + count]]
        low, high = shards[0][0], shards[-1][1]
        if ordering.sharding.world == 1:
            raw = source.fetch(order.orders[stream][low:high])
            draws = order.view_draws(stream, low, high)
        else:  # the shards are not contiguous: samples of other processes are in between
            index = torch.cat([torch.arange(begin, stop, device=source.input.device) for begin, stop, _ in shards])
            raw = source.fetch(order.orders[stream][index])
            draws = order.view_draws(stream, low, high, index)
        views = make_views(ordering.views[stream], raw, draws)
        sizes = [high - low] if joined else [stop - begin for begin, stop, _ in shards]
        counted = sizes if joined else [rows for _, _, rows in shards]
        for rows, *values in zip(counted, *(_split(value, sizes) for value in views.values()), strict=True):
            yield dict(zip(views, values, strict=True)), rows


def _split(value: Any, rows: list[int]) -> Iterator[Any]:
    """Split a batch's tensor or list into pieces with these numbers of rows.

    A piece of a tensor is copied if its address is not aligned as that of a newly allocated tensor: the order of
    summation in the CPU's matrix products depends on the alignment, so that the bits of a result would depend on the
    samples before the batch, i.e. on the position of a resume or on whether samples are held in memory.
    """
    if isinstance(value, Tensor) and value.is_cpu:
        for piece in torch.split(value, rows):
            yield piece.clone() if piece.data_ptr() % ALIGNED else piece
    elif isinstance(value, Tensor):
        yield from torch.split(value, rows)
    else:
        end = 0
        for size in rows:
            yield value[end : end + size]
            end += size
