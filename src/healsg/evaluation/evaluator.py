"""The evaluation pass: batches through ``task_model.predict``, into metrics that add up over batches and processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from healsg import distributed
from healsg.data.info import DataInfo, require_outputs
from healsg.errors import RunError
from healsg.metric import Metric, computed, precise
from healsg.torch_private import OneVolumeConvolutions, uncompiled
from healsg.training.averaging import restored_modes
from healsg.training.denominator import counts_alike_if_nonnegative, loss_over, weighs_classes
from healsg.training.device import compiled
from healsg.training.step import none_negative

if TYPE_CHECKING:
    from healsg.protocols import Task
    from healsg.runs.media import MediaLog


class Loss(Metric):
    """The mean of the criterion over the samples, or over its own denominator; see ``denominator``."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        self.alike_if_nonnegative = counts_alike_if_nonnegative(criterion)

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        if self.alike_if_nonnegative and none_negative(target):  # on the CPU, where reading a value waits for nothing
            rows = len(target)
            return torch.tensor([self.criterion(output, target).item() * rows, rows], dtype=torch.float64)
        sums = []
        for mean in loss_over(self.criterion, output, target).terms:
            value = precise(mean.value).reshape(())
            count = value.new_full((), target.shape[0]) if mean.over is None else torch.as_tensor(mean.over).to(value)
            sums += [value * count, count]
        return torch.stack(sums)

    def value(self, state: Any) -> float:
        """The sum of the means of the loss's terms; nan if a denominator is 0, since every target is ignored."""
        pairs = zip(state[::2], state[1::2], strict=True)
        return math.fsum(total / count if count else math.nan for total, count in pairs)


