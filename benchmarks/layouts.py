"""What the memory format and the precision do to a step: python -m benchmarks.layouts [rounds] [seconds] [threads]

Forward and backward pass of networks of the catalogue on random inputs, one thread, CPU time. The layouts take turns
within a round, ratios are taken within it, and the median and range over the rounds are printed: each layout against
``contiguous fp32``. The rule of ``runner.channels_last=auto`` (``healsg.training.layout``) was made from this table.
Writes ``benchmarks/results/layouts.txt``. With several threads, six of the networks, wall time, which other work on the
machine widens: ``layouts_2_threads.txt``.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.peers.__main__ import machine
from healsg.build import make
from healsg.config.compose import Composer
from healsg.data.info import DataInfo
from healsg.model import TaskModel

NETWORKS: dict[str, tuple[list[str], tuple[int, ...], int]] = {
    "cnn, 8 px": (["model=cnn"], (1, 8, 8), 64),
    "cnn, 32 px": (["model=cnn"], (3, 32, 32), 64),
    "resnet8x4, 8 px": (["model=resnet8x4"], (1, 8, 8), 64),
    "resnet8x4, 16 px": (["model=resnet8x4"], (3, 16, 16), 64),
    "resnet8x4, 32 px": (["model=resnet8x4"], (3, 32, 32), 32),
    "resnet (18), 32 px": (["model=resnet"], (3, 32, 32), 8),
    "wide_resnet, 32 px": (["model=wide_resnet", "model.depth=10", "model.widen_factor=2"], (3, 32, 32), 16),
    "airbench, 32 px": (["model=airbench"], (3, 32, 32), 16),
    "vit, 8 px": (["model=vit"], (1, 8, 8), 64),
    "torchvision resnet18, 96 px": (["model=torchvision"], (3, 96, 96), 8),
    "torchvision resnet50, 96 px": (["model=torchvision", "model.name=resnet50"], (3, 96, 96), 4),
    "mobilenet_v3_small, 96 px": (["model=torchvision", "model.name=mobilenet_v3_small"], (3, 96, 96), 8),
    "efficientnet_b0, 96 px": (["model=torchvision", "model.name=efficientnet_b0"], (3, 96, 96), 4),
    "convnext_tiny, 96 px": (["model=torchvision", "model.name=convnext_tiny"], (3, 96, 96), 4),
    "vgg11, 64 px": (["model=torchvision", "model.name=vgg11"], (3, 64, 64), 4),
    "densenet121, 64 px": (["model=torchvision", "model.name=densenet121"], (3, 64, 64), 4),
    "vit_b_16, 224 px": (["model=torchvision", "model.name=vit_b_16"], (3, 224, 224), 1),
    "unet, 64 px": (["model=unet", "model.width=16"], (1, 64, 64), 4),
    "unet, 32 voxels": (["model=unet", "model.width=8"], (1, 32, 32, 32), 2),
    "resenc_unet, 64 px": (["model=resenc_unet", "model.width=16"], (1, 64, 64), 4),
    "resenc_unet, 32 voxels": (["model=resenc_unet", "model.width=8"], (1, 32, 32, 32), 2),
}
"""By name: the overrides, the shape of an input, the samples of a batch."""
FEW = ["cnn, 8 px", "resnet8x4, 16 px", "resnet8x4, 32 px", "torchvision resnet18, 96 px", "vit, 8 px", "unet, 64 px"]
"""Those that are measured with several threads."""

LAYOUTS = {
    "contiguous fp32": (False, None),
    "channels_last fp32": (True, None),
    "contiguous bf16": (False, torch.bfloat16),
    "channels_last bf16": (True, torch.bfloat16),
}


def network_of(overrides: list[str], shape: tuple[int, ...]) -> nn.Module:
    """A network of the catalogue, for pictures or volumes of a shape."""
    dense = any("unet" in override for override in overrides)
    data = "shapes2d" if len(shape) == 3 else "shapes3d"
    composed = Composer().compose([f"data={data if dense else 'digits'}", *overrides])
    model: TaskModel = make(composed.values["model"], "model", composed, TaskModel)
    kind = "segmentation" if dense else "multiclass"
    return model.build(DataInfo(shape, 3 if dense else 10, kind))


def prepared(network: nn.Module, input: Tensor, layout: str) -> Callable[[], None]:
    """One forward and backward pass in a layout."""
    last, dtype = LAYOUTS[layout]
    formats = {3: torch.channels_last, 4: torch.channels_last_3d}
    if last:
        memory_format = formats[input.dim() - 1]
        input = input.to(memory_format=memory_format)
        for parameter in network.parameters():
            if parameter.dim() == input.dim():
                parameter.data = parameter.data.to(memory_format=memory_format)

    def step() -> None:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output = network(input)
            first = output[0] if isinstance(output, (list, tuple)) else output
            loss = first.float().square().mean()
        loss.backward()
        for parameter in network.parameters():
            parameter.grad = None

    return step


def spent(step: Callable[[], None], seconds: float) -> float:
    """Milliseconds of a step, the mean over about so many seconds: CPU time, with several threads that of the wall."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    count = 0
    while clock() < began + seconds or count < 2:
        step()
        count += 1
    return 1000 * (clock() - began) / count


def measure(name: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """By layout, milliseconds of a step in each round."""
    overrides, shape, batch = NETWORKS[name]
    steps = {}
    for layout in LAYOUTS:
        torch.manual_seed(0)
        steps[layout] = prepared(network_of(overrides, shape), torch.rand(batch, *shape), layout)
    for step in steps.values():
        step()  # kernels are chosen
    rows: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for number in range(rounds):
        for layout in [*steps][:: 1 if number % 2 else -1]:
            rows[layout].append(spent(steps[layout], seconds))
    return rows


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.5
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    torch.set_num_threads(threads)
    facts = machine()
    used = "one thread" if threads == 1 else f"{threads} threads, wall time, load {os.getloadavg()[0]:.1f}"
    lines = [f"{facts['processor']}, {used}, torch {torch.__version__}, {rounds} rounds of {seconds:g} s a cell"]
    lines.append(f"{'network':30}{'ms':>8}" + "".join(f"{layout:>26}" for layout in [*LAYOUTS][1:]))
    print(*lines, sep="\n", flush=True)
    for name in NETWORKS if threads == 1 else FEW:
        rows = measure(name, rounds, seconds)
        plain = rows["contiguous fp32"]
        cells = []
        for layout in [*LAYOUTS][1:]:
            ratios = [one / base for one, base in zip(rows[layout], plain, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"{name:30}{statistics.median(plain):8.1f}" + "".join(f"{cell:>26}" for cell in cells))
        print(lines[-1], flush=True)
    file = "layouts.txt" if threads == 1 else f"layouts_{threads}_threads.txt"
    Path(__file__).with_name("results").joinpath(file).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
