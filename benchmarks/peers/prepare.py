"""Lays out the workloads: python -m benchmarks.peers.prepare FOLDER W1 W2 W3

Asks HEALSg for what it makes of its seed (splits, orders, crops, weights) and writes it down for the other peers.
Crops and flips are found by looking, not by asking: each image of an epoch is one of 162 windows of the one stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers.cifar_files import write_cifar
from benchmarks.peers.work import MARKED, SETTINGS, Work, overrides
from healsg.build import build_task
from healsg.config.compose import Composer, conf_folder
from healsg.task import BasicTask


def plain(name: str, folder: Path) -> list[str]:
    """What keeps digits still, as this version of HEALSg calls it; where CIFAR's files lie."""
    if name == "W3":
        return [f"data.root={folder / 'small'}"]
    settings = (Path(str(conf_folder())) / "data" / "digits.yaml").read_text()
    return ["data.augment=none"] if "\naugment:" in settings else ["data.shift=0"]


def task_of(told: list[str]) -> BasicTask:
    task = build_task(Composer(None, "config").compose([*told, "quiet=true"]))
    task.build(threads=1)
    return task


def epoch_of(task: BasicTask, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of an epoch, and what is dealt in it."""
    batches = [batch for batch, _ in task.train_loader.batches(epoch)]
    return torch.cat([batch["index"] for batch in batches]), torch.cat([batch["input"] for batch in batches])


def crops(stored: Tensor, dealt: Tensor) -> Tensor:
    """(N, 3): the flip and the corner by which each dealt image came of the stored one."""
    found = torch.full((len(stored), 3), -1)
    for flip in (0, 1):
        padded = torch.nn.functional.pad(stored.flip(3) if flip else stored, (4, 4, 4, 4))
        for down in range(9):
            for right in range(9):
                window = padded[:, :, down : down + 32, right : right + 32]
                same = (window[:, 0, 4:28:3, 4:28] == dealt[:, 0, 4:28:3, 4:28]).flatten(1).all(1)
                found[same] = torch.tensor([flip, down, right])
    if bool((found < 0).any()):
        raise SystemExit("W3: an image is no window of the stored one; HEALSg augments in another way by now")
    return found


def lay_out(name: str, folder: Path) -> None:
    epochs, size, _ = SETTINGS[name]
    if name == "W3":
        write_cifar(folder / "small", 710)
    told = [*overrides(name), *plain(name, folder)]
    task = task_of(told)
    source, held = (task.loaders[split].sources["labelled"] for split in ("train", "val"))
    seen = torch.cat([batch["input"] for batch in task.loaders["val"].evaluation_view()])
    orders, draws, factor, offset = [], [], None, None
    train, val = (source.input, source.target), (seen, held.target)
    if name == "W3":
        from healsg.datasets.cifar import STATISTICS
        from healsg.transforms.image import scaling

        factor, offset = scaling(source.input, *STATISTICS[10], 255.0)
        val = (held.input, held.target)
    for epoch in range(epochs):
        order, dealt = epoch_of(task, epoch)
        sorted_by_index = dealt[order.argsort()]
        orders.append(order)
        if name == "W3":
            draws.append(crops(source.input, ((sorted_by_index - offset) / factor).round().to(torch.uint8)))
        else:
            train = (sorted_by_index, source.target)
    weights = list(task.model.state_dict().values())
    parts = (train, val, torch.stack(orders), torch.stack(draws) if draws else None, weights, factor, offset)
    torch.save(vars(Work(name, epochs, size, *parts, [*told, *MARKED])), folder / f"{name}.pt")


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        lay_out(name, folder)


if __name__ == "__main__":
    main()
