"""How well scores rank samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from healsg.data.base import DataInfo
from healsg.metric import computed, precise
from healsg.metrics.classification import mean, too_many
from healsg.metrics.gathered import Gathered
from healsg.types import Count

log = logging.getLogger("healsg")


def area(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve: the probability that a positive sample has a higher score than a negative one,
    where equal scores count half (Hanley and McNeil 1982).

    Args:
        scores: (N,) numbers, of which none is nan.
        positive: (N,) bool.

    Returns nan where all samples are positive or none is.
    """
    positives = _sorted(scores[positive])
    ours, others = len(positives), len(scores) - len(positives)
    if not ours or not others:
        return math.nan
    ordered = _sorted(scores)
    below = torch.searchsorted(ordered, positives)
    rank = precise(below + torch.searchsorted(ordered, positives, right=True) + 1) / 2
    return (float(rank.sum()) - ours * (ours + 1) / 2) / (ours * others)


def _sorted(values: Tensor) -> Tensor:
    """(N,) numbers in rising order, by NumPy, which sorts in half of torch's time."""
    return torch.from_numpy(np.sort(values.numpy()))


class AUROC(Gathered):
    """The area under the ROC curve, exact: the mean over the classes, each against the rest, or over the labels.

    A class ranks samples by its probability, the softmax of ``output`` (N, C, ...). A class or label that no sample or
    every sample has is left out of the mean, and so are samples whose target is outside 0..C-1. A score that is nan
    makes it nan.

    Args:
        max_classes: of more classes or labels it is left out, with a line in the log: each takes a sort of all samples.
        max_mib: see ``Gathered``; it keeps 8 bytes a sample and class.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multiclass", "multilabel")
    higher_is_better: ClassVar[bool | None] = True

    def __init__(self, max_classes: Count = 1000, max_mib: Count = 1024) -> None:
        super().__init__(max_mib)
        self.max_classes = max_classes
        self.reported = False

    def omitted(self, info: DataInfo) -> str | None:
        return too_many(info.num_classes, self.max_classes)

    def rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, ...] | None:
        if line := too_many(output.shape[1], self.max_classes):
            if not self.reported:  # the data did not say how many classes there are
                log.info("%s: %s", type(self).__name__, line)
            self.reported = True
            return None
        if output.shape == target.shape:
            return precise(output), target > 0.5
        scores = precise(output).softmax(dim=1).movedim(1, -1).flatten(0, -2)
        return scores, target.flatten()

    def value(self, state: tuple[Tensor, Tensor]) -> float:
        area_of_all: float = computed(self.in_steps(*state))
        return area_of_all

    def compute(self, states: Sequence[Any]) -> Generator[None, None, float]:
        state = self.joined(states)
        if state is None:
            return math.nan
        scores, target = state
        return (yield from self.in_steps(scores, target))

    def in_steps(self, scores: Tensor, target: Tensor) -> Generator[None, None, float]:
        """The metric, a step a class, of which each sorts all samples."""
        if target.dim() == 1:
            target = target.long()  # in uint8 a comparison with class 300 would wrap around
            samples = (target >= 0) & (target < scores.shape[1])
            if not bool(samples.all()):
                scores, target = scores[samples], target[samples]
        if bool(scores.isnan().any()):
            return math.nan
        areas = []
        for label, column in enumerate(_columns(scores)):
            yield
            areas.append(area(column, target[:, label] if target.dim() == 2 else target == label))
        return mean([one for one in areas if not math.isnan(one)])


def _columns(matrix: Tensor) -> Iterator[Tensor]:
    """The columns of a matrix, each contiguous; eight are copied at once, since they share the lines of a cache."""
    for block in torch.split(matrix, 8, dim=1):
        yield from block.T.contiguous()
