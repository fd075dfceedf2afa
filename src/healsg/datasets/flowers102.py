"""Oxford 102 Flowers: 8,189 pictures of 102 kinds of flowers.

Source: M.-E. Nilsback and A. Zisserman, "Automated Flower Classification over a Large Number of Classes", ICVGIP 2008.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from healsg.datasets.pictures import Listed, PictureFiles
from healsg.datasets.published.archives import Archive
from healsg.datasets.published.files import Sums, obtain
from healsg.datasets.published.matlab import labels_of, read_mat

PAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"

ARCHIVE = Archive(
    f"{PAGE}102flowers.tgz",
    344_862_509,
    "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
    "jpg",
    (".jpg",),
)

LABELS = {
    "imagelabels.mat": (502, "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d"),
    "setid.mat": (14_989, "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd"),
}
"""Sizes and SHA-256, also the archive's, as in tensorflow/datasets, url_checksums/oxford_flowers102.txt."""

CLASSES = 102


class Flowers102(PictureFiles):
    """Oxford 102 Flowers: 1,020 images for training, 1,020 for validation and 6,149 for testing.

    The files are in ``root/flowers-102``, as in torchvision. Reading needs SciPy (``healsg[mat]``). The
    arguments are those of PictureFiles.
    """

    repeatable = True

    place, archives = "flowers-102", (ARCHIVE,)
    parts: ClassVar[Mapping[str, str]] = {"train": "trnid", "val": "valid", "test": "tstid"}

    @property
    def class_names(self) -> tuple[str, ...]:
        from torchvision import datasets

        return tuple(datasets.Flowers102.classes)

    def provide(self, folder: Path) -> None:
        super().provide(folder)
        for name in LABELS:
            by_hand = f"put {name} (from {PAGE}) into {folder}"
            obtain([PAGE + name], folder / name, _sums(name), by_hand, self.download, mirror=self.mirror)

    def listed(self, part: str, folder: Path) -> Listed:
        names = [folder / name for name in LABELS]
        sums = [_sums(path.name) if self.verify else Sums() for path in names]
        (labels,) = read_mat(names[0], sums[0], ("labels",))
        (numbers,) = read_mat(names[1], sums[1], (part,))
        label = labels_of(labels, names[0], 1, CLASSES) - 1
        chosen = labels_of(numbers, names[1], 1, len(label))
        paths = [str(folder / "jpg" / f"image_{number:05d}.jpg") for number in chosen]
        return paths, label[chosen - 1].tolist()


def _sums(name: str) -> Sums:
    size, sha256 = LABELS[name]
    return Sums(sha256=sha256, size=size)
