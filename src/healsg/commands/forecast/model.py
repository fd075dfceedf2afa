"""From measurements to the forecast of a run: sums, intervals, and the largest batch that fits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

TIME_ERROR = 0.25
"""The share by which forecasts of CPU time may miss: the largest miss of the twelve runs of ``benchmarks.forecast
calibrate`` (-14 % to +25 %, ``benchmarks/results/forecast_calibration.txt``): of twelve runs it is the quantile that
holds nine of ten."""
WALL_ERROR = 0.25
"""The error of the wall time on an otherwise idle machine. Other work on the machine adds to it: on the loaded
machine of the calibration, 5 of 12 intervals covered the true value."""
MEMORY_ERROR = 0.12
"""That of the peak of memory, from the same runs (-10 % to -2 %)."""
DISK_ERROR = 0.25
"""That of the run's folder, from the same runs (-20 % to 0 %)."""

SPREAD = 1.645
"""Standard deviations on each side of the mean that hold 90 % of a normal distribution."""
BLOCKS = 8
"""The number of blocks into which the measured steps are divided; their means differ by other work on the machine."""
REST = 1.0
"""Seconds between two saves at the ends of epochs, as the checkpointer has it."""
FILES = 180_000
"""Bytes of a run's small files: configuration, log, record and report."""
LINE = 320
"""Bytes of a line of ``metrics.jsonl``."""
ROOM = 0.9
"""The share of the memory that is free which the largest batch may take."""


@dataclass(frozen=True)
class Seconds:
    """CPU and wall time of one thing."""

    cpu: float = 0.0
    wall: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.cpu - other.cpu, self.wall - other.wall)

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.cpu * factor, self.wall * factor)

    def positive(self) -> Seconds:
        return Seconds(max(0.0, self.cpu), max(0.0, self.wall))


@dataclass(frozen=True)
class Length:
    """The amount of work in a run.

    Args:
        batches: it trains on, over all epochs.
        epochs: of it.
        evaluations: passes over ``val``.
        val, test: batches of such a pass.
        updates: steps of the optimizer.
        log_every, save_every: updates between two lines, and between two saves; None does not save within an epoch.
    """

    batches: int
    epochs: int
    evaluations: int
    val: int
    test: int
    updates: int
    log_every: int
    save_every: int | None


@dataclass(frozen=True)
class Measured:
    """The measured times of a few steps, an evaluation and a save.

    Args:
        imports: of Python, torch and the configuration, before the task is built.
        build: of the task: reading data, creating the network.
        first: how much longer the first steps took than later ones, once per run.
        steps: each measured training step with its batch.
        epoch: how much longer the first step of an epoch takes.
        first_eval: how much longer the first evaluation took than a later one.
        eval_batch: per batch of an evaluation, with the metrics.
        save, save_best: of ``last.pt`` and ``best.pt``.
        end: of the end of a run: the digest of its state, and the samples and pages of its report.
        peak: memory in bytes; None if the system does not report it.
        last_bytes, best_bytes: of the two files.
    """

    imports: Seconds
    build: Seconds
    first: Seconds
    steps: Sequence[Seconds]
    epoch: Seconds
    first_eval: Seconds
    eval_batch: Seconds
    save: Seconds
    save_best: Seconds
    end: Seconds
    peak: int | None
    last_bytes: int
    best_bytes: int


