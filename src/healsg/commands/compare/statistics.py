"""Statistics of a few runs per setting: means with intervals, paired differences, and how many more runs are needed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

LEVEL = 0.95
"""The level of the intervals; a difference is significant if its p-value is below 1 - LEVEL."""

POWER = 0.8
"""The power with which further runs should detect a difference of the observed size."""

MOST = 10_000


class Difference(NamedTuple):
    """The mean difference between two settings.

    Args:
        mean: of the first setting minus the second one.
        half: half the width of the confidence interval; infinite if there are too few runs.
        chance: the p-value of the two-sided t test; 1 if there are too few runs.
        pairs: the number of runs with the same seed and fold that were paired; 0 if the means were compared.
        runs: the smaller number of runs of the two settings, or the number of pairs.
        effect: the mean divided by the standard deviation of the differences; None if unknown.
    """

    mean: float
    half: float
    chance: float
    pairs: int
    runs: int
    effect: float | None

    @property
    def more(self) -> int | None:
        """Further runs of each setting that would make a difference of this size significant; None if not needed."""
        if self.chance < 1 - LEVEL:
            return None
        if self.effect is None:
            return max(1, 3 - self.runs)
        return max(1, runs_needed(self.effect) - self.runs)


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The mean, and half the width of its t interval, which is infinite for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.inf
    from scipy import stats

    quantile = float(stats.t.ppf((1 + level) / 2, len(values) - 1))
    return mean, quantile * _spread(values) / math.sqrt(len(values))


def difference(first: Mapping[Hashable, float], second: Mapping[Hashable, float]) -> Difference:
    """Compare two settings: paired if both have runs of the same seed and fold, otherwise by their means (Welch's t
    test).

    Args:
        first, second: the metric of each run by its repetition, such as ``(seed, fold)``.
    """
    shared = [key for key in first if key in second]
    if len(shared) >= 2:
        return _paired([first[key] - second[key] for key in shared])
    return _unpaired(list(first.values()), list(second.values()))


def _paired(gaps: list[float]) -> Difference:
    from scipy import stats

    mean, half = interval(gaps)
    spread = _spread(gaps)
    if spread == 0:
        return Difference(mean, 0.0, 0.0 if mean else 1.0, len(gaps), len(gaps), 0.0)
    statistic = abs(mean) / (spread / math.sqrt(len(gaps)))
    chance = float(2 * stats.t.sf(statistic, len(gaps) - 1))
    return Difference(mean, half, chance, len(gaps), len(gaps), mean / spread)


def _unpaired(first: list[float], second: list[float]) -> Difference:
    least = min(len(first), len(second))
    mean = math.fsum(first) / len(first) - math.fsum(second) / len(second)
    if least < 2:
        return Difference(mean, math.inf, 1.0, 0, least, None)
    shares = [_spread(values) ** 2 / len(values) for values in (first, second)]
    error = math.sqrt(sum(shares))
    if error == 0:
        return Difference(mean, 0.0, 0.0 if mean else 1.0, 0, least, 0.0)
    from scipy import stats

    degrees = sum(shares) ** 2 / sum(
        share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)
    )
    chance = float(2 * stats.t.sf(abs(mean) / error, degrees))
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * error
    pooled = math.sqrt(_spread(first) ** 2 + _spread(second) ** 2)
    return Difference(mean, half, chance, 0, least, mean / pooled)


def runs_needed(effect: float) -> int:
    """Runs of each setting after which a paired t test detects an effect with probability ``POWER``.

    Args:
        effect: the mean of the differences divided by their standard deviation.
    """
    from scipy import stats

    if effect == 0:
        return MOST
    runs = 3
    while runs < MOST:
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, runs - 1))
        if 1 - float(stats.nct.cdf(quantile, runs - 1, abs(effect) * math.sqrt(runs))) >= POWER:
            return runs
        runs = max(runs + 1, int(runs * 1.1))
    return MOST


def adjusted(chances: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple comparisons (Holm 1979, Scandinavian Journal of Statistics 6, 65)."""
    order = sorted(range(len(chances)), key=lambda index: chances[index])
    result = [0.0] * len(chances)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[index]))
        result[index] = largest
    return result


def _spread(values: Sequence[float]) -> float:
    """The standard deviation of a sample."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
