"""Pascal VOC: images with masks of 20 object classes; borders (255) are excluded from loss and metrics.

Source: M. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010,
https://doi.org/10.1007/s11263-009-0275-4. The files are as the challenge gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from healsg.data.source import line
from healsg.datasets.masks.pairs import Pair, check_pairs
from healsg.datasets.seg2d import MaskedPictures
from healsg.errors import ConfigError, DataError

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Voc(MaskedPictures):
    """A year of Pascal VOC: ``JPEGImages/``, ``SegmentationClass/`` and ``ImageSets/Segmentation/``.

    Args:
        folder: such as ``VOCdevkit/VOC2012``, or its parent.
        year: of the VOC release, where ``folder`` holds several.
        train_list: names of the training pictures: ``train``, or ``trainval`` without a test part of its own.
        val_list: those of the validation part; None takes it from the training part.
        test_list: those of the test part, whose masks must be there; None has none.
        masks: the folder of the masks, such as ``SegmentationClassAug``.
        ignore: the label of the borders.
        common: the arguments of MaskedPictures.
    """

    masks_as_stored = True

    def __init__(
        self,
        folder: str = "VOCdevkit",
        year: int = 2012,
        train_list: str = "train",
        val_list: str | None = None,
        test_list: str | None = "val",
        masks: str = "SegmentationClass",
        ignore: int | None = 255,
        **common: Any,
    ) -> None:
        if common.get("classes") is None and common.get("mapping") is None:
            common["classes"] = list(CLASSES)
        super().__init__(folder=folder, ignore=ignore, **common)
        self.year, self.masks = year, masks
        self.lists = {"train": train_list, "val": val_list, "test": test_list}
        given = [name for name in self.lists.values() if name is not None]
        if len(set(given)) < len(given):
            raise ConfigError(f"data.test_list: {', '.join(given)}; a picture would lie in two parts")

    def found(self, folder: Path) -> Mapping[str, Sequence[Pair]]:
        candidates = [folder, folder / f"VOC{self.year}", folder / "VOCdevkit" / f"VOC{self.year}"]
        release = next((one for one in candidates if (one / "JPEGImages").is_dir()), None)
        if release is None:
            raise DataError(f"{folder}: there is no JPEGImages/ in it, nor in VOC{self.year}/")
        parts = {}
        for part, name in self.lists.items():
            if name is None:
                continue
            path = release / "ImageSets" / "Segmentation" / f"{name}.txt"
            try:
                names = path.read_text(encoding="utf-8").split()
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read ({line(error)})") from error
            images, masks = release / "JPEGImages", release / self.masks
            parts[part] = check_pairs([Pair(images / f"{one}.jpg", masks / f"{one}.png") for one in names])
        return parts
