"""Oxford-IIIT Pet: 7,349 pictures of cats and dogs of 37 breeds.

Source: O. M. Parkhi, A. Vedaldi, A. Zisserman and C. V. Jawahar, "Cats and Dogs", CVPR 2012.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from healsg.datasets.pictures import Listed, PictureFiles, parsed
from healsg.datasets.published.archives import Archive

PAGE = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"

ARCHIVES = (
    Archive(
        f"{PAGE}images.tar.gz",
        791_918_971,
        "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
        "images",
        (".jpg",),
    ),
    Archive(
        f"{PAGE}annotations.tar.gz",
        19_173_078,
        "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
        "annotations",
        (".txt",),
    ),
)
"""Sizes and SHA-256 as in tensorflow/datasets, url_checksums/oxford_iiit_pet.txt."""

NAMES = tuple(
    """Abyssinian, American Bulldog, American Pit Bull Terrier, Basset Hound, Beagle, Bengal, Birman, Bombay, Boxer,
    British Shorthair, Chihuahua, Egyptian Mau, English Cocker Spaniel, English Setter, German Shorthaired,
    Great Pyrenees, Havanese, Japanese Chin, Keeshond, Leonberger, Maine Coon, Miniature Pinscher, Newfoundland,
    Persian, Pomeranian, Pug, Ragdoll, Russian Blue, Saint Bernard, Samoyed, Scottish Terrier, Shiba Inu, Siamese,
    Sphynx, Staffordshire Bull Terrier, Wheaten Terrier, Yorkshire Terrier""".replace("\n    ", " ").split(", ")
)


class Pets(PictureFiles):
    """Oxford-IIIT Pet by breed: 3,680 pictures to train with (``trainval``) and 3,669 to test.

    The files are in ``root/oxford-iiit-pet``, as in torchvision. The arguments are those of PictureFiles.
    """

    repeatable = True

    place, archives = "oxford-iiit-pet", ARCHIVES
    parts: ClassVar[Mapping[str, str]] = {"train": "trainval", "test": "test"}

    @property
    def class_names(self) -> tuple[str, ...]:
        return NAMES

    def listed(self, part: str, folder: Path) -> Listed:
        def parse(text: str) -> Listed:
            rows = [row.split() for row in text.splitlines()]
            return [str(folder / "images" / f"{row[0]}.jpg") for row in rows], [int(row[1]) - 1 for row in rows]

        return parsed(folder / "annotations" / f"{part}.txt", parse)
