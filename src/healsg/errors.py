"""The errors that are reported as one line instead of a traceback, and the exit status of each."""

from __future__ import annotations


class HealsgError(Exception):
    """An error that the user can fix. Its message is one line: the key or file, what is wrong, what would be right."""

    status = 1


class ConfigError(HealsgError):
    """The command or its configuration is wrong; nothing was started."""

    status = 2


class DataError(HealsgError):
    """Data are missing, damaged, or do not fit the configuration."""


class RunError(HealsgError):
    """A run cannot be started, continued or read."""


class BusyError(RunError):
    """Another process trains in a run's folder."""


class NotFiniteError(RunError):
    """A value became NaN or infinite in training, ``batches`` batches before the last one."""

    def __init__(self, quantity: str, batches: int = 0) -> None:
        super().__init__(f"{quantity} is not finite")
        self.what = quantity
        self.batches = batches


class Stopped(Exception):  # noqa: N818 - it is not an error
    """Raised at a step boundary, after saving, when a signal or ``runner.max_time`` asks a run to stop."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


def one_line(error: BaseException) -> str:
    """The message of an error, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
