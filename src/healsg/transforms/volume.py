"""Random flips and shifts and the normalisation of whole batches of volumes, as ``image`` has them for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from healsg.errors import ConfigError
from healsg.seeding import Draw
from healsg.source import Batch
from healsg.transforms.image import Padding, scaling
from healsg.types import Count, Natural, Positive


class VolumeTransform:
    """Mirror (N, C, D, H, W) volumes along each axis with probability 1/2, shift them along each, and normalise them.

    Without a draw (evaluation) only the normalisation remains.

    Args:
        flip: whether volumes are mirrored.
        shift: the largest shift along each axis, in voxels; 0 is none.
        mean: each channel's mean, with ``maximum`` as 1.
        std: each channel's standard deviation, with ``maximum`` as 1.
        padding: what a shift brings in from outside, ``zero`` or ``reflect``.
        size: the volumes' shortest side in voxels; a shift must be smaller.
        maximum: the value stored for full intensity.
    """

    def __init__(
        self,
        flip: bool,
        shift: Natural,
        mean: Sequence[float],
        std: Sequence[float],
        padding: Padding = "zero",
        size: Count | None = None,
        maximum: Positive = 255.0,
    ) -> None:
        if size is not None and shift >= size:
            raise ConfigError(f"data.shift: {shift} voxels, but the volumes have {size}; set less than that")
        self.flip, self.shift, self.padding, self.maximum = flip, shift, padding, maximum
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        volumes: Tensor = batch["input"]
        if draw is not None:
            volumes = self.move(volumes, draw)
        factor, offset = scaling(self.mean, self.std, self.maximum, volumes.device)
        normalised = volumes.to(torch.float32) * factor.unsqueeze(-1) + offset.unsqueeze(-1)
        return batch | {"input": normalised}

    def move(self, volumes: Tensor, draw: Draw) -> Tensor:
        """Flip and shift each volume, axis by axis."""
        for number, axis in enumerate((2, 3, 4) if self.flip or self.shift else ()):
            mirrored = draw.integers(2 * number, 0, int(self.flip)) == 1
            shift = draw.integers(2 * number + 1, -self.shift, self.shift)
            volumes = move_along(volumes, axis, mirrored, shift, self.padding)
        return volumes

    def of(self, view: str, split: str = "train") -> VolumeTransform:
        """This transform, for the views it can make. Raises ConfigError for one that asks for more."""
        if view not in ("input", "weak", "view1", "view2"):
            raise ConfigError(
                f"data: no {view!r} view of volumes, which the method needs; there are input, weak, view1, view2"
            )
        return self


def move_along(volumes: Tensor, axis: int, mirrored: Tensor, shift: Tensor, padding: Padding) -> Tensor:
    """Mirror and shift each of the (N, C, ...) volumes along one axis.

    Args:
        volumes: of any type.
        axis: 2 or more.
        mirrored: (N,) bool, which are mirrored, before they are shifted.
        shift: (N,) int64, by how many voxels, less than there are along the axis.
        padding: what comes in from outside.
    """
    size = volumes.shape[axis]
    place = torch.arange(size, device=volumes.device) + shift.view(-1, 1)
    inside = (place >= 0) & (place < size)
    place = torch.where(place < 0, -place, torch.where(place >= size, 2 * (size - 1) - place, place))
    place = torch.where(mirrored.view(-1, 1), size - 1 - place, place)
    along = [len(volumes) if at == 0 else size if at == axis else 1 for at in range(volumes.dim())]
    moved = volumes.gather(axis, place.view(along).expand_as(volumes))
    return moved * inside.view(along).to(moved.dtype) if padding == "zero" else moved
