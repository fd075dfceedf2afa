"""The loader of picture files against torchvision's ImageFolder: python -m benchmarks.pictures [rounds] [pictures]

Both deal the same JPEGs of 500x400 in batches of 64 as normalised float32, flipped at random: resized on the shorter
side to 224 and cut to the centre, or as random resized crops. The other side is torchvision's ImageFolder with its PIL
loader, transforms v2 on PIL images or on uint8 tensors, and torch's DataLoader. CPU seconds of all processes for one
epoch, the sides by turns, workers 0 and 2; before that an epoch that is not counted. A ratio is one of a round; medians
and ranges.

``python -m benchmarks.pictures cache [rounds] [pictures]``: the same epochs from ``data.cache=true``, what filling it
takes, and the size that is told beforehand.

The pictures are cuts of scikit-learn's two photographs, mirrored and with noise, of JPEG quality 90.
"""

from __future__ import annotations

import logging
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bars import Bar, bar_of, keep
from benchmarks.sides import Side, in_turns, serve, together
from healsg import torch_private
from healsg.data.base import Needs
from healsg.datasets.imagefolder import MEAN, STD, ImageFolder

BATCH, SIZE = 64, 224
RESIZED, CROPPED = 0.55, 0.60
"""The most that ours may take of what ImageFolder with v2 transforms on PIL images takes."""


def write(folder: Path, count: int) -> None:
    """``count`` JPEGs in two classes."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    for number in range(count):
        label = number % 2
        top, left = rng.integers(0, 27), rng.integers(0, 140)
        cut = photographs[label][top : top + 400, left : left + 500] + rng.normal(0, 4, (400, 500, 3))
        cut = cut[:, ::-1] if rng.random() < 0.5 else cut
        (place := folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(cut.clip(0, 255).astype(np.uint8)).save(place / f"{number:05}.jpg", quality=90)


def ours(folder: Path, workers: int, crop: bool, **options: Any) -> Callable[[int], Iterable[Any]]:
    """Epochs of the training loader as a run has it."""
    data = ImageFolder(
        str(folder),
        root=str(folder.parent),
        image_size=SIZE,
        augment="crop" if crop else "standard",
        shift=0,
        val_fraction=0,
        batch_size=BATCH,
        workers=workers,
        **{"decoder": "torchvision", **options},
    )
    loader = data.loaders(Needs())["train"]
    return lambda epoch: loader.batches(epoch)


def theirs(folder: Path, workers: int, crop: bool, tensors: bool) -> Callable[[int], Iterable[Any]]:
    """Epochs of torchvision's ImageFolder, read by PIL and changed by transforms v2."""
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision.transforms import v2

    resized = [v2.RandomResizedCrop(SIZE, antialias=True)] if crop else [v2.Resize(SIZE), v2.CenterCrop(SIZE)]
    steps = [*resized, v2.RandomHorizontalFlip()]
    steps = [v2.ToImage(), *steps] if tensors else [*steps, v2.ToImage()]
    change = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    dataset = datasets.ImageFolder(str(folder), change)
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda epoch: loader


