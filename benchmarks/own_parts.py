"""A training step of a user's own parts beside a tight loop written by hand: what is left when nothing of ours is used.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.own_parts [rounds]

The network is a plain ``nn.Sequential`` (64-128-10), the optimizer torch's own SGD or AdamW by ``_target_``, the
samples a ``TaskData`` of 1,024 random vectors in memory, the batch 64. The tight loop draws a permutation, indexes
tensors, and calls the same network, loss and optimizer. Epochs of both are trained in turns in one process on one
thread; the figure is the ratio of CPU times of each round, as median and range. ``DataLoader`` is HEALSg over a
``DataLoader`` of the same tensors (``build_dataloader``) beside the bare loop over it.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.bars import Bar, bar_of, keep
from healsg import BasicTask, DataInfo, TaskData, TaskModel, TaskTrainer, TensorSource

SAMPLES = 1024
BATCH = 64
EPOCHS = 20
"""Of a round and side: 320 updates."""
BAR = 1.15

OPTIMIZERS = {"AdamW": ["method=adamw"], "SGD": ["method=sgd"]}

OPTIONS = {
    "data/vectors": {"_target_": "benchmarks.own_parts.Vectors", "root": "data", "batch_size": BATCH},
    "model/own": {"_target_": "benchmarks.own_parts.Own"},
}
"""The YAMLs that a user writes for the two parts."""


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 64, generator=generator), torch.randint(0, 10, (SAMPLES,), generator=generator)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


class Vectors(TaskData):
    """The samples, in memory."""

    @property
    def info(self) -> DataInfo:
        return DataInfo((64,), 10)

    def read(self, part: str) -> TensorSource | None:
        return TensorSource(*samples()) if part == "train" else TensorSource(*(one[:64] for one in samples()))

    def transform(self, view: str, split: str) -> None:
        return None


class Own(TaskModel):
    """The network."""

    def build(self, info: DataInfo) -> nn.Module:
        return network()


class OverLoader(BasicTask):
    """A task with a ``DataLoader`` of its own."""

    def build_dataloader(self) -> dict[str, Any]:
        train, small = TensorDataset(*samples()), TensorDataset(*(one[:64] for one in samples()))
        return {"train": DataLoader(train, batch_size=BATCH, shuffle=True), "val": DataLoader(small, batch_size=64)}


def ours(optimizer: str, over_loader: bool) -> tuple[Callable[[], None], dict[str, Any]]:
    """Epochs of HEALSg, without what surrounds them; and the optimizer's settings."""
    options = [
        "data=vectors",
        "model=own",
        *OPTIMIZERS[optimizer],
        f"method.optimizer._target_=torch.optim.{optimizer}",
    ]
    options += ["method/scheduler=constant", "trusted=[benchmarks]", "quiet=true", f"name={optimizer}-{over_loader}"]
    options += ["task._target_=benchmarks.own_parts.OverLoader"] if over_loader else []
    options += ["runner.epochs=1000000", "runner.device=cpu"]
    made = TaskTrainer.compose(*options, config_dir="conf")
    task = made.make_task()
    task.build()

    def epochs() -> None:
        for _ in range(EPOCHS):
            task.train_epoch.run()
            task.runner.next_epoch()

    settings = made.composed.values["method"]["optimizer"]
    return epochs, {key: value for key, value in settings.items() if not key.startswith("_")}


def by_hand(optimizer: str, settings: dict[str, Any], over_loader: bool) -> Callable[[], None]:
    """The same epochs in a loop written by hand."""
    inputs, targets = samples()
    model, criterion = network(), nn.CrossEntropyLoss()
    moving = getattr(torch.optim, optimizer)(model.parameters(), **settings)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=BATCH, shuffle=True)

    def batches() -> Iterable[Any]:
        if over_loader:
            return loader
        order = torch.randperm(SAMPLES)
        return ((inputs[part], targets[part]) for part in order.split(BATCH))

    def epochs() -> None:
        for _ in range(EPOCHS):
            losses = []
            for input, target in batches():
                loss = criterion(model(input), target)
                loss.backward()
                moving.step()
                moving.zero_grad()
                losses.append(loss.detach())
            torch.stack(losses).mean().item()

    return epochs


def seconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def compared(
    name: str, ours: Callable[[], None], by_hand: Callable[[], None], steps: int, rounds: int
) -> tuple[Bar, str]:
    """What both take in turns, as ratio with its range and by step; each makes so many steps a round."""
    pairs = []
    for number in range(rounds):
        spent = {side: seconds(side) for side in ((ours, by_hand) if number % 2 else (by_hand, ours))}
        pairs.append((spent[ours], spent[by_hand]))
    bar = bar_of("W13", f"a step, {name}, x by hand", [one / other for one, other in pairs], BAR)
    each = [1e6 * statistics.median(side) / steps for side in zip(*pairs, strict=True)]
    spread = f"{bar.value:.2f} ({bar.least:.2f} to {bar.most:.2f})"
    return bar, f"{name:24} {spread} x by hand, {each[0]:.0f} us a step, by hand {each[1]:.0f}"


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    conditions = (
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread, no GPU"
    )
    conditions += f", {rounds} rounds of {EPOCHS * SAMPLES // BATCH} updates a side"
    print(conditions)
    before = Path.cwd()
    bars = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for option, node in OPTIONS.items():
            path = Path(f"conf/{option}.yaml")
            path.parent.mkdir(parents=True)
            path.write_text(yaml.safe_dump(node))
        for over_loader in (False, True):
            for optimizer in OPTIMIZERS:
                own, settings = ours(optimizer, over_loader)
                sides = own, by_hand(optimizer, settings, over_loader)
                for run in sides:
                    run()
                where = "over a DataLoader" if over_loader else "in memory"
                bar, line = compared(f"{optimizer}, {where}", *sides, EPOCHS * SAMPLES // BATCH, rounds)
                bars.append(bar)
                print(line, flush=True)
        os.chdir(before)
    keep(f"python -m benchmarks.own_parts {rounds}", conditions, bars)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
