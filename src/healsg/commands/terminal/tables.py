"""Tables of the commands that list: for people as wide as the terminal, for programs as JSON."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from healsg.console import fitted, visible
from healsg.loggers.screen import number

GAP = 2
"""Blanks between two columns."""
NARROWEST = 12
"""Characters that a column keeps."""


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        value += 0.0  # no -0
        if not math.isfinite(value) or (value == int(value) and abs(value) < 1e6):
            return f"{value:g}"
        return number(value)
    return visible(str(value))


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]], file: TextIO | None = None, needed: int = 2) -> None:
    """Print a table as wide as the terminal.

    If it is too wide, columns are left out from the right and named below; if even the needed columns are too wide, the
    widest of them are truncated. Files and pipes get everything.

    Args:
        columns: their names, the most important ones first.
        rows: the values, one for each column.
        file: the output; None is standard output.
        needed: the number of first columns that are never left out.
    """
    file = sys.stdout if file is None else file
    from rich.cells import cell_len

    columns = [visible(name) for name in columns]
    cells = [[cell(value) for value in row] for row in rows]
    numeric = [
        all(isinstance(row[index], (int, float)) or row[index] is None for row in rows) for index in range(len(columns))
    ]
    widths = [max(map(cell_len, [name, *(row[index] for row in cells)])) for index, name in enumerate(columns)]
    shown = len(columns)
    width = _width(file)
    if width:
        while shown > needed and sum(widths[:shown]) + GAP * (shown - 1) > width:
            shown -= 1
        while sum(widths[:shown]) + GAP * (shown - 1) > width and max(widths[:shown]) > NARROWEST:
            widths[widths.index(max(widths[:shown]))] -= 1
    for row in [list(columns), *cells]:
        parts = []
        for index in range(shown):
            parts.append(fitted(row[index], widths[index], right=numeric[index]))
        print((" " * GAP).join(parts).rstrip(), file=file)
    if shown < len(columns):
        text = f"left out for lack of width: {', '.join(columns[shown:])}"
        print(textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False), file=file)


def print_wrapped(lines: Iterable[str], file: TextIO | None = None) -> None:
    """Print sentences, wrapped between words on a terminal."""
    file = sys.stdout if file is None else file
    for line in map(visible, lines):
        print(textwrap.fill(line, width, break_on_hyphens=False) if (width := _width(file)) else line, file=file)
    file.flush()


def _width(file: TextIO) -> int:
    """Columns of a terminal; 0 for other streams."""
    return shutil.get_terminal_size().columns if file.isatty() else 0


@contextmanager
def messages_to_stderr(enabled: bool = True) -> Iterator[None]:
    """A context in which messages go to standard error, so that standard output holds only the JSON that follows."""
    if not enabled:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def show_json(value: Any) -> None:
    """Print a value as JSON, in which a number that is not finite is null."""
    from healsg.runs.folder import finite

    print(json.dumps(finite(value), indent=2, default=str, ensure_ascii=False))
