"""``search.html``: the trials of a search as one HTML file, with the best so far and the objective over each value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from healsg.commands.terminal.tables import cell
from healsg.console import visible
from healsg.loggers.plots import Points, figure, scatter
from healsg.loggers.report import text_of, write_html
from healsg.runs import redact
from healsg.sweeps.proposals import Trial
from healsg.sweeps.space import Choice, Dimension

MOST_ROWS = 1000
MOST_PLOTS = 24
MOST_CHOICES = 12


def write_page(
    path: Path, name: str, trials: Sequence[Trial], space: Mapping[str, Dimension], better: str, best: str
) -> None:
    """Write the page. Raises OSError.

    Args:
        path: the file.
        name: of the search.
        trials: the best first; those without a number last.
        space: what is searched over.
        better: ``max`` or ``min``.
        best: the command that trains the best trial by itself; empty if there is none.
    """
    having = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    sections = [f"<h1>Search {text_of(name)}</h1>"]
    if having:
        first = having[0]
        values = ", ".join(f"{key}={_short(value)}" for key, value in first.parameters.items())
        sections.append(
            f'<p class="result">best <b>{text_of(cell(first.value))}</b>, trial {first.number}: {text_of(values)}</p>'
        )
        plots = [_best_so_far(having, better), *_over_values(having, space)]
        sections.append(f'<h2>What the trials found</h2><div class="plots">{"".join(plots)}</div>')
    sections.append(f"<h2>Trials, the best first</h2>{_table(trials, list(space))}")
    if best:
        sections.append(f"<h2>The best one again</h2><pre>{text_of(best)}</pre>")
    write_html(path, f"Search {text_of(name)}", sections)


def _short(value: Any) -> Any:
    """A value as it is read; the command has all of its digits."""
    return f"{value:.4g}" if isinstance(value, float) else value


def _table(trials: Sequence[Trial], keys: Sequence[str]) -> str:
    head = "".join(f"<th>{text_of(name)}</th>" for name in ["trial", "objective", "status", *keys])
    rows = ""
    for rank, trial in enumerate(trials[:MOST_ROWS]):
        values = [cell(trial.value), trial.status, *(_short(trial.parameters.get(key, "")) for key in keys)]
        cells = "".join(f"<td>{text_of(value)}</td>" for value in values)
        rows += (
            f"<tr{' class=best' if rank == 0 and trial.value is not None else ''}><th>{trial.number}</th>{cells}</tr>"
        )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    more = f'<p class="note">and {len(trials) - MOST_ROWS} more</p>' if len(trials) > MOST_ROWS else ""
    return f'<div class="scroll matrix">{table}</div>{more}'


def _best_so_far(trials: Sequence[Trial], better: str) -> str:
    """The objective of each trial in the order of proposal, and the best up to it."""
    reached: Points = []
    choose = max if better == "max" else min
    for trial in sorted(trials, key=lambda trial: trial.number):
        value = float(trial.value or 0.0)
        reached.append((float(trial.number), choose(value, reached[-1][1]) if reached else value))
    return figure("best so far", {"best so far": {"epoch": reached, "step": []}}, "trial")


def _over_values(trials: Sequence[Trial], space: Mapping[str, Dimension]) -> list[str]:
    """By key, the objective over the values that were tried; the best trial is marked."""
    figures = []
    for key, dimension in list(space.items())[:MOST_PLOTS]:
        if isinstance(dimension, Choice):
            shown = list(dict.fromkeys(str(trial.parameters[key]) for trial in trials))
            if len(shown) > MOST_CHOICES:
                continue
            positions = {text: float(index) for index, text in enumerate(shown)}
            ticks = [(index, text) for text, index in positions.items()]
            ends = (-0.5, len(shown) - 0.5)
            points = [(positions[str(trial.parameters[key])], float(trial.value or 0.0)) for trial in trials]
        else:
            scaled = math.log10 if dimension.log else float
            ends = (scaled(dimension.low), scaled(dimension.high))
            points = [(scaled(float(trial.parameters[key])), float(trial.value or 0.0)) for trial in trials]
            shown_at = [ends[0] + (ends[1] - ends[0]) * part / 4 for part in range(5)]
            if dimension.log and ends[1] - ends[0] >= 2:
                shown_at = [float(power) for power in range(math.ceil(ends[0]), math.floor(ends[1]) + 1)]
            ticks = [(at, f"{10**at if dimension.log else at:.3g}") for at in shown_at]
        figures.append(scatter(visible(redact.text(key)), points, ends, ticks))
    return figures
