"""Progress: what the loop shows of a run while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Progress:
    """The progress of a run. The loop updates it; a display reads its fields from another thread."""

    phase: str = "preparing"  # train, val, test, or what is being prepared
    epoch: int = 0  # the current epoch, from 1
    max_epoch: int = 0
    position: int = 0  # batches done of this pass
    length: int = 0  # batches of this pass
    samples: int = 0  # samples trained so far in this process
    step: int = 0  # updates done
    total_steps: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)  # the latest known metrics

    def plan(self, total_steps: int, max_epoch: int) -> None:
        """Set the numbers of updates and epochs of the run."""
        self.total_steps = total_steps
        self.max_epoch = max_epoch

    def start_pass(self, phase: str, length: int) -> None:
        """A pass over a split starts, with ``length`` batches."""
        self.phase = phase
        self.length = length

    def start_epoch(self, epoch: int, length: int) -> None:
        """The training pass of an epoch, counted from 1, starts or continues."""
        self.start_pass("train", length)
        self.epoch = epoch

    def batch(self, position: int, samples: int = 0) -> None:
        """The batch at ``position`` of the pass, from 1, is used, with ``samples`` training samples in this process."""
        self.position = position
        self.samples += samples

    def update(self, step: int) -> None:
        """Update number ``step`` is done."""
        self.step = step

    def show(self, numbers: Mapping[str, float]) -> None:
        """Set the latest metrics."""
        self.numbers = numbers
