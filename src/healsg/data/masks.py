"""Checks of masks: their sizes must match their images, and they may only contain the labels of the data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from healsg.data.info import DataInfo
from healsg.data.source import Batch, DatasetSource, Source, TensorSource
from healsg.errors import DataError


def checked(source: Source, info: DataInfo) -> Source:
    """The samples of ``source``, with a check of their masks against their images and the labels in ``info``.

    Masks in memory are checked here, others when they are first read. The DataError names the file, or the sample if
    its file is unknown.
    """
    if isinstance(source, TensorSource):
        cases = source.about.cases
        for number in range(len(source)):
            sample = source.sample(number)
            where = f"sample {number}" if cases is None else cases[number].name
            try:
                check_mask(sample["input"], sample["target"], info)
            except DataError as error:
                raise DataError(f"data: {where}: {error}") from None
    elif isinstance(source, DatasetSource):
        return source.checking(_Check(source.dataset, info))
    return source


class _Check:
    """The check of a map-style data set's samples.

    Args:
        dataset: the data set; if it has ``mask_paths``, messages name the file of the mask.
        info: the labels.
    """

    def __init__(self, dataset: Any, info: DataInfo) -> None:
        self.dataset = dataset
        self.info = info

    def __call__(self, sample: Batch, number: int) -> None:
        if "target" not in sample:
            return
        try:
            check_mask(torch.as_tensor(sample["input"]), torch.as_tensor(sample["target"]), self.info)
        except DataError as error:
            paths = getattr(self.dataset, "mask_paths", None)
            raise DataError(f"{paths[number]}: {error}" if paths is not None else str(error)) from None


def check_mask(input: Tensor, target: Tensor, info: DataInfo) -> None:
    """Raise DataError if a mask does not fit its image; the message continues a line that names the mask.

    Args:
        input: (C, *spatial).
        target: (*spatial), or (R, *spatial) of numbers, such as probabilities, which are not compared with labels.
        info: the labels that a mask may contain.
    """
    image_size = tuple(input.shape[1:])
    mask_size = tuple(target.shape)
    if mask_size != image_size and (len(mask_size) != len(image_size) + 1 or mask_size[1:] != image_size):
        sizes = f"the mask is {_size(mask_size)}, its image {_size(image_size)}"
        raise DataError(f"{sizes}; a mask has the size of its image")
    if target.is_floating_point() and mask_size != image_size:
        return
    allowed = {*info.labels} | ({info.ignore} if info.ignore is not None else set())
    labels = torch.unique(target).tolist()
    if unknown := [label for label in labels if label not in allowed]:
        names = ", ".join(f"{label:g}" for label in unknown[:5])
        detail = f"the label {names} is" if len(unknown) == 1 else f"the labels {names} are"
        way = ""
        if labels in ([0, 255], [255]):
            way = "; a mask of 0 and 255 needs its 255 mapped to 1"
        raise DataError(f"{detail} not among the set's labels, {_labels(info)}{way}")


def _labels(info: DataInfo) -> str:
    labels = info.labels
    contiguous = labels == tuple(range(len(labels)))
    listed = f"0 to {len(labels) - 1}" if contiguous and len(labels) > 1 else ", ".join(map(str, labels))
    return listed if info.ignore is None else f"{listed} and {info.ignore} to be ignored"


def _size(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides)) or "a single number"
