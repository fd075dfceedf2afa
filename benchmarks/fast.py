"""What ``runner=fast`` chooses, measured a second time: python -m benchmarks.fast [rounds] [seconds] [threads]

For six networks of the catalogue: what ``commands.train.tune`` chose, and then, in a fresh process that knows nothing
of the first measurement, steps in the plain setting, in the chosen one, and of a bare fp32 loop in torch's own memory
format (the same network, loss and samples over a ``DataLoader``, torch's fused SGD) in turns; the ratios within each
round, their means and 95 % intervals. One thread and CPU time; with several threads, of which ``runner=fast`` may
choose fewer, wall time, which other work on the machine widens. Writes ``results/fast.txt``, or ``fast_2_threads.txt``.

The bars against the bare loop alone, of the choices in ``results/fast.txt``: python -m benchmarks.fast bare ROUNDS
Accuracy: python -m benchmarks.precision
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from benchmarks.bars import Bar, keep
from benchmarks.peers.__main__ import machine
from benchmarks.sides import Side, in_turns, serve, together
from healsg import BasicTask, system
from healsg.commands.compare.statistics import interval
from healsg.commands.train.tune import GAIN, Choice, measured, with_choice
from healsg.commands.train.tune import _steps_of as steps_of
from healsg.config.compose import Composer
from healsg.runs.folder import ROOT, RunFolder
from healsg.sweeps.job_trainer import JobTrainer
from healsg.sweeps.sharing import SharedData

PICTURES = ["data=synthetic", "data.train=256", "data.test=32", "method=sgd"]
NETWORKS: dict[str, list[str]] = {
    "mlp": ["data=digits", "model=mlp", "method=sgd"],
    "cnn (default)": ["data=digits", "model=cnn", "method=sgd"],
    "resnet8x4, 32 px": [*PICTURES, "model=resnet8x4", "data.batch_size=32"],
    "resnet8 of W3, 32 px": [*PICTURES, "model=resnet8x4", "model.width_factor=1", "model.stem_width=16"],
    "torchvision resnet18, 96 px": [*PICTURES, "data.shape=[3,96,96]", "model=torchvision", "data.batch_size=8"],
    "vit": ["data=digits", "model=vit", "method=sgd"],
    "unet": ["data=digits_seg", "model=unet", "model.width=8", "method=sgd"],
}
BARS = {"resnet8x4, 32 px": 0.55, "torchvision resnet18, 96 px": 0.65, "cnn (default)": 0.70}
"""Of the chosen setting against the bare loop."""
REACHES = 1.03
"""Below which the interval of the chosen setting against the plain one must reach."""


def steps_of_bare(task: BasicTask) -> Callable[[], None]:
    """A step of the loop that everybody writes, with the network, the loss and the samples of a task."""
    from torch.utils.data import DataLoader, TensorDataset

    view = task.train_loader.evaluation_view()  # type: ignore[union-attr]
    dealt = [(batch["input"], batch["target"]) for batch, _ in view.batches(0)]
    samples = TensorDataset(*(torch.cat(column).contiguous() for column in zip(*dealt, strict=True)))
    size = min(task.train_loader.batch_size, len(samples))  # type: ignore[union-attr]
    loader = DataLoader(samples, size, shuffle=True, drop_last=True)
    network = copy.deepcopy(task.model).train()
    for parameter in network.parameters():  # contiguous() would leave the strides of kernels of one channel or pixel
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    criterion = copy.deepcopy(task.criterion)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    batches = (batch for _ in itertools.count() for batch in loader)

    def step() -> None:
        input, target = next(batches)
        loss = criterion(network(input), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def side(kind: str, given: str) -> None:
    """One side in its process: seconds of a step of the plain and the chosen setting, or of the bare loop."""
    told = json.loads(given)
    threads = told["threads"]
    clock = time.process_time if threads == 1 else time.perf_counter
    torch.set_num_threads(threads)
    composed = Composer().compose(told["overrides"])
    kept = SharedData()
    acts: list[tuple[Callable[[], object], int]] = []
    with contextlib.ExitStack() as stack:
        if kind == "bare":
            task = JobTrainer(with_choice(composed, {}), RunFolder(ROOT / "unused"), kept).make_task()
            with mock.patch.object(system, "keep_freed_memory"):  # which a bare loop does not do
                task.build()
            acts.append((steps_of_bare(task), threads))
        else:
            for choice in ({}, told["choice"]):
                chosen = with_choice(composed, choice)
                _, step = stack.enter_context(steps_of(chosen, kept))
                acts.append((step, chosen.values["runner"]["threads"] or threads))

        def measure(_: int) -> list[float]:
            found = []
            for step, own in acts:
                torch.set_num_threads(own)
                step()
                began = clock()
                count = 0
                while count < 2 or clock() < began + 0.3:
                    step()
                    count += 1
                found.append((clock() - began) / count)
            return found

        serve(measure)


def again(overrides: list[str], choice: Choice, rounds: int, threads: int) -> list[list[float]]:
    """In fresh processes, by round the time of a step: chosen over plain, chosen over bare, plain over bare."""
    told = json.dumps({"overrides": overrides, "choice": choice, "threads": threads})
    with together({kind: Side("benchmarks.fast", kind, told) for kind in ("bare", "ours")}) as sides:
        rows = in_turns(sides, rounds)
    triples = [(bare, plain, fast) for (bare,), (plain, fast) in zip(rows["bare"], rows["ours"], strict=True)]
    pairs = [(fast / plain, fast / bare, plain / bare) for bare, plain, fast in triples]
    return [list(column) for column in zip(*pairs, strict=True)]


def bars_of(name: str, ratios: list[list[float]], threads: int) -> list[Bar]:
    """The figures of one network, each a mean with its 95 % interval."""
    at = "" if threads == 1 else f", {threads} threads"
    titles = [
        f"{name}{at}: chosen x plain, 95 %",
        f"{name}{at}: chosen x bare, 95 %",
        f"{name}{at}: plain x bare, 95 %",
    ]
    wanted = [REACHES, BARS.get(name) if threads == 1 else None, None]
    bars = []
    for title, values, bar in zip(titles, ratios, wanted, strict=True):
        mean, half = interval(values)
        bars.append(Bar("W12", title, mean, mean - half, mean + half, bar, reaches=bar == REACHES))
    return bars


RESULTS = Path(__file__).with_name("results")


def beside_bare(rounds: int, names: Sequence[str]) -> None:
    """What ``results/fast.txt`` says was chosen for networks with bars, beside the bare loop, measured anew."""
    lines = (RESULTS / "fast.txt").read_text().splitlines()
    bars = []
    for name in names:
        row = next(line for line in lines if line.startswith(f"{name}  "))
        pairs = (word.split("=") for word in row[30:74].split() if "=" in word)
        choice = {key: yaml.safe_load(value) for key, value in pairs}
        overrides = [*NETWORKS[name], "quiet=true", "runner.epochs=40", "runner.threads=1"]
        _, beside, plain = bars_of(name, again(overrides, choice, rounds, 1), 1)
        bars += [beside, plain]
        for bar in (beside, plain):
            print(f"{bar.name}: {bar.value:.3f} ({bar.least:.3f} to {bar.most:.3f})", flush=True)
        conditions = f"one thread, torch {torch.__version__}, {rounds} rounds, the choices of results/fast.txt"
        keep(f"python -m benchmarks.fast bare {rounds}", conditions, bars)


def main() -> None:
    if sys.argv[1:2] == ["side"]:
        side(*sys.argv[2:])
        return
    if sys.argv[1:2] == ["bare"]:
        beside_bare(int(sys.argv[2]), sys.argv[3:] or [*BARS])
        return
    rounds, seconds, threads = [*map(int, sys.argv[1:]), *[10, 30, 1][len(sys.argv) - 1 :]][:3]
    facts: dict[str, Any] = machine()
    used = "one thread" if threads == 1 else f"{threads} threads, wall time"
    conditions = f"{facts['processor']}, {used}, torch {facts['versions']['torch']}, {rounds} rounds"
    lines = [f"{conditions}, {seconds} s to choose; a step, mean (95 %)"]
    lines.append(f"{'network':30}{'chosen':42}{'chosen x plain':>24}{'chosen x bare':>24}{'plain x bare':>24}")
    print(*lines, sep="\n", flush=True)
    common = ["quiet=true", "runner.epochs=40", *(["runner.threads=1"] if threads == 1 else [])]
    bars = []
    for name, options in NETWORKS.items():
        overrides = [*options, *common]
        rows, steps = measured(Composer().compose(overrides), seconds)
        best = min(rows, key=lambda row: row.total(steps))
        choice = best.choice if best.total(steps) < GAIN * rows[0].total(steps) else {}
        own = bars_of(name, again(overrides, choice, rounds, threads), threads)
        shown = " ".join(f"{key}={value}" for key, value in choice.items()) or "as configured"
        cells = "".join(f"{f'{bar.value:.3f} ({bar.least:.3f} to {bar.most:.3f})':>24}" for bar in own)
        lines.append(f"{name:30}{shown:42}{cells}")
        print(lines[-1], flush=True)
        bars += own
    file = "fast.txt" if threads == 1 else f"fast_{threads}_threads.txt"
    RESULTS.joinpath(file).write_text("\n".join(lines) + "\n")
    keep(f"python -m benchmarks.fast {rounds} {seconds} {threads}", conditions, bars)


if __name__ == "__main__":
    main()
