"""Loader: a batch is a pure function of (seed, epoch, position): a resume is a jump, and workers change nothing.

How a batch is made: ``order`` selects its samples; ``prepare`` reads them and makes their ``views``, in ``workers`` if
there are any (``slices`` prepares several small batches of tensors at once); ``Loader`` moves the batch to the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from healsg import system
from healsg.data.order import Ordering
from healsg.data.prepare import Prepared, Preparer
from healsg.data.sharding import Sharding
from healsg.data.slices import TOGETHER, is_by_sample, sliced
from healsg.data.source import Batch, Reading, Source, TensorSource
from healsg.data.views import Transform as Transform
from healsg.data.views import make_views
from healsg.data.workers import LARGEST_KEPT, Workers, prepared_ahead
from healsg.seeding import mix, seed_foreign
from healsg.training.step import Samples, TrainBatch, none_negative

READ_AHEAD = 0.01
"""Seconds for which small batches are read ahead, without workers."""


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
        may_join: whether an evaluation may take several small batches as one, where the sources allow it.
        eval_batch_size: samples of one batch of ``evaluation_view``; ``batch_size`` where it is None.
        spatial_targets: whether targets are spatial, such as masks, so that all views of a sample share one geometric
            draw.
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
        may_join: bool = True,
        eval_batch_size: int | None = None,
        spatial_targets: bool = False,
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
        self.may_join = may_join
        self.eval_batch_size = eval_batch_size
        self.spatial_targets = spatial_targets
        self.whole_batches = whole_batches
        joinable = all(getattr(source, "joinable", False) for source in sources.values())
        self.joins_batches = may_join and joinable and not shuffle and not whole_batches
        """Whether several small batches are taken as one, in a single process."""
        self.sharding = sharding or Sharding()
        self.in_memory = all(isinstance(source, TensorSource) for source in sources.values())
        self.workers = 0 if self.in_memory else workers
        self.sources = {stream: self._on_device(stream, source) for stream, source in sources.items()}
        self.sizes = {stream: batch_size * self.ratio.get(stream, 1) for stream in sources}
        self.preparer = self._new_preparer()
        self.ordering = self.preparer.ordering
        self.longest = self.ordering.longest
        self.bounds = self.ordering.bounds
        self._workers: Workers | None = None

    def sharded(self, sharding: Sharding) -> Loader:
        """The same samples, split over processes and updates by ``sharding``.

        Raises DataError if they do not make one batch.
        """
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
            may_join=self.may_join,
            eval_batch_size=self.eval_batch_size,
            spatial_targets=self.spatial_targets,
            whole_batches=self.whole_batches,
            sharding=sharding,
        )

    def evaluation_view(self) -> Loader:
        """The same samples as in an evaluation: each once, in their order, without randomness."""
        stream, views = next(iter(self.views.items()))
        return Loader(
            {stream: self.sources[stream]},
            {stream: {"input": views.get("input", next(iter(views.values())))}},
            self.eval_batch_size or self.batch_size,
            shuffle=False,
            reading=self.reading,
            spatial_targets=self.spatial_targets,
            whole_batches=self.whole_batches or self.eval_batch_size is not None,
            sharding=self.sharding,
        )

    def _on_device(self, stream: str, source: Source) -> Source:
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

    def _new_preparer(self, sends: bool = False) -> Preparer:
        """The ``Preparer`` of this process or, with ``sends``, one for a worker, which sends its batches here."""
        # Processes take whole batches in turn if that is requested, or if batches of an evaluation are too small.
        takes_turns = not self.training and (self.whole_batches or self.batch_size < self.sharding.world)
        ordering = Ordering(
            self.sources,
            self.views,
            self.sizes,
            self.sharding,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            spatial_targets=self.spatial_targets,
            takes_turns=takes_turns,
            compact=sends,
        )
        return Preparer(ordering, self.reading, self.training, sends)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.bounds)

    @property
    def samples(self) -> int:
        """Samples of the longest stream in an epoch."""
        return self.bounds[-1][1] if self.bounds else 0

    @property
    def left_out(self) -> int:
        """Samples of the longest stream that an epoch leaves out because of ``drop_last``."""
        return len(self.sources[self.longest]) - self.samples if self.sharding.limit is None else 0

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.batches(0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """The batches of ``epoch`` from position ``start``, each with the rows of this rank that count.

        Tensors whose transforms handle each sample on its own are prepared for several batches at once; all else is
        prepared batch by batch, here or ahead of time by workers.
        """
        if self.in_memory and len(self.sources) == 1:
            (stream,) = self.sources
            if is_by_sample(self.views[stream]):
                made = sliced(self.ordering, epoch, start, self.joins_batches and self.sharding.world == 1)
                return made if self.flat else (({stream: batch}, rows) for batch, rows in made)
        positions = self._positions(epoch, start, len(self))
        if self.in_memory or not self.workers:
            return (part for one in positions for part in self._finished(self.preparer.prepare(*one)))
        if self._workers is None or not self._workers.end.still_active():
            prepare = self._new_preparer(sends=True).prepare
            sources = list(self.sources.values())
            self._workers = Workers(prepare, self.workers, self.reading, sources, self.worker_init_fn)
        prepared_batches: Iterator[Prepared] = self._workers.results(positions)
        if self.sharding.device.type == "cuda":
            prepared_batches = prepared_ahead(prepared_batches, _pinned_parts, self.sharding.device)
        return (part for prepared in prepared_batches for part in self._finished(prepared))

    def batches_for_steps(self, epoch: int, start: int, stop: int) -> Iterator[tuple[Batch, int]]:
        """The batches from position ``start`` up to ``stop``, for a caller that seeds the global generators before it
        uses each of them.

        Without workers, small batches that are read fast are read several at a time. The code and the memory of a
        sample's reading and those of a training step evict each other from the processor's caches, which costs a small
        network a tenth of its step. How many are read ahead depends on the time that it takes; what they hold does not.
        """
        if self.in_memory or self.workers:
            batches = self.batches(epoch, start)  # of an evaluation, one position may give several batches
            return batches if stop >= len(self) else islice(batches, stop - start)
        return self._read_ahead(self._positions(epoch, start, stop))

    def _positions(self, epoch: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Epoch and position of this process's batches."""
        if not self.in_memory:
            system.keep_freed_memory(LARGEST_KEPT)  # otherwise the system clears the memory of each batch of images
        return [(epoch, position) for position in range(start, stop) if self.ordering.is_own(position)]

    def _read_ahead(self, positions: list[tuple[int, int]]) -> Iterator[tuple[Batch, int]]:
        """The batches of ``positions``, up to ``TOGETHER`` bytes of them read within ``READ_AHEAD`` seconds at once.

        An error of one that is read ahead is raised when it is that batch's turn.
        """
        done = 0
        while done < len(positions):
            ready: list[Prepared] = []
            size = 0
            error: Exception | None = None
            until = time.monotonic() + READ_AHEAD
            while done + len(ready) < len(positions) and size < TOGETHER and (not ready or time.monotonic() < until):
                try:
                    prepared = self.preparer.prepare(*positions[done + len(ready)])
                except Exception as raised:
                    error = raised
                    break
                ready.append(prepared)
                size += _bytes_of(prepared)
            done += len(ready)
            for prepared in ready:
                yield from self._finished(prepared)
            if error is not None:
                raise error

    def as_train_batch(self, batch: Batch, rows: int, position: int) -> TrainBatch:
        """A batch as a training step gets it.

        Args:
            batch, rows: what ``batches`` yielded.
            position: of the batch in the epoch.
        """
        skipping = self.reading.on_error == "skip" and not self.in_memory
        if self.flat and self.sharding.world == 1 and self.sharding.accumulate == 1:
            nonnegative = not self.in_memory and none_negative(batch.get("target"))
            return TrainBatch(batch, Samples(rows, 0, rows, rows, nonnegative))
        if self.flat:
            return TrainBatch(batch, self.ordering.samples(self.longest, position, rows, skipping))
        parts = {}
        for number, stream in enumerate(self.sources):
            part = batch[stream]
            own = rows if number == 0 else len(part["index"]) if skipping else None
            parts[stream] = TrainBatch(part, self.ordering.samples(stream, position, own, skipping))
        return TrainBatch(parts, next(iter(parts.values())).samples)

    def batch(self, epoch: int, position: int) -> tuple[Batch, int]:
        """The batch at one position of an epoch: the same that ``batches`` yields there."""
        return next(self._finished(self.preparer.prepare(epoch, position)))

    def _finished(self, prepared: Prepared) -> Iterator[tuple[Batch, int]]:
        """The batches of one position on the device, with the views that are made there.

        Also logs the samples that could not be read, and remarks about their files.
        """
        for stream, index, message in prepared.missed:
            self.reading.skip((id(self.sources[stream].dataset), index), message)  # type: ignore[attr-defined]
        self.reading.report(prepared.remarks)
        device = self.sharding.device
        alone = len(prepared.parts) == 1
        for streams, later, staged in prepared.parts:
            for stream, draws in later.items():
                if draws:
                    seed_foreign(mix("on the device", stream, state=prepared.seed))
                    raw = {key: _moved(value, device) for key, value in streams[stream].items()}
                    there = {view: draw and draw.to(device) for view, draw in draws.items()}
                    streams[stream] = make_views(self.views[stream], raw, there)
            for stream, views in staged.items():
                for view in views:
                    transform: Any = self.views[stream][view]
                    streams[stream][view] = transform.normalised(_moved(streams[stream][view], device))
            batch = next(iter(streams.values())) if self.flat else streams
            yield batch, prepared.rows if alone else 1


def _bytes_of(prepared: Prepared) -> int:
    """The bytes of all tensors of a prepared batch."""
    return sum(
        value.nbytes
        for part in prepared.parts
        for batch in part.streams.values()
        for value in batch.values()
        if isinstance(value, Tensor)
    )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def _pinned_parts(prepared: Prepared) -> Prepared:
    """The same with its batches in page-locked memory."""
    return prepared._replace(parts=[part._replace(streams=_pinned(part.streams)) for part in prepared.parts])


def _pinned(value: Any) -> Any:
    """A batch in memory from which a GPU can fetch by itself."""
    if isinstance(value, dict):
        return {key: _pinned(part) for key, part in value.items()}
    return value.pin_memory() if isinstance(value, Tensor) else value
