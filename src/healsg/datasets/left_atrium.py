"""The left atrium in late-enhancement MR: the 100 scans of the 2018 challenge as UA-MT prepared them.

Sources: Z. Xiong et al., "A global benchmark of algorithms for segmenting the left atrium from late
gadolinium-enhanced cardiac magnetic resonance imaging", Medical Image Analysis 2021,
https://doi.org/10.1016/j.media.2020.101832; L. Yu et al. 2019, arXiv 1907.07034, whose files and lists
(https://github.com/yulequan/UA-MT, data/) most semi-supervised work on these scans takes. The scans are cut around the
atrium by its mask there, so that numbers on them are not those of whole scans.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from healsg.data.case import Case
from healsg.data.info import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import About, DatasetSource, line
from healsg.datasets.listed import Listed
from healsg.datasets.published.files import locate
from healsg.datasets.volumes.files import damage
from healsg.errors import ConfigError, DataError
from healsg.transforms.volume import VolumeTransform
from healsg.transforms.volume_views import VolumeAugment, VolumeViews
from healsg.types import Count

SCANS = ("2018LA_Seg_Training Set", "2018LA_Seg_TrainingSet")
"""The name of the folder of the scans."""

NAMES = ("background", "atrium")


class Scans:
    """A map-style data set of ``mri_norm2.h5`` files: ``(input, target)``, (1, X, Y, Z) float32 and (X, Y, Z) labels.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file, for messages."""
        return self.paths[index]

    def shape(self, index: int) -> tuple[int, ...]:
        """The voxels of a scan along each axis, from its header; empty where that cannot be read, which is reported as
        the scan is."""
        import h5py

        try:
            with h5py.File(self.paths[index], "r") as file:
                return tuple(file["image"].shape)
        except Exception:  # a damaged file makes the library raise almost anything
            return ()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        import h5py

        path = Path(self.paths[index])
        with damage(path), h5py.File(path, "r") as file:
            image, label = (np.asarray(file[key]) for key in ("image", "label"))
        if image.ndim != 3 or image.shape != label.shape:
            raise DataError(
                f"{path}: has an image of {image.shape} and a label of {label.shape}; both are 3D, and alike"
            )
        return torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(label.astype(np.uint8))


class LeftAtrium(Listed):
    """UA-MT's 80 training and 20 test scans, with zero mean and unit standard deviation. ``labels=N`` keeps the masks
    of the first N of its list, as its scripts do. Lengths are in voxels.

    Args:
        folder: UA-MT's ``data/`` with ``train.list``, ``test.list`` and the folder of the scans.
        labels: training scans that keep their masks, the first ones of ``train.list``.
        augment: ``standard`` flips patches, ``nnunet`` also rotates, scales and changes intensities, ``none`` does
            nothing.
        flip: flip training patches along each axis at random.
        patch: see ``Segmentation``; UA-MT's by default.
        batch_size: patches per batch, summed over all processes.
        eval_batch_size: scans per evaluation batch; their sizes differ.
        common: the arguments of Segmentation.
    """

    def __init__(
        self,
        folder: str,
        labels: Count | None = None,
        augment: VolumeAugment = "standard",
        flip: bool = True,
        patch: Sequence[Count] | None = (112, 112, 80),
        batch_size: Count = 2,
        eval_batch_size: Count | None = 1,
        **common: Any,
    ) -> None:
        super().__init__(labels=labels, patch=patch, batch_size=batch_size, eval_batch_size=eval_batch_size, **common)
        if importlib.util.find_spec("h5py") is None:
            raise ConfigError("data: its files need h5py; install it with: pip install 'healsg[seg]'")
        self.folder = folder
        standard = VolumeTransform(flip and augment != "none", 0, (0.0,), (1.0,), maximum=1.0)
        self.views = VolumeViews(augment, standard, self.ignore or 0)

    @cached_property
    def _listed(self) -> dict[str, list[Path]]:
        """The files of each part, in the order of its list. Raises DataError."""
        folder = locate("folder", self.folder, (self.start, self.root), "folder")
        scans = next((folder / name for name in SCANS if (folder / name).is_dir()), None)
        if scans is None:
            raise DataError(f"{folder}: there is no folder {SCANS[0]} in it")
        found = {}
        for part in ("train", "test"):
            path = folder / f"{part}.list"
            try:
                names = path.read_text(encoding="utf-8").split()
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read ({line(error)})") from error
            found[part] = [scans / name / "mri_norm2.h5" for name in names]
            if lost := next((file for file in found[part] if not file.is_file()), None):
                raise DataError(f"{path}: names {lost}, and there is no such file")
        return found

    def described(self) -> DataInfo:
        return DataInfo((1, *(self.patch or self._first)), len(NAMES), class_names=NAMES)

    @cached_property
    def _first(self) -> tuple[int, ...]:
        return tuple(Scans(self._listed["train"])[0][1].shape)

    def read(self, part: str) -> DatasetSource | None:
        paths = self._listed.get(part)
        if not paths:
            return None
        scans = Scans(paths)
        cases = []
        for number, path in enumerate(paths):
            name, shape = path.parent.name, scans.shape(number)
            cases.append(Case(name, name, spacing=(1.0, 1.0, 1.0), path=str(path), shape=shape))
        return DatasetSource(scans, about=About(cases))

    def transform(self, view: str, split: str) -> Transform:
        return self.views.of(view, split)

    def listed(self) -> set[str] | None:
        if self.labels is None:
            return None
        names = [path.parent.name for path in self._listed["train"]]
        if self.labels > len(names):
            raise ConfigError(f"data.labels: {self.labels}, but there are {len(names)} training scans")
        return set(names[: self.labels])
