"""Small sets of images and volumes with masks, in memory and in folders, and a network for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from healsg.data import DataInfo, DatasetSource, TensorSource
from healsg.data.case import Case
from healsg.data.loader import Transform
from healsg.data.source import About, Source
from healsg.datasets.segmentation import Segmentation
from healsg.model import TaskModel
from healsg.seeding import generator
from healsg.transforms.views import image_views


def blob(number: int, sides: Sequence[int], labels: int = 3) -> tuple[Tensor, Tensor]:
    """A noisy image (1, *sides) of bytes with a bright box in it, and its mask, where that has a label."""
    source = generator(number, "blob")
    mask = torch.zeros(*sides, dtype=torch.uint8)
    box = mask
    for axis, side in enumerate(sides):
        begin = int(torch.randint(0, side // 2, (), generator=source))
        box = box.narrow(axis, begin, side // 2)
    label = 1 + number % (labels - 1)
    box.fill_(label)
    noise = torch.randint(0, 40, tuple(sides), generator=source)
    return (noise + 80 * mask).clamp(0, 255).to(torch.uint8).unsqueeze(0), mask


class Blobs(Segmentation):
    """Blobs in memory or in files, several images of one patient.

    Args:
        sides: of an image or volume.
        unlike: whether each case is larger than the one before it.
        folder: where ``.npy`` files lie; None keeps tensors in memory.
        slices: images of one case, which have one name.
        strata: whether the set tells in which of two strata a case is.
        unknown: whether the first third of the rows of each second case's mask is 255.
        flip, shift, augment: see ``ImageViews``.
        cases: of each part.
        common: the arguments of Segmentation.
    """

    def __init__(
        self,
        sides: Sequence[int] = (16, 16),
        unlike: bool = False,
        folder: str | None = None,
        slices: int = 1,
        strata: bool = False,
        unknown: bool = False,
        flip: bool = False,
        shift: int = 0,
        augment: Any = "standard",
        cases: int = 12,
        test_cases: int = 6,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.sides, self.unlike, self.folder, self.slices = tuple(sides), unlike, folder, slices
        self.unknown = unknown
        self.strata_known, self.counts = strata, {"train": cases, "val": 0, "test": test_cases}
        self.views = image_views(augment, flip, shift, 0.5, 0.25, (1, *self.sides), "zero", "these are")

    def described(self) -> DataInfo:
        return DataInfo((1, *self.sides), 3, class_names=("nothing", "box", "bar"))

    def transform(self, view: str, split: str) -> Transform:
        return self.views.of(view, split)

    def read(self, part: str) -> Source | None:
        if not self.counts.get(part):
            return None
        count, first = self.counts[part], 1000 * (part == "test")
        cases = [
            Case(
                f"{part}{number // self.slices}",
                f"{part} patient{number // 2}",
                spacing=(2.0, 0.5, 0.5)[-len(self.sides) :],
            )
            for number in range(count)
        ]
        strata = torch.arange(count) // self.slices % 2 if self.strata_known else None
        about = About(cases, strata)
        samples = [blob(first + number, self.size(number)) for number in range(count)]
        for _, mask in samples[::2] if self.unknown else []:
            mask[: len(mask) // 3] = 255
        if self.folder is not None:
            return DatasetSource(Files(Path(self.folder) / part, samples), about=about)
        if self.unlike:
            return DatasetSource(samples, about=about)
        return TensorSource(
            torch.stack([one for one, _ in samples]), torch.stack([two for _, two in samples]), about=about
        )

    def size(self, number: int) -> tuple[int, ...]:
        return tuple(side + self.unlike * (number % 3) for side in self.sides)


class Files:
    """Pairs of files, written where they are not there."""

    def __init__(self, folder: Path, samples: list[tuple[Tensor, Tensor]]) -> None:
        self.paths, self.mask_paths = [], []
        folder.mkdir(parents=True, exist_ok=True)
        for number, pair in enumerate(samples):
            for paths, value, name in zip((self.paths, self.mask_paths), pair, ("image", "mask"), strict=True):
                paths.append(str(folder / f"{number}_{name}.npy"))
                if not Path(paths[-1]).exists():
                    np.save(paths[-1], value.numpy())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = (torch.from_numpy(np.load(paths[index])) for paths in (self.paths, self.mask_paths))
        return image, mask


class PixelNet(TaskModel):
    """A convolution of any number of axes and, where asked for, BatchNorm before the next one."""

    def __init__(self, width: int = 4, norm: bool = False, metrics: Mapping[str, Any] | None = None) -> None:
        super().__init__(metrics)
        self.width, self.norm = width, norm

    def build(self, info: DataInfo) -> nn.Module:
        volumes = len(info.input_shape) == 4
        layer, norm = (nn.Conv3d, nn.BatchNorm3d) if volumes else (nn.Conv2d, nn.BatchNorm2d)
        first = layer(info.input_shape[0], self.width, 3, padding=1)
        between: list[nn.Module] = [norm(self.width)] * self.norm
        return nn.Sequential(first, *between, nn.ReLU(), layer(self.width, info.num_classes, 1))
