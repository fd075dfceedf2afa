"""The order of an epoch: the samples of each batch, this process's shard of them, and their random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from healsg.data.sharding import Sharding
from healsg.data.source import Source, TensorSource
from healsg.data.views import Draws, Transform
from healsg.errors import DataError
from healsg.seeding import Draw, generator, mix
from healsg.training.step import Samples


@dataclass(frozen=True)
class EpochOrder:
    """The samples of one epoch: a pure function of the seed, the epoch and the sharding.

    Args:
        epoch: from 0.
        foreign_state: the seed of the global generators, which transforms of other libraries use.
        orders: by stream, (N,) int64 or int32, the indices of its samples in their order.
        shards: by stream and position, this process's shard of a batch: where it starts and stops in the order, and how
            many of these rows count (``Sharding.shard``).
        draws: by stream and view, the random numbers of the samples; None for a view without randomness.
        sample_draws: by stream, the random numbers for reading its samples, such as the position of a patch.
        in_memory: whether the samples are tensors; random numbers are then drawn for a whole epoch at once and kept.
    """

    epoch: int
    foreign_state: int
    orders: dict[str, Tensor]
    shards: dict[str, list[tuple[int, int, int]]]
    draws: dict[str, dict[str, Draw | None]]
    sample_draws: dict[str, Draw]
    in_memory: bool

    def view_draws(self, stream: str, start: int, stop: int, readable: Tensor | None = None) -> Draws:
        """The draws of a range of a stream's order, by view.

        Args:
            stream: its name.
            start, stop: the range.
            readable: (n,) the positions in the order of the samples that could be read; None for all.
        """
        drawn: dict[str, Draw | None] = {}
        for view, draw in self.draws[stream].items():
            if draw is None:
                drawn[view] = None
            elif readable is not None:
                drawn[view] = draw.of(readable)
            elif self.in_memory:
                drawn[view] = draw.part(start, stop)
            else:
                drawn[view] = draw.copied(start, stop)
        return drawn


class Ordering:
    """The orders of all epochs of a loader.

    Args:
        sources: the samples of each stream.
        views: by stream, the transform of each view.
        sizes: by stream, the samples of a batch over all processes.
        sharding: this process's shard of a batch, and how batches form updates.
        shuffle: whether to use a new order in each epoch, and random transforms.
        drop_last: whether to drop the samples that do not fill a whole update.
        spatial_targets: whether targets are spatial, so that all views of a sample share one geometric draw.
        takes_turns: whether processes take whole batches in turn, instead of a shard of each batch.
        compact: whether to keep orders in 32 bits where they suffice. An epoch's order is the largest object of a
            worker; in the run's own process it is kept in the type in which batches have it.

    Raises:
        DataError: the samples do not make one batch.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        views: Mapping[str, Mapping[str, Transform | None]],
        sizes: Mapping[str, int],
        sharding: Sharding,
        *,
        shuffle: bool,
        drop_last: bool,
        spatial_targets: bool,
        takes_turns: bool,
        compact: bool = False,
    ) -> None:
        for stream, source in sources.items():
            if not len(source):
                raise DataError(f"data: a split has no {stream} samples")
        self.sources = sources
        self.views = views
        self.sizes = sizes
        self.sharding = sharding
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.spatial_targets = spatial_targets
        self.takes_turns = takes_turns
        self.compact = compact
        self.in_memory = all(isinstance(source, TensorSource) for source in sources.values())
        self.longest = max(sources, key=lambda stream: len(sources[stream]) / sizes[stream])
        """The stream with the most batches, which determines the length of an epoch."""
        self.bounds = self._bounds()
        """The start and stop of each batch, over all processes, in the longest stream's order."""
        self._order: EpochOrder | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.bounds)

    def is_own(self, position: int) -> bool:
        """Whether this process has samples of the batch at ``position``."""
        return not self.takes_turns or position % self.sharding.world == self.sharding.rank

    def of(self, epoch: int) -> EpochOrder:
        """The order of ``epoch``, which is kept until another epoch is requested."""
        if self._order is None or self._order.epoch != epoch:
            self._order = None  # freed first, so that a worker never holds two orders in memory
            self._order = self._make(epoch)
        return self._order

    def span(self, stream: str, position: int) -> tuple[int, int]:
        """The start and stop of a stream's batch, over all processes, in an epoch's order."""
        if stream == self.longest:
            return self.bounds[position]
        # In proportion, so that a partial last batch is equally small for each stream, however it is split.
        start, stop = (-(-bound * self.sizes[stream] // self.sizes[self.longest]) for bound in self.bounds[position])
        return start, stop

    def samples(self, stream: str, position: int, rows: int | None, skipping: bool) -> Samples:
        """The samples of a stream that this process has at ``position``. If unreadable samples are skipped, ``rows`` is
        the number that it could read, and the numbers of other processes are not known."""
        (start, stop), sharding = self.span(stream, position), self.sharding
        low, _, ours = sharding.shard(start, stop)
        if skipping:
            readable = min(rows if rows is not None else ours, ours)
            return Samples(readable, low - start, *([readable, None] if sharding.world == 1 else [None, None]))
        update = stop - start
        if sharding.accumulate > 1:
            first = position - position % sharding.accumulate
            last = min(first + sharding.accumulate, len(self)) - 1
            update = self.span(stream, last)[1] - self.span(stream, first)[0]
        return Samples(ours, low - start, stop - start, update)

    def _make(self, epoch: int) -> EpochOrder:
        seed = self.sharding.seed
        orders = {}
        shards = {}
        draws: dict[str, dict[str, Draw | None]] = {}
        sample_draws = {}
        for stream, source in self.sources.items():
            spans = self.bounds
            if stream != self.longest:
                spans = [self.span(stream, position) for position in range(len(self))]
            needed = spans[-1][1]
            size = len(source)
            passes = -(-needed // size)
            small = self.compact and not self.in_memory and passes * size < 1 << 31
            occurrences = self._occurrences(size, passes, torch.int32 if small else torch.int64, (seed, stream, epoch))
            if isinstance(source, TensorSource):
                occurrences = occurrences.to(source.input.device)
            orders[stream] = occurrences if passes == 1 else occurrences % size
            if self.takes_turns:
                shards[stream] = [(start, stop, stop - start) for start, stop in spans]
            else:
                shards[stream] = [self.sharding.shard(*span) for span in spans]
            shared = _draw(mix(seed, stream, "all views"), occurrences, epoch) if self.spatial_targets else None
            draws[stream] = {}
            for view, transform in self.views[stream].items():
                is_random = bool(transform) and self.shuffle
                draws[stream][view] = _draw(mix(seed, stream, view), occurrences, epoch, shared) if is_random else None
            sample_draws[stream] = _draw(mix(seed, stream, "as it is read"), occurrences, epoch)
        return EpochOrder(epoch, mix(seed, "samples", epoch), orders, shards, draws, sample_draws, self.in_memory)

    def _occurrences(self, size: int, passes: int, dtype: torch.dtype, key: tuple[int | str, ...]) -> Tensor:
        """(passes * size,) the shuffled samples of an epoch, each as its index plus ``size`` times the pass.

        A sample that is repeated within an epoch thus has another number, and other random draws.
        """
        if not self.shuffle:
            return torch.arange(passes * size, dtype=dtype)
        permutations = [
            torch.randperm(size, generator=generator(*key, number), dtype=dtype) for number in range(passes)
        ]
        for number, permutation in enumerate(permutations):
            permutation += number * size
        return permutations[0] if passes == 1 else torch.cat(permutations)

    def _bounds(self) -> list[tuple[int, int]]:
        samples = len(self.sources[self.longest])
        size = self.sizes[self.longest]
        if self.drop_last:
            update = size * self.sharding.accumulate
            if samples < update:
                way = "set data.drop_last=false or a smaller data.batch_size"
                raise DataError(f"data.drop_last: {samples} samples do not fill one update of {update}; {way}")
            samples -= samples % update
        bounds = [(start, min(start + size, samples)) for start in range(0, samples, size)]
        if len(bounds) > 1 and self.shuffle and bounds[-1][1] - bounds[-1][0] < self.sharding.min_rows <= size:
            bounds[-2:] = [(bounds[-2][0], bounds[-1][1])]
        return bounds[: self.sharding.limit]


def _draw(key: int, index: Tensor, epoch: int, shared: Draw | None = None) -> Draw:
    return Draw(mix(epoch, state=key), index, key, epoch, shared)
