"""Cityscapes: street scenes with masks of 19 classes.

Source: M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016, arXiv 1604.01685.
The files are as the project gives them; classes and their numbers are those of its scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from healsg.datasets.masks.pairs import Pair, check_pairs
from healsg.datasets.masks.pictures import Array, ReadMask, read_mask_picture
from healsg.datasets.seg2d import MaskedPictures
from healsg.errors import DataError
from healsg.types import Count

CLASSES = {
    **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19},
    **{"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26},
    **{"truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33},
}
"""The number of each class in ``labelIds``, in the order of ``trainIds``."""

IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"

MOST = 256
"""Numbers that a mask of 8 bits can hold."""


class Cityscapes(MaskedPictures):
    """Cityscapes with fine masks: ``leftImg8bit/`` and ``gtFine/``. The files' ``labelIds`` are mapped to the 19
    ``trainIds``, and all others to ``ignore``. The published ``val`` is the test part, since the masks of ``test`` are
    not public.

    Args:
        folder: that holds both.
        ignore: the label of pixels in none of the 19 classes.
        image_size: see ``MaskedPictures``.
        common: the arguments of MaskedPictures.
    """

    def __init__(self, folder: str = "cityscapes", ignore: int = 255, image_size: Count = 512, **common: Any) -> None:
        if common.get("classes") is None and common.get("mapping") is None:
            common |= {"classes": list(CLASSES), "mapping": {old: new for new, old in enumerate(CLASSES.values())}}
        super().__init__(folder=folder, ignore=ignore, image_size=image_size, **common)

    def read_mask(self) -> ReadMask:
        known = set(self.mapping)
        table = np.array([one if one in known else self.ignore for one in range(MOST)], dtype=np.int32)
        return _Known(table)

    def found(self, folder: Path) -> Mapping[str, Sequence[Pair]]:
        parts = {}
        for part, name in (("train", "train"), ("test", "val")):
            images, masks = folder / "leftImg8bit" / name, folder / "gtFine" / name
            pairs = []
            for path in sorted(images.glob(f"*/*{IMAGE}")):
                city = path.parent.name
                pairs.append(Pair(path, masks / city / (path.name.removesuffix(IMAGE) + MASK), city))
            if not pairs and part == "train":
                raise DataError(f"{images}: there is no CITY/*{IMAGE} in it")
            if pairs:
                parts[part] = check_pairs(pairs)
        return parts


class _Known:
    """Masks in which all labels but the known ones become ``ignore``.

    Args:
        table: (256,) the label that each number of a mask means.
    """

    def __init__(self, table: Array) -> None:
        self.table = table

    def __call__(self, pair: Pair) -> Array:
        labels: Array = self.table[read_mask_picture(pair.mask)]
        return labels
