"""Metrics of numbers: ``target`` (N,) or (N, K), ``output`` of that shape or, for one number, (N, 1)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from healsg.losses.usual import fitted
from healsg.metric import Metric, counted, precise
from healsg.metrics.classification import mean


def residuals(output: Tensor, target: Tensor) -> Tensor:
    """``output - target`` in the widest type."""
    predicted, wanted = fitted(precise(output), target)
    return predicted - wanted


class MeanAbsoluteError(Metric):
    """The mean of ``|output - target|`` over samples and numbers."""

    kinds: ClassVar[tuple[str, ...]] = ("regression",)

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        return counted(residuals(output, target).abs().sum(), target.numel())


class RootMeanSquaredError(Metric):
    """The root of the mean of ``(output - target)^2`` over samples and numbers."""

    kinds: ClassVar[tuple[str, ...]] = ("regression",)

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        return counted(residuals(output, target).square().sum(), target.numel())

    def value(self, state: list[float]) -> float:
        return math.sqrt(state[0] / state[-1])


class R2(Metric):
    """The coefficient of determination, ``1 - squared errors / squared deviations from the mean``, the mean over the
    numbers of a sample; one that never differs is left out."""

    kinds: ClassVar[tuple[str, ...]] = ("regression",)

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        wrong = residuals(output, target).reshape(len(target), -1)
        wanted = precise(target).reshape(len(target), -1)
        sums = [wrong.square().sum(dim=0), wanted.sum(dim=0), wanted.square().sum(dim=0)]
        return torch.cat([*sums, wrong.new_full((1,), len(target))])

    def value(self, state: list[float]) -> float:
        count, size = state[-1], len(state) // 3
        columns = zip(state[:size], state[size : 2 * size], state[2 * size : -1], strict=True)
        spreads = [(wrong, squares - total * total / count) for wrong, total, squares in columns]
        return mean([1 - wrong / spread for wrong, spread in spreads if spread > 0])
