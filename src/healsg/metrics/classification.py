"""Metrics of one class a sample: ``output`` (N, C, ...) scores, ``target`` (N, ...) class indices; ``F1`` knows labels
as well. A target outside 0..C-1 is left out of all of them; an output that is nan makes the value nan.

Samples are counted by class with ``scatter_add_``, in O(N + C) memory and without reading a value from the device.
"""

from __future__ import annotations

import logging
import math
from typing import ClassVar

import torch
from torch import Tensor

from healsg.data.base import DataInfo
from healsg.metric import (
    Metric,
    count_by_label,
    count_of,
    count_of_all,
    counted,
    known,
    largest,
    precise,
    predicted,
)
from healsg.types import Count

log = logging.getLogger("healsg")

MOST_ROWS = 100
"""Numbers in a list by class up to which it is something that a person reads."""

_CHUNK = 65_536
"""Samples that are sorted into bins at once, to bound the memory of pixels."""


def tally(index: Tensor, weight: Tensor, size: int) -> Tensor:
    """(size,) sums in the widest type of ``weight``, whole numbers or bool, by ``index``, both of one shape.

    An index outside 0..size-1 must have the weight 0.
    """
    weight = precise(weight).flatten()
    return weight.new_zeros(size).scatter_add_(0, index.flatten().long().clamp(0, size - 1), weight)


def mean(values: list[float]) -> float:
    """The mean; nan of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


class Confusion(Metric):
    """The confusion matrix: a list of rows, by true class, of how many samples were predicted as each class.

    It is measured on the test part alone, and shown in ``report.html``.

    Args:
        max_classes: with more classes the matrix is left out, and a line is logged.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multiclass",)
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self, max_classes: Count = 100) -> None:
        super().__init__()
        self.max_classes = max_classes

    def omitted(self, info: DataInfo) -> str | None:
        return too_many(info.num_classes, self.max_classes)

    def measure(self, output: Tensor, target: Tensor) -> Tensor | None:
        classes = output.shape[1]
        if line := too_many(classes, self.max_classes):
            log.info("%s: %s", type(self).__name__, line)  # the data did not say how many classes there are
            return None
        samples = known(output, target)
        cells = tally(target.long() * classes + output.argmax(dim=1), samples, classes * classes)
        return torch.cat([cells, count_of(output, samples).view(1)])

    def value(self, state: list[float]) -> list[list[int]]:
        classes = math.isqrt(len(state) - 1)
        return [[int(count) for count in state[row * classes :][:classes]] for row in range(classes)]


def too_many(classes: int, most: int) -> str | None:
    """The message for more classes than a metric supports; None otherwise."""
    return f"left out, since {classes} classes are more than its max_classes={most}" if classes > most else None


class BalancedAccuracy(Metric):
    """Balanced accuracy: the mean over the classes that occur of the share of correctly predicted samples, in 0..1."""

    kinds: ClassVar[tuple[str, ...]] = ("multiclass",)
    higher_is_better: ClassVar[bool | None] = True

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        samples, classes = known(output, target), output.shape[1]
        hits = tally(target, predicted(output) == target, classes)
        return torch.cat([hits, tally(target, samples, classes), count_of(output, samples).view(1)])

    def value(self, state: list[float]) -> float:
        half = len(state) // 2
        return mean([hits / count for hits, count in zip(state[:half], state[half:-1], strict=True) if count])


class F1(Metric):
    """The mean over the classes, or labels, of ``2 hits / (taken for it + truly of it)``, in 0..1.

    A class that neither occurs nor is predicted is left out; such a label counts as 0. A label, target (N, C) of 0 and
    1, is predicted where its score is above 0.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multiclass", "multilabel")
    higher_is_better: ClassVar[bool | None] = True

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        labels = output.shape == target.shape
        if labels:
            true, taken = target > 0.5, output > 0
            sums = [precise(count_by_label(true & taken)), precise(count_by_label(true) + count_by_label(taken))]
            count = count_of_all(output)
        else:
            samples = known(output, target)
            taken = predicted(output)
            classes = output.shape[1]
            both = tally(target, samples, classes) + tally(taken, samples, classes)
            sums = [tally(target, taken == target, classes), both]
            count = count_of(output, samples)
        return torch.cat([*sums, count.new_full((1,), float(labels)), count.view(1)])

    def value(self, state: list[float]) -> float:
        half, labels = len(state) // 2 - 1, state[-2] > 0
        pairs = zip(state[:half], state[half:-2], strict=True)
        return mean([2 * hits / both if both else 0.0 for hits, both in pairs if both or labels])


class TopK(Metric):
    """The share of samples whose class is among the ``k`` largest outputs, in 0..1."""

    kinds: ClassVar[tuple[str, ...]] = ("multiclass",)
    higher_is_better: ClassVar[bool | None] = True

    def __init__(self, k: Count = 5) -> None:
        super().__init__()
        self.k = k

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        hits = largest(output, self.k) == target.unsqueeze(1)
        return counted(hits.sum(), count_of(output, known(output, target)))


class CalibrationError(Metric):
    """Expected calibration error: the mean gap between the probability of the predicted class and the accuracy, over
    bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3), in 0..1."""

    kinds: ClassVar[tuple[str, ...]] = ("multiclass",)
    higher_is_better: ClassVar[bool | None] = False

    def __init__(self, bins: Count = 15) -> None:
        super().__init__()
        self.bins = bins

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        confidence, taken = precise(output).softmax(dim=1).max(dim=1)
        samples = known(output, target)
        confidence = torch.where(samples, confidence, 0.0)  # nan of a sample that is left out would stay nan
        where = ((confidence * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        gaps = precise(taken == target) - confidence
        sums = self._by_bin(where.flatten(), gaps.flatten(), samples.flatten())
        return torch.cat([sums, torch.where(confidence.isnan().any(), math.nan, precise(samples.sum())).view(1)])

    def _by_bin(self, where: Tensor, gaps: Tensor, samples: Tensor) -> Tensor:
        """The sum of the gaps in each bin, as a matrix product, whose order of summation is fixed on a GPU too."""
        bins = torch.arange(self.bins, device=where.device)
        total = gaps.new_zeros(self.bins)
        for bin, gap, sample in zip(*(torch.split(values, _CHUNK) for values in (where, gaps, samples)), strict=True):
            within = precise((bin.unsqueeze(1) == bins) & sample.unsqueeze(1))
            total = total + within.mT @ gap
        return total

    def value(self, state: list[float]) -> float:
        return math.fsum(abs(gap) for gap in state[:-1]) / state[-1] if state[-1] else math.nan
