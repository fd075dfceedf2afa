"""Two small residual networks at 32 pixels: HEALSg as it comes, beside loops that choose the memory format by a flag.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.layout_peers [rounds]

All train the same network in fp32 on random pictures, batches of 32, SGD with momentum: HEALSg with
``runner.channels_last=auto``; a bare loop over a ``DataLoader`` in torch's own format; the loop of timm's training
script with ``--channels-last`` (timm's optimizer, scheduler and meters); Lightning, ``barebones``, with weights and
batches in ``channels_last``. Each has a process of its own; CPU time of an epoch's training pass, in turns. Peers that
are not installed are left out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.bars import Bar, bar_of, keep
from benchmarks.layouts import network_of
from benchmarks.sides import Side, in_turns, serve, together

SAMPLES, BATCH = 128, 32
NETWORKS = {
    "resnet8x4": ["model=resnet8x4"],
    "ResNet-8 of 16 to 64 channels": ["model=resnet8x4", "model.width_factor=1", "model.stem_width=16"],
}
MOST = 0.78
"""Of the bare loop."""
RATES = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}

PEERS = {"HEALSg": "healsg", "bare loop": "torch", "timm's loop, channels_last": "timm"}
PEERS["Lightning, channels_last"] = "lightning"
"""By side the package that it needs."""


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(SAMPLES, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(SAMPLES) % 10), BATCH, shuffle=True)


def healsg(overrides: list[str]) -> Callable[[], float]:
    from healsg import TaskTrainer

    told = ["data=synthetic", "data.shape=[3,32,32]", f"data.train={SAMPLES}", "data.test=32", "data.val_fraction=0"]
    told += [f"data.batch_size={BATCH}", "method=sgd", "method/scheduler=constant", "method.optimizer.lr=0.02"]
    told += ["runner.device=cpu", "runner.threads=1", "runner.epochs=1000", "quiet=true", *overrides]
    task = TaskTrainer.compose(*told).make_task()
    task.build()

    def epoch() -> float:
        began = time.process_time()
        task.train_epoch.run()
        took = time.process_time() - began
        task.runner.next_epoch()
        return took / task.runner.length

    return epoch


def bare(overrides: list[str]) -> Callable[[], float]:
    network, criterion, batches = network_of(overrides, (3, 32, 32)).train(), nn.CrossEntropyLoss(), loader()
    optimizer = torch.optim.SGD(network.parameters(), fused=True, nesterov=True, **RATES)

    def epoch() -> float:
        began = time.process_time()
        losses = []
        for input, target in batches:
            loss = criterion(network(input), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()
        return (time.process_time() - began) / len(batches)

    return epoch


def timm_loop(overrides: list[str]) -> Callable[[], float]:
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter

    network = network_of(overrides, (3, 32, 32)).train().to(memory_format=torch.channels_last)
    criterion, batches = nn.CrossEntropyLoss(), loader()
    optimizer = create_optimizer_v2(network, "sgd", **RATES)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=1000, updates_per_epoch=len(batches))
    done = 0

    def epoch() -> float:
        nonlocal done
        began = time.process_time()
        losses = AverageMeter()
        for input, target in batches:
            input = input.contiguous(memory_format=torch.channels_last)
            loss = criterion(network(input), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            losses.update(loss.item(), len(input))
            scheduler.step_update(num_updates=done, metric=losses.avg)
        return (time.process_time() - began) / len(batches)

    return epoch


def lightning_loop(overrides: list[str]) -> Callable[[], float]:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network_of(overrides, (3, 32, 32)).to(memory_format=torch.channels_last)
            self.times: list[float] = []

        def on_after_batch_transfer(self, batch: Any, index: int) -> Any:
            return batch[0].contiguous(memory_format=torch.channels_last), batch[1]

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.network.parameters(), fused=True, nesterov=True, **RATES)

        def on_train_epoch_start(self) -> None:
            self.times.append(time.process_time())

        def on_train_epoch_end(self) -> None:
            self.times.append(time.process_time())

    module, batches = Module(), loader()

    def epoch() -> float:
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", barebones=True)
        trainer.fit(module, batches)
        return (module.times[-1] - module.times[-2]) / len(batches)

    return epoch


MADE = {"healsg": healsg, "torch": bare, "timm": timm_loop, "lightning": lightning_loop}


def measured(name: str, rounds: int) -> list[Bar]:
    """The figures of one network."""
    there = {title: package for title, package in PEERS.items() if find_spec(package)}
    sides = {title: Side("benchmarks.layout_peers", package, name) for title, package in there.items()}
    with together(sides):
        rows = {title: [one[0] for one in found] for title, found in in_turns(sides, rounds).items()}
    bars = []
    for title, took in rows.items():
        print(f"{name}: {title:30}{1000 * sorted(took)[len(took) // 2]:8.1f} ms a step")
        if title != "HEALSg":
            ratios = [own / base for own, base in zip(rows["HEALSg"], took, strict=True)]
            bars.append(
                bar_of("W12", f"fp32, {name} at 32 px, x {title}", ratios, MOST if title == "bare loop" else None)
            )
            print(f"  {bars[-1].name}: {bars[-1].value:.2f} ({bars[-1].least:.2f} to {bars[-1].most:.2f})", flush=True)
    return bars


def main() -> None:
    if sys.argv[1:2] == ["side"]:
        torch.set_num_threads(1)
        epoch = MADE[sys.argv[2]](NETWORKS[sys.argv[3]])
        serve(lambda _: [epoch()])
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    bars = [bar for name in NETWORKS for bar in measured(name, rounds)]
    keep(f"python -m benchmarks.layout_peers {rounds}", f"torch {torch.__version__}, one thread, {rounds} rounds", bars)


if __name__ == "__main__":
    main()
