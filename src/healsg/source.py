"""Where samples come from: tensors in memory, or a map-style data set read sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from healsg.errors import DataError

Batch = dict[str, Any]


class Source(Protocol):
    """Samples by index. ``targets`` holds the labels where they are known without reading samples (for splits)."""

    @property
    def targets(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def fetch(self, index: Tensor) -> Batch:
        """The batch of the samples at ``index`` ((N,) int64): ``input``, ``target`` and ``index``."""
        ...

    def subset(self, index: Tensor) -> Source:
        """The samples at ``index`` alone, renumbered from 0."""
        ...


class TensorSource:
    """Samples held as tensors, batched by one gather; images as uint8.

    Args:
        input: (N, ...) samples.
        target: (N,) class indices, or (N, ...) targets.
    """

    def __init__(self, input: Tensor, target: Tensor) -> None:
        if len(input) != len(target):
            raise DataError(f"{len(input)} inputs do not go with {len(target)} targets")
        self.input, self.target = input, target

    @property
    def targets(self) -> Tensor:
        return self.target

    def __len__(self) -> int:
        return len(self.input)

    def fetch(self, index: Tensor) -> Batch:
        return {"input": self.input[index], "target": self.target[index], "index": index}

    def subset(self, index: Tensor) -> TensorSource:
        return TensorSource(self.input[index], self.target[index])

    def to(self, device: torch.device) -> TensorSource:
        """The same samples on ``device``."""
        return TensorSource(self.input.to(device), self.target.to(device))


class DatasetSource:
    """Samples of a map-style data set, put together by a collate function.

    Args:
        dataset: anything with ``__len__`` and ``__getitem__`` that yields ``(input, target)``, ``(input, target,
            extra)`` or a dict with those names.
        collate: what joins a list of samples into a batch; torch's default where it is None.
        targets: (N,) class indices, where they are known without reading the samples.
        chosen: (N,) int64, which samples of the data set are meant; all where it is None.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        targets: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> None:
        self.dataset, self.collate = dataset, collate or default_collate
        self._targets, self.chosen = targets, chosen

    @property
    def targets(self) -> Tensor | None:
        return self._targets

    def __len__(self) -> int:
        return len(self.dataset) if self.chosen is None else len(self.chosen)

    def fetch(self, index: Tensor) -> Batch:
        wanted = (index if self.chosen is None else self.chosen[index]).tolist()
        many = getattr(self.dataset, "__getitems__", None)
        samples = many(wanted) if many else [self.dataset[i] for i in wanted]
        batch = as_batch(self.collate(samples))
        batch.setdefault("index", index)
        return batch

    def subset(self, index: Tensor) -> DatasetSource:
        chosen = index if self.chosen is None else self.chosen[index]
        targets = None if self._targets is None else self._targets[index]
        return DatasetSource(self.dataset, self.collate, targets, chosen)


def as_batch(value: Any) -> Batch:
    """The one place where a loader's ``(input, target)``, ``(input, target, extra)`` or dict becomes a batch."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and len(value) in (2, 3):
        return dict(zip(("input", "target", "extra"), value, strict=False))
    raise DataError(
        f"a loader yields {type(value).__name__}; give (input, target), (input, target, extra) or a dict of those names"
    )
