"""Masks: whether they go with their images and hold no label but those of the set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from healsg.data.info import DataInfo
from healsg.data.source import Batch, DatasetSource, Source, TensorSource
from healsg.errors import DataError


def checked(source: Source, info: DataInfo) -> Source:
    """The samples of ``source``, whose masks are compared with their images and with the labels that ``info`` names.

    Masks in memory are looked at here, others when they are first read. Raises DataError, here or then, which names the
    file, or the sample where no file is known.
    """
    if isinstance(source, TensorSource):
        for place in range(len(source)):
            sample, cases = source.sample(place), source.about.cases
            where = f"sample {place}" if cases is None else cases[place].name
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
        dataset: where it has ``mask_paths``, a message names the file of the mask.
        info: the labels.
    """

    def __init__(self, dataset: Any, info: DataInfo) -> None:
        self.dataset, self.info = dataset, info

    def __call__(self, sample: Batch, number: int) -> None:
        if "target" not in sample:
            return
        try:
            check_mask(torch.as_tensor(sample["input"]), torch.as_tensor(sample["target"]), self.info)
        except DataError as error:
            paths = getattr(self.dataset, "mask_paths", None)
            raise DataError(f"{paths[number]}: {error}" if paths is not None else str(error)) from None


def check_mask(input: Tensor, target: Tensor, info: DataInfo) -> None:
    """Refuse a mask that does not fit its image. Raises DataError in words that follow the mask's name.

    Args:
        input: (C, *spatial).
        target: (*spatial), or (R, *spatial) of numbers, such as probabilities, which are not compared with labels.
        info: the labels that a mask may hold.
    """
    sides, own = tuple(input.shape[1:]), tuple(target.shape)
    if own != sides and (len(own) != len(sides) + 1 or own[1:] != sides):
        raise DataError(f"the mask is {_size(own)}, its image {_size(sides)}; a mask has the size of its image")
    if target.is_floating_point() and own != sides:
        return
    known = {*info.labels} | ({info.ignore} if info.ignore is not None else set())
    found = torch.unique(target).tolist()
    if unknown := [label for label in found if label not in known]:
        names = ", ".join(f"{label:g}" for label in unknown[:5])
        detail = f"the label {names} is" if len(unknown) == 1 else f"the labels {names} are"
        way = ""
        if found in ([0, 255], [255]):
            way = "; a mask of 0 and 255 needs its 255 mapped to 1"
        raise DataError(f"{detail} not among the set's labels, {_labels(info)}{way}")


def _labels(info: DataInfo) -> str:
    labels = info.labels
    whole = labels == tuple(range(len(labels)))
    listed = f"0 to {len(labels) - 1}" if whole and len(labels) > 1 else ", ".join(map(str, labels))
    return listed if info.ignore is None else f"{listed} and {info.ignore} to be ignored"


def _size(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides)) or "a single number"
