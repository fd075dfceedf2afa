"""Imagenette: 13,394 pictures of ten easily distinguished classes of ImageNet, in the second edition.

Source: J. Howard, https://github.com/fastai/imagenette, 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from healsg.datasets.pictures import Listed, PictureFiles, of_folders
from healsg.datasets.published.archives import Archive, provide
from healsg.errors import ConfigError

PAGE = "https://s3.amazonaws.com/fast-ai-imageclas/"

SIZES = {
    "160px": (99_003_388, "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5"),
    "320px": (341_663_724, "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c"),
    "full": (1_557_161_267, "6cbfac238434d89fe99e651496f0812ebc7a10fa62bd42d6874042bf01de4efd"),
}
"""By the shorter side the archive's size in bytes and SHA-256, as in tensorflow/datasets,
datasets/imagenette/checksums.tsv. The archives of 2019 were replaced later, hence their older checksums differ."""

NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""The classes by the names of their folders, which are WordNet's numbers."""


class Imagenette(PictureFiles):
    """Imagenette: 9,469 images for training and 3,925 for validation; no test part.

    The files are in ``root/imagenette2-160``, ``root/imagenette2-320`` or ``root/imagenette2``, as in
    torchvision.

    Args:
        files: which of the published editions: pictures whose shorter side has 160 or 320 pixels, or as they were.
        common: the arguments of PictureFiles.
    """

    repeatable = True

    parts: ClassVar[Mapping[str, str]] = {"train": "train", "val": "val"}

    def __init__(self, files: Literal["160px", "320px", "full"] = "160px", **common: Any) -> None:
        super().__init__(**common)
        if files not in SIZES:
            raise ConfigError(f"data.files: {files!r}, but there are {', '.join(SIZES)}")
        folder = "imagenette2" if files == "full" else f"imagenette2-{files.removesuffix('px')}"
        self.archive = Archive(f"{PAGE}{folder}.tgz", *SIZES[files], folder, (".jpeg",))

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(NAMES.values())

    def provide(self, folder: Path) -> None:
        provide([self.archive], folder, self.download, self.verify, self.mirror)

    def listed(self, part: str, folder: Path) -> Listed:
        return of_folders(folder / self.archive.folder / part, ".jpeg", tuple(NAMES))
