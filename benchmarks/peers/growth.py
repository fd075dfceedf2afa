"""How a run's time and memory grow: python -m benchmarks.peers.growth samples|epochs|lines|runs OUT

One process a kind: a small run to warm up, then runs of 1, 10 and 100 times the size. OUT gets, by size, the CPU
seconds of the run and the peak of memory by its end.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import torch

from healsg import TaskTrainer

UNITS = {"samples": 2_000, "epochs": 4, "lines": 60, "runs": 10}
"""What 1 is, by kind."""


def told(kind: str, size: int) -> list[str]:
    """The command line of a run of that size."""
    if kind == "samples":
        return [f"data.rows={size}", "runner.epochs=1"]
    if kind == "epochs":
        return [f"runner.epochs={size}"]
    if kind == "lines":
        steps = 100 * UNITS["lines"]
        few = ["data.rows=48000", "data.batch_size=8"]  # short steps, beside which a line is seen
        return [*few, f"runner.steps={steps}", f"runner.log_every={steps // size}"]
    return ["runner.epochs=2"]


def train(name: str, *more: str) -> Path:
    common = ["data=points", "trusted=[benchmarks]", "data.batch_size=64", "model=mlp", "model.width=32"]
    trainer = TaskTrainer.compose(*common, *more, *([f"name={name}"] if name else []), config_dir="conf")
    return Path(trainer.train()["folder"])


def crowd(run: Path, size: int) -> None:
    """Let there be ``size`` more runs in the folder."""
    for number in range(size):
        if not (target := run.parent / f"other{number}").exists():
            shutil.copytree(run, target, copy_function=os.link)


def main() -> None:
    kind, out = sys.argv[1:]
    torch.set_num_threads(1)
    option = Path("conf/data/points.yaml")
    option.parent.mkdir(parents=True)
    option.write_text("_target_: benchmarks.growth.Points\nrows: 256\nothers: 256\nnumbers: 64\nbatch_size: 64\n")
    warm, rows = train("warm", "runner.epochs=2"), {}
    for factor in (1, 10, 100):
        size = factor * UNITS[kind]
        if kind == "runs":
            crowd(warm, size)
        gc.collect()
        began = time.process_time()
        train("" if kind == "runs" else f"run{factor}", *told(kind, size))
        rows[size] = [time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
    Path(out).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
