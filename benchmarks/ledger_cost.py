"""What ``runner.ledger=true`` adds to a training step of the default network, its file of each epoch included.

    OMP_NUM_THREADS=1 python -m benchmarks.ledger_cost [rounds]      (results/ledger_cost.txt)

Two tasks that differ in the ledger alone train in one process, an epoch each in turns; CPU time, the median over the
rounds of the ratios within a round, with the 95 % interval of that median by its order statistics.
"""

from __future__ import annotations

import math
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from healsg.build import build_task
from healsg.commands.sweep import as_run
from healsg.config.compose import Composer


def built(rounds: int, *more: str) -> Any:
    """The default task, ready to train."""
    composed = as_run(Composer().compose([f"runner.epochs={rounds + 2}", "quiet=true", *more]))
    task = build_task(composed)
    task.build()
    return task


def seconds_of_epoch(task: Any, folder: Path) -> float:
    """CPU seconds of an epoch of training."""
    began = time.process_time()
    task.train_epoch.run()
    if task.runner.ledger is not None:
        task.runner.ledger.write(folder, task.runner.epoch)
    passed = time.process_time() - began
    task.runner.next_epoch()
    return passed


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
    plain, kept = built(rounds), built(rounds, "runner.ledger=true")
    ratios, times = [], []
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds + 2):
            pair = {}
            for task in (plain, kept) if number % 2 else (kept, plain):
                pair[task is kept] = seconds_of_epoch(task, Path(place))
            if number >= 2:  # the first epochs use everything for the first time
                ratios.append(pair[True] / pair[False])
                times.append(pair[False])
        own = own_seconds(kept, Path(place))
    ratios.sort()
    half = 0.98 * math.sqrt(rounds)
    low, high = ratios[max(0, int(rounds / 2 - half))], ratios[min(rounds - 1, math.ceil(rounds / 2 + half))]
    step = statistics.median(times) / plain.runner.length
    lines = [
        f"python -m benchmarks.ledger_cost {rounds}",
        f"torch {torch.__version__}, Python {platform.python_version()}, 2 shared x86-64 cores, no GPU, one thread",
        f"default network on digits: {1e3 * step:.2f} ms a step, {plain.runner.length} steps an epoch, {rounds} rounds",
        f"with the ledger: {statistics.median(ratios) - 1:+.2%} (95 % interval {low - 1:+.2%} to {high - 1:+.2%})",
    ]
    lines.append(f"its own functions by themselves, file included: {own / statistics.median(times):.2%} of an epoch")
    print(*lines, sep="\n")
    (Path(__file__).parent / "results/ledger_cost.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
