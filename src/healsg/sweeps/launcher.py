"""JobLauncher: runs the jobs of a sweep outside of the command's process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Order = dict[str, Any]
"""The order of a job, as a worker receives it, as JSON."""

Answer = dict[str, Any]
"""A worker's report of an ended job, as JSON: ``status``, ``exit``, and further facts."""

LOST = "lost"
"""The status of a job whose worker has ended before the job did."""


class JobLauncher(ABC):
    """Runs jobs that ``healsg.commands.launch.worker`` understands.

    Its workers live from the first job until ``close``.
    """

    @abstractmethod
    def results(self, orders: Sequence[Order], stop_signal: Callable[[], int | None]) -> Iterator[tuple[int, Answer]]:
        """Run the jobs; yields each one's index in ``orders`` and its report, in the order in which they end.

        The job of a lost worker gets the status ``LOST``, and the worker is replaced.

        Args:
            orders: of the jobs.
            stop_signal: returns the number of a stop signal, if any, which is forwarded to the workers; no further job
                is started then.
        """

    @abstractmethod
    def close(self) -> None:
        """Shut down the workers and wait for them; a job in progress saves."""
