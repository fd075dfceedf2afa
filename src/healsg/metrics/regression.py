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
    predicted, expected = fitted(precise(output), target)
    return predicted - expected


class MeanAbsoluteError(Metric):
    """The mean of ``|output - target|`` over samples and numbers."""

    kinds: ClassVar[tuple[str, ...]] = ("regression",)
    higher_is_better: ClassVar[bool | None] = False

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        return counted(residuals(output, target).abs().sum(), target.numel())


class RootMeanSquaredError(Metric):
    """The root of the mean of ``(output - target)^2`` over samples and numbers."""

    kinds: ClassVar[tuple[str, ...]] = ("regression",)
    higher_is_better: ClassVar[bool | None] = False

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        return counted(residuals(output, target).square().sum(), target.numel())

    def value(self, state: list[float]) -> float:
        return math.sqrt(super().value(state))


class R2(Metric):
    """The coefficient of determination, ``1 - squared errors / squared deviations from the mean``, the mean over the
    numbers of a sample; one that never differs is left out, and where none differs the value is nan.

    The deviations are taken from each batch's own mean and merged as in Chan et al. 1983, "Algorithms for computing the
    sample variance", equation 2.1, so that a large mean costs no digits.
    """

    kinds: ClassVar[tuple[str, ...]] = ("regression",)
    higher_is_better: ClassVar[bool | None] = True

    def measure(self, output: Tensor, target: Tensor) -> Tensor | None:
        if not len(target):
            return None
        wrong = residuals(output, target).reshape(len(target), -1)
        expected = precise(target).reshape(len(target), -1)
        away = expected - expected[0]  # exactly 0 for targets that never differ
        centre = away.mean(dim=0)
        parts = [wrong.square().sum(dim=0), expected[0] + centre, (away - centre).square().sum(dim=0)]
        return torch.cat([*parts, wrong.new_full((1,), len(target))])

    def merge(self, first: Tensor, second: Tensor) -> Tensor:
        (wrong, centre, spread), count = first[:-1].chunk(3), first[-1]
        (more_wrong, other_centre, other_spread), more = second[:-1].chunk(3), second[-1]
        total, gap = count + more, other_centre - centre
        spread = spread + other_spread + gap.square() * (count * more / total)
        return torch.cat([wrong + more_wrong, centre + gap * (more / total), spread, total.view(1)])

    def value(self, state: list[float]) -> float:
        size = len(state) // 3
        columns = zip(state[:size], state[2 * size : -1], strict=True)
        return mean([1 - wrong / spread for wrong, spread in columns if spread != 0])
