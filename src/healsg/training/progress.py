"""Progress: what the loop tells the screen while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run is. The loop changes the fields; a display only reads them, from a thread of its own."""

    phase: str = "preparing"  # train, val, test, or what is being prepared
    epoch: int = 0  # the epoch under way, from 1
    max_epoch: int = 0
    position: int = 0  # batches done of this pass
    length: int = 0
    samples: int = 0  # samples trained so far in this process
    step: int = 0  # updates done
    total_steps: int = 0
    numbers: dict[str, float] = field(default_factory=dict)  # the latest known metrics
