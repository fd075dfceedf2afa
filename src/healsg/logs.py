"""Where the messages of HEALSg's logger go."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def handled_by(handlers: Sequence[logging.Handler], level: int) -> Iterator[None]:
    """A context in which log messages from ``level`` on go to these handlers, and to no logger above."""
    log = logging.getLogger("healsg")
    before = log.level, log.propagate
    log.setLevel(level)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