@dataclass(frozen=True)
class Amount:
    """A number with its 90 % prediction interval."""

    value: float
    low: float
    high: float

    @classmethod
    def within(cls, value: float, error: float) -> Amount:
        """``value``, give or take the share ``error``."""
        return cls(value, value / (1 + error), value * (1 + error))

    def __add__(self, other: Amount) -> Amount:
        """The sum; the errors add up as well, since the errors of such forecasts are correlated."""
        return Amount(self.value + other.value, self.low + other.low, self.high + other.high)

    def as_json(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run.

    Args:
        imports: seconds of CPU time before it is built.
        cpu, wall: seconds of the run itself, without the imports.
        memory: the peak, in bytes; None if unknown.
        disk: the bytes of the run's folder.
        parts: CPU seconds by purpose.
    """

    imports: Seconds
    cpu: Amount
    wall: Amount
    memory: Amount | None
    disk: Amount
    parts: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "imports": asdict(self.imports),
            "cpu_seconds": self.cpu.as_json(),
            "wall_seconds": self.wall.as_json(),
            "peak_memory": None if self.memory is None else self.memory.as_json(),
            "disk": self.disk.as_json(),
            "parts": {name: round(value, 3) for name, value in self.parts.items()},
        }


def mean_of(steps: Sequence[Seconds]) -> Seconds:
    """The mean of at least one measurement."""
    return sum(steps, Seconds()) * (1 / len(steps))


def spread_of(steps: Sequence[Seconds]) -> tuple[float, float]:
    """The standard error of the mean of CPU and of wall time, as a share of it, from the means of blocks."""
    count = min(BLOCKS, len(steps))
    if count < 3:
        return 0.1, 0.2
    blocks = [mean_of(steps[len(steps) * at // count : len(steps) * (at + 1) // count]) for at in range(count)]
    shares = []
    for values in ([block.cpu for block in blocks], [block.wall for block in blocks]):
        mean = statistics.fmean(values)
        shares.append(statistics.stdev(values) / mean / math.sqrt(count) if mean > 0 else 0.1)
    return shares[0], shares[1]


def predict(measured: Measured, length: Length) -> Forecast:
    """The forecast of a run of this length."""
    step = mean_of(measured.steps)
    training = measured.first + step * length.batches + measured.epoch * length.epochs
    evaluating = measured.first_eval + measured.eval_batch * (length.evaluations * length.val + length.test)
    wall = (training + evaluating).wall
    saves, bests = saves_of(length, wall)
    saving = measured.save * saves + measured.save_best * bests
    run = measured.build + training + evaluating + saving + measured.end
    noise = spread_of(measured.steps)
    errors = [math.hypot(error, SPREAD * share) for error, share in zip((TIME_ERROR, WALL_ERROR), noise, strict=True)]
    lines = length.epochs + length.updates // length.log_every
    disk = 2 * measured.last_bytes + measured.best_bytes + FILES + LINE * lines
    memory = None if measured.peak is None else Amount.within(float(measured.peak), MEMORY_ERROR)
    return Forecast(
        measured.imports,
        Amount.within(run.cpu, errors[0]),
        Amount.within(run.wall, errors[1]),
        memory,
        Amount.within(float(disk), DISK_ERROR),
        {
            "building": measured.build.cpu,
            "training": training.cpu,
            "evaluating": evaluating.cpu,
            "saving": saving.cpu,
            "ending": measured.end.cpu,
        },
    )


def saves_of(length: Length, wall: float) -> tuple[float, float]:
    """How often a run of ``wall`` seconds writes ``last.pt`` and ``best.pt``: at the ends of epochs, at most once a
    second; every other epoch is assumed to be a new best one."""
    epoch = max(wall / max(1, length.epochs), 1e-9)
    ends = length.epochs / max(1, math.ceil(REST / epoch))
    between = length.updates // length.save_every if length.save_every else 0
    return 1 + max(1.0, ends) + between, max(1.0, ends / 2)


def largest_batch(small: tuple[int, int], large: tuple[int, int], available: int) -> tuple[int | None, float]:
    """The largest batch that fits, by a line through two measurements, and the bytes that a sample takes.

    Args:
        small, large: rows of a batch, and the bytes at the peak of a step with it.
        available: bytes that a step may take in all.

    Returns:
        The rows; None if memory does not grow with them by more than it varies.
    """
    slope = (large[1] - small[1]) / (large[0] - small[0]) if large[0] > small[0] else 0.0
    if slope * large[0] < 1 << 21:
        return None, max(0.0, slope)
    base = large[1] - slope * large[0]
    return max(0, int((ROOM * available - base) / slope)), slope
