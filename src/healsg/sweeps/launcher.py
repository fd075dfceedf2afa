"""JobLauncher: what runs the jobs of a sweep elsewhere than in the process of the command."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Order = dict[str, Any]
"""What a worker is told of a job, as JSON."""

Answer = dict[str, Any]
"""What a worker says of a job when it has ended, as JSON: ``status``, ``exit``, and what else it has to say."""

LOST = "lost"
"""The status of a job whose worker has ended before the job did."""


class JobLauncher(ABC):
    """Runs jobs that ``healsg.commands.launch.worker`` understands.

    Its workers live from the first job until ``close``.
    """

    @abstractmethod
    def results(self, orders: Sequence[Order], asked: Callable[[], int | None]) -> Iterator[tuple[int, Answer]]:
        """Run the jobs; gives the place of each in ``orders`` and its answer, in the order in which they end.

        A worker that is lost gives its job the status ``LOST``, and another takes its place.

        Args:
            orders: of the jobs.
            asked: the number of a signal that asks for a stop, which the workers are sent; then no job is begun.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the workers end, and wait for that; a job that is in progress is saved."""
