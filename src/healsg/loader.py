"""Loader: a batch is a pure function of (seed, epoch, position): a resume is a jump, and workers change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from healsg.errors import DataError
from healsg.seeding import Draw, generator, mix, seed_foreign
from healsg.source import Batch, Source, TensorSource
from healsg.terms import Terms

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
    ) -> None:
        self.sources, self.views = dict(sources), views
        self.batch_size, self.shuffle, self.drop_last, self.flat = batch_size, shuffle, drop_last, flat
        self.sizes = {stream: batch_size * (ratio or {}).get(stream, 1) for stream in sources}
        self.in_memory = all(isinstance(source, TensorSource) for source in sources.values())
        self.workers = 0 if self.in_memory else workers
        self.worker_init_fn = worker_init_fn
        self._workers: DataLoader[Any] | None
        self._epoch: int
        self.deal(Terms())

    def deal(self, terms: Terms) -> None:
        """Take the runner's terms. Raises DataError where not one batch comes of them."""
        self.terms, self._epoch, self._workers = terms, -1, None
        if self.in_memory and terms.device.type != "cpu":
            self.sources = {
                stream: source.to(terms.device) if isinstance(source, TensorSource) else source
                for stream, source in self.sources.items()
            }
        self.bounds = self._bounds()

    def still(self) -> Loader:
        """The same samples for looking at: each once, in their order, with nothing random."""
        stream, views = next(iter(self.views.items()))
        wanted = {"input": views.get("input", next(iter(views.values())))}
        loader = Loader({stream: self.sources[stream]}, {stream: wanted}, self.batch_size, shuffle=False)
        loader.deal(self.terms)
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
        return self._longest() - self.samples if self.terms.limit is None else 0

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.batches(0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """The batches of ``epoch`` from position ``start``, each with the rows of this rank that count."""
        positions = range(start, len(self))
        if not self.workers:
            return (self.batch(epoch, position) for position in positions)
        if self._workers is None:
            self._workers = DataLoader(
                cast(Any, _Dealer(self)),
                batch_size=None,
                sampler=_Positions(),
                num_workers=self.workers,
                collate_fn=_unchanged,
                persistent_workers=True,
                pin_memory=self.terms.device.type == "cuda",
                worker_init_fn=self.worker_init_fn,
            )
        self._workers.sampler.positions = [(epoch, position) for position in positions]  # type: ignore[attr-defined]
        return _prepared(self._workers)

    def batch(self, epoch: int, position: int) -> tuple[Batch, int]:
        """The batch at ``position`` of ``epoch``, wherever and whenever it is asked for."""
        if self._epoch != epoch:
            self._begin(epoch)
        if not self.in_memory:
            seed_foreign(self.terms.seed, "samples", epoch, position, self.terms.rank)
        dealt, counted = {}, -1
        for stream in self.sources:
            start, stop, rows = self.pieces[stream][position]
            counted = rows if counted < 0 else counted
            raw = self.sources[stream].fetch(self.orders[stream][start:stop])
            dealt[stream] = self._views(stream, raw, start, stop)
        return (next(iter(dealt.values())) if self.flat else dealt), counted

    def _views(self, stream: str, raw: Batch, start: int, stop: int) -> Batch:
        views = self.views[stream]
        made = {}
        for view, transform in views.items():
            draw = self.draws[stream][view].part(start, stop) if self.shuffle else None
            made[view] = transform(raw, draw) if transform else raw
        if list(views) == ["input"]:
            return made["input"]
        batch = {key: value for key, value in raw.items() if key != "input"}
        return batch | {view: result["input"] for view, result in made.items()}

    def _begin(self, epoch: int) -> None:
        """Lay out an epoch: each stream's order, this rank's pieces of it, and its samples' own draws."""
        seed = self.terms.seed
        self.orders, self.draws, self.pieces = {}, {}, {}
        for stream, source in self.sources.items():
            size = self.sizes[stream]
            if stream == self.longest:
                wanted, spans = self.bounds[-1][1], self.bounds
            else:
                wanted = len(self) * size
                spans = [(i * size, (i + 1) * size) for i in range(len(self))]
            passes = -(-wanted // len(source))
            turns = [self._order(len(source), seed, stream, epoch, turn) + turn * len(source) for turn in range(passes)]
            places = torch.cat(turns)  # a sample that comes again in this epoch has another place, hence other draws
            if isinstance(source, TensorSource):
                places = places.to(source.input.device)
            self.orders[stream] = places % len(source)
            self.pieces[stream] = [self.terms.share(*span) for span in spans]
            self.draws[stream] = {view: Draw(mix(seed, stream, view, epoch), places) for view in self.views[stream]}
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
            update = size * self.terms.accumulate
            if samples < update:
                raise DataError(
                    f"data.drop_last: {samples} samples do not fill one update of {update}; "
                    "set data.drop_last=false or a smaller data.batch_size"
                )
            samples -= samples % update
        bounds = [(start, min(start + size, samples)) for start in range(0, samples, size)]
        if len(bounds) > 1 and self.shuffle and bounds[-1][1] - bounds[-1][0] < self.terms.least <= size:
            bounds[-2:] = [(bounds[-2][0], bounds[-1][1])]
        return bounds[: self.terms.limit]


def _unchanged(value: Any) -> Any:
    return value


def _prepared(workers: DataLoader[Any]) -> Iterator[tuple[Batch, int]]:
    try:
        for dealt in workers:
            if isinstance(dealt, DataError):
                raise dealt
            yield dealt
    except (OSError, EOFError, RuntimeError) as error:
        lost = isinstance(error, (OSError, EOFError)) or "DataLoader worker (pid" in str(error)
        if not lost or str(error).startswith("Caught "):
            raise
        raise DataError(
            "a loader worker was killed or ended by itself; fewer data.workers need less memory, 0 shows where it ends"
        ) from error


class _Dealer:
    """The data set that workers see: a key is a place in the run, its value the whole batch, or our own error."""

    def __init__(self, loader: Loader) -> None:
        self.loader = copy.copy(loader)
        self.loader._workers = None

    def __getitem__(self, place: tuple[int, int]) -> tuple[Batch, int] | DataError:
        try:
            return self.loader.batch(*place)
        except DataError as error:
            return error


class _Positions:
    """The sampler of the workers' DataLoader: the places still to come in this epoch."""

    def __init__(self) -> None:
        self.positions: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)
