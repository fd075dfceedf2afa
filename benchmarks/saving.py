"""What a checkpoint costs the training loop, against ``torch.save`` of the same state: python benchmarks/saving.py

In one process, save by save: the seconds for which a save keeps the loop, that is ``Checkpointer.save`` and, before the
next update, the wait for what the thread still copies; and ``torch.save`` of the same state to the same disk, with
nothing else going on, without and with an fsync (which is what ours does, in its thread). The two take turns, update by
update. Medians and ranges over the saves; the first three, in which memory is claimed, are left out.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from typing import Any

import torch

from healsg import TaskTrainer
from healsg.runs.checkpointer import Checkpointer

WORKLOADS = {
    "MLP 64-128-10, AdamW": ["model=mlp", "model.width=128", "method=adamw", "runner.steps=120"],
    "CNN of the default run, AdamW": ["runner.steps=120"],
    "ResNet-18, SGD with momentum": ["model=resnet", "method=sgd", "runner.steps=30", "data.batch_size=8"],
    "ResNet-18, AdamW": ["model=resnet", "method=adamw", "runner.steps=30", "data.batch_size=8"],
}


def measure(options: list[str]) -> dict[str, list[float]]:
    """Seconds of each kind, save by save."""
    seconds: dict[str, list[float]] = {"blocked": [], "torch.save": [], "with fsync": []}
    whole = Checkpointer.save

    def timed(kind: str, act: Any, add: bool = False) -> None:
        began = time.perf_counter()
        act()
        took = time.perf_counter() - began
        seconds[kind].append(seconds[kind].pop() + took if add else took)

    def durable(state: dict[str, Any]) -> None:
        with open("durable.pt", "wb") as file:  # noqa: PTH123 - as the plain way is written
            torch.save(state, file)
            os.fsync(file.fileno())

    def save(self: Checkpointer, task: Any) -> None:
        self.writer.wait()
        if task.runner.step_count % 2:
            timed("torch.save", lambda: torch.save(task.state_dict(), "plain.pt"))
            timed("with fsync", lambda: durable(task.state_dict()))
            return
        timed("blocked", lambda: whole(self, task))
        landed, waited = self.writer.snapshot_done, list[bool]()
        self.snapshot_done = lambda: None if waited else waited.append(timed("blocked", landed, add=True))  # type: ignore[method-assign]

    Checkpointer.save = save  # type: ignore[method-assign]
    try:
        TaskTrainer.compose(*options, "runner.save_every=1", "quiet=true", "name=run", "fresh=true").train()
    finally:
        Checkpointer.save = whole  # type: ignore[method-assign]
    return {kind: values[3:] for kind, values in seconds.items()}


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, milliseconds: median (range)")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.chdir(folder)
        for name, options in WORKLOADS.items():
            if len(sys.argv) > 1 and sys.argv[1] not in name:
                continue
            rows = measure(options)
            middle = {kind: statistics.median(values) for kind, values in rows.items()}
            for kind, values in rows.items():
                ratio = f"  ratio {middle['blocked'] / middle[kind]:.2f}" if kind != "blocked" else ""
                told = f"{1e3 * middle[kind]:8.3f} ({1e3 * min(values):.3f} to {1e3 * max(values):.3f})"
                print(f"{name:32} {kind:12} {told}{ratio}", flush=True)
        os.chdir("..")


if __name__ == "__main__":
    main()
