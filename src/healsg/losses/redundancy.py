"""Losses on the statistics of a batch of embeddings (variances, covariances), which prevent their collapse. Pure
functions of (N, D) embeddings of two views, with N at least 2; they return scalars."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def off_diagonal(matrix: Tensor) -> Tensor:
    """The sum of the squared off-diagonal elements of a square matrix."""
    return matrix.square().sum() - matrix.diagonal().square().sum()


def variance(views: Tensor, min_std: float = 1.0, epsilon: float = 1e-4) -> Tensor:
    """The mean over the D dimensions of ``max(0, least - sqrt(var + epsilon))`` (Bardes et al. 2022, arXiv 2105.04906,
    equations 1 and 2), with the unbiased variance."""
    return (min_std - (views.var(dim=0) + epsilon).sqrt()).relu().mean()


def covariance(views: Tensor) -> Tensor:
    """``1 / D`` times the sum of the squared covariances of different dimensions (arXiv 2105.04906, equations 3, 4)."""
    centred = views - views.mean(dim=0)
    return off_diagonal(centred.T @ centred / (len(views) - 1)) / views.shape[1]


def vicreg(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance (arXiv 2105.04906, equation 6), the latter two summed over both views.

    As in the authors' code (Algorithm 1 of the paper), the invariance is the mean over all N * D squared differences
    (equation 5 sums over D), and the variance is the mean of both views', not their sum.
    """
    spread = (variance(first) + variance(second)) / 2
    return (first - second).square().mean(), spread, covariance(first) + covariance(second)


def barlow_twins(first: Tensor, second: Tensor, weight: float, epsilon: float = 1e-5) -> Tensor:
    """``sum_i (1 - C_ii)^2 + weight * sum_{i != j} C_ij^2`` of the cross-correlation C of two views (Zbontar et al.
    2021, arXiv 2103.03230, equations 1 and 2).

    Args:
        first, second: (N, D).
        weight: of the off-diagonal elements.
        epsilon: added to variances.
    """
    scaled = [
        (view - view.mean(dim=0)) / (view.var(dim=0, unbiased=False) + epsilon).sqrt() for view in (first, second)
    ]
    correlation = scaled[0].T @ scaled[1] / len(first)
    return (1.0 - correlation.diagonal()).square().sum() + weight * off_diagonal(correlation)


def spread(views: Tensor) -> Tensor:
    """The mean standard deviation of the dimensions of normalised embeddings, times ``sqrt(D)``: 1 if they are spread
    over the sphere, 0 if they have collapsed to a point (arXiv 2011.10566, figure 2)."""
    unit = F.normalize(views, dim=1)
    deviation: Tensor = unit.std(dim=0, unbiased=False).mean()
    return deviation * math.sqrt(views.shape[1])
