"""Progress: what the loop shows of a run while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run is. The loop reports to it; a display only reads the fields, from a thread of its own."""

    phase: str = "preparing"  # train, val, test, or what is being prepared
    epoch: int = 0  # the epoch under way, from 1
    max_epoch: int = 0
    position: int = 0  # batches done of this pass
    length: int = 0  # batches of this pass
    samples: int = 0  # samples trained so far in this process
    step: int = 0  # updates done
    total_steps: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)  # the latest known metrics

    def plan(self, total_steps: int, max_epoch: int) -> None:
        """The run has so many updates and epochs."""
        self.total_steps = total_steps
        self.max_epoch = max_epoch

    def start_pass(self, phase: str, length: int) -> None:
        """A pass of so many batches over a split begins."""
        self.phase = phase
        self.length = length

    def start_epoch(self, epoch: int, length: int) -> None:
        """The training pass of an epoch, counted from 1, begins or goes on."""
        self.start_pass("train", length)
        self.epoch = epoch

    def batch(self, position: int, samples: int = 0) -> None:
        """The batch at ``position`` of the pass, from 1, is taken; so many of its samples are trained on here."""
        self.position = position
        self.samples += samples

    def update(self, step: int) -> None:
        """That update was made."""
        self.step = step

    def show(self, numbers: Mapping[str, float]) -> None:
        """The latest metrics."""
        self.numbers = numbers
