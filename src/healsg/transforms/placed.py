"""Targets that have a place on their input, such as masks: they are moved as it is, and keep their labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def is_placed(batch: Mapping[str, Any]) -> bool:
    """Whether each target of a batch is a mask: (N, *spatial), or several (N, R, *spatial), on inputs (N, C, *spatial)
    of two or three spatial axes."""
    input, target = batch["input"], batch.get("target")
    if not isinstance(target, Tensor) or input.dim() < 4 or target.dim() not in (input.dim() - 1, input.dim()):
        return False
    return bool(target.shape[2 - input.dim() :] == input.shape[2:])


def moved_mask(target: Tensor, dims: int, move: Callable[[Tensor], Tensor], outside: int) -> Tensor:
    """A mask after ``move``, in its own type and shape.

    Args:
        target: (N, *spatial) or (N, R, *spatial).
        dims: of an input, (N, C, *spatial).
        move: from (N, C, *spatial) of any type to the same, by whole places or by the nearest one; what comes in from
            outside is 0.
        outside: the label of what comes in from outside.
    """
    planes = target if target.dim() == dims else target.unsqueeze(1)
    if outside and not planes.is_floating_point():
        wide = planes.long() - outside  # so that the 0 from outside becomes this label
        moved = (move(wide) + outside).to(target.dtype)
    else:
        moved = move(planes)
    return moved.view(target.shape)
