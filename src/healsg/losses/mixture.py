"""A mixture of two normal distributions over one number a sample, as a pure function of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from healsg.metric import precise

ITERATIONS = 10
"""Of expectation-maximisation; the authors of DivideMix stop at 10 too, or sooner."""

LEAST_VARIANCE = 5e-4
"""Added to each variance, as the authors' ``reg_covar``."""


def share_of_smaller(values: Tensor) -> Tensor:
    """(N,) the probability that each of (N,) ``values`` belongs to the component with the smaller mean.

    Expectation-maximisation of a mixture of two normal distributions, which begins with the least and the largest value
    as means. Values are first brought to 0..1. It reads no value, and is 1/2 everywhere where all are equal.
    """
    wide = precise(values)
    lowest, highest = wide.aminmax()
    scaled = (wide - lowest) / (highest - lowest).clamp(min=1e-12)
    mean = torch.stack([scaled.new_zeros(()), scaled.new_ones(())])
    variance = scaled.new_full((2,), 0.1)
    weight = scaled.new_full((2,), 0.5)
    for _ in range(ITERATIONS):
        share = _responsibility(scaled, mean, variance, weight)
        count = share.sum(dim=0).clamp(min=1e-12)
        mean = (share * scaled[:, None]).sum(dim=0) / count
        variance = (share * (scaled[:, None] - mean).square()).sum(dim=0) / count + LEAST_VARIANCE
        weight = count / count.sum()
    share = _responsibility(scaled, mean, variance, weight)
    return torch.where(mean[0] <= mean[1], share[:, 0], share[:, 1])


def _responsibility(values: Tensor, mean: Tensor, variance: Tensor, weight: Tensor) -> Tensor:
    """(N, 2) the probability of each component given the value."""
    distance = (values[:, None] - mean).square() / variance
    density = weight.log() - 0.5 * (distance + variance.log() + math.log(2 * math.pi))
    return density.softmax(dim=1)
