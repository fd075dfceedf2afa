"""Metrics are states that are merged: over batches, then over processes. The value is computed once, at the end."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from healsg.errors import ConfigError, RunError
from healsg.training.step import indices_on_cpu

if TYPE_CHECKING:
    from healsg.data.base import DataInfo


MANY_CLASSES = 1000
"""Classes from which ``predicted`` looks for the largest score block by block."""


class Metric:
    """A sum on the device. A subclass defines ``measure``; ``value`` is the mean unless it is overridden.

    A metric whose state does not add over batches also overrides ``merge``. One that needs every sample's scores
    derives from ``healsg.metrics.gathered.Gathered``.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    """The kinds of task that the metric supports (``DataInfo.kind``); empty for all. Other kinds are an error."""

    splits: ClassVar[tuple[str, ...]] = ()
    """The splits on which it is measured; empty for all."""

    higher_is_better: ClassVar[bool | Mapping[str, bool] | None] = None
    """Whether a higher value is better; by name, if the metric gives several numbers that differ in this. None: not
    declared, so that ``runner.monitor`` needs ``runner.mode`` for it."""

    goes_by_case: ClassVar[bool] = False
    """Whether each case is measured separately, so that ``by_case`` returns a table of the cases."""

    def __init__(self) -> None:
        self.state: Any = None

    def check(self, info: DataInfo) -> None:
        """Raise ConfigError for a task that the metric does not support; the caller prefixes the metric's key."""

    def for_task(self, info: DataInfo | None) -> Metric:
        """A new metric for one evaluation, adapted to the task, e.g. to the label that it ignores."""
        return copy.deepcopy(self)

    def omitted(self, info: DataInfo) -> str | None:
        """Why the metric is skipped for this task, e.g. too many classes, as text for the log; None if it is not."""
        return None

    def measure(self, output: Tensor, target: Tensor) -> Tensor | None:
        """What a batch adds to the state: a vector whose last element is the count; None if the metric does not apply.

        A count of nan means that an output was nan; the metric's value is then nan too. No value may be read from the
        device here.
        """
        raise NotImplementedError

    def merge(self, first: Tensor, second: Tensor) -> Tensor:
        """The state of two sets of samples from the state of each: their sum."""
        return first + second

    def value(self, state: Any) -> Any:
        """Compute the metric from the merged state, a list of numbers.

        Returns a number, nan where it is not defined; or a dict of named numbers, each of which is logged as
        ``<metric>.<name>``, or as ``<metric>`` if the name is empty; or a list of numbers for the report.
        """
        return state[0] / state[-1] if state[-1] else math.nan

    def see(self, output: Tensor, batch: Mapping[str, Any]) -> None:
        """Add a batch: its ``target`` and, for a metric by case, what ``healsg.data.case.cases_of`` returns of each
        sample (name, group, affine, spacing)."""
        self.update(output, batch["target"])

    def by_case(self, states: Sequence[Any]) -> dict[str, dict[str, float]]:
        """The numbers of each case by its name, from each process's packed state; empty unless measured by case."""
        return {}

    def update(self, output: Tensor, target: Tensor) -> None:
        measured = self.measure(output, target)
        if measured is not None:
            if not isinstance(measured, Tensor) or not measured.dim():
                way = "return a vector of sums, the last of which is the count, such as torch.stack([hits, count])"
                raise RunError(f"{type(self).__name__}.measure: returned {_described(measured)}; {way}")
            self.state = measured if self.state is None else self.merge(self.state, measured)

    def packed(self) -> Any:
        """The state as plain values, for the other processes."""
        return self.state.tolist()

    def of(self, states: Sequence[Any]) -> Any:
        """The value from each process's packed state; nan if an output was nan."""
        merged = reduce(self.merge, (torch.tensor(state, dtype=torch.float64) for state in states)).tolist()
        return math.nan if math.isnan(merged[-1]) else self.value(merged)

    def compute(self, states: Sequence[Any]) -> Generator[None, None, Any]:
        """``of`` in steps: an evaluation that is asked to stop ends at the next ``yield``.

        One step is enough unless ``of`` may take longer than a cluster's scheduler waits after its SIGTERM.
        """
        yield
        return self.of(states)


def _described(value: Any) -> str:
    return "a tensor of no dimensions" if isinstance(value, Tensor) else type(value).__name__


