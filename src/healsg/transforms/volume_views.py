"""The views of a volume by name: what ``data.augment`` and the methods' views are."""

from __future__ import annotations

from typing import Literal

from healsg.data.loader import Transform
from healsg.transforms.nnunet import IntensityTransform, NnunetTransform
from healsg.transforms.volume import VolumeTransform

VolumeAugment = Literal["none", "standard", "nnunet"]


class VolumeViews:
    """The views of a set of volumes: ``input`` as ``augment`` says on training samples, ``strong`` with other
    intensities (see ``IntensityTransform``), all others as ``standard`` has them.

    Args:
        augment: of ``input``; ``nnunet`` is ``standard`` and then what ``NnunetTransform`` does.
        standard: flips and normalisation.
        outside: the label of a mask's voxels that come in from outside.
    """

    def __init__(self, augment: VolumeAugment, standard: VolumeTransform, outside: int = 0) -> None:
        self.standard = standard
        self.input: Transform = NnunetTransform(standard, outside) if augment == "nnunet" else standard

    def of(self, view: str, split: str = "train") -> Transform:
        """The transform that makes ``view`` in ``split``. Raises ConfigError for an unknown view."""
        if view == "strong":
            return IntensityTransform(self.standard)
        other = self.standard.of(view, split)
        return self.input if view == "input" and split == "train" else other
