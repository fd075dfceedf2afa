"""Loader: a batch is a pure function of (seed, epoch, position): a resume is a jump, and workers change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from healsg.data.sharding import Sharding
from healsg.data.source import Batch, DatasetSource, Reading, Source, TensorSource, UnlikeSizesError, Windows
from healsg.data.workers import Workers
from healsg.errors import ConfigError, DataError
from healsg.parts import declares
from healsg.seeding import Draw, generator, mix, seed_foreign
from healsg.training.step import Samples, TrainBatch

TOGETHER = 1 << 20
"""Bytes, as float32, of the inputs of several small batches that are prepared at once."""

JOINED = 8
"""The most small batches that an evaluation takes as one."""

ALIGNED = 64
"""Bytes: torch's allocator gives each tensor on the CPU an address that is a multiple of this."""

Transform = Callable[[Batch, Draw | None], Batch]
"""From a batch as stored to a batch as the network sees it; without a draw nothing random happens.

What it is fit for, it declares: ``on_device = True``, that it is called on whole batches on the run's device, after
workers read them there; ``on_cpu = True``, that samples in memory must stay on the CPU; ``shares_geometry = True``,
that of samples whose targets have a place it moves all views alike, by ``Draw.shared``. A module moves to the device.
"""

Draws = Mapping[str, Draw | None]
"""The draws of one stream's samples by view."""


class Prepared(NamedTuple):
    """What is made of one position of an epoch, here or by a worker."""

    parts: list[tuple[dict[str, Batch], dict[str, Draws]]]
    """Batches by stream, each with the draws of what is still to be done on the device. More than one where samples of
    an evaluation are of unlike sizes."""
    rows: int
    """Samples of this process that count, of all parts."""
    missed: list[Any]
    """What was left out: stream, index in its data set, message."""
    remarks: list[str]
    """What a data set found as it read a sample."""


@dataclass(frozen=True)
class EpochOrder:
    """The samples of one epoch: a pure function of the seed, the epoch and the sharding.

    Args:
        epoch: from 0.
        foreign_state: what global generators, which transforms of other libraries draw from, are seeded with.
        orders: by stream, (N,) int64 or int32, the indices of its samples in their order.
        shards: by stream and position, this process's part of a batch: where it starts and stops in the order, and how
            many of these rows count (``Sharding.share``).
        draws: by stream and view, the random numbers of the samples.
        sample_draws: by stream, those with which its samples are read, such as where a patch of a volume lies.
    """

    epoch: int
    foreign_state: int
    orders: dict[str, Tensor]
    shards: dict[str, list[tuple[int, int, int]]]
    draws: dict[str, dict[str, Draw]]
    sample_draws: dict[str, Draw]


