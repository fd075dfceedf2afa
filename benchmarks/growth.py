"""What stays flat while jobs, run folders, log lines and samples become many: the early part beside the late one.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.growth [jobs|folders|lines|samples ...]

* ``jobs``: a sweep of 200 jobs in one process; CPU time a job and resident memory of jobs 11 to 30 and of the last 20.
* ``folders``: a run of its own in ``runs/`` beside 20 and beside 2,000 other runs, in turns; and ``healsg runs`` of
  both, by folder.
* ``lines``: a run of 100,000 updates, each with a line in ``metrics.jsonl``; CPU time an update and memory of updates
  5,000 to 15,000 and of the last 10,000.
* ``samples``: 10,000 and 1,000,000 samples of 16 numbers in memory; CPU time an update, in turns; memory beside the
  samples' own bytes.

Each kind has a process of its own. Where something is measured in turns, the figure is the median of the ratios.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

from healsg import BasicTask, DataInfo, TaskData, TaskTrainer, TensorSource
from healsg.cli import main as command
from healsg.types import Count

JOBS = 200
FOLDERS = 20, 2_000
LINES = 100_000
SAMPLES = 10_000, 1_000_000
ROUNDS = 7

STAMPS = Path("stamps.jsonl")
"""Where tasks of this benchmark write CPU time and memory."""


def resident() -> float:
    """MiB of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def stamp() -> None:
    with STAMPS.open("a") as file:
        file.write(json.dumps([time.process_time(), resident()]) + "\n")


def stamps() -> list[tuple[float, float]]:
    return [tuple(json.loads(line)) for line in STAMPS.read_text().splitlines()]


class Points(TaskData):
    """Random points in ten classes.

    Args:
        rows: of the training part.
        others: of each other part.
        numbers: of a point.
    """

    def __init__(self, rows: Count = 256, others: Count = 64, numbers: Count = 16, **common: Any) -> None:
        super().__init__(**common)
        self.rows = rows
        self.others = others
        self.numbers = numbers

    @property
    def info(self) -> DataInfo:
        return DataInfo((self.numbers,), 10)

    def read(self, part: str) -> TensorSource:
        rows, seed = (self.rows, 0) if part == "train" else (self.others, 1)
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(rows, self.numbers, generator=generator)
        return TensorSource(points, torch.randint(10, (rows,), generator=generator))


