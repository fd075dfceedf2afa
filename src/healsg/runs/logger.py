"""Loggers: what shows a run's metrics elsewhere. The local files are the truth; a broken logger never hurts a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Logger:
    """A place that is shown every line of ``metrics.jsonl``, in a thread of its own.

    What it raises drops it, with one line of warning. ``patience`` and ``grace`` are the seconds that a run waits for
    it to start and to finish, 1 and 5 where it names none.
    """

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        """The run begins or goes on; ``record`` holds its ``name``, ``config``, ``resumed`` and ``step``."""

    def log(self, line: dict[str, Any]) -> None:
        """One line, as it stands in ``metrics.jsonl``."""

    def media(self, folder: Path, entry: dict[str, Any]) -> None:
        """An image, a table or a plot, as its line stands in ``media.jsonl``; ``runs.media.read`` gives its file.

        Args:
            folder: the run's folder.
            entry: the line.
        """

    def finish(self, status: str) -> None:
        """The run ended: ``finished``, ``stopped`` or ``failed``."""
