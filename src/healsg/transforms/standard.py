"""Standardisation of numeric inputs, with noise in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from healsg.data.source import Batch
from healsg.errors import ConfigError
from healsg.seeding import Draw
from healsg.transforms.image import check_view
from healsg.transforms.numbers import bell
from healsg.types import NonNegative


class Standardise:
    """``(input - centre) / spread``; missing values (NaN) become 0. In training, noise is added.

    Args:
        centre: the mean of each number, in a shape that broadcasts to a sample's.
        spread: the standard deviation of each number, likewise; not 0.
        noise: standard deviation of the approximately normal noise on the standardised numbers.
    """

    per_sample = True

    def __init__(self, centre: Tensor, spread: Tensor, noise: NonNegative = 0.0) -> None:
        self.centre = centre
        self.spread = spread
        self.noise = noise

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        raw: Tensor = batch["input"]
        if self.centre.device != raw.device:
            self.centre, self.spread = self.centre.to(raw.device), self.spread.to(raw.device)
        numbers = torch.nan_to_num((raw - self.centre) / self.spread, nan=0.0).to(torch.float32)
        if draw is not None and self.noise:
            numbers = numbers + self.noise * bell(draw, raw[0].numel()).view_as(raw)
        return batch | {"input": numbers}

    def described(self) -> dict[str, Any]:
        """Mean and standard deviation of each number, for ``DataInfo.preprocessing``."""
        centre, spread = (value.flatten().tolist() for value in (self.centre, self.spread))
        return {"mean": centre, "std": spread, "missing": "mean"}

    def of(self, view: str, split: str = "train") -> Standardise:
        """This transform, which serves every view that it supports. Raises ConfigError for any other."""
        check_view(view, "numbers")
        if view in ("view1", "view2") and split == "train" and not self.noise:
            raise ConfigError("data.noise: 0 makes both views of a sample the same; set it above 0")
        return self


def statistics(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column of (N, F) numbers, float32 (F,), without missing values (NaN).

    The standard deviation of a constant column is given as 1, the mean of an empty one as 0.
    """
    wide = numbers.double()
    known = ~wide.isnan()
    count = known.sum(dim=0).clamp(min=1)
    filled = torch.nan_to_num(wide, nan=0.0)
    centre = filled.sum(dim=0) / count
    spread = ((filled - centre).square() * known).sum(dim=0).div(count).sqrt()
    low = torch.where(known, wide, torch.inf).amin(dim=0)
    high = torch.where(known, wide, -torch.inf).amax(dim=0)
    varies = (low < high) & (spread > 0)  # rounding may give a constant column a deviation above 0
    return centre.float(), torch.where(varies, spread, 1.0).float()
