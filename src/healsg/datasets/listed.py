"""Listed: few labelled masks, the first ones of a published list instead of a random draw."""

from __future__ import annotations

import torch
from torch import Tensor

from healsg.data.source import DatasetSource, Source, TensorSource
from healsg.datasets.segmentation import Segmentation
from healsg.errors import ConfigError


class Listed(Segmentation):
    """A set whose ``labels=N`` keeps the masks of the first N of a list, for comparison with published results. The
    arguments are those of Segmentation."""

    def listed(self) -> set[str] | None:
        """The groups of the cases that keep their masks; None if ``labels`` draws them, as elsewhere."""
        raise NotImplementedError

    def layers_of(self, source: Source, key: str) -> Tensor:
        kept = self.listed() if key == "labels" else None
        cases = source.about.cases if isinstance(source, (TensorSource, DatasetSource)) else None
        if kept is None or cases is None:
            return super().layers_of(source, key)
        return torch.tensor([int(case.group in kept) for case in cases])

    def label_amounts(self, train: Source) -> Tensor | None:
        listed = self.listed() if self.labels is not None else None
        if listed is None:
            return super().label_amounts(train)
        cases = train.about.cases if isinstance(train, (TensorSource, DatasetSource)) else None
        if lost := listed - {case.group for case in cases or ()}:
            way = "set data.val_fraction=0, and no data.fold"
            raise ConfigError(f"data.labels: keeps the masks of {min(lost)}, which is held out for validation; {way}")
        return torch.tensor([0, int(self.layers_of(train, "labels").sum())])  # all cases of the second layer
