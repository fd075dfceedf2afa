"""EuroSAT: 27,000 pictures of land of 64x64 pixels, taken by the satellites Sentinel-2, in ten classes.

Source: P. Helber, B. Bischke, A. Dengel and D. Borth, "EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land
Use and Land Cover Classification", arXiv 1709.00029, 2019.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch

from healsg.data.base import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import TensorSource, line
from healsg.data.splits import stratified_split
from healsg.datasets.classification import Classification
from healsg.datasets.images.decoding import decode
from healsg.datasets.pictures import of_folders
from healsg.datasets.published.archives import Archive, provide
from healsg.datasets.published.files import log
from healsg.errors import DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Natural, Share

MEAN, STD = (0.3444, 0.3803, 0.4078), (0.2027, 0.1366, 0.1153)
"""Each channel's over the pixels of all pictures, with 255 as 1."""

ARCHIVE = Archive(
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
    94_280_567,
    "8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
    "2750",
    (".jpg",),
)
"""The address is torchvision's; size and SHA-256 are those of tensorflow/datasets, url_checksums/eurosat.txt."""

NAMES = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
)

TEST_SEED = 27_000


class EuroSAT(Classification):
    """EuroSAT in colour, kept in memory as uint8. The set has no published split: a stratified share is the test part.

    The files are in ``root/eurosat/2750``, as in torchvision.

    Args:
        test_fraction: the share of the images in the test part, the same ones in every run.
        augment: of training images, by name; see ``ImageViews``.
        flip: flip training images horizontally at random.
        shift: the largest random shift of ``augment=standard``, in pixels.
        padding: fill of pixels outside the image, ``zero`` or ``reflect``.
        download: fetch the archive if neither it nor its folder is under ``root``.
        verify: accept only an archive with the published checksum. Files that are unpacked already are not checked.
        common: the arguments of Classification.
    """

    repeatable = True

    def __init__(
        self,
        test_fraction: Share = 0.2,
        augment: Augment = "standard",
        flip: bool = True,
        shift: Natural = 4,
        padding: Literal["zero", "reflect"] = "reflect",
        download: bool = True,
        verify: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.test_fraction = test_fraction
        self.download = download
        self.verify = verify
        self.images = ImageViews(augment, flip, shift, MEAN, STD, padding=padding, size=64)

    @property
    def info(self) -> DataInfo:
        return DataInfo((3, 64, 64), len(NAMES), class_names=NAMES)

    @property
    def has_test(self) -> bool:
        """Whether a share is for testing."""
        return self.test_fraction > 0

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    def read(self, part: str) -> TensorSource | None:
        return self._parts.get(part)

    @cached_property
    def _parts(self) -> dict[str, TensorSource]:
        folder = self.root.absolute() / "eurosat"
        provide([ARCHIVE], folder, self.download, self.verify, self.mirror)
        paths, targets = of_folders(folder / ARCHIVE.folder, ".jpg", NAMES)
        log.info("%s: reading %d pictures", folder, len(paths))
        inputs = torch.empty(len(paths), 3, 64, 64, dtype=torch.uint8)
        for row, path in enumerate(paths):
            try:
                inputs[row] = decode(path, 64, 3)
            except Exception as error:  # a damaged image can raise almost any exception
                raise DataError(f"{path}: cannot be read ({line(error)}); get the set anew") from error
        source = TensorSource(inputs, torch.tensor(targets))
        if not self.test_fraction:
            return {"train": source}
        train, test = stratified_split(source.target, self.test_fraction, TEST_SEED)
        return {"train": source.subset(train), "test": source.subset(test)}
