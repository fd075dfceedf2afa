"""Types that a constructor's arguments are declared with: ordinary types with the range of values that make sense.

The checks read them from the source, before anything is imported, so ``lr: Positive`` is all an author writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """An interval of numbers. ``open_low`` and ``open_high`` exclude the ends; nan lies outside every range."""

    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'>' if self.open_low else '>='} {self.low:g}"
        high = f"{'<' if self.open_high else '<='} {self.high:g}"
        return " and ".join([low] * (self.low != float("-inf")) + [high] * (self.high != float("inf")))


MOST_THREADS = 1024
"""Threads of the CPU: as many as the largest machines have, and few enough to be started on any."""

Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(low=0, open_low=True)]
NonNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
Share = Annotated[float, Range(low=0, high=1, open_high=True)]
Threads = Annotated[int, Range(low=1, high=MOST_THREADS)]
Kept = Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)]
