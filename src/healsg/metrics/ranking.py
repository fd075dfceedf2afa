"""How well scores rank samples."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from healsg.metric import precise
from healsg.metrics.classification import mean
from healsg.metrics.gathered import Gathered


def area(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve: the probability that a positive sample has a higher score than a negative one,
    where equal scores count half (Hanley and McNeil 1982).

    Args:
        scores: (N,) numbers.
        positive: (N,) bool.

    Returns nan where all samples are positive or none is.
    """
    ordered = scores.sort().values
    below = torch.searchsorted(ordered, scores)
    rank = (below + torch.searchsorted(ordered, scores, right=True) + 1).double() / 2
    ours = int(positive.sum())
    others = len(scores) - ours
    if not ours or not others:
        return math.nan
    return (float(rank[positive].sum()) - ours * (ours + 1) / 2) / (ours * others)


class AUROC(Gathered):
    """The area under the ROC curve, exact: the mean over the classes, each against the rest, or over the labels.

    A class ranks samples by its probability, the softmax of ``output`` (N, C). A class or label that no sample or every
    sample has is left out of the mean.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multiclass", "multilabel")

    def rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        if output.shape == target.shape:
            return precise(output), target > 0.5
        scores = precise(output).softmax(dim=1).movedim(1, -1).flatten(0, -2)
        return scores, target.flatten()

    def value(self, state: tuple[Tensor, Tensor]) -> float:
        scores, target = state
        positive = target if target.dim() == 2 else target.unsqueeze(1) == torch.arange(scores.shape[1])
        areas = [area(scores[:, label].contiguous(), positive[:, label]) for label in range(scores.shape[1])]
        return mean([one for one in areas if not math.isnan(one)])
