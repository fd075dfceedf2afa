"""A training step of seven methods beside the same mathematics in a loop written by hand.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.own_methods [rounds]

Digits, ``model=cnn model.width=8``, batches of 64, AdamW at a constant rate. Both sides start from the same weights and
get the same batches from the same loader, so that after the first round their weights agree, which is checked (for all
but mixup, whose draws are the loop's own); the loop calls torch's fused AdamW. Epochs of both are trained in turns in
one process on one thread; the figure is the ratio of CPU times of each round, as median and range.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bars import keep
from benchmarks.own_parts import compared
from healsg import BasicTask, TaskTrainer

EPOCHS = 3
"""Of a round and side."""

COMMON = ["model=cnn", "model.width=8", "data.batch_size=64", "quiet=true", "runner.device=cpu", "fresh=true"]
COMMON += ["method/scheduler=constant", "method/optimizer=adamw", "runner.epochs=1000000", "runner.channels_last=false"]

METHODS = {
    "ema": ["method=adamw", "method.ema=0.99"],
    "mixup": ["method=adamw", "method.mixup=0.4"],
    "sam": ["method=sam"],
    "kd": ["method=kd", "method.teacher=runs/teacher"],
    "fixmatch": ["method=fixmatch", "method.ema=0", "data.labels=100"],
    "simclr": ["method=simclr"],
    "moco": ["method=moco"],
}

Batch = dict[str, Any]
Update = Callable[[Tensor], None]
"""Backward, the optimizer's step, and gradients set to None."""


def built(name: str) -> BasicTask:
    task = TaskTrainer.compose(*COMMON, *METHODS[name], f"name={name}").make_task()
    task.build()
    return task


# --- the loops: from a task its network and numbers alone are taken --------------------------------------------------


def ema(task: BasicTask, batches: Iterator[Batch], update: Update) -> None:
    average = list(task.task_method.average.network.parameters())  # type: ignore[union-attr]
    own = list(task.model.parameters())
    for batch in batches:
        update(F.cross_entropy(task.model(batch["input"]), batch["target"]))
        with torch.no_grad():
            torch._foreach_lerp_(average, own, 0.01)


def mixup(task: BasicTask, batches: Iterator[Batch], update: Update) -> None:
    beta = torch.distributions.Beta(0.4, 0.4)
    for batch in batches:
        share = float(beta.sample())
        order = torch.randperm(len(batch["target"]))
        input = share * batch["input"] + (1 - share) * batch["input"][order]
        output = task.model(input)
        one, other = F.cross_entropy(output, batch["target"]), F.cross_entropy(output, batch["target"][order])
        update(share * one + (1 - share) * other)


def sam(task: BasicTask, batches: Iterator[Batch], update: Update) -> None:
    weights = list(task.model.parameters())
    norms = [module for module in task.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    rho = task.task_method.rho
    for batch in batches:
        loss = F.cross_entropy(task.model(batch["input"]), batch["target"])
        slopes = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            before = [weight.clone() for weight in weights]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(slopes)))
            torch._foreach_add_(weights, torch._foreach_mul(slopes, rho / (norm + 1e-12)))
        for module in norms:
            module.track_running_stats = False
        F.cross_entropy(task.model(batch["input"]), batch["target"]).backward()
        for module in norms:
            module.track_running_stats = True
        with torch.no_grad():
            torch._foreach_copy_(weights, before)
        update(loss.detach())


def kd(task: BasicTask, batches: Iterator[Batch], update: Update) -> None:
    teacher, method = task.task_method.teacher, task.task_method
    heat, alpha = method.temperature, method.alpha
    for batch in batches:
        with torch.no_grad():
            wanted = teacher(batch["input"])
        output = task.model(batch["input"])
        soft = F.kl_div(
            F.log_softmax(output / heat, 1), F.log_softmax(wanted / heat, 1), reduction="batchmean", log_target=True
        )
        update((1 - alpha) * F.cross_entropy(output, batch["target"]) + alpha * heat**2 * soft)


def fixmatch(task: BasicTask, batches: Iterator[Batch], update: Update) -> None:
    threshold = task.task_method.threshold
    for batch in batches:
        input, target = batch["labelled"]["input"], batch["labelled"]["target"]
        views = batch["unlabelled"]
        count = len(views["weak"])
        output = task.model(torch.cat([input, views["weak"], views["strong"]]))
        labelled, weak, strong = output.split([len(input), count, count])
        confidence, label = weak.detach().softmax(1).max(1)
        loss = F.cross_entropy(strong, label, reduction="none")
        unlabelled = (loss * (confidence >= threshold)).mean()
        update(F.cross_entropy(labelled, target) + unlabelled)


