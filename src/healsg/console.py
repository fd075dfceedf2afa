"""Standard output and standard error whose failure does not end a run: closed, a broken pipe, a full disk.

Text from a run folder may come from anybody: ``visible`` escapes the characters in it that control the terminal.
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


_CONTROL_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
_BIDIRECTIONAL_CONTROLS = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """``text`` on one line, with control characters and bidirectional controls escaped."""
    if text.isprintable():
        return text
    escaped = []
    for character in text:
        control = character in _BIDIRECTIONAL_CONTROLS or unicodedata.category(character) in _CONTROL_CATEGORIES
        escaped.append(character.encode("unicode_escape").decode() if control else character)
    return "".join(escaped)


def fitted(text: str, width: int, right: bool = False) -> str:
    """``text`` padded, or cut with an ellipsis, to exactly ``width`` terminal cells; wide characters take two.

    Args:
        text: without control characters.
        width: at least 1.
        right: whether to align it to the right.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding


class LastingStream:
    """A text stream that discards its output, instead of raising, once it cannot be written to.

    Its descriptor is then redirected to ``/dev/null``, so that nothing else fails on it either, such as the
    interpreter's flush at exit. Characters that it cannot encode are replaced.

    Args:
        stream: the stream that is written to; None, Python's value for a closed descriptor, discards everything.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"
        self.lost: OSError | None = None
        """The first error of the system, since which output is discarded."""

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
        """Raise OSError if output was lost for another reason than a closed reader, such as a full disk."""
        self.flush()
        if self.lost is not None and self.lost.errno not in GONE:
            raise OSError(self.lost.errno, self.lost.strerror, "standard output")

    def isatty(self) -> bool:
        try:
            return bool(self.stream.isatty())
        except (ValueError, AttributeError):
            return False

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # while a copy is made, it is not set yet and would recurse
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
    """Wrap ``sys.stdout``, which is yielded, and ``sys.stderr`` in ``LastingStream``; both are flushed at the end."""
    _open_descriptors()
    before = sys.stdout, sys.stderr
    out, err = LastingStream(sys.stdout), LastingStream(sys.stderr)
    sys.stdout = out
    sys.stderr = err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _open_descriptors() -> None:
    """Open descriptors 0, 1 and 2 on ``/dev/null`` if closed; the next opened file would become standard output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
