"""Evaluation and prediction of folders of pictures beside a loop written by hand.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.inference [rounds] [pictures]

Three networks: the default one and a small ResNet on pictures of 40x36 at 32 pixels, torchvision's ResNet-18 on
pictures of 128x112 at 96 pixels, all JPEGs. Ours: ``TaskTrainer.load(run)``'s evaluation, its ``predictor()`` on a
folder, and the command ``healsg predict``, which writes a table. By hand: torchvision's ImageFolder with its PIL
loader, transforms v2, a ``DataLoader``, ``torch.inference_mode``, softmax, and in an evaluation the loss and the share
that is right; with the memory format of ours, and with torch's own. CPU time, one thread, no workers, each side in a
process of its own, in turns; a ratio is one of a round. Writes ``results/inference.txt``.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.bars import Bar, bar_of, keep
from benchmarks.sides import Side, in_turns, serve, together
from healsg import TaskTrainer
from healsg.commands.predict import command as predict
from healsg.datasets.imagefolder import MEAN, STD

BATCH = 64
RESULTS = Path(__file__).with_name("results") / "inference.txt"

NETWORKS: dict[str, tuple[list[str], int, tuple[int, int]]] = {
    "default network, 32 px": (["model=cnn"], 32, (36, 40)),
    "resnet8x4, 32 px": (["model=resnet8x4"], 32, (36, 40)),
    "torchvision resnet18, 96 px": (["model=torchvision"], 96, (112, 128)),
}
"""By name: the model, the side of its input, height and width of the pictures in the files."""


def write(folder: Path, count: int, size: tuple[int, int]) -> None:
    """``count`` JPEGs in two classes below ``folder/train``, and the same below ``folder/test``."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    for number in range(count):
        label = number % 2
        top, left = rng.integers(0, 427 - size[0]), rng.integers(0, 640 - size[1])
        cut = photographs[label][top : top + size[0], left : left + size[1]]
        for part in ("train", "test"):
            (place := folder / part / f"class{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(cut).save(place / f"{number:05}.jpg", quality=90)


def trained(name: str, folder: Path) -> TaskTrainer:
    """A run of one step, loaded."""
    model, size, _ = NETWORKS[name]
    options = ["data=imagefolder", f"data.folder={folder}", f"data.image_size={size}", "data.shift=0", *model]
    options += [f"data.batch_size={BATCH}", "data.workers=0", "data.val_fraction=0.2", "quiet=true", "runner.steps=1"]
    TaskTrainer.compose(*options, "runner.device=cpu", "runner.threads=1", f"name={folder.name}").train()
    return TaskTrainer.load(f"runs/{folder.name}")


def by_hand(network: nn.Module, folder: Path, size: int, last: bool, evaluates: bool) -> Callable[[], object]:
    """A pass over the test pictures as one writes it: the loss and the accuracy, or the probabilities."""
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision.transforms import v2

    steps = [v2.Resize(size), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    dataset = datasets.ImageFolder(str(folder / "test"), v2.Compose([*steps, v2.Normalize(MEAN, STD)]))
    loader = DataLoader(dataset, BATCH)
    memory_format = torch.channels_last if last else torch.contiguous_format

    @torch.inference_mode()
    def run() -> object:
        network.to(memory_format=memory_format)
        loss, hits, probabilities = 0.0, 0, []
        for input, target in loader:
            output = network(input.to(memory_format=memory_format))
            if evaluates:
                loss += float(F.cross_entropy(output, target, reduction="sum"))
                hits += int((output.argmax(dim=1) == target).sum())
            else:
                probabilities.append(output.softmax(dim=1))
        return (loss / len(dataset), hits / len(dataset)) if evaluates else torch.cat(probabilities)

    return run


def command(run: str, folder: Path) -> Callable[[], object]:
    """``healsg predict RUN FOLDER --out FILE``, in this process; the file is new each time."""

    def predicted() -> object:
        out = folder.parent / f"{folder.name}-{time.monotonic_ns()}.csv"
        with contextlib.redirect_stderr(io.StringIO()):
            status = predict.run([run, str(folder / "test"), "--out", str(out), "--workers", "1"])
        assert status == 0
        return out

    return predicted


def seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


OURS = ("evaluation", "predictor", "healsg predict")
BY_HAND = ("evaluation, same format", "evaluation, contiguous", "prediction, same format", "prediction, contiguous")


def side(name: str, kind: str, place: str) -> None:
    """One side in its process: the seconds of each of ``OURS``, or of each of ``BY_HAND``."""
    torch.set_num_threads(1)
    os.chdir(place)
    _, size, _ = NETWORKS[name]
    folder = folder_of(name)
    acts: list[Callable[[], object]]
    if kind == "ours":
        trainer = TaskTrainer.load(f"runs/{folder.name}")
        predictor = trainer.predictor()
        acts = [lambda: trainer.evaluation("test"), lambda: predictor(folder / "test", batch_size=BATCH)]
        acts.append(command(f"runs/{folder.name}", folder))
    else:
        saved = torch.load(f"{folder.name}.pt", weights_only=False)
        network, last = saved["network"].eval(), saved["last"]
        ways = [(last, True), (False, True), (last, False), (False, False)]
        acts = [by_hand(network, folder, size, *way) for way in ways]
    serve(lambda _: [seconds(act) for act in acts])


def folder_of(name: str) -> Path:
    """Where the pictures of a network lie."""
    return Path(name.partition(",")[0].replace(" ", "-")).absolute()


def measured(name: str, rounds: int, pictures: int) -> tuple[list[Bar], list[str]]:
    """The figures of one network, and the lines that tell them."""
    folder = folder_of(name)
    write(folder, pictures, NETWORKS[name][2])
    predictor = trained(name, folder).predictor()
    last = bool(predictor.device_setup.image_dims)
    torch.save({"network": predictor.network, "last": last}, f"{folder.name}.pt")
    with together(
        {kind: Side("benchmarks.inference", name, kind, str(Path.cwd())) for kind in ("ours", "by hand")}
    ) as both:
        rows = in_turns(both, rounds)
    spent = dict(zip(OURS, zip(*rows["ours"], strict=True), strict=True))
    hand = dict(zip(BY_HAND, zip(*rows["by hand"], strict=True), strict=True))
    lines = ["", f"{name}, {'channels_last' if last else 'contiguous'}: pictures a second of CPU time"]
    for title, took in [*spent.items(), *((f"by hand: {title}", took) for title, took in hand.items())]:
        speeds = sorted(pictures / one for one in took)
        lines.append(f"  {title:34}{speeds[len(speeds) // 2]:8.0f} ({speeds[0]:.0f} to {speeds[-1]:.0f})")
    bars = []
    for title, took in spent.items():
        kind = "evaluation" if title == "evaluation" else "prediction"
        for format in ("same format", "contiguous"):
            ratios = [own / base for own, base in zip(took, hand[f"{kind}, {format}"], strict=True)]
            bars.append(bar_of("W10", f"{title}, {name}, x by hand ({format})", ratios))
            lines.append(f"  {bars[-1].name}: {bars[-1].value:.2f} ({bars[-1].least:.2f} to {bars[-1].most:.2f})")
    return bars, lines


def main() -> None:
    if sys.argv[1:2] == ["side"]:
        side(*sys.argv[2:])
        return
    rounds, pictures = [*map(int, sys.argv[1:]), *[5, 512][len(sys.argv) - 1 :]][:2]
    torch.set_num_threads(1)
    bars = []
    conditions = f"torch {torch.__version__}, one thread, no GPU, {rounds} rounds of {pictures} pictures"
    line = f"python -m benchmarks.inference {rounds} {pictures}"
    lines = [f"OMP_NUM_THREADS=1 {line}", conditions]
    print(*lines, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for name in NETWORKS:
            found, told = measured(name, rounds, pictures)
            print(*told, sep="\n", flush=True)
            bars += found
            lines += told
    RESULTS.write_text("\n".join(lines) + "\n")
    keep(line, conditions, bars)


if __name__ == "__main__":
    main()
