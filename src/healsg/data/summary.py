"""A summary of a run's data: lines for the log at its start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from healsg.data.base import DataInfo
from healsg.data.foreign import AnyLoader
from healsg.data.loader import Loader

MOST_CLASSES = 12
"""The most classes for which a line gives the number of samples of each."""


def data_lines(loaders: Mapping[str, AnyLoader], info: DataInfo | None) -> Iterator[str]:
    """A line about inputs and targets, then one per split with its number of samples, in total and of each class.

    Args:
        loaders: by split.
        info: the properties of the data; None if a task builds its own loaders.
    """
    if info is not None:
        names = info.class_names if 0 < len(info.class_names) <= MOST_CLASSES else ()
        outputs = {"multiclass": "classes", "multilabel": "labels", "regression": "numbers"}.get(info.kind, "outputs")
        shown = f" ({', '.join(names)})" if names else ""
        yield f"data: inputs of shape {tuple(info.input_shape)}, {info.num_classes} {outputs}{shown}"
        if info.kind == "regression":
            yield "data: targets are scaled to mean 0 and deviation 1 for the loss; metrics and predictions are not"
    for split, loader in loaders.items():
        if split == "bank":  # the training samples again
            continue
        if not isinstance(loader, Loader):
            yield f"data: {split}: a loader of its own"
            continue
        for stream, source in loader.sources.items():
            name = split if list(loader.sources) == ["labelled"] else f"{split}, {stream}"
            yield f"data: {name}: {len(source)} samples{class_counts(source.targets, info)}"


def class_counts(targets: Tensor | None, info: DataInfo | None) -> str:
    """The number of samples of each class; for many classes the smallest and largest number."""
    if info is None or targets is None or info.kind != "multiclass" or targets.dim() != 1 or not len(targets):
        return ""
    if targets.is_floating_point():
        return ""
    known = targets.cpu().long()
    counts = torch.bincount(known[known >= 0], minlength=info.num_classes).tolist()  # a negative one may be ignored
    if len(counts) > MOST_CLASSES:
        return f" in {sum(count > 0 for count in counts)} classes, {min(counts)} to {max(counts)} of each"
    names = info.class_names or tuple(map(str, range(len(counts))))
    return f" ({', '.join(f'{name} {count}' for name, count in zip(names, counts, strict=False))})"


def data_warnings(loaders: Mapping[str, AnyLoader]) -> Iterator[str]:
    """Warnings about probable mistakes: a batch that is larger than the data."""
    train = loaders.get("train")
    if isinstance(train, Loader):
        samples, size = len(train.sources[train.longest]), train.sizes[train.longest]
        if size > samples:
            yield f"data.batch_size: {size} is more than the {samples} training samples: an epoch is one batch of them"
