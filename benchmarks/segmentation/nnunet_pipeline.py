"""nnU-Net's own data loader, augmentation and sliding windows, beside ours.

    pip install nnunetv2==2.8.1
    python -m benchmarks.segmentation.nnunet_pipeline [--rounds 5] [--batches 12] [--patch 96]

Both sides train on the same prepared volumes of ``tubes3d`` in their own files (our cache, nnU-Net's ``.b2nd``), with
batches of two patches, a third of them around a vessel: ``data.augment=nnunet`` beside ``nnUNetDataLoader`` with
``nnUNetTrainer.get_training_transforms`` (without targets for deep supervision, which ours makes in the loss). Theirs
cuts a larger patch first, so that what is turned in comes from the volume; ours fills it with zeros. Then one volume
that no window fits into evenly is predicted by one network in evaluation, float32: ``windows=nnunet`` beside
``nnUNetPredictor``, which weighs and sums in float16, both without mirroring. Each is done as a whole by its own
code; of nnU-Net's plans only the patch and the labels are given.

One process, one thread, in turns; CPU time of the process, ratios within a round, the first round left out. Without
options the result is written to ``results/nnunet_pipeline.txt``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.segmentation.turns import conditions, line_of, measured

RESULTS = Path(__file__).parents[1] / "results"
CASES, SIZE = 6, 144
SCAN = (100, 93, 81)
"""Voxels of the volume that is predicted."""

WINDOW = 64
BATCH, FOREGROUND = 2, 0.33

PATCH, VOLUME = "a patch with its augmentation", "a volume in sliding windows"


def write_scans(folder: Path) -> None:
    """Drawn vessels and their masks as files, paired by name."""
    from healsg.datasets.drawn.tubes import tubes3d
    from healsg.datasets.volumes.files import Geometry, Volume, write_volume

    for index in range(CASES):
        drawn = tubes3d(0, index, SIZE, depth=5, thick=5.0)
        for what, values in (("images", drawn.image), ("labels", drawn.labels[None])):
            path = folder / what / f"case{index}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            geometry = Geometry(values.shape[1:], drawn.affine, 1, values.dtype, None)
            write_volume(path, values, Volume(path, values, geometry))


class Ours:
    """Training patches by a loader of a task, and windows as its evaluation has them."""

    def __init__(self, folder: Path, patch: int) -> None:
        from healsg.build import build_task
        from healsg.config.compose import Composer

        data = ["data=nifti", f"data.folder={folder}", f"data.root={folder}", "data.cache=true", "data.augment=nnunet"]
        data += [f"data.patch=[{patch},{patch},{patch}]", f"data.foreground={FOREGROUND}", f"data.batch_size={BATCH}"]
        data += ["data.samples_per_epoch=240", "data.val_fraction=0.17", "data.workers=0"]
        run = ["model=unet", "model.width=8", "runner.threads=1", "runner.device=cpu", "quiet=true"]
        self.task = build_task(Composer(None).compose([*data, *run]))
        self.task.build()
        self.epoch = 0

    def batches(self) -> Iterator[Any]:
        while True:
            self.epoch += 1
            yield from (batch for batch, _ in self.task.train_loader.batches(self.epoch))

    def predict(self, network: nn.Module, image: Tensor) -> Tensor:
        from healsg.evaluation.sliding_window import Windows, full_output

        with torch.inference_mode():
            return full_output(network, image, Windows((WINDOW,) * 3, "nnunet", 0.5))


class Theirs:
    """The same by nnU-Net's classes."""

    def __init__(self, folder: Path, patch: int, cases: list[tuple[Tensor, Tensor]]) -> None:
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
        from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
        from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from nnunetv2.utilities.label_handling.label_handling import LabelManager

        folder.mkdir()
        size, angle = (patch,) * 3, (-30 / 360 * 2 * np.pi, 30 / 360 * 2 * np.pi)
        for number, (input, target) in enumerate(cases):
            image, mask = input.numpy(), target.numpy()[None].astype(np.int8)
            blocks, chunks = comp_blosc2_params(image.shape, size)
            places = DefaultPreprocessor._sample_foreground_locations(mask, [1])
            path = os.fspath(folder / f"case{number}")
            nnUNetDatasetBlosc2.save_case(image, mask, {"class_locations": places}, path, chunks, blocks)
        self.labels = LabelManager({"background": 0, "vessel": 1}, None)
        transforms = nnUNetTrainer.get_training_transforms(
            size, angle, None, (0, 1, 2), False, use_mask_for_norm=[False], foreground_labels=[1]
        )
        first = get_patch_size(size, angle, angle, angle, (0.85, 1.25))
        dataset = nnUNetDatasetBlosc2(os.fspath(folder))
        self.loader = nnUNetDataLoader(
            dataset, BATCH, first, size, self.labels, FOREGROUND, transforms=transforms, probabilistic_oversampling=True
        )

    def batches(self) -> Iterator[Any]:
        while True:
            yield next(self.loader)

    def predict(self, network: nn.Module, image: Tensor) -> Tensor:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(0.5, True, False, device=torch.device("cpu"), allow_tqdm=False)
        plans = SimpleNamespace(get_label_manager=lambda dataset: self.labels)
        windows = SimpleNamespace(patch_size=[WINDOW] * 3)
        predictor.manual_initialization(network, plans, windows, [network.state_dict()], {}, "nnUNetTrainer", None)
        return predictor.predict_logits_from_preprocessed_data(image)


