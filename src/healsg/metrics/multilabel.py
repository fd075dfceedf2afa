"""Metrics of several labels a sample: ``output`` (N, C) scores, ``target`` (N, C) of 0 and 1, of any type."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from healsg.metric import Metric, count_of_all, counted


class LabelAccuracy(Metric):
    """The share of the labels, over all samples, that are predicted correctly, a score above 0 being a yes; in 0..1.

    A score that is nan makes it nan.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multilabel",)
    higher_is_better: ClassVar[bool | None] = True

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        right = (output > 0) == (target > 0.5)
        return counted(right.count_nonzero(), count_of_all(output))