class Collector(Protocol):
    """Collects samples and their outputs in an evaluation, for the report."""

    def see(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Add a batch and the network's output for it."""

    def write(self, folder: Path, split: str, loader: Any) -> None:
        """Write the collected samples into the run's folder, after the evaluation of ``split``."""

    def log_media(self, media_log: MediaLog, epoch: int, step: int) -> None:
        """Log the written samples as images and tables, for the loggers."""


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Args:
        numbers: metrics over all samples, by name.
        cases: for each case by name, the metrics that are measured by case.
        samples: the collector's samples, the worst first; empty without a collector.
    """

    numbers: dict[str, Any]
    cases: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)


def worst_first(cases: Mapping[str, Mapping[str, float]], most: int | None = None) -> list[str]:
    """The names of cases, those with the lowest Dice first (or, without Dice, with the lowest first number), and those
    whose Dice is undefined last.

    Args:
        cases: the metrics of each case, by name.
        most: the largest number of names; None for all.
    """

    def rank(name: str) -> tuple[bool, float]:
        numbers = cases[name]
        value = numbers.get("dice", next(iter(numbers.values()), math.nan))
        return math.isnan(value), value

    return sorted(cases, key=rank)[:most]


def without_half(output: Tensor) -> Tensor:
    """An output as metrics get it: float32 instead of bf16 or fp16, any other type as it is."""
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def in_units(output: Tensor, info: DataInfo | None) -> Tensor:
    """The outputs of a network in the unit of their targets: undoes the scaling of a regression's targets."""
    scale = {} if info is None else info.preprocessing
    if "target_mean" not in scale or "target_std" not in scale:
        return output
    mean, std = (output.new_tensor(scale[key]).view(-1) for key in ("target_mean", "target_std"))
    return output * std + mean


class EvalEpoch:
    """One evaluation pass over a split.

    Args:
        task: its loaders include the split.
        split: its name.
        network: the network to measure; None is ``task_method.eval_model``.
        collector: gets each batch with its output, if there is one.
    """

    def __init__(
        self, task: Task, split: str, network: nn.Module | None = None, collector: Collector | None = None
    ) -> None:
        self.task = task
        self.split = split
        self.network = network
        self.collector = collector

    def run(self) -> dict[str, float]:
        """Evaluate the network; e.g. ``{"loss": 0.05, "acc": 0.98}``, or empty if there is no such split."""
        return self.evaluation().numbers

    def evaluation(self) -> Evaluation:
        """The same with the numbers of each case, unless the method overrides ``evaluate``."""
        if self.split not in self.task.loaders:
            return Evaluation({})
        numbers = self.task.task_method.evaluate(self.task, self.split)
        return self.by_case() if numbers is None else Evaluation(numbers)

    def measure(self) -> dict[str, float]:
        """The usual pass: ``task_model.predict`` on every batch, the loss and the model's metrics over all samples."""
        return self.by_case().numbers

    def by_case(self) -> Evaluation:
        """The same with the numbers of each case."""
        task, runner = self.task, self.task.runner
        model = task.task_method.eval_model(task) if self.network is None else self.network
        runner.parallel.align(model)
        loss = Loss(task.criterion)
        scored = _scored_classes(task.info, task.criterion)
        of_model = task.task_model.metrics(task.info).items()
        metrics = {name: metric for name, metric in of_model if self.split in (metric.splits or [self.split])}
        with runner.parallel.unsharded(model), evaluating(model), torch.no_grad():
            for batch in runner.eval_batches(task, self.split):
                with runner.device_setup.autocast():
                    output = task.task_model.predict(model, batch)
                _require_scores(output, scored)
                output = without_half(output)
                loss.update(output, batch["target"])
                output = in_units(output, task.data_info)
                for metric in metrics.values():
                    metric.see(output, batch)
                if self.collector is not None:
                    self.collector.see(output, batch)
        measured: dict[str, Metric] = {"loss": loss, **metrics}
        return Evaluation(collect(measured, lambda: runner.pause(task)), table_of(metrics))


def _scored_classes(info: DataInfo | None, criterion: Any) -> DataInfo | None:
    """The data's description if a network has to give a score for each of its classes, which the criterion then takes;
    other criteria may take embeddings, or one score for two classes."""
    return info if info is not None and info.kind == "multiclass" and weighs_classes(criterion) else None


def _require_scores(output: Any, scored: DataInfo | None) -> None:
    """Raise RunError unless ``predict`` returned a tensor, and ConfigError unless that has an output for each class of
    ``scored``."""
    if not isinstance(output, Tensor):
        raise RunError(f"model: predict returned {type(output).__name__}, not a tensor with a row for each sample")
    if scored is not None and output.dim() > 1:
        require_outputs(output.shape[1], scored)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of each of its modules at the end.

    Blocks that ``runner.compile=regional`` has compiled run uncompiled meanwhile: they would be compiled a second time
    for evaluation, and their rounding would differ from that of ``healsg eval``. On the CPU the 3D convolutions of a
    single volume or window take the same kernels as those of several; see ``OneVolumeConvolutions``.
    """
    modules = set(model.modules())
    is_3d = any(isinstance(module, nn.Conv3d) for module in modules)
    with (
        restored_modes(model),
        uncompiled([block for block in compiled if block in modules]),
        OneVolumeConvolutions() if is_3d else contextlib.nullcontext(),
    ):
        model.eval()
        yield


def table_of(metrics: Mapping[str, Metric]) -> dict[str, dict[str, float]]:
    """The metrics of each case over all processes, with the same names as in ``collect``."""
    table: dict[str, dict[str, float]] = {}
    by_case = {name: metric for name, metric in metrics.items() if metric.goes_by_case}
    if not by_case:
        return table
    packed = {name: metric.packed() for name, metric in by_case.items() if metric.state is not None}
    parts = distributed.processes().gather(packed)
    for name, metric in by_case.items():
        states = [part[name] for part in parts if name in part]
        for case, numbers in metric.by_case(states).items() if states else ():
            named = {f"{name}.{part}" if part else name: number for part, number in numbers.items()}
            table.setdefault(case, {}).update(named)
    return table


def collect(metrics: dict[str, Metric], pause: Callable[[], None] | None = None) -> dict[str, Any]:
    """The values of the metrics over all batches of all processes; metrics without any data are omitted.

    Several named numbers of one metric are named ``<metric>.<name>``, or ``<metric>`` if their name is empty.

    Args:
        metrics: by name, with their states.
        pause: called between the steps of each metric; it raises if the run has to stop.
    """
    packed = {name: metric.packed() for name, metric in metrics.items() if metric.state is not None}
    values: dict[str, Any] = {}
    parts = distributed.processes().gather(packed)
    for name, metric in metrics.items():
        states = [part[name] for part in parts if name in part]
        if states:
            value = computed(metric.compute(states), pause)
            named = value if isinstance(value, dict) else {"": value}
            values |= {f"{name}.{part}" if part else name: number for part, number in named.items()}
    return values
