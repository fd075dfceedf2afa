"""Standard output and standard error that cannot end a run: closed, a pipe without a reader, a disk that is full.

What is printed of a run folder may be anybody's text: ``visible`` keeps it from steering the terminal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

GONE = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ESHUTDOWN, errno.ECONNRESET)
"""Nobody reads any more: the pipe, the terminal or the descriptor is gone."""


_STEERING = {"Cc", "Cs", "Zl", "Zp"}
_TURNING = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """A text on one line, in which what a terminal would obey is escaped: control characters and turns of direction."""
    if text.isprintable():
        return text
    escaped = []
    for one in text:
        obeyed = one in _TURNING or unicodedata.category(one) in _STEERING
        escaped.append(one.encode("unicode_escape").decode() if obeyed else one)
    return "".join(escaped)


def fitted(text: str, width: int, right: bool = False) -> str:
    """A text in exactly ``width`` cells of a terminal, of which some letters take two: filled up, or cut with an
    ellipsis.

    Args:
        text: without control characters.
        width: at least 1.
        right: whether it is filled up from the left.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank


class LastingStream:
    """A text stream that goes silent, rather than raise, once it cannot be written.

    Its descriptor is then that of ``/dev/null``, so that nothing else fails on it either, such as the interpreter's own
    flush at the end. Characters that it cannot encode are replaced.

    Args:
        stream: what is written to; None, which is what Python has for a closed descriptor, is nothing.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"
        self.lost: OSError | None = None
        """Why it went silent, where the system gave a reason."""

    def write(self, text: str) -> int:
        try:
            self.stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        except (OSError, ValueError, AttributeError) as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError, AttributeError) as error:
            self._lose(error)

    def check(self) -> None:
        """Raise OSError where what was written is lost for another reason than that nobody reads it."""
        self.flush()
        if self.lost is not None and self.lost.errno not in GONE:
            raise OSError(self.lost.errno, self.lost.strerror, "standard output")

    def isatty(self) -> bool:
        try:
            return bool(self.stream.isatty())
        except (ValueError, AttributeError):
            return False

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.stream, name)

    def _lose(self, error: Exception) -> None:
        if self.lost is None and isinstance(error, OSError):
            self.lost = error
        with contextlib.suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


@contextlib.contextmanager
def lasting_streams() -> Iterator[LastingStream]:
    """Let ``sys.stdout``, which is yielded, and ``sys.stderr`` be of this kind; they are flushed at the end."""
    _open_descriptors()
    before = sys.stdout, sys.stderr
    out, err = LastingStream(sys.stdout), LastingStream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _open_descriptors() -> None:
    """Open what was closed of 0, 1 and 2, or the next file that is opened would be taken for the standard output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
