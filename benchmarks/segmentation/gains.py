"""What methods and losses for masks gain: few labelled cases, and thin vessels. The difference to the baseline, paired
by seed, on the test part; settings are chosen on the validation part, with another seed.

    python -m benchmarks.segmentation.gains

``shapes2d`` with the masks of 10 of 100 cases: supervised alone beside mean teacher, FixMatch and cross pseudo
supervision, which also see the other 90 images. ``tubes3d``: Dice and clDice beside Dice alone. One thread. Each run is
kept in ``results/gains.json`` as it ends, so that the command goes on where it was stopped; a change of the settings
below runs anew. The table is written to ``results/gains.txt``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results"

SEEDS = (0, 1, 2, 3, 4)

TUNED = 100
"""The seed with which settings are chosen, on the validation part."""

T = 2.776
"""The 97.5th percentile of Student's t with 4 degrees of freedom."""

UNET = ["model=unet", "model.width=8", "runner.threads=1", "runner.device=cpu", "runner.eval_every=1000", "quiet=true"]

CLDICE = "+model.metrics.cldice._target_=healsg.metrics.segmentation.CentrelineDice"


@dataclass(frozen=True)
class Row:
    """One side of a comparison.

    Args:
        settings: of it alone.
        grid: of which the one with the highest validation Dice (or what ``metrics`` names first) is taken.
    """

    settings: tuple[str, ...]
    grid: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Study:
    """A baseline, the first row, and what is compared with it.

    Args:
        common: settings of all rows.
        rows: by name.
        metrics: that are compared; the first decides the settings.
    """

    common: tuple[str, ...]
    rows: dict[str, Row]
    metrics: tuple[str, ...] = ("dice",)


RATES = (("method.optimizer.lr=3e-3",), ("method.optimizer.lr=1e-2",))

STUDIES = {
    "10 labelled cases of shapes2d": Study(
        (
            *("data=shapes2d", "data.train=100", "data.val=30", "data.test=100", "data.labels=10"),
            *("data.batch_size=8", "runner.steps=150", "method.ema=0.98"),
        ),
        {
            "supervised": Row(("method=adamw",), RATES),
            "mean_teacher": Row(
                ("method=mean_teacher", "method.view=strong", "method.unlabelled_ratio=1", "method.optimizer.lr=1e-2"),
                (
                    ("method.unlabelled_weight=1",),
                    ("method.unlabelled_weight=10",),
                    ("method.unlabelled_weight=50",),
                ),
            ),
            "fixmatch": Row(
                ("method=fixmatch", "method.unlabelled_ratio=1", "method.optimizer.lr=1e-2"),
                (("method.threshold=0.8",), ("method.threshold=0.95",)),
            ),
            "cps": Row(
                ("method=cps", "method.optimizer.lr=1e-2"),
                (("method.unlabelled_weight=0.3",), ("method.unlabelled_weight=1.5",)),
            ),
        },
    ),
    "vessels of tubes3d": Study(
        (
            *("data=tubes3d", "data.train=30", "data.val=6", "data.test=12", "data.in_memory=true", "method=adamw"),
            *("data.samples_per_epoch=400", "runner.steps=200", CLDICE),
        ),
        {
            "Dice": Row(("model/loss=dice",), RATES),
            "Dice and clDice": Row(
                ("model/loss=cldice", "method.optimizer.lr=3e-3"),
                (("model.loss.share=0.3",), ("model.loss.share=0.5",)),
            ),
        },
        ("dice", "cldice"),
    ),
}


class Kept:
    """Runs that are done, in a file, by their settings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = json.loads(path.read_text()) if path.exists() else {}

    def run(self, settings: Sequence[str], seed: int) -> dict[str, float]:
        """The numbers of a run: ``val/dice``, ``test/dice``, ..., and ``seconds`` of CPU time."""
        key = " ".join([*settings, f"seed={seed}"])
        if key not in self.done:
            self.done[key] = measured([*settings, f"seed={seed}", f"data.split_seed={seed}"])
            self.path.write_text(json.dumps(self.done, indent=1) + "\n")
            print(key, self.done[key], flush=True)
        found: dict[str, float] = self.done[key]
        return found


def measured(settings: list[str]) -> dict[str, float]:
    from healsg import TaskTrainer

    began = time.process_time()
    trainer = TaskTrainer.compose(*settings)
    result = trainer.train()
    val = trainer.evaluate("val")
    seconds = time.process_time() - began
    numbers = {f"val/{name}": value for name, value in val.items() if name in ("dice", "cldice")}
    numbers |= {name: value for name, value in result["test"].items() if name in ("test/dice", "test/cldice")}
    return numbers | {"seconds": seconds}


def lines_of(title: str, study: Study, kept: Kept) -> Iterator[str]:
    """Choose settings, run the seeds, and say what each row has and gains over the first one."""
    yield f"{title}: {' '.join([*study.common, *UNET])}"
    baseline: list[dict[str, float]] = []
    for name, row in study.rows.items():
        own = [*study.common, *UNET, *row.settings]
        looked_at = [kept.run([*own, *extra], TUNED)[f"val/{study.metrics[0]}"] for extra in row.grid]
        best = max(range(len(row.grid)), key=lambda place: looked_at[place])
        runs = [kept.run([*own, *row.grid[best]], seed) for seed in SEEDS]
        for metric in study.metrics:
            values = [run[f"test/{metric}"] for run in runs]
            told = f"test {metric} {statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}"
            if baseline:
                told += "; " + gain(values, [run[f"test/{metric}"] for run in baseline])
            yield f"  {name}: {told} ({', '.join(f'{value:.4f}' for value in values)})"
        baseline = baseline or runs
        tried = ", ".join(f"{' '.join(extra)}: {value:.4f}" for extra, value in zip(row.grid, looked_at, strict=True))
        seconds = statistics.mean(run["seconds"] for run in runs)
        yield f"    {' '.join(row.settings)}; val {study.metrics[0]} of {tried}; {seconds:.0f} CPU s a run"


def gain(values: Sequence[float], others: Sequence[float]) -> str:
    """The mean difference, with the 95 % interval of a paired t test."""
    apart = [one - other for one, other in zip(values, others, strict=True)]
    half = T * statistics.stdev(apart) / math.sqrt(len(apart))
    return f"difference {statistics.mean(apart):+.4f} +- {half:.4f} (95 %, paired by seed)"


def main() -> None:
    kept = Kept(RESULTS / "gains.json")
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        try:
            lines = [line for title, study in STUDIES.items() for line in lines_of(title, study, kept)]
        finally:
            os.chdir(before)
    where = (
        f"Python {platform.python_version()}, torch {version('torch')}, {platform.machine()}, {os.cpu_count()} cores"
    )
    head = ["python -m benchmarks.segmentation.gains", f"{where} that other work shared, one thread, no GPU", ""]
    text = "\n".join([*head, *lines, ""])
    print(text)
    (RESULTS / "gains.txt").write_text(text)


if __name__ == "__main__":
    main()
