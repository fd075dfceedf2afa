"""MONAI's usual pipeline as one YAML of ours, beside the same one written with MONAI alone.

    python -m benchmarks.segmentation.monai_pipeline [--rounds 7] [--updates 12] [--patch 96]

``tubes3d`` is written as ``.mha`` files of 16 bits with a Decathlon list. Both sides read the list, hold what their
deterministic transforms make (``recipe/monai_vessels.yaml``; ``CacheDataset``), and train MONAI's U-Net in one process
on one thread. Each round is some updates of the one, then of the other, in turns; then the batches alone; then one
volume in sliding windows. CPU time of the process; ratios are taken within a round, and the first one is left out.
Without options the result is written to ``results/monai_pipeline.txt``. MONAI reads ``.mha`` by the package ``itk-io``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.segmentation.turns import conditions, line_of, measured

HERE = Path(__file__).parent

CASES = {"training": 6, "validation": 2}

SIZE, MARGIN = 160, 8
"""Voxels of a drawn volume along two axes, and those of air around it, which the crop takes away."""

AIR = -1000

BARS = {"an update": 1.03, "the data's share of a patch": 0.8}


def write_list(folder: Path) -> Path:
    """Vessels in a CT's intensities as ``.mha`` files, and the Decathlon list of them."""
    import SimpleITK as sitk  # noqa: N813

    from healsg.datasets.drawn.tubes import tubes3d
    from healsg.datasets.volumes.files import spacing_of

    listed: dict[str, Any] = {"name": "vessels", "labels": {"0": "background", "1": "vessel"}, "modality": {"0": "CT"}}
    for part, count in CASES.items():
        listed[part] = []
        for index in range(count):
            drawn = tubes3d(len(part), index, SIZE, depth=5, thick=5.0, noise=0.1)
            entry = {}
            images = {"image": (drawn.image[0] * 200).astype(np.int16), "label": drawn.labels}
            for kind, values in images.items():
                padded = np.pad(values, MARGIN, constant_values=AIR if kind == "image" else 0)
                made = sitk.GetImageFromArray(padded.transpose(2, 1, 0))
                made.SetSpacing(spacing_of(drawn.affine))
                entry[kind] = f"{part}{index}_{kind}.mha"
                sitk.WriteImage(made, os.fspath(folder / entry[kind]), useCompression=True)
            listed[part].append(entry)
    path = folder / "dataset.json"
    path.write_text(json.dumps(listed))
    return path


