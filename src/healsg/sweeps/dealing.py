"""The batches of a stack: each job's own, as it would see them alone, made together where the data allow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from healsg.loader import Loader
from healsg.seeding import Draw
from healsg.source import Batch
from healsg.task import BasicTask


class _Joined(Draw):
    """The draws of several epochs' samples, one after the other: each its own."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self.draws = draws

    def bits(self, which: int) -> Tensor:
        return torch.cat([draw.bits(which) for draw in self.draws])

    def alternating(self, which: int) -> Tensor:
        return torch.cat([draw.alternating(which) for draw in self.draws])


class Dealer:
    """Deals to all tasks of a stack at once.

    Args:
        tasks: built, with train loaders of equal lengths.
        alike: whether all have the same settings of data. Where their seeds are the same too, so are the batches, and
            one serves for all; else samples in memory, of our own data sets, are taken and transformed by one call.
    """

    def __init__(self, tasks: Sequence[BasicTask], alike: bool) -> None:
        self.loaders = [cast(Loader, task.train_loader) for task in tasks]
        self.shared = alike and len({task.config.seed for task in tasks}) == 1
        if self.shared:
            self.loaders = self.loaders[:1]
        ours = all(type(task.task_data).__module__.startswith("healsg.datasets.") for task in tasks)
        self.together = alike and ours and all(loader.in_memory for loader in self.loaders)

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, int]]:
        """From position ``start`` of an epoch on: ``input`` and ``target``, (N, ...) where the batches are ``shared``
        and else (J, N, ...); and N."""
        if self.together:
            for loader in self.loaders:
                loader._begin(epoch)
            yield from map(self._together, range(start, len(self.loaders[0])))
            return
        for dealt in zip(*(loader.batches(epoch, start) for loader in self.loaders), strict=True):
            rows = {key: [batch[key] for batch, _ in dealt] for key in ("input", "target")}
            yield {key: values[0] if self.shared else torch.stack(values) for key, values in rows.items()}, dealt[0][1]

    def _together(self, place: int) -> tuple[Batch, int]:
        first, jobs = self.loaders[0], len(self.loaders)
        stream, source = next(iter(first.sources.items()))
        start, stop, rows = first.pieces[stream][place]
        raw = source.fetch(torch.cat([loader.orders[stream][start:stop] for loader in self.loaders]))
        draw = _Joined([loader.draws[stream]["input"].part(start, stop) for loader in self.loaders])
        transform = first.views[stream]["input"]
        batch = transform(raw, draw if first.shuffle else None) if transform else raw
        made = {key: batch[key] for key in ("input", "target")}
        if self.shared:
            return made, rows
        return {key: value.view(jobs, stop - start, *value.shape[1:]) for key, value in made.items()}, rows
