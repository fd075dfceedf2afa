"""Sharding: how batches are dealt, and each process's share of one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Sharding:
    """How the runner wants batches dealt: to whom, in which groups, how small they may become."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    least: int = 1
    limit: int | None = None

    def share(self, start: int, stop: int) -> tuple[int, int, int]:
        """This rank's piece of the samples ``start`` to ``stop``, and how many of them count.

        A rank for which no ``least`` samples remain repeats the first ones with a count of 0, so that it takes part in
        every exchange.
        """
        size = stop - start
        if self.world == 1:
            return start, stop, size
        takers = max(1, min(self.world, size // self.least))
        if self.rank >= takers:
            return start, min(start + self.least, stop), 0
        low, high = (start + (size * i + takers - 1) // takers for i in (self.rank, self.rank + 1))
        return low, high, high - low
