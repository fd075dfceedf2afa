"""Sharding: how batches are split over processes and accumulated micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Sharding:
    """How the batches of an epoch are split; created by the runner.

    Args:
        seed: of the order of the samples.
        device: the device of the batches.
        rank, world: this process, and the number of processes.
        accumulate: micro-batches per update.
        min_rows: the smallest number of rows that a process may get.
        limit: batches per epoch; None for all.
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    min_rows: int = 1
    limit: int | None = None

    def shard(self, start: int, stop: int) -> tuple[int, int, int]:
        """This rank's shard of the samples ``start`` to ``stop``: its start and stop, and how many of its rows count.

        If fewer than ``min_rows`` samples remain for a rank, it gets a copy of the first ones with a count of 0, since
        every process must take part in the collectives.
        """
        size = stop - start
        if self.world == 1:
            return start, stop, size
        takers = max(1, min(self.world, size // self.min_rows))
        if self.rank >= takers:
            return start, min(start + self.min_rows, stop), 0
        low, high = (start + (size * i + takers - 1) // takers for i in (self.rank, self.rank + 1))
        return low, high, high - low
