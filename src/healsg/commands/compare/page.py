"""``healsg compare --page``: one HTML file with the settings as a table, and their curves over each other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from healsg.commands.compare.comparison import Comparison, Setting, rows_of
from healsg.commands.compare.statistics import interval
from healsg.commands.terminal.tables import cell
from healsg.console import visible
from healsg.loggers.plots import Band, Points, figure
from healsg.loggers.report import read_lines, text_of, write_html
from healsg.runs import redact
from healsg.runs.folder import RunFolder

MOST_SETTINGS = 6
"""Settings whose curves are drawn, the best ones: as many as there are colours."""

MOST_PLOTS = 12

MOST_EPOCHS = 200
"""Epochs of a curve that are drawn."""

NO_METRIC = ("event", "epoch", "step", "best", "seconds")

Curve = dict[float, list[float]]
"""By epoch the numbers of the runs of one setting."""


def write_page(path: Path, compared: Comparison, folders: Mapping[str, RunFolder]) -> None:
    """Write the page. Raises OSError.

    Args:
        path: the file.
        compared: what ``healsg compare`` found.
        folders: of the runs, by name.
    """
    drawn = compared.settings[:MOST_SETTINGS]
    title = f"Comparison on {compared.metric}"
    left_out = len(compared.settings) - len(drawn)
    note = "Lines: means over the runs of a setting; bands: their 95 % interval (Student's t)."
    if left_out:
        note += f" The best {len(drawn)} settings are drawn; {left_out} are in the table alone."
    plots = "".join(_plots(compared, drawn, folders))
    sections = [
        f"<h1>{text_of(title)}</h1>",
        *(f'<p class="result">{text_of(line)}</p>' for line in compared.verdict),
        f"<h2>Settings</h2>{_table(compared)}",
        '<p class="note">Ranked on val; the test part chose nothing.</p>',
        f'<h2>Curves</h2><p class="note">{note}</p><div class="plots">{plots}</div>',
        f"<h2>Runs</h2>{_runs(compared.settings)}",
    ]
    write_html(path, text_of(title), sections)


def _table(compared: Comparison) -> str:
    columns, rows = rows_of(compared)
    head = "".join(f"<th>{text_of(name)}</th>" for name in columns)
    body = ""
    for index, (label, *values) in enumerate(rows):
        cells = "".join(f"<td>{text_of(cell(value))}</td>" for value in values)
        body += f"<tr{' class=best' if index == 0 else ''}><th>{text_of(label)}</th>{cells}</tr>"
    return f'<div class="scroll matrix"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _runs(settings: list[Setting]) -> str:
    rows = "".join(
        f"<tr><th>{text_of(one.label)}</th><td>{text_of(', '.join(one.names))}</td></tr>" for one in settings
    )
    return f'<table class="facts">{rows}</table>'


def _plots(compared: Comparison, drawn: list[Setting], folders: Mapping[str, RunFolder]) -> list[str]:
    """A figure of each number that the runs logged by epoch, the one that is compared first."""
    curves = {one.label: _curves(one, folders) for one in drawn}
    names = {name for own in curves.values() for name in own}
    order = sorted(names, key=lambda name: (name != compared.metric, not name.startswith("val/"), name))
    best = [(folders[name].record.get("best") or {}).get("epoch") for name in drawn[0].names]
    epochs = [float(epoch) for epoch in best if isinstance(epoch, (int, float))]
    marked = statistics.median_low(epochs) if epochs else None
    figures = []
    for name in order[:MOST_PLOTS]:
        lines: dict[str, dict[str, Points]] = {}
        bands: dict[str, Band] = {}
        for label, own in curves.items():
            shown = visible(redact.text(label))
            points, band = _mean(own.get(name, {}))
            lines[shown] = {"epoch": points, "step": []}
            bands[shown] = band
        figures.append(figure(name, lines, "epoch", marked if name == compared.metric else None, bands))
    return figures


def _curves(setting: Setting, folders: Mapping[str, RunFolder]) -> dict[str, Curve]:
    """By name of a number, its values by epoch."""
    curves: dict[str, Curve] = {}
    for run in setting.names:
        for line in read_lines(folders[run].metrics):
            epoch: Any = line.get("epoch")
            if line.get("event") != "epoch" or not _is_number(epoch):
                continue
            for name, value in line.items():
                if name not in NO_METRIC and _is_number(value):
                    curves.setdefault(name, {}).setdefault(float(epoch), []).append(float(value))
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _mean(curve: Curve) -> tuple[Points, Band]:
    """The mean by epoch, and the interval if there are several values."""
    epochs = sorted(curve)
    every = -(-len(epochs) // MOST_EPOCHS) or 1
    points: Points = []
    band: Band = []
    for epoch in sorted({*epochs[::every], *epochs[-1:]}):
        mean, half = interval(curve[epoch])
        points.append((epoch, mean))
        if math.isfinite(half):
            band.append((epoch, mean - half, mean + half))
    return points, band if len(band) > 1 else []