def simclr(task: BasicTask, batches: Iterator[Batch], update: Update) -> None:
    heat = task.task_method.temperature
    for batch in batches:
        views = batch["unlabelled"]
        embedded = F.normalize(task.model(torch.cat([views["view1"], views["view2"]])), dim=1)
        scores = embedded @ embedded.T / heat
        scores.fill_diagonal_(float("-inf"))
        place = torch.arange(len(embedded)).roll(len(embedded) // 2)
        update(F.cross_entropy(scores, place))


def moco(task: BasicTask, batches: Iterator[Batch], update: Update) -> None:
    method = task.task_method
    encoder, keys, heat = method.target, method.keys, method.temperature
    pointer = int(method.queue_ptr)
    followers, own = list(encoder.parameters()), list(task.model.parameters())
    for batch in batches:
        views = batch["unlabelled"]
        with torch.no_grad():
            key = F.normalize(encoder(views["view2"]), dim=1)
        query = F.normalize(task.model(views["view1"]), dim=1)
        scores = torch.cat([(query * key).sum(1, keepdim=True), query @ keys.T], 1) / heat
        update(F.cross_entropy(scores, torch.zeros(len(key), dtype=torch.int64)))
        with torch.no_grad():
            keys.index_copy_(0, (pointer + torch.arange(len(key))) % len(keys), key)
            pointer = (pointer + len(key)) % len(keys)
            torch._foreach_lerp_(followers, own, 1 - method.momentum)
    method.queue_ptr.fill_(pointer)


LOOPS = {"ema": ema, "mixup": mixup, "sam": sam, "kd": kd, "fixmatch": fixmatch, "simclr": simclr, "moco": moco}


def sides_of(name: str) -> tuple[BasicTask, BasicTask, Callable[[], None], Callable[[], None]]:
    """Two tasks from the same weights, and what trains ``EPOCHS`` epochs of each: HEALSg, and the loop."""
    own, other = built(name), built(name)
    settings = other.optimizer.param_groups[0]
    moving = torch.optim.AdamW(
        [weight for weight in other.model.parameters() if weight.requires_grad],
        lr=settings["lr"],
        betas=settings["betas"],
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )
    done = [0]

    def update(loss: Tensor) -> None:
        if loss.requires_grad:
            loss.backward()
        moving.step()
        moving.zero_grad()

    def ours() -> None:
        for _ in range(EPOCHS):
            own.train_epoch.run()
            own.runner.next_epoch()

    def by_hand() -> None:
        for _ in range(EPOCHS):
            other.model.train()
            loader = other.loaders["train"]
            LOOPS[name](other, (batch for batch, _ in loader.batches(done[0])), update)  # type: ignore[union-attr]
            done[0] += 1

    return own, other, ours, by_hand


def apart(own: BasicTask, other: BasicTask) -> float:
    """The largest difference of two weights, as a share of the largest weight."""
    pairs = list(zip(own.model.parameters(), other.model.parameters(), strict=True))
    largest = max(float(one.detach().abs().max()) for one, _ in pairs)
    return max(float((one - two).detach().abs().max()) for one, two in pairs) / largest


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    conditions = (
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread, no GPU"
    )
    conditions += f", {rounds} rounds of {EPOCHS} epochs a side"
    print(conditions)
    before = Path.cwd()
    bars = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        TaskTrainer.compose(*COMMON, "runner.epochs=2", "method=adamw", "name=teacher").train()
        for name in METHODS:
            own, other, ours, by_hand = sides_of(name)
            ours()
            by_hand()
            difference = apart(own, other)
            if name != "mixup" and difference > 1e-2:
                raise SystemExit(f"{name}: the weights of the two differ by {difference:.2g}")
            steps = own.runner.step_count
            bar, line = compared(name, ours, by_hand, steps, rounds)
            bars.append(bar)
            print(f"{line}; weights apart {difference:.1g} after {steps} steps", flush=True)
        os.chdir(before)
    keep(f"python -m benchmarks.own_methods {rounds}", conditions, bars)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
