"""Metrics are states that add: over batches, then over processes. The value is computed once, at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from healsg.data import DataInfo


class Metric:
    """Sums on the device. A subclass gives ``measure``; ``value`` is the mean unless it says otherwise.

    One whose state does not add, since it needs every sample's scores, is a ``healsg.metrics.gathered.Gathered``.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    """The kinds of task that it is for (``DataInfo.kind``), of which others are refused; empty for all."""

    splits: ClassVar[tuple[str, ...]] = ()
    """The splits on which it is measured; empty for all."""

    def __init__(self) -> None:
        self.state: Any = None

    def check(self, info: DataInfo) -> None:
        """Refuse a task that it is not for. Raises ConfigError, before whose text stands the metric's key."""

    def measure(self, output: Tensor, target: Tensor) -> Tensor | None:
        """What a batch adds to the state: a vector whose last element counts; None where it does not apply."""
        raise NotImplementedError

    def value(self, state: Any) -> Any:
        """The metric from the summed state, a list of numbers: a number, or a list of them for the report."""
        return state[0] / state[-1]

    def update(self, output: Tensor, target: Tensor) -> None:
        measured = self.measure(output, target)
        if measured is not None:
            self.state = measured if self.state is None else self.state + measured

    def packed(self) -> Any:
        """The state as plain values, for the other processes."""
        return self.state.tolist()

    def of(self, states: Sequence[Any]) -> Any:
        """The value from each process's packed state."""
        return self.value([sum(column) for column in zip(*states, strict=True)])


class Accuracy(Metric):
    """The share of samples whose largest output is their class, in 0..1.

    ``output`` is (N, C, ...) scores, ``target`` (N, ...) class indices; anything else is left out.
    """

    def measure(self, output: Tensor, target: Tensor) -> Tensor | None:
        if target.is_floating_point() or output.dim() != target.dim() + 1:
            return None
        return counted((output.argmax(dim=1) == target).sum(), target.numel())


def counted(total: Tensor, count: int) -> Tensor:
    """What a batch adds to the state of a mean: (2,) of ``total`` and ``count``, in the widest type."""
    total = precise(total)
    return torch.stack([total, total.new_full((), count)])


def precise(value: Tensor) -> Tensor:
    """``value`` in the widest floating-point type of its device: float64, but on mps float32."""
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)
