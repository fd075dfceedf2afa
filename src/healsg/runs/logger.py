"""Loggers send a run's metrics elsewhere. The local files are authoritative; a failing logger never affects a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Logger:
    """Receives every line of ``metrics.jsonl``, in a thread of its own.

    A logger that raises is removed with a warning of one line. ``patience`` and ``grace`` are the seconds that a run
    waits for it to start and to finish, by default 1 and 5.
    """

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        """The run starts or resumes; ``record`` holds its ``name``, ``config``, ``resumed`` and ``step``."""

    def log(self, line: dict[str, Any]) -> None:
        """Log one line of ``metrics.jsonl``."""

    def media(self, folder: Path, entry: dict[str, Any]) -> None:
        """Log an image, a table or a plot, given by its line in ``media.jsonl``; ``runs.media.read`` reads its file.

        Args:
            folder: the run's folder.
            entry: the line.
        """

    def finish(self, status: str) -> None:
        """The run ended: ``finished``, ``stopped`` or ``failed``."""
