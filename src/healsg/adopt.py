"""Loaders that a user's own task returns: plain ones are dealt anew, any other is seeded and skipped forward."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from healsg.errors import DataError
from healsg.loader import Loader, Terms
from healsg.seeding import seed_everything
from healsg.source import Batch, DatasetSource, Source, TensorSource, as_batch


class ForeignLoader:
    """Any other iterable of batches: seeded by (seed, epoch), skipped forward on resume, each rank taking its rows."""

    in_memory = False
    left_out = 0

    def __init__(self, loader: Any, name: str) -> None:
        self.loader, self.name = loader, name
        self.deal(Terms())

    def deal(self, terms: Terms) -> None:
        self.terms = terms

    def __len__(self) -> int:
        limit = self.terms.limit
        try:
            length = len(self.loader)
        except TypeError:
            if limit is None:
                raise DataError(
                    f"the {self.name} loader has no length: set runner.limit_batches, or give its data set a __len__"
                ) from None
            return limit
        if not length:
            raise DataError(f"the {self.name} loader is empty")
        return length if limit is None else min(length, limit)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.batches(0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        seed_everything(self.terms.seed, "loader", self.name, epoch)
        sampler = getattr(self.loader, "sampler", None)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        for value in islice(iter(self.loader), start, len(self)):
            yield self._share(as_batch(value))

    def _share(self, batch: Batch) -> tuple[Batch, int]:
        size = len(next(iter(batch.values())))
        low, high, rows = self.terms.share(0, size)
        return (batch if self.terms.world == 1 else {key: value[low:high] for key, value in batch.items()}), rows


AnyLoader = Loader | ForeignLoader


def adopt(loader: Any, name: str) -> AnyLoader:
    """Make a loader of ours of what ``build_dataloader`` returned for the split ``name``.

    A plain map-style ``DataLoader`` is dealt anew; its data set, batch size, collate function, ``drop_last`` and
    workers are kept, a random or sequential sampler becomes ours.
    """
    if isinstance(loader, (Loader, ForeignLoader)):
        return loader
    if not _is_plain(loader):
        return ForeignLoader(loader, name)
    source: Source
    dataset, collate = loader.dataset, loader.collate_fn
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2 and collate is default_collate:
        source = TensorSource(*dataset.tensors)
    else:
        source = DatasetSource(dataset, collate)
    return Loader(
        {"labelled": source},
        {"labelled": {"input": None}},
        loader.batch_size,
        shuffle=isinstance(loader.sampler, RandomSampler),
        drop_last=loader.drop_last,
        workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )


def _is_plain(loader: Any) -> bool:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    sampler = loader.sampler
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    return whole and type(loader.batch_sampler) is BatchSampler
