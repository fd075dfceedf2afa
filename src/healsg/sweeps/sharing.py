"""Data sets that a job has read, reused by the next job with the same settings; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from healsg.config.schema import Composed
from healsg.parts import declares

if TYPE_CHECKING:
    from healsg.data.base import TaskData

LARGEST = 1 << 30
"""Most bytes of samples that are kept in memory from one job to the next."""


class SharedData:
    """The data set of the last job. The next job reuses it if its settings of ``data`` are the same and the set is
    repeatable: another set may draw from the global random generators as it reads, which are seeded for each job."""

    def __init__(self) -> None:
        self._settings: Any = None
        self._data: TaskData | None = None

    def of(self, composed: Composed) -> TaskData:
        """The data set of a job. Raises ConfigError if it cannot be made."""
        from healsg.build import make_data

        settings = composed.values["data"]
        if self._data is not None and self._settings == settings:
            return self._data.for_next_job()
        data = make_data(composed)
        self._settings, self._data = settings, None
        if declares(data, "repeatable"):
            data.keep_parts(LARGEST)
            self._data = data
        return data
