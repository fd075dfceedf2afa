"""Intervals of shares."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""Of the normal distribution, for intervals of 95 %."""


def wilson(hits: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` independent samples by Wilson's score (Wilson 1927; equation 4 of Brown
    et al. 2001): the whole range if there are none."""
    if count <= 0:
        return 0.0, 1.0
    share = hits / count
    square = Z95 * Z95
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