class Stamped(BasicTask):
    """Writes CPU time and memory after each epoch."""

    def run_epoch(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = super().run_epoch()
        stamp()
        return found


OPTIONS = ["data=points", "trusted=[benchmarks]", "model=mlp", "model.width=16", "data.batch_size=64", "quiet=true"]
STAMPING = "task._target_=benchmarks.growth.Stamped"


def row(name: str, early: str, late: str, ratio: float | None, more: str = "") -> None:
    shown = "" if ratio is None else f"{ratio:.2f}"
    print(f"{name:48} {early:>14} {late:>14} {shown:>6}  {more}".rstrip(), flush=True)


# --- the kinds -------------------------------------------------------------------------------------------------------


def jobs() -> None:
    line = ["train", "-m", *OPTIONS, STAMPING, f"seed=range({JOBS})", "name=s"]
    line += ["runner.epochs=2", "runner.eval_every=2"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert command(line) == 0
    ends = stamps()[1::2]
    assert len(ends) == JOBS
    times = [1e3 * (after[0] - before[0]) for before, after in pairwise(ends)]
    early, late = statistics.median(times[10:30]), statistics.median(times[-20:])
    row(f"CPU time a job, {JOBS} jobs in one process", f"{early:.0f} ms", f"{late:.0f} ms", late / early)
    first, last = ends[30][1], ends[-1][1]
    each = 1024 * (last - first) / (JOBS - 31)
    row("memory of that process", f"{first:.0f} MiB", f"{last:.0f} MiB", last / first, f"{each:.1f} KiB a job")


def folders() -> None:
    def train() -> None:
        TaskTrainer.compose(*OPTIONS, "runner.epochs=1", config_dir="conf").train()

    def listed() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            assert command(["runs", "--json"]) == 0

    places = []
    for count in FOLDERS:
        place = Path(f"beside-{count}")
        place.mkdir()
        shutil.copytree("conf", place / "conf")
        with contextlib.chdir(place):
            first = TaskTrainer.compose(*OPTIONS, "runner.epochs=1", "name=other0", config_dir="conf").train()["folder"]
            for number in range(1, count):
                shutil.copytree(first, Path("runs") / f"other{number}", copy_function=os.link)
        places.append(place)
    for name, act, by in (("CPU time of a run", train, (1, 1)), ("healsg runs, a folder", listed, FOLDERS)):
        pairs = in_turns([measured_in(place, act, each) for place, each in zip(places, by, strict=True)])
        scale, unit = (1e3, "ms") if by == (1, 1) else (1e6, "us")
        compare(f"{name}, beside {FOLDERS[0]} and {FOLDERS[1]:,} runs", pairs, scale, unit)


def lines() -> None:
    piece = 5_000  # updates of an epoch, after each of which there is a stamp
    options = [*OPTIONS, "data.batch_size=8", f"data.rows={8 * piece}", f"runner.steps={LINES}", "runner.log_every=1"]
    run = TaskTrainer.compose(*options, STAMPING, "runner.eval_every=1000", "name=run", config_dir="conf").train()
    written = sum(1 for _ in (Path(run["folder"]) / "metrics.jsonl").open())
    assert written >= LINES
    ends = stamps()
    times = [1e6 * (after[0] - before[0]) / piece for before, after in pairwise(ends)]
    early, late = statistics.mean(times[:2]), statistics.mean(times[-2:])
    row(f"CPU time an update, {written:,} lines of one run", f"{early:.0f} us", f"{late:.0f} us", late / early)
    first, last = ends[2][1], ends[-1][1]
    each = 2**20 * (last - first) / (LINES - 3 * piece)
    row("memory of that process", f"{first:.0f} MiB", f"{last:.0f} MiB", last / first, f"{each:.0f} bytes a line")


def samples() -> None:
    sides = []
    for count in SAMPLES:
        gc.collect()
        before = resident()
        options = [*OPTIONS, f"data.rows={count}", "data.batch_size=100", "runner.epochs=1000000", f"name=of-{count}"]
        task = TaskTrainer.compose(*options, config_dir="conf").make_task()
        task.build()
        task.train_epoch.run()
        task.runner.next_epoch()
        own = count * (16 * 4 + 8) / 2**20
        sides.append((task, count // 100, resident() - before, own))
    pairs = in_turns([measured_epochs(task, steps) for task, steps, *_ in sides])
    compare(f"CPU time an update, {SAMPLES[0]:,} and {SAMPLES[1]:,} samples", pairs, 1e6, "us")
    taken = [f"{taken:.0f} MiB" for *_, taken, _ in sides]
    _, _, used, own = sides[1]
    row("memory they take", *taken, None, f"the samples alone: {own:.0f} MiB, {used / own:.2f} x that")


KINDS: dict[str, Callable[[], None]] = {"jobs": jobs, "folders": folders, "lines": lines, "samples": samples}


# --- measuring -------------------------------------------------------------------------------------------------------


def measured_in(place: Path, act: Callable[[], None], each: int) -> Callable[[], float]:
    """CPU seconds of an act in a folder, divided."""

    def measured() -> float:
        with contextlib.chdir(place):
            began = time.process_time()
            act()
            return (time.process_time() - began) / each

    return measured


def measured_epochs(task: Any, steps: int) -> Callable[[], float]:
    """CPU seconds an update, of at least 10,000 updates."""

    def measured() -> float:
        passes = max(1, 10_000 // steps)
        began = time.process_time()
        for _ in range(passes):
            task.train_epoch.run()
            task.runner.next_epoch()
        return (time.process_time() - began) / (passes * steps)

    return measured


def in_turns(sides: list[Callable[[], float]]) -> list[list[float]]:
    for side in sides:
        side()
    return [[side() for side in sides] for _ in range(ROUNDS)]


def compare(name: str, pairs: list[list[float]], scale: float, unit: str) -> None:
    early, late = (scale * statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [late / early for early, late in pairs]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    row(name, f"{early:.1f} {unit}", f"{late:.1f} {unit}", statistics.median(ratios), spread)


def alone(kind: str) -> None:
    """One kind, in a process and a folder of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        option = Path("conf/data/points.yaml")
        option.parent.mkdir(parents=True)
        node = {"_target_": "benchmarks.growth.Points", "rows": 256, "root": "data", "batch_size": 64, "workers": 0}
        option.write_text(yaml.safe_dump(node))
        KINDS[kind]()


def main(kinds: list[str]) -> None:
    if kinds[:1] == ["--alone"]:
        alone(kinds[1])
        return
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread, no GPU;")
    print(f"in turns: {ROUNDS} rounds\n")
    row("", "early, few", "late, many", None, "late / early")
    for kind in kinds or KINDS:
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", "benchmarks.growth", "--alone", kind], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
