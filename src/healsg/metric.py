"""Metrics are states that are merged: over batches, then over processes. The value is computed once, at the end."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from healsg.data.base import DataInfo


MANY_CLASSES = 1000
"""Classes from which ``predicted`` looks for the largest score block by block."""


class Metric:
    """Sums on the device. A subclass gives ``measure``; ``value`` is the mean unless it says otherwise.

    A state that does not add over batches overrides ``merge`` as well. One that needs every sample's scores is a
    ``healsg.metrics.gathered.Gathered``.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    """The kinds of task that it is for (``DataInfo.kind``), of which others are refused; empty for all."""

    splits: ClassVar[tuple[str, ...]] = ()
    """The splits on which it is measured; empty for all."""

    higher_is_better: ClassVar[bool | Mapping[str, bool] | None] = None
    """Whether more of it is better; of several named numbers that differ in this, of each by its name. None: not
    declared, so that ``runner.monitor`` needs ``runner.mode`` for it."""

    goes_by_case: ClassVar[bool] = False
    """Whether it measures each case by itself, so that ``by_case`` gives a table of them."""

    def __init__(self) -> None:
        self.state: Any = None

    def check(self, info: DataInfo) -> None:
        """Refuse a task that it is not for. Raises ConfigError, before whose text stands the metric's key."""

    def for_task(self, info: DataInfo | None) -> Metric:
        """A new metric for one evaluation of a task, such as with the label that it ignores."""
        return copy.deepcopy(self)

    def omitted(self, info: DataInfo) -> str | None:
        """Why this task is not measured, such as too many classes, in words for the log; None where it is."""
        return None

    def measure(self, output: Tensor, target: Tensor) -> Tensor | None:
        """What a batch adds to the state: a vector whose last element counts; None where it does not apply.

        A count of nan says that an output was no number, and so is the value then. No value may be read from the
        device here.
        """
        raise NotImplementedError

    def merge(self, first: Tensor, second: Tensor) -> Tensor:
        """The state of two sets of samples from the state of each: their sum."""
        return first + second

    def value(self, state: Any) -> Any:
        """The metric from the merged state, a list of numbers.

        It is a number, nan where it is not defined; several named numbers as a dict, each of which is written as
        ``<metric>.<name>``, and as ``<metric>`` where the name is empty; or a list of numbers for the report.
        """
        return state[0] / state[-1] if state[-1] else math.nan

    def see(self, output: Tensor, batch: Mapping[str, Any]) -> None:
        """Take in a batch: its ``target`` and, where the metric goes by case, what ``healsg.data.case.cases_of`` knows
        of each sample (name, group, affine, spacing)."""
        self.update(output, batch["target"])

    def by_case(self, states: Sequence[Any]) -> dict[str, dict[str, float]]:
        """The numbers of each case by its name, from each process's packed state; empty of what goes by no case."""
        return {}

    def update(self, output: Tensor, target: Tensor) -> None:
        measured = self.measure(output, target)
        if measured is not None:
            self.state = measured if self.state is None else self.merge(self.state, measured)

    def packed(self) -> Any:
        """The state as plain values, for the other processes."""
        return self.state.tolist()

    def of(self, states: Sequence[Any]) -> Any:
        """The value from each process's packed state; nan where an output was no number."""
        merged = reduce(self.merge, (torch.tensor(state, dtype=torch.float64) for state in states)).tolist()
        return math.nan if math.isnan(merged[-1]) else self.value(merged)

    def compute(self, states: Sequence[Any]) -> Generator[None, None, Any]:
        """``of`` in steps: an evaluation that was asked to stop ends at the next ``yield``.

        One step is enough, except where ``of`` may take longer than a scheduler waits after its SIGTERM.
        """
        yield
        return self.of(states)