class Ours:
    """The recipe, as a task that was built and is trained some updates at a time."""

    def __init__(self, path: Path, patch: int) -> None:
        from healsg.build import build_task
        from healsg.config.compose import Composer

        overrides = ["recipe=monai_vessels", f"data.list={path}", f"data.patch={[patch] * 3}".replace(" ", "")]
        overrides += ["runner.threads=1", "runner.device=cpu", "runner.epochs=1000", "quiet=true"]
        self.task = build_task(Composer(os.fspath(HERE)).compose(overrides))
        self.task.build()
        self.epoch = 0

    def train(self, updates: int) -> None:
        """Whole epochs, until there were so many updates."""
        length = len(self.task.train_loader)
        if updates % length:
            sys.exit(f"--updates: give a multiple of {length}, the updates of an epoch")
        for _ in range(updates // length):
            self.task.train_epoch.run()
            self.task.runner.next_epoch()

    def batches(self) -> Iterator[Any]:
        """Batches of further epochs, which nobody learns from."""
        while True:
            self.epoch += 1
            yield from (batch for batch, _ in self.task.train_loader.batches(self.epoch))

    def validate(self) -> None:
        """The first volume of the validation part in sliding windows."""
        batch, _ = next(self.task.loaders["val"].batches(0))
        self.task.model.eval()
        with torch.no_grad():
            self.task.task_model.predict(self.task.model, batch)


class Theirs:
    """The same with MONAI alone, as its tutorials write it."""

    def __init__(self, path: Path, patch: int) -> None:
        from monai import transforms
        from monai.data import CacheDataset, DataLoader, load_decathlon_datalist
        from monai.inferers import SlidingWindowInferer
        from monai.losses import DiceCELoss
        from monai.networks.nets import UNet
        from monai.utils import set_determinism

        set_determinism(0)
        keys, size = ["image", "label"], (patch,) * 3
        steps = [
            transforms.LoadImaged(keys),
            transforms.EnsureChannelFirstd(keys),
            transforms.Orientationd(keys, axcodes="RAS"),
            transforms.Spacingd(keys, pixdim=(0.65, 0.65, 0.8), mode=("bilinear", "nearest")),
            transforms.ScaleIntensityRanged("image", a_min=-100, a_max=400, b_min=0.0, b_max=1.0, clip=True),
            transforms.CropForegroundd(keys, source_key="image"),
        ]
        random = [
            transforms.RandCropByPosNegLabeld(keys, "label", spatial_size=size, pos=1, neg=1, num_samples=4),
            *(transforms.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
        train, val = (load_decathlon_datalist(os.fspath(path), True, part) for part in CASES)
        held = CacheDataset(train, transforms.Compose([*steps, *random]), progress=False)
        self.loader = DataLoader(held, batch_size=1, shuffle=True)
        looked_at = CacheDataset(val, transforms.Compose(steps), progress=False)
        self.val_loader = DataLoader(looked_at, batch_size=1)
        channels, strides = (16, 32, 64, 128, 256), (2, 2, 2, 2)
        self.network = UNet(3, 1, 2, channels, strides, num_res_units=2, norm="batch")
        self.criterion = DiceCELoss(to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=1e-5)
        self.inferer = SlidingWindowInferer(size, overlap=0.5, mode="gaussian")

    def train(self, updates: int) -> None:
        self.network.train()
        total = 0.0
        for batch in islice(self.batches(), updates):
            self.optimizer.zero_grad()
            loss = self.criterion(self.network(batch["image"]), batch["label"])
            loss.backward()
            self.optimizer.step()
            total += loss.item()

    def batches(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def validate(self) -> None:
        batch = next(iter(self.val_loader))
        self.network.eval()
        with torch.no_grad():
            self.inferer(batch["image"], self.network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--patch", type=int, default=96)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        path = write_list(Path(temporary))
        sides: dict[str, Ours | Theirs] = {}
        prepared = {}
        for name, kind in (("ours", Ours), ("theirs", Theirs)):
            began = time.process_time()
            sides[name] = kind(path, given.patch)
            prepared[name] = time.process_time() - began
        acts: dict[str, Callable[[str], Any]] = {
            "an update": lambda name: sides[name].train(given.updates),
            "the data's share of a patch": lambda name: list(islice(sides[name].batches(), given.updates)),
            "a volume in sliding windows": lambda name: sides[name].validate(),
        }
        found = measured(acts, given.rounds)
    parts = {"an update": given.updates, "the data's share of a patch": 4 * given.updates}
    lines = [line_of(what, times, parts.get(what, 1), "MONAI", BARS.get(what)) for what, times in found.items()]
    volumes = sum(CASES.values())
    told = ", ".join(f"{name} {taken / volumes:.2f} s" for name, taken in prepared.items())
    lines.append(f"reading and preparing a volume, once, the first import included: {told}")
    print("\n".join(lines))
    if parser.get_default("rounds") == given.rounds and given.patch == 96 and given.updates == 12:
        where = conditions(("torch", "monai", "SimpleITK"))
        how = f"{given.rounds} rounds of {given.updates} updates of 4 patches of 96; medians, ratios within a round"
        text = "\n".join(["python -m benchmarks.segmentation.monai_pipeline", where, how, "", *lines, ""])
        (HERE.parent.parent / "results" / "monai_pipeline.txt").write_text(text)


if __name__ == "__main__":
    main()