class Loader:
    """The batches of one split.

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
        training: whether batches are trained on; where it is None, those of a shuffled split are.
        joins: whether an evaluation may take several small batches as one, where the sources allow it.
        eval_batch_size: samples of one batch of ``evaluation_view``; ``batch_size`` where it is None.
        placed: whether targets have a place, such as masks, so that all views of a sample share one geometric draw.
        whole_batches: whether a batch goes to one process as it is and the processes take turns, as in an evaluation of
            few large samples; else each batch is shared by all.
        sharding: this process's part of a batch, and how batches form updates; all of one process where it is None.

    Raises:
        DataError: the samples do not make one batch.
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
        training: bool | None = None,
        joins: bool = True,
        eval_batch_size: int | None = None,
        placed: bool = False,
        whole_batches: bool = False,
        sharding: Sharding | None = None,
    ) -> None:
        self.views = views
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.flat = flat
        self.ratio = dict(ratio or {})
        self.worker_init_fn = worker_init_fn
        self.reading = reading or Reading()
        self.training = shuffle if training is None else training
        self.joins = joins
        self.eval_batch_size = eval_batch_size
        self.placed = placed
        self.whole_batches = whole_batches
        may_join = joins and not shuffle and not whole_batches
        self.joined = may_join and all(getattr(source, "joined", False) for source in sources.values())
        self.sharding = sharding or Sharding()
        self.in_memory = all(isinstance(source, TensorSource) for source in sources.values())
        self.workers = 0 if self.in_memory else workers
        self.sources = {stream: self._placed(stream, source) for stream, source in sources.items()}
        self.windowed = {stream: self._window_view(stream) for stream in sources} if shuffle else {}
        """By stream the view for which parts of samples are read; None where whole ones are."""
        self.sizes = {stream: batch_size * self.ratio.get(stream, 1) for stream in sources}
        for stream, source in sources.items():
            if not len(source):
                raise DataError(f"data: a split has no {stream} samples; nothing can be dealt")
        self.longest = max(sources, key=lambda stream: len(sources[stream]) / self.sizes[stream])
        """The stream that takes the most batches; it makes the epoch."""
        self.bounds = self._bounds()
        self._order: EpochOrder | None = None
        self._workers: Workers | None = None

    def sharded(self, sharding: Sharding) -> Loader:
        """The same samples, as ``sharding`` deals them. Raises DataError where they do not make one batch."""
        return Loader(
            self.sources,
            self.views,
            self.batch_size,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            workers=self.workers,
            flat=self.flat,
            ratio=self.ratio,
            worker_init_fn=self.worker_init_fn,
            reading=self.reading,
            training=self.training,
            joins=self.joins,
            eval_batch_size=self.eval_batch_size,
            placed=self.placed,
            whole_batches=self.whole_batches,
            sharding=sharding,
        )

    def evaluation_view(self) -> Loader:
        """The same samples for looking at: each once, in their order, with nothing random."""
        stream, views = next(iter(self.views.items()))
        return Loader(
            {stream: self.sources[stream]},
            {stream: {"input": views.get("input", next(iter(views.values())))}},
            self.eval_batch_size or self.batch_size,
            shuffle=False,
            reading=self.reading,
            placed=self.placed,
            whole_batches=self.whole_batches or self.eval_batch_size is not None,
            sharding=self.sharding,
        )

    def _placed(self, stream: str, source: Source) -> Source:
        """A stream's samples; those in memory lie on the device where they fit and no transform needs the CPU.
        Transforms that are modules move to the device, where they are called on whole batches."""
        for transform in self.views[stream].values():
            if isinstance(transform, nn.Module):
                transform.to(self.sharding.device)
        if not (self.in_memory and isinstance(source, TensorSource)):
            return source
        on_cpu = any(getattr(transform, "on_cpu", False) for transform in self.views[stream].values())
        device = self.sharding.device
        return source.to(device) if not on_cpu and source.fits(device) else source

    def _window_view(self, stream: str) -> str | None:
        """The view of a stream for which the data set reads random windows; None where it reads whole samples.

        Raises ConfigError where samples are held, so that there is nothing left to cut a window out of, and where a
        mask would have to follow.
        """
        for view, transform in self.views[stream].items():
            if hasattr(transform, "windows"):
                if self.placed:
                    raise ConfigError("data.augment: crop moves images by itself, and no mask follows; standard works")
                if len(self.views[stream]) == 1 and getattr(self.sources[stream], "has_windows", False):
                    return view
                way = "data.in_memory and data.cache hold resized ones, and several views share one picture"
                raise ConfigError(f"data.augment: crop cuts its windows out of whole pictures; {way}; leave one out")
        return None

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
        return len(self.sources[self.longest]) - self.samples if self.sharding.limit is None else 0

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.batches(0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """The batches of ``epoch`` from position ``start``, each with the rows of this rank that count."""
        if self.in_memory and len(self.sources) == self.sharding.world == 1 and self._by_sample():
            return self._sliced(epoch, start)
        places = [(epoch, position) for position in range(start, len(self)) if self._is_own(position)]
        if self.in_memory or not self.workers:
            return (part for place in places for part in self._finished(self._prepare(*place)))
        if self._workers is None or not self._workers.end.still_active():
            own = self.sharded(self.sharding)  # the workers', which holds no workers of its own
            sources = list(self.sources.values())
            self._workers = Workers(own._prepare, self.workers, self.reading, sources, self.worker_init_fn)
        return (part for prepared in self._workers.deal(places) for part in self._finished(prepared))

    def _is_own(self, position: int) -> bool:
        """Whether this process has samples of a batch: where whole batches are dealt, the processes take turns."""
        return not self._takes_turns() or position % self.sharding.world == self.sharding.rank

    def _takes_turns(self) -> bool:
        """Whether each batch is one process's: where that is asked for, or an evaluation's are too small for all."""
        return not self.training and (self.whole_batches or self.batch_size < self.sharding.world)

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
        # In proportion, so that a last batch that is not full has as few of each stream, however it is split.
        start, stop = (-(-place * self.sizes[stream] // self.sizes[self.longest]) for place in self.bounds[position])
        return start, stop

    def batch(self, epoch: int, position: int) -> tuple[Batch, int]:
        """The batch at ``position`` of ``epoch``, wherever and whenever it is asked for."""
        return next(self._finished(self._prepare(epoch, position)))

    def _prepare(self, epoch: int, position: int) -> Prepared:
        """All of a batch that need not be made in the process, or on the device, in which it is wanted."""
        order = self._order_of(epoch)
        if not self.in_memory:
            seed_foreign(position, self.sharding.rank, state=order.foreign_state)
        dealt: dict[str, Batch] = {}
        later: dict[str, Draws] = {}
        counted = -1
        missed: list[Any] = []
        for stream in self.sources:
            kept = None
            if self.in_memory:
                start, stop, rows = order.shards[stream][position]
                raw = self.sources[stream].fetch(order.orders[stream][start:stop])
            else:
                try:
                    raw, kept, start, stop, rows = self._read(order, stream, position, missed)
                except UnlikeSizesError as unlike:
                    if self.training:
                        raise
                    return self._apart(stream, unlike.batches, missed)
            counted = rows if counted < 0 else counted
            whole = kept is None or len(kept) > 0
            draws = self._drawn(order, stream, start, stop, kept)
            dealt[stream], later[stream] = self._early(stream, raw, draws) if whole else (raw, {})
        return Prepared([(dealt, later)], counted, missed, self.reading.new_remarks())

    def _apart(self, stream: str, batches: list[Batch], missed: list[Any]) -> Prepared:
        """Samples of an evaluation that are of unlike sizes, each as a batch of its own."""
        parts = []
        for raw in batches:
            batch, later = self._early(stream, raw, dict.fromkeys(self.views[stream]))
            parts.append(({stream: batch}, {stream: later}))
        return Prepared(parts, len(batches), missed, self.reading.new_remarks())

    def _by_sample(self) -> bool:
        """Whether each transform declares that it changes a sample by itself, whatever the others of its batch are."""
        made = [transform for views in self.views.values() for transform in views.values() if transform]
        return all(declares(transform, "per_sample") for transform in made)

    def _sliced(self, epoch: int, start: int) -> Iterator[tuple[Batch, int]]:
        """Batches of tensors. As many as lie within ``TOGETHER`` are prepared at once, with the same numbers as each by
        itself, since transforms change each sample by itself. Those of an evaluation stay one batch, up to ``JOINED``.
        """
        order = self._order_of(epoch)
        ((stream, source),) = self.sources.items()
        each = 4 * source.input[0].numel() * self.sizes[stream]  # type: ignore[attr-defined]
        count = max(1, min(TOGETHER // max(1, each), JOINED if self.joined else len(self)))
        for first in range(start, len(self), count):
            shards = order.shards[stream][first : first + count]
            low, high = shards[0][0], shards[-1][1]
            raw = source.fetch(order.orders[stream][low:high])
            whole = self._views(stream, raw, self._drawn(order, stream, low, high, None))
            rows = [high - low] if self.joined else [stop - begin for begin, stop, _ in shards]
            for size, *values in zip(rows, *(_split(value, rows) for value in whole.values()), strict=True):
                batch = dict(zip(whole, values, strict=True))
                yield (batch if self.flat else {stream: batch}), size

    def _read(
        self, order: EpochOrder, stream: str, position: int, missed: list[Any]
    ) -> tuple[Batch, Tensor | None, int, int, int]:
        """A stream's batch at ``position``, or the first of the epoch of which enough can be read.

        Returns:
            The batch, the places in the order that are left of it (None for all), and its shard.
        """
        source = self.sources[stream]
        reading = self.reading
        for place in chain([position], range(min(len(self), reading.max_errors))):
            start, stop, rows = order.shards[stream][place]
            index = order.orders[stream][start:stop].long()
            reading.begin(list(self.sources).index(stream))
            draw = _own(order.sample_draws[stream], start, stop) if self.shuffle else None
            if isinstance(source, DatasetSource):
                windows = self._windows(order, stream, start, stop)
                raw = source.fetch(index, reading, draw=draw, windows=windows)
            else:
                raw = source.fetch(index, draw=draw)
            if not reading.broken:
                return raw, None, start, stop, rows
            missed += [(stream, *sample) for sample in reading.broken.values()]
            kept = torch.tensor([start + i for i in range(len(index)) if i not in reading.broken])
            if not self.training or len(kept) >= min(self.sharding.least, stop - start):
                return raw, kept, start, stop, rows and len(kept)
        raise DataError(f"data.on_error: no batch of which enough can be read; {missed[-1][2]}")

    def _windows(self, order: EpochOrder, stream: str, start: int, stop: int) -> Windows | None:
        """The parts of samples that the view of a stream shows; None where samples are read whole."""
        view = self.windowed.get(stream)
        if view is None:
            return None
        transform: Any = self.views[stream][view]
        windows: Windows = transform.windows(_own(order.draws[stream][view], start, stop))
        return windows

    def _drawn(self, order: EpochOrder, stream: str, start: int, stop: int, kept: Tensor | None) -> Draws:
        """The draws of a part of an epoch's order for each view that is made by a transform."""
        drawn: dict[str, Draw | None] = {}
        for view, transform in self.views[stream].items():
            draw = order.draws[stream][view] if transform and self.shuffle else None
            if draw is not None and kept is not None:
                drawn[view] = draw.of(kept)
            elif draw is not None and self.in_memory:
                drawn[view] = draw.part(start, stop)
            else:
                drawn[view] = draw and _own(draw, start, stop)
        return drawn

    def _early(self, stream: str, raw: Batch, draws: Draws) -> tuple[Batch, Draws]:
        """A stream's batch with its views; or as it was read, with the draws of views that are made on the device."""
        if self.in_memory or not any(map(_on_device, self.views[stream].values())):
            return self._views(stream, raw, draws), {}
        return raw, {view: draw and draw.alone() for view, draw in draws.items()}

    def _views(self, stream: str, raw: Batch, draws: Draws) -> Batch:
        views = self.views[stream]
        made = {view: transform(raw, draws[view]) if transform else raw for view, transform in views.items()}
        if list(views) == ["input"]:
            return made["input"]
        first, *others = views
        batch = {key: value for key, value in raw.items() if key != "input"}
        batch |= {view: result["input"] for view, result in made.items()}
        if "target" in raw:
            batch["target"] = made[first].get("target", raw["target"])
            together = getattr(views[first], "shares_geometry", False)
            for view in others:
                target = made[view].get("target", raw["target"])
                alike = together and getattr(views[view], "shares_geometry", False)
                if target is not batch["target"] and not alike:
                    batch[f"{view}_target"] = target
        return batch

    def _finished(self, prepared: Prepared) -> Iterator[tuple[Batch, int]]:
        """What was prepared, here or by a worker, with what is made on the device; what was left out of it, and what
        was found, is reported."""
        for stream, index, message in prepared.missed:
            self.reading.skip((id(self.sources[stream].dataset), index), message)  # type: ignore[attr-defined]
        self.reading.report(prepared.remarks)
        device = self.sharding.device
        alone = len(prepared.parts) == 1
        for dealt, later in prepared.parts:
            if self.workers and device.type == "cuda":
                dealt = {stream: _pinned(batch) for stream, batch in dealt.items()}
            for stream, draws in later.items():
                if draws:
                    raw = {key: _moved(value, device) for key, value in dealt[stream].items()}
                    there = {view: draw and draw.to(device) for view, draw in draws.items()}
                    dealt[stream] = self._views(stream, raw, there)
            batch = next(iter(dealt.values())) if self.flat else dealt
            yield batch, prepared.rows if alone else 1

    def _order_of(self, epoch: int) -> EpochOrder:
        """The order of ``epoch``, which is kept until another epoch is asked for."""
        if self._order is None or self._order.epoch != epoch:
            self._order = None  # first, so that the new one takes its memory: a worker need not have room for two
            self._order = self._make_order(epoch)
        return self._order

    def _make_order(self, epoch: int) -> EpochOrder:
        seed = self.sharding.seed
        orders = {}
        shards = {}
        draws = {}
        sample_draws = {}
        for stream, source in self.sources.items():
            spans = self.bounds
            if stream != self.longest:
                spans = [self._span(stream, position) for position in range(len(self))]
            wanted = spans[-1][1]
            size = len(source)
            passes = -(-wanted // size)
            # An epoch's order is the largest thing that a worker has: half as large in 32 bits, where they suffice.
            small = not self.in_memory and passes * size < 1 << 31
            places = self._places(size, passes, torch.int32 if small else torch.int64, (seed, stream, epoch))
            if isinstance(source, TensorSource):
                places = places.to(source.input.device)
            orders[stream] = places if passes == 1 else places % size
            if self._takes_turns():
                shards[stream] = [(start, stop, stop - start) for start, stop in spans]
            else:
                shards[stream] = [self.sharding.share(*span) for span in spans]
            shared = _draw(mix(seed, stream, "all views"), places, epoch) if self.placed else None
            keys = {view: mix(seed, stream, view) for view in self.views[stream]}
            draws[stream] = {view: _draw(key, places, epoch, shared) for view, key in keys.items()}
            sample_draws[stream] = _draw(mix(seed, stream, "as it is read"), places, epoch)
        return EpochOrder(epoch, mix(seed, "samples", epoch), orders, shards, draws, sample_draws)

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
        """Where in the longest stream's order each batch of all processes starts and stops."""
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


def _draw(key: int, places: Tensor, epoch: int, shared: Draw | None = None) -> Draw:
    return Draw(mix(epoch, state=key), places, key, epoch, shared)


def _own(draw: Draw, start: int, stop: int) -> Draw:
    """The draws of a batch by themselves: a worker has no use for those of the whole epoch, which ``part`` keeps."""
    return draw.part(start, stop).alone()


def _on_device(transform: Transform | None) -> bool:
    return getattr(transform, "on_device", False) is True


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


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


def _pinned(value: Any) -> Any:
    """A batch in memory from which a GPU can fetch by itself."""
    if isinstance(value, dict):
        return {key: _pinned(part) for key, part in value.items()}
    return value.pin_memory() if isinstance(value, Tensor) else value
