"""The figures that have bars: each benchmark keeps its own in ``results/bars.json``; ``docs/speed.md`` is made of them.

A figure is the median over the rounds of a ratio within a round, with the range; where a benchmark gives an interval
instead, it says so in the figure's name.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BARS = Path(__file__).parent / "results" / "bars.json"

WORKLOADS = {
    "W9": "pictures: the loader beside torchvision's ImageFolder",
    "W10": "evaluation and prediction beside a loop by hand",
    "W11": "memory, and metrics of many classes",
    "W12": "memory format, precision and `runner=fast`",
    "W13": "steps of one's own parts, of methods, and of the ledger",
    "W14": "start",
    "W15": "launches of kernels a step",
    "W16": "volumes beside MONAI",
}


@dataclass(frozen=True)
class Bar:
    """One figure.

    Args:
        workload: W9 and on.
        name: what was measured, beside what.
        value, least, most: the median and the range.
        bar: the largest value that is meant; None where there is no bar.
        unit: ``x`` of a ratio.
        reaches: whether the bar is for ``least``, the lower end of an interval, instead of the median.
    """

    workload: str
    name: str
    value: float
    least: float
    most: float
    bar: float | None = None
    unit: str = "x"
    reaches: bool = False

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        return "met" if (self.least if self.reaches else self.value) <= self.bar else "missed"


def bar_of(workload: str, name: str, values: Sequence[float], bar: float | None = None, unit: str = "x") -> Bar:
    """The median and the range of some values."""
    return Bar(workload, name, statistics.median(values), min(values), max(values), bar, unit)


def keep(command: str, conditions: str, bars: Sequence[Bar]) -> None:
    """Write the figures of a command in the place of those of the same names, with whatever arguments they were made.

    Args:
        command: with which they are measured again.
        conditions: versions, hardware and rounds, in one line.
        bars: the figures.
    """
    before: dict[str, Any] = json.loads(BARS.read_text()) if BARS.exists() else {}
    names = {bar.name for bar in bars}
    kept = {key: value for key, value in before.items() if not names & {bar["name"] for bar in value["bars"]}}
    kept[command] = {"conditions": conditions, "bars": [asdict(bar) for bar in bars]}
    BARS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def kept() -> dict[str, tuple[str, list[Bar]]]:
    """By command the conditions and the figures."""
    found = json.loads(BARS.read_text()) if BARS.exists() else {}
    rows = {command: (one["conditions"], [Bar(**bar) for bar in one["bars"]]) for command, one in found.items()}
    return dict(sorted({**rows, **of_volumes()}.items())) if rows else {}


def of_volumes() -> dict[str, tuple[str, list[Bar]]]:
    """The figures that ``benchmarks.segmentation.monai_pipeline`` wrote as text."""
    path = BARS.with_name("monai_pipeline.txt")
    if not path.exists():
        return {}
    text = path.read_text()
    command, *conditions = text.split("\n\n")[0].splitlines()
    line = re.compile(r"^(.+?): HEALSg .*ratio ([\d.]+) \(([\d.]+) to ([\d.]+)\)(?:; bar ([\d.]+))?", re.MULTILINE)
    found = line.findall(text)
    bars = []
    for name, value, least, most, bar in found:
        title = f"{name}, x MONAI's pipeline"
        bars.append(Bar("W16", title, float(value), float(least), float(most), float(bar) if bar else None))
    return {command: ("; ".join(conditions), bars)}
