"""``healsg compare RUN RUN --cases``: two runs case by case, as volumes or pictures with masks are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from healsg import safefiles
from healsg.commands.compare.statistics import Difference, difference
from healsg.commands.terminal.tables import cell, show
from healsg.console import visible
from healsg.errors import ConfigError, RunError, one_line
from healsg.runs.folder import RunFolder

LARGEST = 1 << 26
"""Bytes of an evaluation's file: a larger one is refused, not read."""

SHOWN = 10
"""Cases that the terminal shows, those that differ most."""

USUAL = "dice"


@dataclass(frozen=True)
class Paired:
    """A metric of two runs on the same cases.

    Args:
        metric: its name.
        numbers: by case, the values of the first and of the second run, the largest differences first.
        apart: the mean difference, the first run minus the second, with its paired t interval.
        left_out: cases that one of them lacks, or for which the metric is not defined.
    """

    metric: str
    numbers: Mapping[str, tuple[float, float]]
    apart: Difference
    left_out: int

    def as_json(self) -> dict[str, Any]:
        cases = {name: list(pair) for name, pair in self.numbers.items()}
        return {
            "metric": self.metric,
            "cases": cases,
            "left_out": self.left_out,
            "difference": self.apart._asdict(),
        }


def paired(first: RunFolder, second: RunFolder, split: str, metric: str) -> Paired:
    """Two runs' numbers on the cases of a split. Raises RunError, ConfigError."""
    mine, theirs = (_cases(folder, split) for folder in (first, second))
    shared = [name for name in mine if name in theirs]
    pairs = {}
    for name in shared:
        one, other = (numbers.get(metric) for numbers in (mine[name], theirs[name]))
        if isinstance(one, (int, float)) and isinstance(other, (int, float)) and math.isfinite(one + other):
            pairs[name] = (float(one), float(other))
    if not pairs:
        known = ", ".join(sorted({key for name in shared for key in mine[name]})) or "none"
        raise ConfigError(f"--metric: no case of both runs has a number {metric}; there is {known}")
    order = sorted(pairs, key=lambda name: -abs(pairs[name][0] - pairs[name][1]))
    apart = difference(
        {name: one for name, (one, _) in pairs.items()}, {name: other for name, (_, other) in pairs.items()}
    )
    return Paired(metric, {name: pairs[name] for name in order}, apart, len({*mine, *theirs}) - len(pairs))


def _cases(folder: RunFolder, split: str) -> dict[str, dict[str, Any]]:
    """The numbers by case that ``healsg eval`` or the end of training wrote: of the best weights."""
    path = folder.path / f"eval-{split}-best.json"
    if not safefiles.kind_of(path):
        raise RunError(f"{folder.shown}: was not evaluated on {split}; healsg eval {folder.shown} split={split}")
    try:
        found = json.loads(safefiles.read_bytes(path, LARGEST), parse_int=float)
        cases = {str(name): dict(numbers) for name, numbers in found["cases"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: holds no numbers by case ({one_line(error)}); masks have such") from error
    return cases


def show_pairs(pairs: Paired, names: tuple[str, str]) -> None:
    """Print the cases that differ most, and the difference over all."""
    rows = [[name, one, other, one - other] for name, (one, other) in list(pairs.numbers.items())[:SHOWN]]
    show(["case", *names, "difference"], rows)
    count = len(pairs.numbers)
    if count > SHOWN:
        print(f"and {count - SHOWN} cases that differ less")
    more = sum(one > other for one, other in pairs.numbers.values())
    less = sum(one < other for one, other in pairs.numbers.values())
    text = f"{pairs.metric} of {count} cases: {names[0]} is {pairs.apart.mean:+.4f} above {names[1]}"
    if math.isfinite(pairs.apart.half):
        text += f" ({cell(pairs.apart.mean - pairs.apart.half)} to {cell(pairs.apart.mean + pairs.apart.half)}, 95 %)"
        text += f", p {pairs.apart.chance:.2g}"
    text += f"; higher in {more} cases, lower in {less}"
    print(visible(text + (f"; {pairs.left_out} cases are left out" if pairs.left_out else "")))
