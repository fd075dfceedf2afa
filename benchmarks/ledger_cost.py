"""What ``runner.ledger=true`` adds to a training step of the default network, its file of each epoch included.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.ledger_cost [epochs]      (results/ledger_cost.txt)

One task trains its steps with the ledger and without it in turns, so that both have the same memory, batches and time.
CPU time; of the steps of either kind the mean without the tenths at both ends, and the 95 % interval of the difference
by the bootstrap. What a whole epoch takes to become numbers and a file is measured where it happens and shared out over
the steps. Beside it stands the same of steps that differ in nothing, which says what the measurement is worth.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bars import Bar, keep
from healsg.build import build_task
from healsg.commands.sweep.run import as_run
from healsg.config.compose import Composer
from healsg.training.epoch import finish_step

MOST = 1.0
"""Percent of a step."""
LEDGER = "the ledger, added to a step of the default network, 95 %"
ENDS = 22
"""Epochs whose ends are measured."""


def built(rounds: int) -> Any:
    """The default task with a ledger, ready to train."""
    composed = as_run(Composer().compose([f"runner.epochs={4 * rounds + 20}", "quiet=true", "runner.ledger=true"]))
    task = build_task(composed)
    task.build()
    return task


class Switch:
    """Turns the ledger of a task on and off between two steps.

    Args:
        task: built with a ledger.
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        self.ledger = task.runner.ledger
        self.hooks = dict(task.net._forward_hooks)

    def __call__(self, on: bool) -> None:
        self.task.runner.ledger = self.ledger if on else None
        self.task.net._forward_hooks.clear()
        if on:
            self.task.net._forward_hooks.update(self.hooks)


def measured(task: Any, epochs: int, kept: bool) -> dict[bool, list[float]]:
    """CPU seconds of steps with and without the ledger; without ``kept`` always without."""
    switch, runner = Switch(task), task.runner
    steps: dict[bool, list[float]] = {True: [], False: []}
    for epoch in range(epochs):
        task.net.train()
        batches = runner.train_batches(task)
        for number in range(runner.length):
            first = (number // 2 + number + epoch) % 2 == 0  # in the order ABBA, which changes with the epoch
            switch(kept and first)
            began = time.process_time()
            batch, micro = next(batches)
            finish_step(task, micro, *runner.step(task, batch, micro))
            passed = time.process_time() - began
            if number:  # the first step of an epoch prepares the batches of all
                steps[first].append(passed)
        batches.close()
        runner.next_epoch()
    switch(True)
    return steps


def ends_of(task: Any, folder: Path) -> list[float]:
    """CPU seconds of the ends of epochs, where the outputs become numbers by sample, and these a file."""
    found = []
    for _ in range(ENDS):
        task.train_epoch.run()
        began = time.process_time()
        task.runner.ledger.write(folder, task.runner.epoch + 1)
        found.append(time.process_time() - began)
        task.runner.next_epoch()
    return found


def middle(values: Sequence[float]) -> float:
    """The mean without the tenths at both ends."""
    tenth = len(values) // 10
    return statistics.fmean(sorted(values)[tenth : len(values) - tenth])


def added(steps: dict[bool, list[float]]) -> tuple[float, float, float]:
    """By how many percent the steps of one kind take longer, with its 95 % interval."""
    draw = random.Random(0)

    def once(draws: bool) -> float:
        one, other = (
            middle(draw.choices(values, k=len(values)) if draws else values) for values in (steps[True], steps[False])
        )
        return 100 * (one / other - 1)

    drawn = sorted(once(True) for _ in range(1000))
    return once(False), drawn[25], drawn[974]


def main(epochs: int) -> None:
    torch.set_num_threads(1)
    task = built(epochs)
    with tempfile.TemporaryDirectory() as place:
        ends = ends_of(task, Path(place))[2:]  # in the first everything is used for the first time
    steps = measured(task, epochs, True)
    same = measured(task, epochs, False)
    step = middle(steps[False])
    length = task.runner.length
    end = 100 * middle(ends) / length / step
    conditions = f"torch {torch.__version__}, one thread, no GPU, {epochs} epochs of {length} steps"
    command = f"python -m benchmarks.ledger_cost {epochs}"
    bars = [
        Bar(
            "W13",
            "the ledger, added to a step of the default network, 95 %",
            *(end + one for one in added(steps)),
            MOST,
            "%",
        ),
        Bar("W13", "the same of equal steps, 95 %", *added(same), unit="%"),
        Bar("W13", "of these, the ledger's end of an epoch", end, end, end, unit="%"),
    ]
    lines = [command, f"{conditions}; {1e3 * step:.2f} ms a step"]
    lines += [f"{bar.name}: {bar.value:+.2f} % ({bar.least:+.2f} to {bar.most:+.2f})" for bar in bars]
    print(*lines, sep="\n")
    (Path(__file__).parent / "results/ledger_cost.txt").write_text("\n".join(lines) + "\n")
    keep(command, conditions, bars)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
