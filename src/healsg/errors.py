"""The mistakes that are answered with one line instead of a traceback, and the exit status each has."""

from __future__ import annotations


class HealsgError(Exception):
    """Something the user can mend. The message is one line: the key or the file, what is wrong, what would be right."""

    status = 1


class ConfigError(HealsgError):
    """The command or its configuration is wrong; nothing was started."""

    status = 2


class DataError(HealsgError):
    """Data are missing, damaged or do not fit what was asked of them."""


class RunError(HealsgError):
    """A run cannot be started, continued or read."""


class BusyError(RunError):
    """Another process trains in a run's folder."""


class NotFiniteError(RunError):
    """A number of the training became NaN or infinite; ``batches`` counts back from the last batch to where."""

    def __init__(self, what: str, batches: int = 0) -> None:
        super().__init__(f"{what} is not finite")
        self.what, self.batches = what, batches


class Stopped(Exception):  # noqa: N818 - no error
    """Raised at a step boundary, after saving, when a signal or ``runner.max_time`` asks a run to stop."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
