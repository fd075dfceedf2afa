"""What a data set of a million paths costs each loader worker: python -m benchmarks.memory_paths [paths] [epochs]

Epochs of the loader with two workers over a thousand paths and over a million, in a process of their own each. No file
is read: a data set that keeps its paths and targets as ``Pictures`` does, with a reader that gives a small tensor.
Private memory (Private_Dirty of smaps_rollup, or RssAnon where there is none) of each worker after each epoch, in MB;
beside it the same with a list of strings and a list of numbers in the place of ``PathList`` and a tensor.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bars import Bar, keep
from healsg.data.loader import Loader
from healsg.data.source import DatasetSource
from healsg.datasets.imagefolder import Pictures

MOST = 10.0
"""MB."""


class Unread(Pictures):
    """Pictures whose files are not there."""

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return torch.full((2,), float(len(self.paths[index]))), self.targets[index]


def private(process: int) -> float:
    """The memory in MB that a process has for itself."""
    try:
        rows = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return sum(int(row.split()[1]) for row in rows if row.startswith("Private_Dirty")) / 1000
    except OSError:
        rows = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith("RssAnon")) / 1000


def measure(kind: str, count: int, epochs: int) -> None:
    """Print a line an epoch."""
    torch.set_num_threads(1)
    names = (f"/data/pictures/train/class{number % 1000:04}/picture_{number:08}.jpg" for number in range(count))
    dataset = Unread(names, torch.arange(count) % 1000, 224, 3, decoder="pil")
    if kind == "lists":
        dataset.paths, dataset.targets = list(dataset.paths), dataset.targets.tolist()  # type: ignore[assignment]
    loader = Loader({"labelled": DatasetSource(dataset)}, {"labelled": {"input": None}}, 256, shuffle=True, workers=2)
    for epoch in range(epochs):
        rows = sum(rows for _, rows in loader.batches(epoch))
        assert rows == count
        assert loader._workers is not None
        grown = [private(process.pid) for process, _ in loader._workers.processes]
        print(
            f"{kind:9} {count:8} paths, epoch {epoch + 1}: {', '.join(f'{each:.1f}' for each in grown)} MB", flush=True
        )


def main() -> None:
    if len(sys.argv) > 3:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        return
    count, epochs = [*map(int, sys.argv[1:]), *[1_000_000, 3][len(sys.argv) - 1 :]][:2]
    last: dict[tuple[str, int], float] = {}
    for kind in ("PathList", "lists"):
        for number in (1000, count):
            line = [sys.executable, "-m", "benchmarks.memory_paths", kind, str(number), str(epochs)]
            printed = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(printed, end="", flush=True)
            last[kind, number] = max(
                float(each) for each in re.findall(r"([\d.]+)(?:,| MB)", printed.splitlines()[-1].partition(":")[2])
            )
    more = last["PathList", count] - last["PathList", 1000]
    name = f"a loader worker with {count:,} paths after {epochs} epochs, above one with 1,000"
    keep(
        f"python -m benchmarks.memory_paths {count} {epochs}",
        f"torch {torch.__version__}, two workers",
        [Bar("W11", name, more, more, more, MOST, "MB")],
    )


if __name__ == "__main__":
    main()
