"""Sources without labels or with replaced labels, and concatenated sources."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from healsg.data.source import UNKNOWN, Batch, DatasetSource, Source, TensorSource
from healsg.errors import DataError
from healsg.seeding import Draw


class UnlabelledTensors(TensorSource):
    """Tensors in memory whose batches hold no ``target``."""

    def fetch(self, index: Tensor, *, draw: Draw | None = None) -> Batch:
        return self.about.added({"input": self.input[index], "index": index})

    def sample(self, index: int, draw: Draw | None = None) -> Batch:
        return {"input": self.input[index]}

    def subset(self, index: Tensor) -> UnlabelledTensors:
        return UnlabelledTensors(self.input[index], self.target[index], self.joinable, self.about.of(index))

    def to(self, device: torch.device) -> UnlabelledTensors:
        return UnlabelledTensors(self.input.to(device), self.target.to(device), self.joinable, self.about)


class UnlabelledDataset(DatasetSource):
    """A map-style data set whose batches hold no ``target``."""

    def completed(self, batch: Batch) -> Batch:
        return _without_target(batch)

    def sample(self, index: int, draw: Draw | None = None) -> Batch:
        return _without_target(super().sample(index, draw))


class RelabelledDataset(DatasetSource):
    """A map-style data set whose targets are replaced by ``targets``."""

    def completed(self, batch: Batch) -> Batch:
        if "target" in batch and self.targets is not None:
            batch["target"] = self.targets[batch["index"]]
        return batch

    def subset(self, index: Tensor) -> RelabelledDataset:
        return relabelled_dataset(super().subset(index))


def relabelled_dataset(source: DatasetSource, targets: Tensor | None = None) -> RelabelledDataset:
    """The samples of ``source`` with its ``targets``, or others."""
    known = source.targets if targets is None else targets
    return RelabelledDataset(source.dataset, source.collate, known, source.indices, source.about)


def _without_target(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key not in ("target", "extra")}


def relabelled(source: Source, targets: Tensor) -> Source:
    """The same samples with other targets."""
    if isinstance(source, TensorSource):
        return TensorSource(source.input, targets, source.joinable, source.about)
    if isinstance(source, DatasetSource):
        return relabelled_dataset(source, targets)
    raise _unknown(source)


def unlabelled(source: Source, more: Source | None = None) -> Source:
    """The samples of ``source``, then those of ``more``, without their targets; ``about.hidden`` keeps what is known
    of these.

    Raises DataError where one part is held in memory and the other is read sample by sample.
    """
    known = [_hidden(source), *([] if more is None else [torch.full((len(more),), -1)])]
    hidden = None if known[0] is None else torch.cat([part for part in known if part is not None])
    own = source.about if isinstance(source, (TensorSource, DatasetSource)) else UNKNOWN
    about = replace(own if more is None else UNKNOWN, hidden=hidden)
    if isinstance(source, TensorSource) and (more is None or isinstance(more, TensorSource)):
        inputs = source.input if more is None else torch.cat([source.input, more.input])
        return UnlabelledTensors(inputs, inputs.new_empty(len(inputs), 0), source.joinable, about)
    if isinstance(source, DatasetSource) and (more is None or isinstance(more, DatasetSource)):
        if more is None:
            return UnlabelledDataset(source.dataset, source.collate, None, source.indices, about)
        return UnlabelledDataset(ConcatDataset([_subset(source), _subset(more)]), source.collate, about=about)
    raise _unknown(source if more is None else more)


def _hidden(source: Source) -> Tensor | None:
    """(N,) int64 the classes of the samples, on the CPU; None where they have none each."""
    targets = source.targets
    if targets is None or targets.dim() != 1 or targets.is_floating_point():
        return None
    return targets.cpu().long()


def _subset(source: DatasetSource) -> Subset[object]:
    # an array and no list, which workers would copy
    index = range(len(source)) if source.indices is None else source.indices.numpy()
    return Subset(source.dataset, index)  # type: ignore[arg-type]


def _unknown(source: Source) -> DataError:
    return DataError(
        f"data: {type(source).__name__} cannot be relabelled or joined; give a TensorSource or a DatasetSource"
    )
