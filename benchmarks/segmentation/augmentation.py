"""nnU-Net's augmentation on the CPU and on the device: python -m benchmarks.segmentation.augmentation [SIDE] [ROUNDS]

Two patches of SIDE voxels (128) along each axis with their masks are augmented by ``data.augment=nnunet`` on one CPU
thread and, where there is one, on the GPU, and a U-Net of width 32 takes a training step on them on the fastest device.
The medians over ROUNDS (20) batches of other draws are printed and, at 128 voxels on a GPU, written to
``results/augmentation.txt``: milliseconds of a batch, and its share of augmentation and step together.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from healsg import DataInfo
from healsg.models.unet import UNet
from healsg.seeding import Draw, mix
from healsg.transforms.volume import VolumeTransform
from healsg.transforms.volume_views import VolumeViews

PATCHES = 2


def milliseconds(call: Callable[[int], object], device: torch.device, rounds: int) -> float:
    """The median of a call by its number, after two that are not counted."""
    taken = []
    for number in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        call(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[2:])


def batch_of(side: int, device: torch.device) -> dict[str, Tensor]:
    """Noise with a bright block, which is the mask."""
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(PATCHES, *[side] * 3, dtype=torch.uint8)
    target[:, side // 4 : side // 2, side // 4 : side // 2, side // 4 :] = 1
    input = torch.randn(PATCHES, 1, *[side] * 3, generator=generator) + 2 * target[:, None]
    return {"input": input.to(device), "target": target.to(device)}


def augmented(side: int, device: torch.device, rounds: int) -> float:
    """Milliseconds of a batch's augmentation on a device."""
    view = VolumeViews("nnunet", VolumeTransform(True, 0, (0.0,), (1.0,), maximum=1.0)).of("input", "train")
    batch = batch_of(side, device)

    def call(number: int) -> None:
        draw = Draw(mix(0, "augmentation"), torch.arange(PATCHES) + PATCHES * number)
        view(dict(batch), draw if device.type == "cpu" else draw.to(device))

    return milliseconds(call, device, rounds)


def stepped(side: int, device: torch.device, rounds: int) -> float:
    """Milliseconds of a training step of a U-Net of width 32 on a batch."""
    info = DataInfo((1, *[side] * 3), 2, "segmentation")
    model = UNet()
    network, criterion = model.build(info).to(device).train(), model.criterion(info)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.99, nesterov=True)
    batch = batch_of(side, device)

    def call(_: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = criterion(network(batch["input"]), batch["target"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return milliseconds(call, device, rounds)


def main() -> None:
    side, rounds = (int(text) for text in [*sys.argv[1:], *["128", "20"][len(sys.argv) - 1 :]])
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    gpu = torch.device("cuda") if torch.cuda.is_available() else None
    step = stepped(side, gpu or cpu, rounds)
    where = torch.cuda.get_device_name() if gpu else "no GPU"
    lines = [f"python -m benchmarks.segmentation.augmentation {side} {rounds}"]
    lines.append(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, {where}")
    lines.append(
        f"{PATCHES} patches of {side}^3; a step on {'the GPU, bf16' if gpu else 'one CPU thread'}: {step:.1f} ms"
    )
    for name, device in (("one CPU thread", cpu), ("the GPU", gpu)):
        if device is not None:
            taken = augmented(side, device, rounds)
            lines.append(f"augmentation on {name}: {taken:.1f} ms, {taken / (taken + step):.1%} of it and the step")
    text = "\n".join([*lines, ""])
    print(text, end="")
    if gpu and side == 128:
        (Path(__file__).parents[1] / "results" / "augmentation.txt").write_text(text)


if __name__ == "__main__":
    main()