def computed(steps: Generator[None, None, Any], pause: Callable[[], None] | None = None) -> Any:
    """Run a generator to its end and return its value; ``pause`` is called at each step and may raise."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return _plain_value(end.value)
        if pause is not None:
            pause()


def _plain_value(value: Any) -> Any:
    name = "Metric.value"
    return {part: plain(one, name) for part, one in value.items()} if isinstance(value, dict) else plain(value, name)


def plain(value: Any, name: str) -> Any:
    """A number as Python's own, for the files of a run: also a tensor or a number of numpy's that holds one.

    Args:
        value: a number, or what else is written as it is (text, None, a list for the report).
        name: of the value, for the message.

    Raises RunError for what is none of these.
    """
    if hasattr(value, "item") and getattr(value, "size", None) is not None:  # numpy's float64 is a float too
        count = value.numel() if isinstance(value, Tensor) else value.size
        if count == 1:
            return value.item()
    elif value is None or isinstance(value, (int, float, str, list, tuple)):
        return value
    raise RunError(f"{name}: is {type(value).__name__}; give a number, such as float(...)")


def directions_of(metrics: Mapping[str, Metric]) -> dict[str, bool | None]:
    """Whether a higher value is better, by name of a metric, or of each of its named numbers if they differ."""
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics: returned {type(metrics).__name__}; return a dict of metrics by name")
    directions: dict[str, bool | None] = {}
    for name, metric in metrics.items():
        if isinstance(metric, type):
            raise ConfigError(
                f"metrics: {name} is the class {metric.__name__}; give {metric.__name__}(), an object of it"
            )
        declared = getattr(metric, "higher_is_better", None)
        if isinstance(declared, Mapping):
            directions |= {f"{name}.{part}" if part else name: higher for part, higher in declared.items()}
        else:
            directions[name] = declared
    return directions


class Accuracy(Metric):
    """The share of samples whose largest output is their class, in 0..1.

    ``output`` is (N, C, ...) scores, ``target`` (N, ...) class indices; indices outside 0..C-1 are ignored, targets of
    other types or shapes are not measured.
    """

    higher_is_better: ClassVar[bool | None] = True

    def measure(self, output: Tensor, target: Tensor) -> Tensor | None:
        if target.is_floating_point() or output.dim() != target.dim() + 1:
            return None
        hits = predicted(output) == target  # never for a target outside the classes
        if all_known(output, target):
            # on the CPU, where reading a value waits for nothing
            rows = math.nan if math.isnan(output.amax().item()) else len(target)
            return torch.tensor([hits.sum().item(), rows], dtype=torch.float64)
        return counted(hits.sum(), count_of(output, known(output, target)))


def predicted(output: Tensor) -> Tensor:
    """``output.argmax(dim=1)`` of (N, C, ...) scores: the first of the largest; the first nan where there is one.

    On a CPU, torch's maximum over many classes takes a twentieth of the time of its argmax. For (N, C) with many
    classes, the maximum of each block of classes is therefore computed first, and argmax searches only the best block.
    """
    if not _in_blocks(output):
        return output.argmax(dim=1)
    indices, scores = _best_blocks(output, 1)
    return indices.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)


def largest(output: Tensor, count: int) -> Tensor:
    """``output.topk(count, dim=1).indices`` of (N, C, ...) scores. Ties are broken arbitrarily. Indices of C and above,
    which are not classes, may occur if fewer than ``count`` scores are above -inf."""
    count = min(count, output.shape[1])
    if not _in_blocks(output) or count * count > output.shape[1]:
        return output.topk(count, dim=1).indices
    indices, scores = _best_blocks(output, count)
    return indices.gather(1, scores.topk(count, dim=1).indices)


def _in_blocks(output: Tensor) -> bool:
    return output.dim() == 2 and output.shape[1] >= MANY_CLASSES and output.device.type == "cpu"


def _best_blocks(output: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` blocks of classes with the largest maxima of (N, C) scores, which contain the ``count`` largest
    scores: the class indices (N, M) in these blocks, and their scores, -inf beyond the last class."""
    classes = output.shape[1]
    width = math.isqrt(classes)
    full = classes // width * width  # the classes in blocks of the full width; the rest are one shorter block
    maxima = [output[:, :full].reshape(len(output), -1, width).amax(dim=2)]
    if full < classes:
        maxima.append(output[:, full:].amax(dim=1, keepdim=True))
    joined = torch.cat(maxima, dim=1)
    best = joined.argmax(dim=1, keepdim=True) if count == 1 else joined.topk(count, dim=1).indices
    indices = (best.unsqueeze(2) * width + torch.arange(width)).flatten(1)
    inside = indices < classes
    scores = output.gather(1, indices.clamp(max=classes - 1))
    return indices, torch.where(inside, scores, -math.inf)


def all_known(output: Tensor, target: Tensor) -> bool:
    """Whether it is known of targets that all are classes of ``output`` (N, C); see ``indices_on_cpu``."""
    classes = indices_on_cpu(target)
    if not classes or not output.is_cpu:
        return False
    return min(classes) >= 0 and max(classes) < output.shape[1]


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
    """(C,) int32: how many of the N rows of ``chosen``, (N, C) bool, are true in each column. Bytes are summed in a
    quarter of the time that bool takes."""
    return chosen.view(torch.uint8).sum(dim=0, dtype=torch.int32)


def counted(total: Tensor, count: Tensor | int) -> Tensor:
    """What a batch adds to the state of a mean: (2,) of ``total`` and ``count``, in the widest type."""
    total = precise(total)
    return torch.stack([total, precise(count) if isinstance(count, Tensor) else total.new_full((), count)])


def precise(value: Tensor) -> Tensor:
    """``value`` in the widest floating-point type of its device: float64, but on mps float32."""
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)