def prepared(ours: Ours) -> list[tuple[Tensor, Tensor]]:
    """The training cases as our files hold them."""
    source = ours.task.task_data.source_of("train")
    samples = [source.sample(number) for number in range(len(source))]
    return [(torch.as_tensor(one["input"]).float(), torch.as_tensor(one["target"])) for one in samples]


def differences(ours: Tensor, theirs: Tensor) -> str:
    """How far two outputs (K, X, Y, Z) are apart, also inside, where windows do not end: at the volume's edges the
    weights of a single window are so small that float16 rounds their product with a logit to whole logits."""
    theirs = theirs.float()
    margin = slice(WINDOW // 4, -(WINDOW // 4))
    found = []
    for made in (lambda one: one, lambda one: one.softmax(dim=0)):
        apart = (made(ours) - made(theirs)).abs()
        found.append((float(apart.max()), float(apart[:, margin, margin, margin].max())))
    (scores, inner), (shares, inner_shares) = found
    other = int((ours.argmax(dim=0) != theirs.argmax(dim=0)).sum())
    return (
        f"largest difference, logits of {float(ours.min()):.2f} to {float(ours.max()):.2f}: {scores:.1e} of a logit, "
        f"{shares:.1e} of a probability; {WINDOW // 4} voxels from the edges and farther {inner:.1e} and "
        f"{inner_shares:.1e}; {other} of {ours[0].numel()} voxels of another class"
    )


def trained(ours: Ours, updates: int = 16) -> nn.Module:
    """The task's network after some updates on corners of patches, in evaluation, so that its scores are of use."""
    network, criterion = ours.task.model, ours.task.criterion
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    network.train()
    for batch in islice(ours.batches(), updates):
        input, target = (batch[name][..., :WINDOW, :WINDOW, :WINDOW] for name in ("input", "target"))
        criterion(network(input), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--patch", type=int, default=96)
    given = parser.parse_args()
    if importlib.util.find_spec("nnunetv2") is None:
        sys.exit("nnunetv2 is not installed; install it with: pip install nnunetv2==2.8.1")
    torch.set_num_threads(1)
    np.random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_scans(folder / "scans")
        ours = Ours(folder / "scans", given.patch)
        network = trained(ours)
        sides = {"ours": ours, "theirs": Theirs(folder / "preprocessed", given.patch, prepared(ours))}
        image = torch.randn(1, *SCAN, generator=torch.Generator().manual_seed(1))
        image[:, 30:70, 30:70, 30:50] += 2
        apart = differences(*(side.predict(network, image).clone() for side in sides.values()))
        streams = {name: side.batches() for name, side in sides.items()}
        acts: dict[str, Callable[[str], Any]] = {
            PATCH: lambda name: list(islice(streams[name], given.batches)),
            VOLUME: lambda name: sides[name].predict(network, image),
        }
        found = measured(acts, given.rounds)
    parts = {PATCH: BATCH * given.batches, VOLUME: 1}
    lines = [*(line_of(what, times, parts[what], "nnU-Net") for what, times in found.items()), apart]
    print("\n".join(lines))
    if (given.rounds, given.batches, given.patch) == (5, 12, 96):
        where = conditions(("torch", "nnunetv2", "batchgeneratorsv2", "blosc2"))
        how = f"5 rounds of 12 batches of {BATCH} patches of 96, and of a volume of {' x '.join(map(str, SCAN))} in"
        how += f" windows of {WINDOW}; medians, ratios within a round"
        text = "\n".join(["python -m benchmarks.segmentation.nnunet_pipeline", where, how, "", *lines, ""])
        (RESULTS / "nnunet_pipeline.txt").write_text(text)


if __name__ == "__main__":
    main()
