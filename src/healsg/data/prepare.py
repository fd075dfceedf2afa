"""Preparing a batch: its samples are read and its views made, in the run's process or in a worker's."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from healsg.data.order import EpochOrder, Ordering
from healsg.data.source import Batch, DatasetSource, Reading, UnlikeSizesError, Windows
from healsg.data.views import Draws, has_stages, is_on_device, make_views
from healsg.errors import ConfigError, DataError
from healsg.seeding import seed_foreign


class Part(NamedTuple):
    """Batches by stream that become one batch, and what is still to be done for it in the run's process."""

    streams: dict[str, Batch]
    later: dict[str, Draws]
    """By stream the draws of views that are made on the device, of samples as they were read; empty where all are
    made."""
    staged: dict[str, list[str]]
    """By stream the views that are still to be normalised."""


class Prepared(NamedTuple):
    """What is made of one position of an epoch, here or by a worker."""

    parts: list[Part]
    """More than one where samples of an evaluation are of unlike sizes."""
    rows: int
    """Samples of this process that count, of all parts."""
    missed: list[Any]
    """What was left out: stream, index in its data set, message."""
    remarks: list[str]
    """What a data set found as it read a sample."""


class Preparer:
    """Makes the batch of any position of any epoch.

    Args:
        ordering: the streams, their views, and which samples a batch has.
        reading: how samples are read that are no tensors.
        training: whether batches are trained on.
        sends: whether batches go to another process, to which images are sent as bytes.

    Raises:
        ConfigError: a transform cuts its own windows out of whole samples, and these are held or have masks.
    """

    def __init__(self, ordering: Ordering, reading: Reading, training: bool, sends: bool = False) -> None:
        self.ordering = ordering
        self.reading = reading
        self.training = training
        self.sends = sends
        self.in_memory = ordering.in_memory
        self.drawing = {
            stream for stream, source in ordering.sources.items() if ordering.shuffle and getattr(source, "draws", True)
        }
        """The streams whose samples are read with random numbers of their own."""
        self.windowed = {stream: self._window_view(stream) for stream in ordering.sources} if ordering.shuffle else {}
        """By stream the view for which parts of samples are read; None where whole ones are."""

    def prepare(self, epoch: int, position: int) -> Prepared:
        """All of a batch that need not be made in the process, or on the device, in which it is wanted."""
        ordering = self.ordering
        order = ordering.of(epoch)
        if not self.in_memory:
            seed_foreign(position, ordering.sharding.rank, state=order.foreign_state)
        part = Part({}, {}, {})
        counted = -1
        missed: list[Any] = []
        for stream in ordering.sources:
            kept = None
            if self.in_memory:
                start, stop, rows = order.shards[stream][position]
                raw = ordering.sources[stream].fetch(order.orders[stream][start:stop])
            else:
                try:
                    raw, kept, start, stop, rows = self._read(order, stream, position, missed)
                except UnlikeSizesError as unlike:
                    if self.training:
                        raise
                    return self._apart(stream, unlike.batches, missed)
            counted = rows if counted < 0 else counted
            any_left = kept is None or len(kept) > 0
            draws = order.view_draws(stream, start, stop, kept)
            if any_left:
                self._add(part, stream, raw, draws)
            else:
                part.streams[stream] = raw
        return Prepared([part], counted, missed, self.reading.new_remarks())

    def _apart(self, stream: str, batches: list[Batch], missed: list[Any]) -> Prepared:
        """Samples of an evaluation that are of unlike sizes, each as a batch of its own."""
        parts = []
        for raw in batches:
            parts.append(part := Part({}, {}, {}))
            self._add(part, stream, raw, dict.fromkeys(self.ordering.views[stream]))
        return Prepared(parts, len(batches), missed, self.reading.new_remarks())

    def _read(
        self, order: EpochOrder, stream: str, position: int, missed: list[Any]
    ) -> tuple[Batch, Tensor | None, int, int, int]:
        """A stream's batch at ``position``, or the first of the epoch of which enough can be read.

        Returns:
            The batch, the places in the order that are left of it (None for all), and its shard.
        """
        ordering = self.ordering
        source = ordering.sources[stream]
        reading = self.reading
        for place in chain([position], range(min(len(ordering), reading.max_errors))):
            start, stop, rows = order.shards[stream][place]
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
            kept = torch.tensor([start + i for i in range(len(index)) if i not in reading.broken])
            if not self.training or len(kept) >= min(ordering.sharding.least, stop - start):
                return raw, kept, start, stop, rows and len(kept)
        raise DataError(f"data.on_error: no batch of which enough can be read; {missed[-1][2]}")

    def _windows(self, order: EpochOrder, stream: str, start: int, stop: int) -> Windows | None:
        """The parts of samples that the view of a stream shows; None where samples are read whole."""
        view = self.windowed.get(stream)
        if view is None:
            return None
        transform: Any = self.ordering.views[stream][view]
        draw = order.draws[stream][view]
        assert draw is not None
        windows: Windows = transform.windows(draw.copied(start, stop))
        return windows

    def _add(self, part: Part, stream: str, raw: Batch, draws: Draws) -> None:
        """Add a stream's batch with its views; or as it was read, with the draws of views that are made on the
        device."""
        views = self.ordering.views[stream]
        if not self.in_memory and any(map(is_on_device, views.values())):
            part.streams[stream] = raw
            part.later[stream] = {view: draw and draw.alone() for view, draw in draws.items()}
            return
        as_bytes = self.sends and getattr(raw.get("input"), "dtype", None) == torch.uint8
        staged = [view for view, transform in views.items() if as_bytes and has_stages(transform)]
        part.streams[stream] = make_views(views, raw, draws, staged)
        part.staged[stream] = staged

    def _window_view(self, stream: str) -> str | None:
        """The view of a stream for which the data set reads random windows; None where it reads whole samples.

        Raises ConfigError where samples are held, so that there is nothing left to cut a window out of, and where a
        mask would have to follow.
        """
        views = self.ordering.views[stream]
        for view, transform in views.items():
            if hasattr(transform, "windows"):
                if self.ordering.placed:
                    raise ConfigError("data.augment: crop moves images by itself, and no mask follows; standard works")
                if len(views) == 1 and getattr(self.ordering.sources[stream], "has_windows", False):
                    return view
                way = "data.in_memory and data.cache hold resized ones, and several views share one picture"
                raise ConfigError(f"data.augment: crop cuts its windows out of whole pictures; {way}; leave one out")
        return None
