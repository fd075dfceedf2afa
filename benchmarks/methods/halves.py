"""The digits in two halves that share no sample: on one settings are chosen, on the other the methods are measured."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from healsg.data.base import DataInfo
from healsg.data.source import TensorSource
from healsg.data.splits import fold_of, stratified_split
from healsg.datasets.digits import Digits, read_table

HALVES_SEED = 13
"""Of the one division of the 1,797 images into 899 and 898."""

FOLDS = 5


class HalfDigits(Digits):
    """One half of scikit-learn's digits, a fifth of which is held out to test on.

    Args:
        half: ``choose`` or ``report``.
        digits: ``all``, or the classes 0 to 4 (``first``) or 5 to 9 (``second``) alone.
        common: the arguments of Digits. ``split_seed`` says which of five disjoint folds is held out
            (``split_seed % 5``), so that five seeds in a row test on every sample of the half once.
    """

    def __init__(
        self,
        half: Literal["choose", "report"] = "choose",
        digits: Literal["all", "first", "second"] = "all",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.half = half
        self.classes = {"all": range(10), "first": range(5), "second": range(5, 10)}[digits]

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 8, 8), len(self.classes), class_names=tuple(map(str, self.classes)))

    @cached_property
    def _parts(self) -> dict[str, TensorSource]:
        table = read_table()
        whole = TensorSource(table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].long())
        halves = stratified_split(whole.target, 0.5, HALVES_SEED)
        half = whole.subset(halves[0] if self.half == "choose" else halves[1])
        held_out = fold_of(half.target, FOLDS, HALVES_SEED) == self.split_seed % FOLDS
        asked = (half.target >= self.classes[0]) & (half.target <= self.classes[-1])
        half.target -= self.classes[0]
        parts = {"train": asked & ~held_out, "test": asked & held_out}
        return {part: half.subset(chosen.nonzero().flatten()) for part, chosen in parts.items()}
