"""What ``runner.ledger=true`` adds to a training step of the default network, its file of each epoch included.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.ledger_cost [rounds]      (results/ledger_cost.txt)

One task trains an epoch with its ledger and one without in turns, so that both have the same memory: two tasks differ
by more than the ledger costs, by where their tensors lie. CPU time; of the ratios of the rounds the mean without the
tenths at both ends, and its 95 % interval by the bootstrap. Beside it stands the same of epochs that differ in nothing,
which says what the measurement itself is worth.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bars import Bar, keep
from healsg.build import build_task
from healsg.commands.sweep import as_run
from healsg.config.compose import Composer

MOST = 1.0
"""Percent of a step."""


def built(rounds: int) -> Any:
    """The default task with a ledger, ready to train."""
    composed = as_run(Composer().compose([f"runner.epochs={4 * rounds + 20}", "quiet=true", "runner.ledger=true"]))
    task = build_task(composed)
    task.build()
    return task


@contextlib.contextmanager
def without_ledger(task: Any) -> Iterator[None]:
    """A context in which the task trains as one that was built without a ledger."""
    runner, hooks = task.runner, dict(task.net._forward_hooks)
    ledger, runner.ledger = runner.ledger, None
    task.net._forward_hooks.clear()
    try:
        yield
    finally:
        runner.ledger = ledger
        task.net._forward_hooks.update(hooks)


def seconds_of_epoch(task: Any, folder: Path, kept: bool) -> float:
    """CPU seconds of an epoch of training."""
    with contextlib.nullcontext() if kept else without_ledger(task):
        began = time.process_time()
        task.train_epoch.run()
        if kept:
            task.runner.ledger.write(folder, task.runner.epoch)
        passed = time.process_time() - began
    task.runner.next_epoch()
    return passed


def middle(ratios: Sequence[float]) -> float:
    """The mean without the tenths at both ends."""
    tenth = len(ratios) // 10
    return statistics.fmean(sorted(ratios)[tenth : len(ratios) - tenth])


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """``middle`` and its 95 % interval."""
    draw = random.Random(0)
    drawn = sorted(middle(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return middle(ratios), drawn[50], drawn[1949]


def own_seconds(task: Any, folder: Path, epochs: int = 200) -> float:
    """CPU seconds that the ledger's own functions take in an epoch: its hook at each forward pass, and its file."""
    ledger = task.runner.ledger
    with torch.no_grad():
        dealt = [(batch, task.model(batch["input"])) for batch, _ in task.runner.train_batches(task)]
    began = time.process_time()
    for number in range(epochs):
        for batch, output in dealt:
            ledger.deal(batch)
            ledger._output(task.net, (), output)
        ledger.write(folder, number + 1)
    return (time.process_time() - began) / epochs


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    task = built(rounds)
    ratios: dict[bool, list[float]] = {True: [], False: []}
    times = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds + 2):
            for kept in (True, False):  # the second pair differs in nothing
                pair = {}
                for first in (True, False) if number % 2 else (False, True):
                    pair[first] = seconds_of_epoch(task, Path(place), kept and first)
                if number >= 2:  # the first epochs use everything for the first time
                    ratios[kept].append(pair[True] / pair[False])
                    times.append(pair[False])
        own = own_seconds(task, Path(place))
    share = 100 * own / statistics.median(times)
    conditions = f"torch {torch.__version__}, one thread, no GPU, {rounds} rounds"
    command = f"python -m benchmarks.ledger_cost {rounds}"
    titles = {True: "the ledger, added to a step of the default network, 95 %", False: "the same of equal epochs, 95 %"}
    bars = [
        Bar("W13", titles[kept], *(100 * (value - 1) for value in interval(ratios[kept])), MOST if kept else None, "%")
        for kept in titles
    ]
    bars.append(Bar("W13", "the ledger's own functions, its file included", share, share, share, MOST, "%"))
    step = statistics.median(times) / task.runner.length
    lines = [command, f"{conditions}; {1e3 * step:.2f} ms a step, {task.runner.length} steps an epoch"]
    lines += [f"{bar.name}: {bar.value:+.2f} % ({bar.least:+.2f} to {bar.most:+.2f})" for bar in bars]
    print(*lines, sep="\n")
    (Path(__file__).parent / "results/ledger_cost.txt").write_text("\n".join(lines) + "\n")
    keep(command, conditions, bars)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
