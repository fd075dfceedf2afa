"""Random flips, random shifts and normalisation of whole batches of volumes: the counterpart of ``image``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from healsg.seeding import Draw
from healsg.transforms.image import ImageTransform, Padding, check_view


class VolumeTransform(ImageTransform):
    """``ImageTransform`` of (N, C, D, H, W) volumes: mirrored along each axis with probability 1/2, shifted along each.

    Lengths are in voxels; ``alternate`` is not supported.
    """

    per_sample = True

    words = ("voxels", "volumes")

    def move(self, images: Tensor, draw: Draw) -> Tensor:
        """Flip and shift each volume, axis by axis."""
        if self.flip and not self.shift:
            drawn = torch.stack([draw.host.integers(2 * number, 0, 1) for number in range(3)], dim=1)
            if drawn.device.type == "cpu":  # reading a value from another device would synchronise
                return flipped(images, drawn.tolist())
        for number, axis in enumerate((2, 3, 4) if self.flip or self.shift else ()):
            mirrored = draw.integers(2 * number, 0, int(self.flip)) == 1
            shift = draw.integers(2 * number + 1, -self.shift, self.shift)
            images = move_along(images, axis, mirrored, shift, self.padding)
        return images

    def of(self, view: str, split: str = "train") -> VolumeTransform:
        """This transform, which serves every view of a volume that it supports. Raises ConfigError for any other."""
        check_view(view, "volumes")
        return self


def flipped(volumes: Tensor, drawn: Sequence[Sequence[int]]) -> Tensor:
    """(N, C, D, H, W), each volume mirrored along the axes of which its row of ``drawn`` has a 1: what ``move_along``
    does one axis after the other, in one pass over the memory."""
    made = torch.empty_like(volumes)
    for row, axes in enumerate(drawn):
        made[row] = volumes[row].flip([axis for axis, flip in enumerate(axes, start=1) if flip])
    return made


def move_along(volumes: Tensor, axis: int, mirrored: Tensor, shift: Tensor, padding: Padding) -> Tensor:
    """Mirror and shift each of the (N, C, ...) volumes along one axis.

    Args:
        volumes: of any type.
        axis: 2 or more.
        mirrored: (N,) bool: whether each volume is mirrored, which happens before the shift.
        shift: (N,) int64: by how many voxels, fewer than the axis has.
        padding: what fills the voxels that come from outside.
    """
    size = volumes.shape[axis]
    source = torch.arange(size, device=volumes.device) + shift.view(-1, 1)
    inside = (source >= 0) & (source < size)
    source = torch.where(source < 0, -source, torch.where(source >= size, 2 * (size - 1) - source, source))
    source = torch.where(mirrored.view(-1, 1), size - 1 - source, source)
    along = [len(volumes) if at == 0 else size if at == axis else 1 for at in range(volumes.dim())]
    moved = volumes.gather(axis, source.view(along).expand_as(volumes))
    return moved * inside.view(along).to(moved.dtype) if padding == "zero" else moved
