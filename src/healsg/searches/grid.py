"""The product of all values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from healsg.errors import ConfigError
from healsg.sweeps.proposals import Mode, Search, Trial
from healsg.sweeps.space import Choice, Dimension, Space, Value
from healsg.types import Count, Factor


class Grid(Search):
    """Tries all combinations of values, the last key's fastest.

    Args:
        trials: run only the first ``trials`` combinations; None runs all.
        batch: trials of a round.
        rungs, factor: see ``Search``.
    """

    def __init__(self, trials: Count | None = None, batch: Count = 4, rungs: Count = 1, factor: Factor = 3) -> None:
        super().__init__(trials, batch, rungs, factor)

    def check(self, space: Space) -> None:
        for key, dimension in space.items():
            if not isinstance(dimension, Choice) and not dimension.whole:
                raise ConfigError(f"{key}: a grid takes values, not an interval; write {key}=choice(...)")

    def count(self, space: Space) -> int:
        every = math.prod(_size(dimension) for dimension in space.values())
        return every if self.trials is None else min(self.trials, every)

    def propose(self, space: Space, number: int, before: Sequence[Trial], mode: Mode) -> dict[str, Value]:
        chosen: dict[str, Value] = {}
        for key, dimension in reversed(list(space.items())):
            number, index = divmod(number, _size(dimension))
            chosen[key] = _at(dimension, index)
        return {key: chosen[key] for key in space}


def _size(dimension: Dimension) -> int:
    if isinstance(dimension, Choice):
        return len(dimension.values)
    return int(dimension.high - dimension.low) // dimension.step + 1


def _at(dimension: Dimension, index: int) -> Value:
    if isinstance(dimension, Choice):
        return dimension.values[index]
    return int(dimension.low) + index * dimension.step
