"""Preparing batches: reading samples and making their views, in the run's process or in a loader worker."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from healsg.data.order import EpochOrder, Ordering
from healsg.data.slices import is_by_sample
from healsg.data.source import Batch, DatasetSource, Reading, UnlikeSizesError, Windows
from healsg.data.views import Draws, has_stages, is_on_device, make_views
from healsg.errors import ConfigError, DataError
from healsg.seeding import mix, seed_foreign


class Part(NamedTuple):
    """The streams of one batch, and the work on them that remains for the run's process."""

    streams: dict[str, Batch]
    device_draws: dict[str, Draws]
    """By stream, the random draws of the views if these are made on the device; the stream then holds raw samples."""
    staged: dict[str, list[str]]
    """By stream, the views that are still to be normalised on the device."""


class Prepared(NamedTuple):
    """The prepared batch of one position of an epoch."""

    parts: list[Part]
    """More than one if the samples of an evaluation batch differ in size."""
    rows: int
    """The number of samples of this process, over all parts, without copies."""
    missed: list[Any]
    """Samples that could not be read: stream, index in its data set, message."""
    remarks: list[str]
    """Messages of a data set about its files, found while reading."""
    seed: int
    """Of this position, for views that are made on the device and draw from the global generators."""


class Preparer:
    """Prepares the batch at any position of any epoch.

    Args:
        ordering: the streams, their views, and the samples of each batch.
        reading: how samples that are not held in memory are read.
        training: whether the batches are for training.
        sends: whether batches are sent to another process; images are then sent as bytes.

    Raises:
        ConfigError: a transform reads random windows of image files, but samples are in memory, cached or have masks.
    """

    def __init__(self, ordering: Ordering, reading: Reading, training: bool, sends: bool = False) -> None:
        self.ordering = ordering
        self.reading = reading
        self.training = training
        self.sends = sends
        self.in_memory = ordering.in_memory
        self.draws_elsewhere = not ordering.in_memory or not all(map(is_by_sample, ordering.views.values()))
        """Whether data sets or transforms may draw from the global generators, which are then seeded for each batch."""
        self.drawing = {
            stream for stream, source in ordering.sources.items() if ordering.shuffle and getattr(source, "draws", True)
        }
        """The streams whose samples are read with random numbers of their own."""
        self.windowed = {stream: self._window_view(stream) for stream in ordering.sources} if ordering.shuffle else {}
        """By stream, the view for which only a window of each sample is read; None if complete samples are read."""

    def prepare(self, epoch: int, position: int) -> Prepared:
        """Prepare a batch, except for the steps that need the run's process or device."""
        ordering = self.ordering
        order = ordering.of(epoch)
        seed = mix(position, ordering.sharding.rank, state=order.foreign_state)
        if self.draws_elsewhere:
            seed_foreign(seed)
        part = Part({}, {}, {})
        counted = -1
        missed: list[Any] = []
        for stream in ordering.sources:
            readable = None
            if self.in_memory:
                start, stop, rows = order.shards[stream][position]
                raw = ordering.sources[stream].fetch(order.orders[stream][start:stop])
            else:
                try:
                    raw, readable, start, stop, rows = self._read(order, stream, position, missed)
                except UnlikeSizesError as unlike:
                    if self.training:
                        raise
                    return self._one_by_one(stream, unlike.batches, missed, seed)
            counted = rows if counted < 0 else counted
            any_left = readable is None or len(readable) > 0
            draws = order.view_draws(stream, start, stop, readable)
            if any_left:
                self._add(part, stream, raw, draws)
            else:
                part.streams[stream] = raw
        return Prepared([part], counted, missed, self.reading.new_remarks(), seed)

    def _one_by_one(self, stream: str, batches: list[Batch], missed: list[Any], seed: int) -> Prepared:
        """Samples of different sizes, for an evaluation: each becomes a batch of its own."""
        parts = []
        for raw in batches:
            parts.append(part := Part({}, {}, {}))
            self._add(part, stream, raw, dict.fromkeys(self.ordering.views[stream]))
        return Prepared(parts, len(batches), missed, self.reading.new_remarks(), seed)

    def _read(
        self, order: EpochOrder, stream: str, position: int, missed: list[Any]
    ) -> tuple[Batch, Tensor | None, int, int, int]:
        """A stream's batch at ``position``, or the first batch of the epoch of which enough samples can be read.

        Returns:
            The batch; the positions in the order of its readable samples (None for all); its start, stop and number of
            rows as in ``Sharding.shard``.
        """
        ordering = self.ordering
        source = ordering.sources[stream]
        reading = self.reading
        for candidate in chain([position], range(min(len(ordering), reading.max_errors))):
            start, stop, rows = order.shards[stream][candidate]
            index = order.orders[stream][start:stop].long()
            reading.begin(list(ordering.sources).index(stream))
            draw = order.sample_draws[stream].copied(start, stop) if stream in self.drawing else None
            if isinstance(source, DatasetSource):
                windows = self._windows(order, stream, start, stop)
                raw = source.fetch(index, reading, draw=draw, windows=windows)
            else:
                raw = source.fetch(index, draw=draw)
            if not reading.broken:
                return raw, None, start, stop, rows
            missed += [(stream, *sample) for sample in reading.broken.values()]
            readable = torch.tensor([start + i for i in range(len(index)) if i not in reading.broken])
            if not self.training or len(readable) >= min(ordering.sharding.min_rows, stop - start):
                return raw, readable, start, stop, rows and len(readable)
        raise DataError(f"data.on_error: no batch of the epoch has enough readable samples; {missed[-1][2]}")

    def _windows(self, order: EpochOrder, stream: str, start: int, stop: int) -> Windows | None:
        """The windows that are read of the samples; None if complete samples are read."""
        view = self.windowed.get(stream)
        if view is None:
            return None
        transform: Any = self.ordering.views[stream][view]
        draw = order.draws[stream][view]
        assert draw is not None
        windows: Windows = transform.windows(draw.copied(start, stop))
        return windows

    def _add(self, part: Part, stream: str, raw: Batch, draws: Draws) -> None:
        """Add a stream's batch with its views; or its raw samples with the random draws, if views are made on the
        device."""
        views = self.ordering.views[stream]
        if not self.in_memory and any(map(is_on_device, views.values())):
            part.streams[stream] = raw
            part.device_draws[stream] = {view: draw and draw.alone() for view, draw in draws.items()}
            return
        as_bytes = self.sends and getattr(raw.get("input"), "dtype", None) == torch.uint8
        staged = [view for view, transform in views.items() if as_bytes and has_stages(transform)]
        part.streams[stream] = make_views(views, raw, draws, staged)
        part.staged[stream] = staged

    def _window_view(self, stream: str) -> str | None:
        """The view of a stream for which the data set reads random windows; None if it reads complete samples.

        Raises ConfigError if samples are stored already resized, so that a window cannot be read, or if they have
        masks, which the windows do not move."""
        views = self.ordering.views[stream]
        for view, transform in views.items():
            if hasattr(transform, "windows"):
                if self.ordering.spatial_targets:
                    raise ConfigError("data.augment: crop does not transform masks along with images; use standard")
                if len(views) == 1 and getattr(self.ordering.sources[stream], "has_windows", False):
                    return view
                way = "data.in_memory and data.cache store resized ones, and several views share one image"
                raise ConfigError(f"data.augment: crop reads windows of the original images; {way}; leave one out")
        return None
