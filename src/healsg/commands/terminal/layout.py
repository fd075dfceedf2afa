"""Text in columns for a terminal: as wide as that is, and readable at 80 characters."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

from healsg.console import visible

WIDEST = 120
"""Characters of a line of prose, however wide the terminal is."""

MOST_LEFT = 36
"""Characters of the left column beyond which its text gets a line of its own."""


def width() -> int:
    """The characters per line: those of the terminal, or of ``COLUMNS``; 80 if neither is known."""
    return max(40, min(WIDEST, shutil.get_terminal_size((80, 24)).columns))


def printed(text: str) -> int:
    """The number of terminal columns of a text; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def rows(pairs: Sequence[tuple[str, str]], indent: int = 2) -> Iterator[str]:
    """Lines in two columns: names on the left, their descriptions on the right, wrapped."""
    pairs = [(visible(left), visible(right.replace("\n", " "))) for left, right in pairs]
    fitting = [printed(left) for left, _ in pairs if printed(left) <= MOST_LEFT]
    column = indent + max(fitting, default=0) + 2
    for left, right in pairs:
        wrapped = textwrap.wrap(right, max(24, width() - column), break_long_words=False, break_on_hyphens=False)
        head = " " * indent + left
        if printed(head) + 2 > column and wrapped:
            yield head
        else:
            yield (head + " " * (column - printed(head)) + (wrapped.pop(0) if wrapped else "")).rstrip()
        yield from (" " * column + line for line in wrapped)


def prose(text: str, indent: int = 0) -> Iterator[str]:
    """Paragraphs, wrapped."""
    for number, paragraph in enumerate(filter(None, text.split("\n\n"))):
        if number:
            yield ""
        space = " " * indent
        yield from textwrap.wrap(
            visible(paragraph.replace("\n", " ")),
            width(),
            initial_indent=space,
            subsequent_indent=space,
            break_on_hyphens=False,
        )
