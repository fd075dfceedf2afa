"""``healsg watch [RUN...]``: watch runs train, by reading their files; ending it does not affect the runs.

Without names it shows a table of all runs, the live ones first; the name of a sweep shows that of its jobs, and names
of runs their curves, in braille.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from healsg.commands.runs import as_json
from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import cell, show_json
from healsg.console import fitted, visible
from healsg.errors import ConfigError
from healsg.runs.folder import RunFolder, find
from healsg.runs.record import row_of
from healsg.runs.registry import (
    DEAD,
    EPOCH,
    LIVE,
    WAITING,
    Listed,
    age,
    is_live,
    last_lines,
    listed,
    named,
    root_of,
    short_name,
    waiting,
)
from healsg.training.best import PREFERRED

MOST = 1 << 26
"""Bytes of a ``metrics.jsonl`` that are read for its curves: its end."""

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Of a braille character: the bit of each dot, by column and row."""


def run(arguments: list[str]) -> int:
    """Show once, or refresh until Ctrl-C."""
    flags = Flags("watch", "Watch runs train. It only reads their files: ending it by Ctrl-C does not affect the runs.")
    flags.add_argument(
        "runs", nargs="*", default=[], metavar="RUN", help="curves of runs, the table of a sweep; else of all runs"
    )
    flags.add_argument("--metric", action="append", default=[], metavar="NAME", help="a curve, such as val/acc")
    flags.add_argument("--every", type=float, default=2.0, help="seconds between two refreshes (default: 2)")
    flags.add_argument("--once", action="store_true", help="show once and exit, e.g. to write to a file")
    flags.add_argument("--json", action="store_true", help="for programs: a list of the runs, once; see healsg runs")
    flags.add_argument("--root", help="the folder of the runs (default: runs)")
    args = flags.read(arguments)
    if not 0.1 <= args.every <= 3600:
        raise ConfigError(f"--every {args.every}: give seconds from 0.1 to 3600")
    root = root_of(args.root)
    everything = _all(root)
    sweeps = [name for name in args.runs if _is_sweep(everything, name, root)]
    folders = [find(name, root=root) for name in args.runs if name not in sweeps]

    if args.json:
        chosen = [one for name in args.runs for one in named(everything, name, root)]
        show_json([as_json(one) for one in (chosen if args.runs else everything)])
        return 0

    def picture() -> str:
        size = shutil.get_terminal_size((100, 30))
        height = min(12, max(4, (size.lines - 2) // max(1, len(folders)) - 3))
        parts = [curves(folder, args.metric, size.columns, height) for folder in folders]
        if sweeps or not folders:
            runs = _all(root)
            runs = [one for name in sweeps for one in named(runs, name, root)] if sweeps else runs
            parts.append(overview(runs, size.columns, size.lines - 4))  # head, rest, and the prompt that follows
        return "\n".join(parts)

    if args.once or not sys.stdout.isatty():
        print(picture())
        return 0
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with suppress(KeyboardInterrupt), Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(Text(picture(), no_wrap=True, overflow="crop"), refresh=True)
            time.sleep(args.every)
    return 0


def _all(root: Path) -> list[Listed]:
    """All runs below a folder, and the jobs that wait for their turn."""
    runs = listed(root) if root.is_dir() else []
    return [*reversed(waiting(runs, root)), *runs]


def _is_sweep(runs: Sequence[Listed], name: str, root: Path) -> bool:
    """Whether there are jobs of a sweep of this name, and no run."""
    jobs = named(runs, name, root)
    return bool(jobs) and all(job.name != short_name(name, root) for job in jobs)


# --- the table -------------------------------------------------------------------------------------------------------


def overview(runs: Sequence[Listed], width: int, lines: int) -> str:
    """Runs as lines of text, the live ones first, then the dead, the waiting, and the others, the newest first.

    Args:
        runs: as they are listed, the oldest first.
        width: of the terminal, in characters.
        lines: how many runs at most.
    """
    rank = {LIVE: 0, DEAD: 1, WAITING: 2}
    newest_first = list(reversed(runs))
    order = sorted(newest_first, key=lambda one: rank.get(one.status, 3))
    counts = {status: sum(one.status == status for one in runs) for status in dict.fromkeys(o.status for o in order)}
    head = visible("  ".join(f"{count} {status}" for status, count in counts.items())) or "no run yet"
    from rich.cells import cell_len

    rows = [_line(one) for one in order[: max(1, lines)]]
    name = max([cell_len(row[0]) for row in rows], default=1)
    name = min(name, max(16, width // 2))
    shown = [_joined([f"{fitted(one, name)}  {status:10}", *detail], width) for one, status, detail in rows]
    more = [f"and {len(order) - len(rows)} more; healsg runs lists them"] if len(order) > len(rows) else []
    return "\n".join([head, *shown, *more])


def _line(one: Listed) -> tuple[str, str, list[str]]:
    """A run's name, its status and further facts, the most important first."""
    facts = one.facts
    detail = [f"epoch {facts['epoch']}"] if "epoch" in facts else []
    detail += [f"{key} {cell(float(facts[key]))}" for key in ("val/acc", "val/dice", "val/loss") if key in facts][:2]
    if one.status in (LIVE, DEAD):
        detail.append(f"last line {age(max(0.0, time.time() - _changed(one.path)))} ago")
    if one.status == DEAD:
        detail.append("healsg resume continues it")
    return visible(one.name), visible(one.status), [visible(text) for text in detail]


def _joined(parts: Sequence[str], width: int) -> str:
    """Parts side by side as far as they fit completely; the first one in any case."""
    from rich.cells import cell_len

    text = parts[0]
    for part in parts[1:]:
        if cell_len(text) + 2 + cell_len(part) > width:
            break
        text += f"  {part}"
    return text.rstrip()


def _changed(path: Path) -> float:
    times = [0.0]
    for name in ("metrics.jsonl", "run.json"):
        with suppress(OSError):
            times.append((path / name).lstat().st_mtime)
    return max(times)


# --- curves ----------------------------------------------------------------------------------------------------------


def curves(folder: RunFolder, metrics: Sequence[str], width: int, height: int) -> str:
    """The status of a run, and its curves side by side.

    Args:
        folder: of the run.
        metrics: names of metrics; if empty, the usual ones of val and train.
        width, height: of the plots, in characters.
    """
    record = folder.record
    status = str(record.get("status"))
    if status == "running":
        status = LIVE if is_live(folder.path, record) else DEAD
    rows = epochs(folder.path / "metrics.jsonl")
    names = list(metrics) or _usual(rows)
    if missing := [name for name in metrics if rows and all(name not in row for row in rows)]:
        known = ", ".join(key for key in (rows[-1] if rows else {}) if "/" in key)
        raise ConfigError(f"--metric {missing[0]}: {folder.shown} has no such number; there is {known}")
    last = rows[-1] if rows else {}
    detail = [f"{name} {cell(float(last[name]))}" for name in names if name in last]
    head = _joined(
        [visible(part) for part in (str(folder.shown), status, f"epoch {last.get('epoch', 0)}", *detail)], width
    )
    if not rows or not names:
        return f"{head}\nno epoch is complete yet"
    each = max(12, (width - 3 * (len(names) - 1)) // len(names))
    plots = [_plot(name, [(row["epoch"], row[name]) for row in rows if name in row], each, height) for name in names]
    lines = ["   ".join(parts) for parts in zip(*plots, strict=True)]
    return "\n".join([head, *(line[:width] for line in lines)])


def _usual(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The training loss, and the metric by which the best epoch is chosen by default."""
    measured = {key for row in rows for key in row}
    val = [f"val/{name}" for name in (*PREFERRED, "loss") if f"val/{name}" in measured]
    return [name for name in ("train/loss", *val[:1]) if name in measured]


def epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of epochs of a ``metrics.jsonl``, without a last line that is still being written."""
    rows = []
    for row in (row_of(text) for text in last_lines(path, MOST) if EPOCH in text):
        if row is not None and type(row.get("epoch")) is int:
            rows.append({key: value for key, value in row.items() if _is_number(value)})
    return sorted(rows, key=lambda row: row["epoch"])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plot(name: str, points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """A curve as lines of ``width`` characters: its name and range, then the dots."""
    low, high = min(value for _, value in points), max(value for _, value in points)
    title = f"{name}  {cell(float(low))} to {cell(float(high))}"
    return [fitted(visible(title), width), *braille(points, width, height)]


def braille(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """A curve drawn in braille characters, each of 2 by 4 dots, scaled to fill ``width`` by ``height`` of them."""
    left, right = points[0][0], points[-1][0]
    points = [(step, value / 2) for step, value in points]  # halved, so that no difference of two values overflows
    low, high = min(value for _, value in points), max(value for _, value in points)
    cells = [[0] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for step, value in points:
        across = round((step - left) / ((right - left) or 1) * (2 * width - 1))
        down = round((high - value) / ((high - low) or 1) * (4 * height - 1)) if high > low else 2 * height
        for x, y in _between(before, (across, down)):
            cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
        before = across, down
    return ["".join(chr(0x2800 + dots) for dots in row) for row in cells]


def _between(start: tuple[int, int] | None, end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line."""
    if start is None:
        return [end]
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (round(start[0] + (end[0] - start[0]) * k / steps), round(start[1] + (end[1] - start[1]) * k / steps))
        for k in range(steps + 1)
    ]
