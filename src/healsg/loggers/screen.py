"""The terminal display of a run: a live line under a table of epochs; plain lines elsewhere, or only warnings."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from typing import Any, TextIO, cast

from healsg import system
from healsg.console import LastingStream
from healsg.training.progress import Progress


def clock(seconds: float) -> str:
    """Seconds in readable form: ``0:07``, ``12:30``, ``3:05:00``, ``2d 04:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """A metric in few characters."""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


def columns(line: dict[str, Any]) -> dict[str, str]:
    """An epoch's line of ``metrics.jsonl`` as named cells: training, evaluation, learning rate, seconds."""
    heads = ("val", "train", "lr")
    known = {key: line[key] for key in line if key.split("/")[0] in heads and isinstance(line[key], int | float)}
    order = sorted(known, key=lambda key: (key != "train/loss", heads.index(key.split("/")[0])))
    cells = {key: f"{known[key]:.2g}" if key.startswith("lr") else number(known[key]) for key in order}
    return cells | ({"seconds": f"{line['seconds']:.1f}"} if line.get("seconds") is not None else {})


class Display:
    """Base class of the displays: plain lines. A context manager that restores the terminal."""

    least = logging.INFO

    def __init__(self, progress: Progress, stream: TextIO | None) -> None:
        self.progress, self.stream = progress, LastingStream(stream)

    def begin(self, title: str) -> None:
        """The run starts."""
        self.message(title)

    def epoch(self, line: dict[str, Any]) -> None:
        """An epoch has ended with this line of ``metrics.jsonl``; ``best`` in it marks one that got better."""
        cells = [f"{key} {cell}" for key, cell in columns(line).items()]
        self.message("  ".join([f"epoch {self.place(line)}", *cells, *["*"] * bool(line.get("best"))]))

    def message(self, text: str, level: int = logging.INFO) -> None:
        """Show a text of ``logging``'s ``level``."""
        if level >= self.least:
            name = logging.getLevelName(level).lower()
            self.write(f"{name}: {text}" if level >= logging.WARNING else text, name)

    def end(self, lines: list[str]) -> None:
        """The run has ended: show its folder and how to resume it."""
        self.close()
        self.message("\n".join(lines))

    def close(self) -> None:
        """Restore the terminal. May be called twice."""

    def write(self, text: str, style: str = "") -> None:
        """One text on lines of its own, in the style of this name if there are any."""
        self.stream.write(text + "\n")
        self.stream.flush()

    def place(self, line: dict[str, Any]) -> str:
        return f"{line.get('epoch', self.progress.epoch)}/{self.progress.max_epoch or '?'}"

    def handler(self) -> logging.Handler:
        """A handler that shows what is logged, above the live line if there is one."""
        return _Handler(self)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Handler(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__()
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.display.message(self.format(record), record.levelno)
        except Exception:
            self.handleError(record)


class Quiet(Display):
    """Shows nothing but warnings and errors."""

    least = logging.WARNING


class Plain(Display):
    """One line an epoch, without control codes: for files, pipes and schedulers."""


STYLES = {"title": "bold", "header": "dim", "best": "green", "warning": "yellow", "error": "red", "critical": "red"}


class Live(Display):
    """For a terminal: a table of epochs grows above one line that shows where the run is, eight times a second."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        super().__init__(progress, stream)
        self.header, self.pace = [""], Pace()
        self.best = ""
        self.console = Console(file=cast(TextIO, self.stream), force_terminal=True)
        own: dict[str, Any] = {f"redirect_{name}": _is_terminal(getattr(sys, name)) for name in ("stdout", "stderr")}
        own |= {"get_renderable": self._line, "refresh_per_second": 8, "transient": True}
        self.live = RichLive(console=self.console, **own)

    def begin(self, title: str) -> None:
        self.write(title, "title")
        self.live.start(refresh=True)

    def epoch(self, line: dict[str, Any]) -> None:
        if line.get("best"):
            self.best = best_of(line)
        cells = {"epoch": self.place(line), **columns(line)}
        shown = fitting(cells, self.console.width - 2)
        if shown != self.header:
            self.header = shown
            self.write("  ".join(name.rjust(7) for name in shown), "header")
        row = "  ".join(cells[name].rjust(max(7, len(name))) for name in shown)
        self.write(row + " *" * bool(line.get("best")), "best" if line.get("best") else "")

    def write(self, text: str, style: str = "") -> None:
        self._print(text, style)

    def end(self, lines: list[str]) -> None:
        self.close()
        self._print("\n".join(lines), unwrapped=True)

    def _print(self, text: str, style: str = "", unwrapped: bool = False) -> None:
        """Print a text, wrapped between words; one that holds commands to copy is left whole."""
        chosen = STYLES.get(style)
        self.console.print(text, style=chosen, markup=False, emoji=False, highlight=False, soft_wrap=unwrapped)

    def close(self) -> None:
        self.live.stop()

    def _line(self) -> Any:
        from rich.text import Text

        try:
            bar = ".#" if self.console.options.ascii_only else "─━"
            pace = self.pace.look(self.progress, time.monotonic())
            head, done, rest, tail = live_line(
                self.progress, pace, self.console.width - 1, bar, self.best, system.held_memory()
            )
        except Exception as error:  # an error here would end the thread that draws
            head = f"the display failed: {error!r}"
            done = ""
            rest = ""
            tail = ""
        pieces = ((head + "  ", "bold"), (done, "green"), (rest, "dim"), "  " + tail)
        return Text.assemble(*pieces, no_wrap=True, overflow="crop")


def fitting(cells: dict[str, str], width: int) -> list[str]:
    """The columns that fit, in order; metrics take precedence over the learning rate and the like."""
    chosen: list[str] = []
    for name in sorted(cells, key=lambda name: name in ("val/loss", "lr", "seconds")):
        if sum(max(7, len(other)) + 2 for other in [*chosen, name]) - 2 <= width:
            chosen.append(name)
    return [name for name in cells if name in chosen]


class Pace:
    """The throughput of a run, from the samples of the last seconds, and its remaining time, from all its updates."""

    def __init__(self) -> None:
        self.recent: deque[tuple[float, int]] = deque(maxlen=40)
        self.first = (0.0, 0)

    def look(self, progress: Progress, now: float) -> tuple[float | None, float | None]:
        """Samples a second and seconds left, each None if it is not known."""
        if progress.phase != "train":
            self.recent.clear()
        self.recent.append((now, progress.samples))
        (begin, before), (end, after) = self.recent[0], self.recent[-1]
        rate = (after - before) / (end - begin) if after > before and end > begin else None
        self.first = self.first if self.first[1] else (now, progress.step)
        steps, to_do = progress.step - self.first[1], max(0, progress.total_steps - progress.step)
        return rate, to_do * (now - self.first[0]) / steps if steps > 0 and progress.total_steps else None


def best_of(line: dict[str, Any]) -> str:
    """What the live line says of an epoch that is the best so far: its monitored number, and the epoch."""
    name = line.get("monitor")
    value = line.get(name) if isinstance(name, str) else None
    return f"best {name} {number(value)} (epoch {line.get('epoch')})" if isinstance(value, int | float) else ""


def live_line(
    progress: Progress,
    pace: tuple[float | None, float | None],
    width: int,
    bar: str,
    best: str = "",
    memory: int | None = None,
) -> list[str]:
    """The live line: its head, the bar's done and open part, its tail; parts that do not fit are left out.

    Args:
        progress: where the run is.
        pace: samples a second and seconds left.
        width: characters of the line.
        bar: the letters for what is open and what is done.
        best: see ``best_of``.
        memory: bytes that the run holds.
    """
    rate, left = pace
    head = (progress.phase + f" {progress.epoch}/{progress.max_epoch}" * bool(progress.max_epoch))[:width]
    parts = [f"{clock(left)} left"] if left is not None else []
    parts += [f"{name} {number(value)}" for name, value in dict(progress.numbers).items()]
    parts += [best] * bool(best)
    parts += [f"{rate:,.0f}/s"] if rate else []
    parts += [f"{memory / 2**30:.1f} GiB"] if memory else []
    room = width - len(head) - 4
    length = min(30, max(5, room // 3)) * (progress.length > 0 and room >= 5)
    tail: list[str] = []
    for piece in parts:
        if length + sum(len(other) + 2 for other in [*tail, piece]) - 2 <= room:
            tail.append(piece)
    done = round(length * min(1.0, progress.position / max(1, progress.length)))
    return [head, bar[1] * done, bar[0] * (length - done), "  ".join(tail)]


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def make_display(progress: Progress, *, quiet: bool = False, stream: TextIO | None = None) -> Display:
    """The display that suits ``stream`` (stdout if it is None): ``Quiet`` if requested, ``Live`` on a terminal that
    moves its cursor, else ``Plain``."""
    stream = stream or sys.stdout
    if quiet:
        return Quiet(progress, stream)
    return Live(progress, stream) if _is_terminal(stream) else Plain(progress, stream)
