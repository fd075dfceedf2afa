"""The standardisation of numbers, and noise on them."""

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
    """``(input - centre) / spread``, what is missing (nan) as 0, and in training noise on top.

    Args:
        centre: of each number, in a sample's shape or one that broadcasts to it.
        spread: likewise; not 0.
        noise: deviation of the nearly normal noise that each number of a training sample gets.
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
        """Mean and deviation of each number, as ``DataInfo.preprocessing`` has them."""
        centre, spread = (value.flatten().tolist() for value in (self.centre, self.spread))
        return {"mean": centre, "std": spread, "missing": "mean"}

    def of(self, view: str, split: str = "train") -> Standardise:
        """This transform, for the views it can make. Raises ConfigError for one that asks for more."""
        check_view(view, "numbers")
        if view in ("view1", "view2") and split == "train" and not self.noise:
            raise ConfigError("data.noise: 0 makes both views of a sample the same; set it above 0")
        return self


def statistics(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column of (N, F) numbers, float32 (F,), those that are missing (nan) apart.

    A column that never differs has the deviation 1, an empty one the mean 0.
    """
    wide = numbers.double()
    known = ~wide.isnan()
    count = known.sum(dim=0).clamp(min=1)
    filled = torch.nan_to_num(wide, nan=0.0)
    centre = filled.sum(dim=0) / count
    spread = ((filled - centre).square() * known).sum(dim=0).div(count).sqrt()
    low = torch.where(known, wide, torch.inf).amin(dim=0)
    high = torch.where(known, wide, -torch.inf).amax(dim=0)
    varies = (low < high) & (spread > 0)  # the mean of equal numbers may be rounded, and their deviation is not 0 then
    return centre.float(), torch.where(varies, spread, 1.0).float()
