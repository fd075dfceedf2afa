"""Digits: 1,797 handwritten digits of 8x8 pixels from scikit-learn, so that a run needs no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(scikit-learn ships its test part).
"""

from __future__ import annotations

import gzip
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from healsg.data.base import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import TensorSource
from healsg.data.splits import stratified_split
from healsg.datasets.classification import Classification
from healsg.errors import DataError
from healsg.transforms.views import Augment, ImageViews
from healsg.types import Natural

MEAN, STD = (0.3053,), (0.3760,)
"""Of the training part, with 16 as 1."""

TEST_SAMPLES = 500
SAMPLES = 1797
TEST_SEED = 1797


class Digits(Classification):
    """Real 8x8 digits in ten classes: 1,297 to train with and 500 to test, a fixed stratified split.

    Args:
        augment: of training images, by name; see ``ImageViews``.
        flip: flip training images horizontally at random; unsuitable for digits.
        shift: the largest random shift of ``augment=standard``, in pixels.
        common: the arguments of Classification.
    """

    repeatable = True

    def __init__(self, augment: Augment = "standard", flip: bool = False, shift: Natural = 1, **common: Any) -> None:
        super().__init__(**common)
        self.images = ImageViews(augment, flip, shift, MEAN, STD, maximum=16.0, size=8)

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 8, 8), 10, class_names=tuple("0123456789"))

    def read(self, part: str) -> TensorSource | None:
        return self._parts.get(part)

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    @cached_property
    def _parts(self) -> dict[str, TensorSource]:
        table = read_table()
        source = TensorSource(table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].long())
        train, test = stratified_split(source.target, TEST_SAMPLES / SAMPLES, TEST_SEED)
        return {"train": source.subset(train), "test": source.subset(test)}


def read_table() -> Tensor:
    """(1797, 65) uint8: each digit's pixels, 0 to 16, and its class, out of scikit-learn's file.

    As ``sklearn.datasets.load_digits`` gives it, without the second that its import takes. Raises DataError.
    """
    import numpy

    found = importlib.util.find_spec("sklearn")
    file = Path((found and found.origin) or "sklearn/__init__.py").with_name("datasets") / "data" / "digits.csv.gz"
    try:
        with gzip.open(file, "rt") as table:  # numpy would read the current directory, which may have been removed
            return torch.from_numpy(numpy.loadtxt(table, dtype=numpy.uint8, delimiter=","))
    except (OSError, ValueError) as error:
        raise DataError(f"data=digits: {file} cannot be read ({error}); pip install scikit-learn") from error
