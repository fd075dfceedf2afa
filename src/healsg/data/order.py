"""The order of an epoch: which samples each batch has, which of them are this process's, and their random numbers."""

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
        foreign_state: what global generators, which transforms of other libraries draw from, are seeded with.
        orders: by stream, (N,) int64 or int32, the indices of its samples in their order.
        shards: by stream and position, this process's part of a batch: where it starts and stops in the order, and how
            many of these rows count (``Sharding.share``).
        draws: by stream and view, the random numbers of the samples; None where nothing of a view is random.
        sample_draws: by stream, those with which its samples are read, such as where a patch of a volume lies.
        in_memory: whether the samples are tensors, so that numbers drawn for a whole epoch at once are worth keeping.
    """

    epoch: int
    foreign_state: int
    orders: dict[str, Tensor]
    shards: dict[str, list[tuple[int, int, int]]]
    draws: dict[str, dict[str, Draw | None]]
    sample_draws: dict[str, Draw]
    in_memory: bool

    def view_draws(self, stream: str, start: int, stop: int, kept: Tensor | None = None) -> Draws:
        """By view the draws of a part of a stream's order.

        Args:
            stream: its name.
            start, stop: the part.
            kept: (n,) the places in the order of those samples of it that could be read; all where it is None.
        """
        drawn: dict[str, Draw | None] = {}
        for view, draw in self.draws[stream].items():
            if draw is None:
                drawn[view] = None
            elif kept is not None:
                drawn[view] = draw.of(kept)
            elif self.in_memory:
                drawn[view] = draw.part(start, stop)
            else:
                drawn[view] = batch_draw(draw, start, stop)
        return drawn


class Ordering:
    """The orders of all epochs of a loader.

    Args:
        sources: the samples of each stream.
        views: by stream, the transform of each view.
        sizes: by stream, the samples of a batch over all processes.
        sharding: this process's part of a batch, and how batches form updates.
        shuffle: a new order each epoch, and random transforms.
        drop_last: leave out the samples that do not fill a whole update.
        placed: whether targets have a place, so that all views of a sample share one geometric draw.
        takes_turns: whether each batch goes to one process as it is, and the processes take turns.

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
        placed: bool,
        takes_turns: bool,
    ) -> None:
        for stream, source in sources.items():
            if not len(source):
                raise DataError(f"data: a split has no {stream} samples; nothing can be dealt")
        self.sources = sources
        self.views = views
        self.sizes = sizes
        self.sharding = sharding
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.placed = placed
        self.takes_turns = takes_turns
        self.in_memory = all(isinstance(source, TensorSource) for source in sources.values())
        self.longest = max(sources, key=lambda stream: len(sources[stream]) / sizes[stream])
        """The stream that takes the most batches; it makes the epoch."""
        self.bounds = self._bounds()
        """Where in the longest stream's order each batch of all processes starts and stops."""
        self._order: EpochOrder | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.bounds)

    def is_own(self, position: int) -> bool:
        """Whether this process has samples of a batch: where whole batches are dealt, the processes take turns."""
        return not self.takes_turns or position % self.sharding.world == self.sharding.rank

    def of(self, epoch: int) -> EpochOrder:
        """The order of ``epoch``, which is kept until another epoch is asked for."""
        if self._order is None or self._order.epoch != epoch:
            self._order = None  # first, so that the new one takes its memory: a worker need not have room for two
            self._order = self._make(epoch)
        return self._order

    def span(self, stream: str, position: int) -> tuple[int, int]:
        """Where in an epoch's order a stream's batch lies, over all processes."""
        if stream == self.longest:
            return self.bounds[position]
        # In proportion, so that a last batch that is not full has as few of each stream, however it is split.
        start, stop = (-(-place * self.sizes[stream] // self.sizes[self.longest]) for place in self.bounds[position])
        return start, stop

    def samples(self, stream: str, position: int, rows: int | None, skipping: bool) -> Samples:
        """Which samples of a stream this process has at ``position``; where some may be skipped, ``rows`` says how many
        it has, and the other processes' are not known."""
        (start, stop), sharding = self.span(stream, position), self.sharding
        low, _, ours = sharding.share(start, stop)
        if skipping:
            own = min(rows if rows is not None else ours, ours)
            return Samples(own, low - start, *([own, None] if sharding.world == 1 else [None, None]))
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
            wanted = spans[-1][1]
            size = len(source)
            passes = -(-wanted // size)
            # An epoch's order is the largest thing that a worker has: half as large in 32 bits, where they suffice.
            small = not self.in_memory and passes * size < 1 << 31
            places = self._places(size, passes, torch.int32 if small else torch.int64, (seed, stream, epoch))
            if isinstance(source, TensorSource):
                places = places.to(source.input.device)
            orders[stream] = places if passes == 1 else places % size
            if self.takes_turns:
                shards[stream] = [(start, stop, stop - start) for start, stop in spans]
            else:
                shards[stream] = [self.sharding.share(*span) for span in spans]
            shared = _draw(mix(seed, stream, "all views"), places, epoch) if self.placed else None
            draws[stream] = {}
            for view, transform in self.views[stream].items():
                is_random = bool(transform) and self.shuffle
                draws[stream][view] = _draw(mix(seed, stream, view), places, epoch, shared) if is_random else None
            sample_draws[stream] = _draw(mix(seed, stream, "as it is read"), places, epoch)
        return EpochOrder(epoch, mix(seed, "samples", epoch), orders, shards, draws, sample_draws, self.in_memory)

    def _places(self, size: int, passes: int, dtype: torch.dtype, key: tuple[int | str, ...]) -> Tensor:
        """(passes * size,) places of an epoch's samples: a sample's index, and ``size`` more with each further pass.

        A sample that comes again in an epoch has another place, hence other draws.
        """
        if not self.shuffle:
            return torch.arange(passes * size, dtype=dtype)
        turns = [torch.randperm(size, generator=generator(*key, turn), dtype=dtype) for turn in range(passes)]
        for turn, places in enumerate(turns):
            places += turn * size
        return turns[0] if passes == 1 else torch.cat(turns)

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
        if len(bounds) > 1 and self.shuffle and bounds[-1][1] - bounds[-1][0] < self.sharding.least <= size:
            bounds[-2:] = [(bounds[-2][0], bounds[-1][1])]
        return bounds[: self.sharding.limit]


def batch_draw(draw: Draw, start: int, stop: int) -> Draw:
    """The draws of a batch by themselves: a worker has no use for those of the whole epoch, which ``part`` keeps."""
    return draw.copied(start, stop)


def _draw(key: int, places: Tensor, epoch: int, shared: Draw | None = None) -> Draw:
    return Draw(mix(epoch, state=key), places, key, epoch, shared)
