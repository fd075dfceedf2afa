"""What ``runner.ledger=true`` adds to a training step of the default network, its file of each epoch included.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.ledger_cost [epochs]      (results/ledger_cost.txt)

One task trains its steps with the ledger and without it in turns, so that both have the same memory, batches and time.
CPU time; of pairs of neighbouring steps the mean difference without the tenths at both ends, with its 95 % interval by
the bootstrap. What it takes for epochs to become numbers and a file, at saves after each second of CPU time,
is measured where it happens and shared out over the steps. Beside it stands the same of steps that differ in nothing,
which says what the measurement is worth.
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
from healsg.runs.checkpointer import SAVE_INTERVAL

MOST = 1.0
"""Percent of a step."""
LEDGER = "time that the ledger adds to a step of the default network, 95 %"
ENDS = 100
"""Epochs whose ends are measured."""


def built(rounds: int) -> Any:
    """The default task with a ledger, ready to train."""
    epochs = 4 * rounds + 2 * ENDS
    composed = as_run(Composer().compose([f"runner.epochs={epochs}", "quiet=true", "runner.ledger=true"]))
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


def measured(task: Any, epochs: int, kept: bool) -> list[tuple[float, float]]:
    """CPU seconds of neighbouring steps, one with the ledger and one without it; without ``kept`` both without."""
    switch, runner = Switch(task), task.runner
    pairs: list[tuple[float, float]] = []
    for epoch in range(epochs):
        task.net.train()
        batches = runner.train_batches(task)
        pair: dict[bool, float] = {}
        for number in range(runner.length):
            first = (number // 2 + number + epoch) % 2 == 0  # in the order ABBA, which changes with the epoch
            switch(kept and first)
            began = time.process_time()
            batch, micro = next(batches)
            task.train_epoch.finish_step(micro, *runner.step(task, batch, micro))
            pair[first] = time.process_time() - began
            if number % 2:
                if number > 1:  # the first step of an epoch prepares the batches of all
                    pairs.append((pair[True], pair[False]))
                pair.clear()
        batches.close()
        runner.next_epoch()
    switch(True)
    return pairs


def ends_of(task: Any, folder: Path) -> list[float]:
    """CPU seconds of the ends of epochs, and of what a ledger does at the saves after them."""
    found = []
    saved = time.process_time()
    for _ in range(ENDS):
        task.train_epoch.run()
        task.runner.next_epoch()
        began = time.process_time()
        task.runner.ledger.end_epoch()
        if began - saved >= SAVE_INTERVAL:
            task.runner.ledger.write(folder, task.runner.epoch)
            saved = time.process_time()
        found.append(time.process_time() - began)
    return found


def middle(values: Sequence[float]) -> float:
    """The mean without the tenths at both ends."""
    tenth = len(values) // 10
    return statistics.fmean(sorted(values)[tenth : len(values) - tenth])


def added(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """By how many percent the steps of the first kind take longer, with its 95 % interval."""
    draw = random.Random(0)
    differences = [one - other for one, other in pairs]
    step = middle([other for _, other in pairs])
    drawn = sorted(middle(draw.choices(differences, k=len(differences))) for _ in range(1000))
    value, least, most = (100 * one / step for one in (middle(differences), drawn[25], drawn[974]))
    return value, least, most


def main(epochs: int) -> None:
    torch.set_num_threads(1)
    task = built(epochs)
    with tempfile.TemporaryDirectory() as place:
        task.train_epoch.run()  # in the first epoch everything is used for the first time
        task.runner.next_epoch()
        task.runner.ledger.end_epoch()
        ends = ends_of(task, Path(place))
    pairs = measured(task, epochs, True)
    same = measured(task, epochs // 3, False)
    step = middle([other for _, other in pairs])
    length = task.runner.length
    end = 100 * statistics.fmean(ends) / length / step
    conditions = f"torch {torch.__version__}, one thread, no GPU, {epochs} epochs of {length} steps"
    command = f"python -m benchmarks.ledger_cost {epochs}"
    bars = [
        Bar("W13", LEDGER, *(end + one for one in added(pairs)), MOST, "%"),
        Bar("W13", "the same between equal steps, as a control, 95 %", *added(same), unit="%"),
        Bar("W13", "part of the added time: the end of an epoch and a share of the saves", end, end, end, unit="%"),
    ]
    lines = [command, f"{conditions}; {1e3 * step:.2f} ms a step"]
    lines += [f"{bar.name}: {bar.value:+.2f} % ({bar.least:+.2f} to {bar.most:+.2f})" for bar in bars]
    print(*lines, sep="\n")
    (Path(__file__).parent / "results/ledger_cost.txt").write_text("\n".join(lines) + "\n")
    keep(command, conditions, bars)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
