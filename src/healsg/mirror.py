"""Mirrors: what shows a run's metrics elsewhere. The local files are the truth; a mirror that breaks never hurts a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Progress:
    """Where the loop is. The loop changes the fields; a display only reads them, in its own time."""

    phase: str = "preparing"
    epoch: int = 0
    max_epoch: int = 0
    position: int = 0
    length: int = 0
    samples: int = 0
    step: int = 0
    total_steps: int = 0
    numbers: dict[str, float] = field(default_factory=dict)


class Mirror:
    """A place that is shown every line of ``metrics.jsonl``. What it raises drops it, with one line of warning."""

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        """The run begins or goes on; ``record`` has ``name``, ``config`` (without secrets), ``resumed`` and ``step``."""

    def log(self, line: dict[str, Any]) -> None:
        """One line, as it stands in ``metrics.jsonl``."""

    def finish(self, status: str) -> None:
        """The run ended: ``finished``, ``stopped`` or ``failed``."""
