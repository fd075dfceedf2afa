"""Metrics of one class a sample: ``output`` (N, C, ...) scores, ``target`` (N, ...) class indices; ``F1`` knows labels
as well. A target outside 0..C-1 is left out of all but the top-k accuracy, for which it is a miss."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from healsg.metric import Metric, counted, precise
from healsg.types import Count


def members(index: Tensor, classes: int) -> Tensor:
    """(N, C) of 0 and 1, in the widest type: to which class each of the (N,) or (N, ...) indices belongs."""
    return precise(index.flatten().unsqueeze(1) == torch.arange(classes, device=index.device))


def mean(values: list[float]) -> float:
    """The mean; nan of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


class Confusion(Metric):
    """The confusion matrix: a list of rows, by true class, of how many samples were taken for each class.

    It is measured on the test part alone, and shown in ``report.html``.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multiclass",)
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        classes = output.shape[1]
        true, taken = members(target, classes), members(output.argmax(dim=1), classes)
        return (true.mT @ taken).flatten()

    def value(self, state: list[float]) -> list[list[int]]:
        classes = math.isqrt(len(state))
        return [[int(count) for count in state[row * classes :][:classes]] for row in range(classes)]


class BalancedAccuracy(Metric):
    """The mean over the classes that occur of the share of their samples that is recognised, in 0..1."""

    kinds: ClassVar[tuple[str, ...]] = ("multiclass",)

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        true, taken = (members(index, output.shape[1]) for index in (target, output.argmax(dim=1)))
        return torch.cat([(true * taken).sum(dim=0), true.sum(dim=0)])

    def value(self, state: list[float]) -> float:
        half = len(state) // 2
        return mean([hits / count for hits, count in zip(state[:half], state[half:], strict=True) if count])


class F1(Metric):
    """The mean over the classes, or labels, of ``2 hits / (taken for it + truly of it)``, in 0..1.

    A class that neither occurs nor is predicted is left out; such a label counts as 0. A label, target (N, C) of 0 and
    1, is predicted where its score is above 0.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multiclass", "multilabel")

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        labels = output.shape == target.shape
        if labels:
            true, taken = precise(target > 0.5), precise(output > 0)
        else:
            true, taken = (members(index, output.shape[1]) for index in (target, output.argmax(dim=1)))
            taken = taken * true.sum(dim=1, keepdim=True)
        sums = [(true * taken).sum(dim=0), (true + taken).sum(dim=0)]
        return torch.cat([*sums, sums[0].new_full((1,), float(labels) * len(target))])

    def value(self, state: list[float]) -> float:
        half, labels = len(state) // 2, state[-1] > 0
        pairs = zip(state[:half], state[half:-1], strict=True)
        return mean([2 * hits / both if both else 0.0 for hits, both in pairs if both or labels])


class TopK(Metric):
    """The share of samples whose class is among the ``k`` largest outputs, in 0..1."""

    kinds: ClassVar[tuple[str, ...]] = ("multiclass",)

    def __init__(self, k: Count = 5) -> None:
        super().__init__()
        self.k = k

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        largest = output.topk(min(self.k, output.shape[1]), dim=1).indices
        return counted((largest == target.unsqueeze(1)).sum(), target.numel())


class CalibrationError(Metric):
    """Expected calibration error: by how much the probability of the predicted class and the share of hits differ, the
    mean over the samples' bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3), in 0..1."""

    kinds: ClassVar[tuple[str, ...]] = ("multiclass",)

    def __init__(self, bins: Count = 15) -> None:
        super().__init__()
        self.bins = bins

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        confidence, taken = precise(output).softmax(dim=1).max(dim=1)
        known = precise((target >= 0) & (target < output.shape[1])).flatten()
        where = ((confidence * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        within = members(where, self.bins) * known.unsqueeze(1)
        hits = precise(taken == target).flatten()
        return torch.cat([within.mT @ (hits - confidence.flatten()), known.sum().view(1)])

    def value(self, state: list[float]) -> float:
        return math.fsum(abs(gap) for gap in state[:-1]) / state[-1] if state[-1] else math.nan
