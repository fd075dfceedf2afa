"""An epoch of recipe=airbench94 against a bare transcription of the same step: python -m benchmarks.airbench [rounds]

The same network and the same optimizer on invented images of CIFAR's shape, CPU seconds of the training epochs, one
thread. The bare loop prepares its images an epoch at a time, as published (normalised once, cropped and flipped before
the epoch, then batched by index); HEALSg does so batch by batch, with each sample's own draws, and keeps metrics,
checkpoints and what a resume needs. Both take turns in one process; the first epoch of each turn is left out.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg import TaskTrainer
from healsg.data.source import TensorSource
from healsg.datasets.cifar import STATISTICS, Cifar
from healsg.models.airbench import AirbenchNetwork
from healsg.optimizers.muon_sgd import MuonSGD
from healsg.training.epoch import TrainEpoch

IMAGES, BATCH, EPOCHS = 1000, 250, 4


def invented() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (IMAGES,), generator=generator)


class Invented(Cifar):
    """CIFAR's shape with invented images."""

    def read(self, part: str) -> TensorSource | None:
        images, labels = invented()
        return TensorSource(images, labels) if part == "train" else TensorSource(images[:50], labels[:50])


def bare() -> list[float]:
    """CPU seconds of each epoch of the plain loop."""
    images, labels = invented()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in STATISTICS[10])
    ready = (images.float() / 255 - mean) / std
    network = AirbenchNetwork(3, 10, 64, 0.4, 1.0, 1 / 256)
    network.whiten([ready], 5e-4)
    network.train()
    optimizer = MuonSGD([weight for weight in network.parameters() if weight.requires_grad])
    steps = EPOCHS * (IMAGES // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    mirrored = torch.where(torch.rand(IMAGES, 1, 1, 1) < 0.5, ready.flip(3), ready)
    padded, seconds = F.pad(mirrored, (2, 2, 2, 2), "reflect"), []
    for epoch in range(EPOCHS):
        began = time.process_time()
        shift, cropped = torch.randint(0, 5, (IMAGES, 2)), torch.empty_like(ready)
        for down in range(5):
            for right in range(5):
                chosen = (shift[:, 0] == down) & (shift[:, 1] == right)
                cropped[chosen] = padded[chosen, :, down : down + 32, right : right + 32]
        seen = cropped.flip(3) if epoch % 2 else cropped
        order, total = torch.randperm(IMAGES), torch.zeros(())
        for start in range(0, IMAGES, BATCH):
            index = order[start : start + BATCH]
            loss = F.cross_entropy(network(seen[index]), labels[index], label_smoothing=0.2)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += loss.detach()
        seconds.append(time.process_time() - began)
    return seconds


def ours() -> list[float]:
    """CPU seconds of each epoch of HEALSg."""
    whole, seconds = TrainEpoch.run, []

    def timed(self: TrainEpoch) -> dict[str, float]:
        began = time.process_time()
        result = whole(self)
        seconds.append(time.process_time() - began)
        return result

    options = ["recipe=airbench94", "runner=default", f"runner.epochs={EPOCHS}", f"data.batch_size={BATCH}"]
    TrainEpoch.run = timed  # type: ignore[method-assign]
    try:
        TaskTrainer.compose(
            *options, "data._target_=benchmarks.airbench.Invented", "trusted=[benchmarks]", "quiet=true"
        ).train()
    finally:
        TrainEpoch.run = whole  # type: ignore[method-assign]
    return seconds


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    results = Path(__file__).parent / "results"
    rows: dict[str, Any] = {"bare": [], "healsg": []}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number in range(rounds):
            for name, act in [("bare", bare), ("healsg", ours)][:: 1 if number % 2 else -1]:
                rows[name].append(statistics.median(act()[1:]))
        os.chdir(results)
    ratios = [ours / plain for ours, plain in zip(rows["healsg"], rows["bare"], strict=True)]
    for name, seconds in rows.items():
        print(f"{name:8} {statistics.median(seconds):.3f} s an epoch ({min(seconds):.3f} to {max(seconds):.3f})")
    print(f"ratio    {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), bar 1.05")
    facts = {"images": IMAGES, "batch": BATCH, "torch": torch.__version__, "python": platform.python_version()}
    facts |= {"threads": 1, "machine": platform.machine(), "cores": os.cpu_count()}
    (results / "airbench.json").write_text(json.dumps(facts | {"seconds": rows, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
