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
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

BARS = Path(__file__).parent / "results" / "bars.json"

WORKLOADS = {
    "W9": "image files: the loader, relative to torchvision's ImageFolder",
    "W10": "evaluation and prediction, relative to a hand-written loop",
    "W11": "memory of writing checkpoints, and metrics with many classes",
    "W12": "memory format, precision and `runner=fast`; *plain* is without it, *bare* a hand-written fp32 loop",
    "W13": "training steps with parts of your own, with methods, and with the ledger",
    "W14": "start of commands",
    "W15": "operator calls per step",
    "W16": "volumes, relative to MONAI and nnU-Net",
    "W17": "several processes, relative to plain DistributedDataParallel",
}


@dataclass(frozen=True)
class Bar:
    """One figure.

    Args:
        workload: W1 and on.
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

    def row(self) -> list[str]:
        """The cells of a table."""
        places = 0 if self.value >= 100 else 1 if self.unit != "x" else 2
        value, least, most = (rounded(number, places) for number in (self.value, self.least, self.most))
        unit = "" if self.unit == "x" else f" {self.unit}"
        bar = "" if self.bar is None else f"{self.bar:g}{unit}"
        return [self.workload, self.name, f"{value}{unit}", f"{least} to {most}", bar, self.verdict]


def rounded(number: float, places: int) -> str:
    """In decimals: half is rounded up, as in the results that have three decimals, and there is no -0."""
    return str(Decimal(str(number)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP) + 0)


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
    left = {key: [bar for bar in value["bars"] if bar["name"] not in names] for key, value in before.items()}
    kept = {key: before[key] | {"bars": own} for key, own in left.items() if own}
    kept[command] = {"conditions": conditions, "bars": [asdict(bar) for bar in bars]}
    BARS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def kept() -> dict[str, tuple[str, list[Bar]]]:
    """By command the conditions and the figures."""
    found = json.loads(BARS.read_text()) if BARS.exists() else {}
    rows = {command: (one["conditions"], [Bar(**bar) for bar in one["bars"]]) for command, one in found.items()}
    if not rows:
        return {}
    for command, (conditions, bars) in of_texts().items():
        if not any(one.startswith(command) for one in rows):
            rows[command] = conditions, bars
    return dict(sorted(rows.items()))


VOLUMES = r"^(.+?): HEALSg .*ratio ([\d.]+) \(([\d.]+) to ([\d.]+)\)(?:; bar ([\d.]+))?"
TEXTS = {
    "segmentation.monai_pipeline": ("monai_pipeline.txt", "W16", "{}, x MONAI's pipeline", VOLUMES, None),
    "segmentation.nnunet_pipeline": ("nnunet_pipeline.txt", "W16", "{}, x nnU-Net's own", VOLUMES, None),
}
"""By command: its text, the workload, what a figure is called, how its line looks, and the bar of all its figures."""


def of_texts() -> dict[str, tuple[str, list[Bar]]]:
    """The figures of benchmarks that wrote them as text alone."""
    found = {}
    for name, (file, workload, title, pattern, most) in TEXTS.items():
        path = BARS.with_name(file)
        if path.exists():
            text = path.read_text()
            bars = []
            for match in re.finditer(pattern, text, re.MULTILINE):
                what, value, least, most_of, *own = match.groups()
                bar = float(own[0]) if own and own[0] else most
                called = title.format(" ".join(what.split()))
                bars.append(Bar(workload, called, float(value), float(least), float(most_of), bar))
            head = [line for line in text.splitlines()[:3] if line and not line.startswith("python")]
            found[f"python -m benchmarks.{name}"] = "; ".join(line.rstrip(";") for line in head[:2]), bars
    return found
