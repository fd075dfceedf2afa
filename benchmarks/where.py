"""Where a step of W1 goes, in HEALSg and in hand-written loops: python -m benchmarks.where [rounds]

CPU time of the process on one thread, in microseconds per training step: the training pass itself, the evaluation of
each epoch, and what ends an epoch (its line in ``metrics.jsonl``, in ``train.log`` and on the screen, the best weights,
saving). Samples in memory stand beside the tight loop, sample by sample beside the bare loop over a ``DataLoader``. All
take turns in one process; medians and ranges over the rounds, of which the first is left out.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import bare, healsg, prepare, tight
from benchmarks.peers.work import Clock, Work
from healsg.evaluation.evaluator import EvalEpoch
from healsg.optimizers.adam import AdamW
from healsg.runner import TaskRunner

PARTS = ("training pass", "evaluation", "end of the epoch")


def tight_with_own_update(work: Work, clock: Clock) -> Any:
    """The tight loop with HEALSg's AdamW in the place of torch's: both call the same kernel."""
    work.optimizer = lambda network: AdamW(network.parameters())  # type: ignore[method-assign]
    return tight.train(work, clock)


LOOPS: dict[str, Callable[[Work, Clock], Any]] = {
    "HEALSg, in memory": healsg.train,
    "tight loop over tensors": tight.train,
    "the same, HEALSg's AdamW": tight_with_own_update,
    "HEALSg, sample by sample": healsg.train_with_loaders,
    "bare loop, DataLoader": bare.train,
}


@contextlib.contextmanager
def timed(owner: Any, name: str, seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add up what calls of ``owner.name`` take."""
    act = getattr(owner, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return act(*arguments, **named)
        finally:
            seconds[part] += time.process_time() - began

    setattr(owner, name, watched)
    try:
        yield
    finally:
        setattr(owner, name, act)


def measure(train: Callable[[Work, Clock], Any], folder: str) -> dict[str, float]:
    """Microseconds a step, by part."""
    work, seconds = Work.load(folder, "W1"), defaultdict[str, float](float)
    clock = Clock(work)
    with (
        timed(EvalEpoch, "run", seconds, "evaluation"),
        timed(TaskRunner, "end_epoch", seconds, "end of the epoch"),
        timed(tight, "evaluate", seconds, "evaluation"),
        timed(bare, "evaluate", seconds, "evaluation"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        train(work, clock)
    whole = clock.times[-1] - clock.times[0]  # all epochs but the last
    share = (work.epochs - 1) / work.epochs
    outside = sum(seconds.values()) * share
    steps = work.steps * (work.epochs - 1)
    parts = {part: 1e6 * taken * share / steps for part, taken in seconds.items()}
    return {"training pass": 1e6 * (whole - outside) / steps, **parts}


def main() -> None:
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in LOOPS}
    with tempfile.TemporaryDirectory() as folder:
        prepare.lay_out("W1", Path(folder))
        os.chdir(folder)
        for _ in range(rounds + 1):
            for name, train in LOOPS.items():
                rows[name].append(measure(train, folder))
        os.chdir("/")
    print(f"torch {torch.__version__}, one thread, {rounds} rounds, microseconds a step: median (range)")
    for name, found in rows.items():
        for part in PARTS:
            values = [row.get(part, 0.0) for row in found[1:]]
            print(f"{name:25} {part:17} {statistics.median(values):6.0f} ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()
