"""CPU microseconds an image for crop, flip and normalise at 32x32: python -m benchmarks.peers.data_path FOLDER OUT

The batches of W3 alone, without a network: HEALSg's loader, a ``DataLoader`` with per-sample transforms, and batches
gathered by hand. One process, in turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import tight
from benchmarks.peers.prepare import task_of
from benchmarks.peers.work import MARKED, Clock, Work

TURNS = 7


def passes(work: Work) -> dict[str, Callable[[int], Any]]:
    """By way, what deals one epoch."""
    loader = task_of([told for told in work.overrides if told not in MARKED]).train_loader
    dealt, _ = work.loaders(Clock(work))
    return {
        "healsg": lambda epoch: [None for _ in loader.batches(epoch)],
        "bare": lambda epoch: dealt.sampler.__setattr__("epoch", epoch) or [None for _ in dealt],
        "tight": lambda epoch: [None for _ in tight.batches(work, epoch)],
    }


def main() -> None:
    torch.set_num_threads(1)
    work = Work.load(sys.argv[1], "W3")
    ways, spent = passes(work), {}
    for turn in range(TURNS):
        for way, deal in ways.items():
            epochs = 1 if way == "bare" else work.epochs
            began = time.process_time()
            for epoch in range(epochs):
                deal(epoch)
            seconds = (time.process_time() - began) / (epochs * len(work.train[1]))
            if turn:
                spent.setdefault(way, []).append(1e6 * seconds)
    Path(sys.argv[2]).write_text(json.dumps(spent))


if __name__ == "__main__":
    main()
