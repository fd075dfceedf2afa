"""Loader: a batch is a pure function of (seed, epoch, position): a resume is a jump, and workers change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from healsg.data.sharding import Sharding
from healsg.data.source import Batch, DatasetSource, Reading, Source, TensorSource
from healsg.data.workers import Workers
from healsg.errors import DataError
from healsg.seeding import Draw, generator, mix, seed_foreign
from healsg.training.step import Samples, TrainBatch

TOGETHER, JOINED = 1 << 20, 8
"""Bytes, as float32, of the inputs of small batches that are prepared at once; batches that are looked at as one."""

ALIGNED = 64
"""Bytes: torch's allocator gives each tensor on the CPU an address that is a multiple of this."""

Transform = Callable[[Batch, Draw | None], Batch]
"""From a batch as stored to a batch as the network sees it; without a draw nothing random happens."""


class Loader:
    """Deals the batches of one split.

    Args:
        sources: the samples of each stream.
        views: by stream, the views wanted and the transform that makes each.
        batch_size: samples of one forward pass of the first stream, over all processes.
        shuffle: a new order each epoch, and random transforms.
        drop_last: leave out the samples that do not fill a whole update.
        workers: processes that prepare batches, for sources that are not tensors.
        flat: a batch is the one stream's dict, not a dict of streams.
        ratio: how many times ``batch_size`` a stream's batch holds; 1 where it is not named.
        worker_init_fn: called in each worker as it starts.
        reading: how samples are read that are no tensors.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        views: Mapping[str, Mapping[str, Transform | None]],
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool = False,
        workers: int = 0,
        flat: bool = True,
        ratio: Mapping[str, int] | None = None,
        worker_init_fn: Callable[[int], None] | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.sources, self.views = dict(sources), views
        self.batch_size, self.shuffle, self.drop_last, self.flat = batch_size, shuffle, drop_last, flat
        self.training = shuffle
        self.joined = not shuffle and all(getattr(source, "joined", False) for source in sources.values())
        self.sizes = {stream: batch_size * (ratio or {}).get(stream, 1) for stream in sources}
        self.in_memory = all(isinstance(source, TensorSource) for source in sources.values())
        self.workers = 0 if self.in_memory else workers
        self.worker_init_fn, self.reading = worker_init_fn, reading or Reading()
        self._workers: Workers | None
        self.deal(Sharding())

    def deal(self, sharding: Sharding) -> None:
        """Take the runner's sharding. Raises DataError where not one batch comes of them."""
        self.sharding, self._epoch, self._workers = sharding, -1, None
        for stream, source in self.sources.items():
            on_cpu = any(getattr(transform, "on_cpu", False) for transform in self.views[stream].values())
            if self.in_memory and isinstance(source, TensorSource) and not on_cpu and source.fits(sharding.device):
                self.sources[stream] = source.to(sharding.device)
        self.bounds = self._bounds()

    def evaluation_view(self) -> Loader:
        """The same samples for looking at: each once, in their order, with nothing random."""
        stream, views = next(iter(self.views.items()))
        source, wanted = self.sources[stream], {"input": views.get("input", next(iter(views.values())))}
        loader = Loader({stream: source}, {stream: wanted}, self.batch_size, shuffle=False, reading=self.reading)
        loader.deal(self.sharding)
        return loader

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.bounds)

    @property
    def samples(self) -> int:
        """Samples of the longest stream that an epoch deals."""
        return self.bounds[-1][1] if self.bounds else 0

    @property
    def left_out(self) -> int:
        """Samples of the longest stream that an epoch leaves out because of ``drop_last``."""
        return self._longest() - self.samples if self.sharding.limit is None else 0

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.batches(0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """The batches of ``epoch`` from position ``start``, each with the rows of this rank that count."""
        if self.in_memory and len(self.sources) == self.sharding.world == 1 and self._by_sample():
            return self._sliced(epoch, start)
        places = [(epoch, position) for position in range(start, len(self))]
        if self.in_memory:
            return (self._prepare(*place)[:2] for place in places)
        if not self.workers:
            return (self.batch(*place) for place in places)
        if self._workers is None or not self._workers.end.still_active():
            bare = copy.copy(self)
            bare._workers = None
            sources = list(self.sources.values())
            self._workers = Workers(bare._prepare, self.workers, self.reading, sources, self.worker_init_fn)
        return map(self._taken, self._workers.deal(places))

    def counted(self, batch: Batch, rows: int, position: int) -> TrainBatch:
        """A batch that ``batches`` gave for ``position``, with ``rows``, as a training step gets it."""
        skipping = self.reading.on_error == "skip" and not self.in_memory
        if self.flat and self.sharding.world == 1 and self.sharding.accumulate == 1:
            return TrainBatch(batch, Samples(rows, 0, rows, rows))
        if self.flat:
            return TrainBatch(batch, self._samples(self.longest, position, rows, skipping))
        parts = {}
        for number, stream in enumerate(self.sources):
            part = batch[stream]
            own = rows if number == 0 else len(part["index"]) if skipping else None
            parts[stream] = TrainBatch(part, self._samples(stream, position, own, skipping))
        return TrainBatch(parts, next(iter(parts.values())).samples)

    def _samples(self, stream: str, position: int, rows: int | None, skipping: bool) -> Samples:
        """Which samples of a stream this process has at ``position``; where some may be skipped, ``rows`` says how many
        it has, and the other processes' are not known."""
        (start, stop), sharding = self._span(stream, position), self.sharding
        low, _, dealt = sharding.share(start, stop)
        if skipping:
            own = min(rows if rows is not None else dealt, dealt)
            return Samples(own, low - start, *([own, None] if sharding.world == 1 else [None, None]))
        first = position - position % sharding.accumulate
        last = min(first + sharding.accumulate, len(self)) - 1
        update = self._span(stream, last)[1] - self._span(stream, first)[0]
        return Samples(dealt, low - start, stop - start, update)

    def _span(self, stream: str, position: int) -> tuple[int, int]:
        """Where in an epoch's order a stream's batch lies, over all processes."""
        if stream == self.longest:
            return self.bounds[position]
        size = self.sizes[stream]
        return position * size, (position + 1) * size

    def batch(self, epoch: int, position: int) -> tuple[Batch, int]:
        """The batch at ``position`` of ``epoch``, wherever and whenever it is asked for."""
        return self._taken(self._prepare(epoch, position))

    def _prepare(self, epoch: int, position: int) -> tuple[Batch, int, list[Any], list[str]]:
        """A batch, its rows that count, what was left out of it (stream, index in its data set, message), remarks."""
        if self._epoch != epoch:
            self._begin(epoch)
        if not self.in_memory:
            seed_foreign(position, self.sharding.rank, state=self.foreign)
        dealt, counted, kept = {}, -1, None
        missed: list[Any] = []
        for stream in self.sources:
            if self.in_memory:
                start, stop, rows = self.pieces[stream][position]
                raw = self.sources[stream].fetch(self.orders[stream][start:stop])
            else:
                raw, kept, start, stop, rows = self._read(stream, position, missed)
            counted = rows if counted < 0 else counted
            dealt[stream] = self._views(stream, raw, start, stop, kept) if kept is None or len(kept) else raw
        return (dealt[stream] if self.flat else dealt), counted, missed, self.reading.new_remarks()

    def _by_sample(self) -> bool:
        """Whether a sample's neighbours in its batch are nothing to it: as our transforms are."""
        made = [transform for views in self.views.values() for transform in views.values() if transform]
        return all(type(transform).__module__.startswith("healsg.transforms.") for transform in made)

    def _sliced(self, epoch: int, start: int) -> Iterator[tuple[Batch, int]]:
        """Batches of tensors, as many prepared at once as lie within ``TOGETHER``: to each sample its neighbours are
        nothing, so that the numbers are the same. Those that are only looked at stay together, up to ``JOINED``."""
        if self._epoch != epoch:
            self._begin(epoch)
        ((stream, source),) = self.sources.items()
        each = 4 * source.input[0].numel() * self.sizes[stream]  # type: ignore[attr-defined]
        count = max(1, min(TOGETHER // max(1, each), JOINED if self.joined else len(self)))
        for first in range(start, len(self), count):
            pieces = self.pieces[stream][first : first + count]
            low, high = pieces[0][0], pieces[-1][1]
            whole = self._views(stream, source.fetch(self.orders[stream][low:high]), low, high, None)
            rows = [high - low] if self.joined else [stop - begin for begin, stop, _ in pieces]
            for size, *values in zip(rows, *(value.split(rows) for value in whole.values()), strict=True):
                batch = dict(zip(whole, map(_aligned, values), strict=True))
                yield (batch if self.flat else {stream: batch}), size

    def _read(self, stream: str, position: int, missed: list[Any]) -> tuple[Batch, Tensor | None, int, int, int]:
        """A piece of the epoch's order, or the first of which enough can be read; the places left in it; its bounds."""
        source, number, reading = self.sources[stream], list(self.sources).index(stream), self.reading
        for place in chain([position], range(min(len(self), reading.max_errors))):
            start, stop, rows = self.pieces[stream][place]
            index, reading.at[0], reading.broken = self.orders[stream][start:stop], number, {}
            raw = source.fetch(index, reading) if isinstance(source, DatasetSource) else source.fetch(index)
            if not reading.broken:
                return raw, None, start, stop, rows
            missed += [(stream, *sample) for sample in reading.broken.values()]
            kept = torch.tensor([start + i for i in range(len(index)) if i not in reading.broken])
            if not self.training or len(kept) >= min(self.sharding.least, stop - start):
                return raw, kept, start, stop, rows and len(kept)
        raise DataError(f"data.on_error: no batch of which enough can be read; {missed[-1][2]}")

    def _views(self, stream: str, raw: Batch, start: int, stop: int, kept: Tensor | None) -> Batch:
        views = self.views[stream]
        made = {}
        for view, transform in views.items():
            draw = self.draws[stream][view] if transform and self.shuffle else None
            part = draw and (draw.part(start, stop) if kept is None else draw.of(kept))
            made[view] = transform(raw, part) if transform else raw
        if list(views) == ["input"]:
            return made["input"]
        batch = {key: value for key, value in raw.items() if key != "input"}
        return batch | {view: result["input"] for view, result in made.items()}

    def _taken(self, prepared: tuple[Batch, int, list[tuple[str, int, str]], list[str]]) -> tuple[Batch, int]:
        """What was prepared, here or by a worker; what was left out of it, and what was found, is reported."""
        batch, rows, missed, remarks = prepared
        for stream, index, message in missed:
            self.reading.skip((id(self.sources[stream].dataset), index), message)  # type: ignore[attr-defined]
        self.reading.report(remarks)
        return _pinned(batch) if self.workers and self.sharding.device.type == "cuda" else batch, rows

    def _begin(self, epoch: int) -> None:
        """Lay out an epoch: each stream's order, this rank's pieces of it, and its samples' own draws."""
        seed = self.sharding.seed
        self.orders, self.draws, self.pieces = {}, {}, {}
        self.foreign = mix(seed, "samples", epoch)
        for stream, source in self.sources.items():
            spans = self.bounds
            if stream != self.longest:
                spans = [self._span(stream, position) for position in range(len(self))]
            wanted = spans[-1][1]
            passes = -(-wanted // len(source))
            turns = [self._order(len(source), seed, stream, epoch, turn) + turn * len(source) for turn in range(passes)]
            places = torch.cat(turns)  # a sample that comes again in this epoch has another place, hence other draws
            if isinstance(source, TensorSource):
                places = places.to(source.input.device)
            self.orders[stream] = places % len(source)
            self.pieces[stream] = [self.sharding.share(*span) for span in spans]
            keys = {view: mix(seed, stream, view) for view in self.views[stream]}
            self.draws[stream] = {view: Draw(mix(epoch, state=key), places, key, epoch) for view, key in keys.items()}
        self._epoch = epoch

    def _order(self, size: int, *key: int | str) -> Tensor:
        return torch.randperm(size, generator=generator(*key)) if self.shuffle else torch.arange(size)

    def _longest(self) -> int:
        """The samples of the stream that takes the most batches; it makes the epoch."""
        self.longest = max(self.sources, key=lambda stream: len(self.sources[stream]) / self.sizes[stream])
        return len(self.sources[self.longest])

    def _bounds(self) -> list[tuple[int, int]]:
        for stream, source in self.sources.items():
            if not len(source):
                raise DataError(f"data: a split has no {stream} samples; nothing can be dealt")
        samples, size = self._longest(), self.sizes[self.longest]
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


def _aligned(value: Tensor) -> Tensor:
    """A piece of a tensor, copied where it does not begin at an address at which tensors of its own do.

    Kernels of matrix products on the CPU go by the address in how they add up, so that the numbers of a batch would
    depend on what lies before it: on where a resumed run began, or on whether samples are held in memory.
    """
    return value.clone() if value.is_cpu and value.data_ptr() % ALIGNED else value


def _pinned(value: Any) -> Any:
    """A batch in memory from which a GPU can fetch by itself."""
    if isinstance(value, dict):
        return {key: _pinned(part) for key, part in value.items()}
    return value.pin_memory() if isinstance(value, Tensor) else value
