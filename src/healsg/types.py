"""Types for the arguments of constructors: numbers with the range of values that make sense, and relations between two
arguments.

``config.signature`` reads the annotations from the source, so that ``lr: Positive`` or
``nesterov: Annotated[bool, Requires("momentum")]`` in a constructor is enough for a wrong value to be refused before
anything is imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


def finite(value: float) -> bool:
    """Whether a number is neither NaN nor infinite; integers may be larger than any float."""
    return isinstance(value, int) or math.isfinite(value)


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers. ``open_low`` and ``open_high`` exclude the ends; NaN and infinities lie outside
    every range, also of one without ends. With ``step`` only ``low``, ``low + step``, ... lie in it."""

    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False
    step: int | None = None

    def __contains__(self, value: float) -> bool:
        if not finite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and (self.step is None or (value - self.low) % self.step == 0)

    def __str__(self) -> str:
        low = f"{'>' if self.open_low else '>='} {self.low:g}"
        high = f"{'<' if self.open_high else '<='} {self.high:g}"
        ends = " and ".join([low] * (self.low != float("-inf")) + [high] * (self.high != float("inf")))
        return ends if self.step is None else f"{ends} in steps of {self.step}"


@dataclass(frozen=True)
class Requires:
    """An argument that is set (neither null, false nor 0) needs ``other`` to be set too. Stands in ``Annotated``."""

    other: str


@dataclass(frozen=True)
class Excludes:
    """An argument that is set (neither null, false nor 0) needs ``other`` not to be set. Stands in ``Annotated``."""

    other: str


@dataclass(frozen=True)
class Divides:
    """An argument has to divide ``other``; both are whole numbers. Stands in ``Annotated``."""

    other: str


Relation = Requires | Excludes | Divides
"""What the value of an argument asks of another one of the same constructor."""


MOST_THREADS = 1024
"""The largest accepted number of CPU threads: as many as large machines have."""

LONGEST_TIMEOUT = 10_000_000
"""The longest accepted timeout, in seconds: some months. The libraries that wait overflow somewhere above it."""

Count = Annotated[int, Range(low=1)]
Factor = Annotated[int, Range(low=2)]
Natural = Annotated[int, Range(low=0)]
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(low=0, open_low=True)]
NonNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
Share = Annotated[float, Range(low=0, high=1, open_high=True)]
Threads = Annotated[int, Range(low=1, high=MOST_THREADS)]
Timeout = Annotated[float, Range(low=0, high=LONGEST_TIMEOUT, open_low=True)]
Kept = Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)]