def cpu(children: list[int]) -> float:
    """CPU seconds of this process and of the workers."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ticks = 0
    for child in children:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def workers_of(process: int) -> list[int]:
    """The processes that this one has started and that live."""
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(one) for one in listed.read_text().split()] if listed.exists() else []


def measured(epoch: Iterable[Any]) -> float:
    """CPU seconds of one epoch."""
    began = cpu(children := workers_of(os.getpid()))
    for batch in epoch:
        del batch
    return cpu(children) - began


def middle(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.3f}{unit} ({min(values):.3f} to {max(values):.3f})"


def epochs_of(name: str, folder: Path, workers: int, crop: bool) -> Callable[[int], Iterable[Any]]:
    """Epochs of a side by its name."""
    if name.startswith("ours"):
        settings: dict[str, dict[str, Any]] = {"ours, pil": {"decoder": "pil"}, "ours, cache": {"cache": True}}
        return ours(folder, workers, crop, **settings.get(name, {}))
    return theirs(folder, workers, crop, tensors=name.endswith("tensors"))


def side(name: str, folder: str, workers: str, crop: str) -> None:
    """A side of the comparison in its process: seconds of each epoch, and of what came before the first."""
    torch.set_num_threads(1)
    if name.startswith("ours"):
        logging.getLogger("healsg").addHandler(logging.StreamHandler(sys.stderr))
        logging.getLogger("healsg").setLevel(logging.INFO if name == "ours, cache" else logging.WARNING)
    torch_private.jpeg_decoder()  # imports torchvision, as the other sides have done by now
    began = time.process_time()
    epochs = epochs_of(name, Path(folder), int(workers), crop == "True")
    before = time.process_time() - began
    serve(lambda number: [measured(epochs(number)), before])


def compare(folder: Path, pictures: int, rounds: int, workers: int, crop: bool) -> list[Bar]:
    """One table: each side's milliseconds a picture, and our share of each of the others; those of our decoder."""
    names = ("ours, torchvision", "ours, pil", "ImageFolder, v2 on PIL", "ImageFolder, v2 on tensors")
    arguments = str(folder), str(workers), str(crop)
    with together({name: Side("benchmarks.pictures", name, *arguments) for name in names}) as sides:
        seconds = {name: [one[0] for one in rows] for name, rows in in_turns(sides, rounds).items()}
    kind = f"{'random resized crop' if crop else 'resize'} to {SIZE}, workers {workers}"
    print(f"\n{kind}, ms of CPU a picture")
    for name, values in seconds.items():
        print(f"  {name:28} {middle([1000 * value / pictures for value in values])}")
    bars = []
    for name in names[:2]:
        for other in names[2:]:
            ratios = [own / base for own, base in zip(seconds[name], seconds[other], strict=True)]
            print(f"  {name} / {other[13:]}: {middle(ratios)}")
            if name == names[0]:
                most = (CROPPED if crop else RESIZED) if other == names[2] else None
                bars.append(bar_of("W9", f"loader, {kind}, x {other}", ratios, most))
    sys.stdout.flush()
    return bars


def caching(folder: Path, pictures: int, rounds: int) -> list[Bar]:
    """Seconds of the first epoch with a cache, which fills it, and of the others, with and without one."""
    names = {"with": "ours, cache", "without": "ours, torchvision"}
    sides = {way: Side("benchmarks.pictures", name, str(folder), "0", "False") for way, name in names.items()}
    with together(sides):
        rows = in_turns(sides, rounds + 1, uncounted=0)
    first, filling = rows["with"][0]
    spent = {way: [one[0] for one in values] for way, values in rows.items()}
    print(f"\ncache, workers 0, ms of CPU a picture: filling {1000 * filling / pictures:.3f}")
    for way, values in spent.items():
        print(f"  later epochs {way:8} {middle([1000 * value / pictures for value in values[1:]])}")
    later = {way: statistics.median(values[1:]) for way, values in spent.items()}
    two = (filling + first + later["with"]) / (spent["without"][0] + later["without"])
    print(f"  two epochs with / without: {two:.3f}", flush=True)
    ratios = [own / base for own, base in zip(spent["with"][1:], spent["without"][1:], strict=True)]
    return [
        bar_of("W9", "data.cache: a later epoch, x without the cache", ratios),
        Bar("W9", "data.cache: two epochs, filling included, x without the cache", two, two, two, 1.0),
    ]


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["side"]:
        side(*arguments[1:])
        return
    cached = arguments[:1] == ["cache"]
    numbers = arguments[1:] if cached else arguments
    rounds, pictures = [*map(int, numbers), *[5, 192][len(numbers) :]][:2]
    with tempfile.TemporaryDirectory() as place:
        write(folder := Path(place) / "pictures", pictures)
        conditions = f"torch {torch.__version__}, {pictures} pictures, {rounds} rounds, one thread, no GPU"
        print(conditions)
        if cached:
            bars = caching(folder, pictures, rounds)
        else:
            bars = [
                bar
                for crop in (False, True)
                for workers in (0, 2)
                for bar in compare(folder, pictures, rounds, workers, crop)
            ]
    keep(f"python -m benchmarks.pictures {'cache ' * cached}{rounds} {pictures}", conditions, bars)


if __name__ == "__main__":
    main()
