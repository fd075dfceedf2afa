"""The data ``new_part``: where samples come from. Replace what ``read`` gives by samples of your own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from healsg import DataInfo, TaskData, TensorSource
from healsg.types import NonNegative


class NewData(TaskData):
    """Grey pictures of 8x8 pixels, of which either the left or the right half is brighter.

    Args:
        noise: standard deviation of the noise on each pixel.
        common: the arguments of TaskData.
    """

    def __init__(self, noise: NonNegative = 0.5, **common: Any) -> None:
        super().__init__(**common)
        self.noise = noise

    @property
    def info(self) -> DataInfo:
        """What the numbers mean; it is saved with the weights."""
        return DataInfo(input_shape=(1, 8, 8), num_classes=2, class_names=("left", "right"))

    def read(self, part: str) -> TensorSource | None:
        """The samples of ``train``, ``val`` or ``test``; None if there are none.

        Where val gives None, ``val_fraction`` of the training part is split off for it. Samples that lie in files are
        better read one by one: ``healsg.data.source.DatasetSource`` around any map-style data set.
        """
        if part == "val":
            return None
        rows, seed = (600, 0) if part == "train" else (200, 1)
        random = np.random.default_rng(seed)
        target = random.integers(0, 2, rows)
        pictures = random.normal(0.0, self.noise, (rows, 1, 8, 8))
        pictures[target == 0, :, :, :4] += 1
        pictures[target == 1, :, :, 4:] += 1
        return TensorSource(torch.from_numpy(pictures.astype(np.float32)), torch.from_numpy(target))
