"""Dense targets, such as masks, which geometric transforms move together with their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def has_dense_target(batch: Mapping[str, Any]) -> bool:
    """Whether the targets of a batch are masks, (N, *spatial) or (N, R, *spatial), of the inputs (N, C, *spatial) with
    two or three spatial axes."""
    input, target = batch["input"], batch.get("target")
    if not isinstance(target, Tensor) or input.dim() < 4 or target.dim() not in (input.dim() - 1, input.dim()):
        return False
    return bool(target.shape[2 - input.dim() :] == input.shape[2:])


def moved_mask(target: Tensor, dims: int, move: Callable[[Tensor], Tensor], outside: int) -> Tensor:
    """Apply a geometric transform to masks; their type and shape stay the same.

    Args:
        target: (N, *spatial) or (N, R, *spatial).
        dims: the number of axes of an input, (N, C, *spatial).
        move: takes and returns (N, C, *spatial) of any type. It moves pixels without interpolation, and fills those
            that come from outside with 0.
        outside: the label of pixels that come from outside.
    """
    planes = target if target.dim() == dims else target.unsqueeze(1)
    if outside and not planes.is_floating_point():
        wide = planes.long() - outside  # so that the 0 that fills becomes this label
        moved = (move(wide) + outside).to(target.dtype)
    else:
        moved = move(planes)
    return moved.view(target.shape)
