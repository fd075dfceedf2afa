"""Random flips and shifts and the normalisation of whole batches of volumes, as ``image`` has them for images."""

from __future__ import annotations

import torch
from torch import Tensor

from healsg.seeding import Draw
from healsg.transforms.image import ImageTransform, Padding, check_view


class VolumeTransform(ImageTransform):
    """``ImageTransform`` of (N, C, D, H, W) volumes: mirrored along each axis with probability 1/2, shifted along each.

    Pixels are voxels here, and ``alternate`` is not known.
    """

    per_sample = True

    words = ("voxels", "volumes")

    def move(self, images: Tensor, draw: Draw) -> Tensor:
        """Flip and shift each volume, axis by axis."""
        for number, axis in enumerate((2, 3, 4) if self.flip or self.shift else ()):
            mirrored = draw.integers(2 * number, 0, int(self.flip)) == 1
            shift = draw.integers(2 * number + 1, -self.shift, self.shift)
            images = move_along(images, axis, mirrored, shift, self.padding)
        return images

    def of(self, view: str, split: str = "train") -> VolumeTransform:
        """This transform, for the views it can make. Raises ConfigError for one that asks for more."""
        check_view(view, "volumes")
        return self


def move_along(volumes: Tensor, axis: int, mirrored: Tensor, shift: Tensor, padding: Padding) -> Tensor:
    """Logger and shift each of the (N, C, ...) volumes along one axis.

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
