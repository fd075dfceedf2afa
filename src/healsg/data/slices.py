"""Batches of one stream of tensors: several small ones are prepared at once, and cut apart."""

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
"""Bytes, as float32, of the inputs of several small batches that are prepared at once."""

JOINED = 8
"""The most small batches that an evaluation takes as one."""

ALIGNED = 64
"""Bytes: torch's allocator gives each tensor on the CPU an address that is a multiple of this."""


def is_by_sample(views: Mapping[str, Transform | None]) -> bool:
    """Whether each transform declares that it changes a sample by itself, whatever the others of its batch are."""
    return all(declares(transform, "per_sample") for transform in views.values() if transform)


def sliced(ordering: Ordering, epoch: int, start: int, joined: bool) -> Iterator[tuple[Batch, int]]:
    """The batches of the one stream of ``ordering`` from position ``start``, each with its rows.

    As many as lie within ``TOGETHER`` are prepared at once, with the same numbers as each by itself, since transforms
    change each sample by itself (``is_by_sample``).

    Args:
        ordering: of one stream in memory.
        epoch, start: where to begin.
        joined: whether up to ``JOINED`` batches stay one, as an evaluation of one process may take them.
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
        else:  # other processes' samples lie between
            places = torch.cat([torch.arange(begin, stop, device=source.input.device) for begin, stop, _ in shards])
            raw = source.fetch(order.orders[stream][places])
            draws = order.view_draws(stream, low, high, places)
        made = make_views(ordering.views[stream], raw, draws)
        sizes = [high - low] if joined else [stop - begin for begin, stop, _ in shards]
        counted = sizes if joined else [rows for _, _, rows in shards]
        for rows, *values in zip(counted, *(_split(value, sizes) for value in made.values()), strict=True):
            yield dict(zip(made, values, strict=True)), rows


def _split(value: Any, rows: list[int]) -> Iterator[Any]:
    """Pieces of a batch's tensor or list, of so many rows each.

    A piece of a tensor is copied where it does not begin at an address at which tensors of its own do: kernels of
    matrix products on the CPU go by the address in how they add up, so that the numbers of a batch would depend on what
    lies before it: on where a resumed run began, or on whether samples are held in memory.
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
