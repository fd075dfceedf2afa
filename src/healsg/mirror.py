"""Mirrors: what shows a run's metrics elsewhere. The local files are the truth; a broken mirror never hurts a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


class Mirror:
    """A place that is shown every line of ``metrics.jsonl``, in a thread of its own.

    What it raises drops it, with one line of warning. ``patience`` and ``grace`` are the seconds that a run waits for
    it to start and to finish, 1 and 5 where it names none.
    """

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        """The run begins or goes on; ``record`` holds its ``name``, ``config``, ``resumed`` and ``step``."""

    def log(self, line: dict[str, Any]) -> None:
        """One line, as it stands in ``metrics.jsonl``."""

    def finish(self, status: str) -> None:
        """The run ended: ``finished``, ``stopped`` or ``failed``."""