def computed(steps: Generator[None, None, Any], pause: Callable[[], None] | None = None) -> Any:
    """What a generator returns at its end; ``pause`` is called at each of its steps, and may raise."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        if pause is not None:
            pause()


def directions_of(metrics: Mapping[str, Metric]) -> dict[str, bool | None]:
    """By name of a metric, and of each of its named numbers where they differ, whether more is better."""
    known: dict[str, bool | None] = {}
    for name, metric in metrics.items():
        declared = getattr(metric, "higher_is_better", None)
        if isinstance(declared, Mapping):
            known |= {f"{name}.{part}" if part else name: more for part, more in declared.items()}
        else:
            known[name] = declared
    return known


class Accuracy(Metric):
    """The share of samples whose largest output is their class, in 0..1.

    ``output`` is (N, C, ...) scores, ``target`` (N, ...) class indices, of which those outside 0..C-1 are left out;
    targets of other types or shapes are not measured.
    """

    higher_is_better: ClassVar[bool | None] = True

    def measure(self, output: Tensor, target: Tensor) -> Tensor | None:
        if target.is_floating_point() or output.dim() != target.dim() + 1:
            return None
        hits = predicted(output) == target  # never for a target outside the classes
        return counted(hits.sum(), count_of(output, known(output, target)))


def predicted(output: Tensor) -> Tensor:
    """``output.argmax(dim=1)`` of (N, C, ...) scores: the first of the largest; the first nan where there is one.

    torch's maximum over many classes takes a twentieth of its argmax on a CPU. So of (N, C) with many classes it tells
    the block of classes in which the largest is, and only the scores of that block are searched.
    """
    if not _in_blocks(output):
        return output.argmax(dim=1)
    places, scores = _of_best_blocks(output, 1)
    return places.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)


def largest(output: Tensor, count: int) -> Tensor:
    """``output.topk(count, dim=1).indices`` of (N, C, ...) scores. Of equal scores any may be among them; C and above,
    which are no classes, where fewer than ``count`` scores are above -inf."""
    count = min(count, output.shape[1])
    if not _in_blocks(output) or count * count > output.shape[1]:
        return output.topk(count, dim=1).indices
    places, scores = _of_best_blocks(output, count)
    return places.gather(1, scores.topk(count, dim=1).indices)


def _in_blocks(output: Tensor) -> bool:
    return output.dim() == 2 and output.shape[1] >= MANY_CLASSES and output.device.type == "cpu"


def _of_best_blocks(output: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Those ``count`` blocks of the classes of (N, C) scores that have the largest maxima, so that the ``count``
    largest scores lie in them: the classes (N, M), and their scores; -inf beyond the last class."""
    classes = output.shape[1]
    width = math.isqrt(classes)
    even = classes // width * width
    maxima = [output[:, :even].reshape(len(output), -1, width).amax(dim=2)]
    if even < classes:
        maxima.append(output[:, even:].amax(dim=1, keepdim=True))
    joined = torch.cat(maxima, dim=1)
    best = joined.argmax(dim=1, keepdim=True) if count == 1 else joined.topk(count, dim=1).indices
    places = (best.unsqueeze(2) * width + torch.arange(width)).flatten(1)
    inside = places < classes
    scores = output.gather(1, places.clamp(max=classes - 1))
    return places, torch.where(inside, scores, -math.inf)


def known(output: Tensor, target: Tensor) -> Tensor:
    """(N, ...) bool: which targets are one of the classes of ``output`` (N, C, ...)."""
    target = target.long()  # a comparison with C in uint8 would wrap around
    return (target >= 0) & (target < output.shape[1])


def count_of(output: Tensor, samples: Tensor) -> Tensor:
    """The number of ``samples``, (N, ...) bool, as a scalar; nan where one of these has an ``output`` that is nan.

    ``output`` is (N, C, ...), or of the shape of ``samples``, where each number is a sample.
    """
    top = output if output.dim() == samples.dim() else output.amax(dim=1)  # nan where one of the C is
    return torch.where((top.isnan() & samples).any(), math.nan, precise(samples.sum()))


def count_of_all(output: Tensor) -> Tensor:
    """The number of elements of ``output``, each of which is a sample, as a scalar; nan where one of them is nan.

    The maximum is nan where one of them is, and is found many times faster than by asking each.
    """
    count = precise(output.new_full((), 1.0)) * output.numel()
    return torch.where(output.amax().isnan(), math.nan, count) if output.numel() else count


def count_by_label(chosen: Tensor) -> Tensor:
    """(C,) int32, how many of the N rows of ``chosen``, (N, C) bool, are true: as bytes, which are added up in a
    quarter of the time."""
    return chosen.view(torch.uint8).sum(dim=0, dtype=torch.int32)


def counted(total: Tensor, count: Tensor | int) -> Tensor:
    """What a batch adds to the state of a mean: (2,) of ``total`` and ``count``, in the widest type."""
    total = precise(total)
    return torch.stack([total, precise(count) if isinstance(count, Tensor) else total.new_full((), count)])


def precise(value: Tensor) -> Tensor:
    """``value`` in the widest floating-point type of its device: float64, but on mps float32."""
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)
