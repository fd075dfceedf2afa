"""Semi-supervised learning: labelled and unlabelled samples, which the network sees in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from healsg import distributed
from healsg.data.base import Needs, TaskData
from healsg.data.loader import Loader
from healsg.data.source import Source
from healsg.errors import ConfigError
from healsg.losses.classification import log_softmax
from healsg.method import TaskMethod
from healsg.methods.labelled import LabelledSamples
from healsg.metric import precise
from healsg.training.averaging import optimizer_averages
from healsg.training.step import Mean, samples_of
from healsg.types import Count, Fraction, NonNegative, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class SemiSupervised(TaskMethod):
    """Learn from labelled samples and from views of unlabelled ones.

    The labelled samples are augmented as ``data.augment`` says. One forward pass covers all samples of a step, so that
    BatchNorm's statistics are those of all of them.

    Args:
        unlabelled_ratio: unlabelled samples per labelled sample in a batch; the papers' mu.
        unlabelled_weight: the weight of the unlabelled samples' loss; the papers' lambda_u.
        ema: the decay of the moving average of the weights, which is evaluated. Not needed with an optimizer that
            averages the weights itself.
        label_smoothing, random_erasing: options of the labelled samples (see ``LabelledSamples``).
        mixup, cutmix: must be 0, since unlabelled samples have no targets to mix.
        common: the arguments of TaskMethod.
    """

    leaves_weights = True

    views: ClassVar[tuple[str, ...]] = ("weak", "strong")
    """The views of the unlabelled samples."""

    dense: ClassVar[bool] = False
    """Whether the method supports masks as targets; each pixel is then a sample of its own."""

    records_pseudo_labels: ClassVar[bool] = False
    """Whether ``train_step`` calls ``runner.record_pseudo_labels``, so that a ledger can be kept."""

    replaces_criterion: ClassVar[bool] = False
    """Whether ``train_step`` replaces ``task.criterion`` by its own loss on class probabilities."""

    def __init__(
        self,
        unlabelled_ratio: Count = 7,
        unlabelled_weight: NonNegative = 1.0,
        ema: Share = 0.999,
        label_smoothing: Share = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        random_erasing: Fraction = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(ema=ema, **common)
        if optimizer_averages(self.make_optimizer):
            self.ema = 0.0
        self.needs = Needs({"labelled": ("input",), "unlabelled": self.views}, {"unlabelled": unlabelled_ratio})
        self.unlabelled_weight = unlabelled_weight
        self.labelled = LabelledSamples(label_smoothing, mixup, cutmix, random_erasing)

    def check(self, task: Task) -> None:
        super().check(task)
        name = type(self).__name__
        data = type(task.task_data)
        masks = task.info is not None and task.info.dense
        if masks:
            refuse_masks(name, self.dense, bool(task.info and task.info.regions))
        self.labelled.check(task, None if masks else name)
        if task.info and data.streams is TaskData.streams:
            raise ConfigError(f"data: {data.__name__} gives no unlabelled samples, which {name} needs; data=cifar does")
        self.labelled.refuse_mixing(f"{name} learns from unlabelled samples, which have no target")

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.labelled.setup(task, type(self).__name__ if self.replaces_criterion else None)
        unlabelled_source(task)
        if task.info and task.info.dense:
            require_one_geometry(task, self.needs.streams["unlabelled"])


def refuse_masks(name: str, dense: bool, regions: bool) -> None:
    """Raise ConfigError if the method does not support masks, or not with ``regions``.

    Args:
        name: the name of the method.
        dense: whether it supports masks.
        regions: whether the outputs are overlapping regions.
    """
    if not dense:
        raise ConfigError(f"method: {name} learns one class a sample; mean_teacher, cps and fixmatch learn masks")
    if regions:
        raise ConfigError(f"data.regions: {name} needs one class a pixel, and regions overlap; leave it out")


def require_one_geometry(task: Task, views: Sequence[str]) -> None:
    """Raise ConfigError if a view of unlabelled samples with masks has its own geometric transform, so that the
    predictions of two views do not correspond pixel by pixel."""
    if not isinstance(task.train_loader, Loader) or len(views) < 2:
        return
    transforms = task.train_loader.views["unlabelled"]
    for view in views:
        if transforms[view] is not None and not getattr(transforms[view], "shares_geometry", False):
            name = type(task.task_method).__name__
            detail = f"{name} compares the views of a sample pixel by pixel, and {view!r} is moved by itself"
            raise ConfigError(f"data.augment: {detail}; set method.view=strong, or data.augment=standard")


def unlabelled_source(task: Task) -> Source | None:
    """The unlabelled samples; None if the task has a loader of another type. Raises ConfigError if there are none."""
    loader = task.train_loader
    if isinstance(loader, Loader) and "unlabelled" not in loader.sources:
        name = type(task.task_method).__name__
        raise ConfigError(f"build_dataloader: {name} needs batches of `labelled` and `unlabelled` samples")
    return loader.sources["unlabelled"] if isinstance(loader, Loader) else None


def class_number(task: Task) -> int:
    """The number of classes. Raises ConfigError if a task with its own loaders does not declare it."""
    if task.info is None:
        raise ConfigError(f"method: {type(task.task_method).__name__} needs to know the classes; give the task a data")
    return task.info.num_classes


def forward_together(network: nn.Module, *inputs: Tensor) -> tuple[Any, ...]:
    """The network's outputs for several batches, from one forward pass, so that BatchNorm's statistics are common.

    If the network returns a list (deep supervision) or a tuple (two networks) of outputs, so does each batch.
    """
    return split_output(network(torch.cat(inputs)), [len(input) for input in inputs])


def split_output(output: Any, sizes: list[int]) -> tuple[Any, ...]:
    """Split an output, or a list or tuple of outputs, into batches of these numbers of rows."""
    if isinstance(output, Tensor):
        return torch.split(output, sizes)
    parts = [split_output(part, sizes) for part in output]
    return tuple(type(output)(part[index] for part in parts) for index in range(len(sizes)))


def finest(output: Tensor | Sequence[Tensor]) -> Tensor:
    """The output at the resolution of the input: the first of several with deep supervision, else the only one."""
    return output if isinstance(output, Tensor) else output[0]


def inside(batch: dict[str, Any]) -> Tensor | None:
    """(N, *spatial) bool: which pixels of unlabelled patches lie inside their cases; None if all do, or if targets are
    not masks. The data set stores this map as the target, in place of the unknown masks (see ``Patches``), 1 inside."""
    known = batch.get("target")
    return None if known is None or known.dim() < 3 else known == 1


def masked_mean(losses: Tensor, mask: Tensor, batch: dict[str, Any], counted: Tensor | None = None) -> Mean:
    """``mean(losses * mask)``, a mean over all samples (or pixels) of a batch, selected or not.

    Args:
        losses: (N,) one per sample, or (N, *spatial) one per pixel.
        mask: of the same shape, the weight of each, from 0 to 1.
        batch: the stream of the samples.
        counted: (N, *spatial) bool, the pixels in the denominator; None for all.
    """
    return mean_over(losses * mask, batch, counted)


def mean_over(values: Tensor, batch: dict[str, Any], counted: Tensor | None = None) -> Mean:
    """The mean over a batch's samples of floating-point values (N,) or (N, *spatial), such as the mask of the selected
    ones. With ``counted``, the mean of a sample is taken over its counted pixels, and is 0 if it has none.

    It is a mean over samples and not over pixels: any split of a batch must give the same step, and the number of
    pixels in later micro-batches is not known.
    """
    if counted is None:
        return Mean(values.mean(), samples_of(batch))
    number = counted.flatten(1).sum(dim=1).to(values.dtype)
    sums = (values * counted).flatten(1).sum(dim=1)
    return Mean((sums / number.clamp(min=1.0)).mean(), samples_of(batch))


def probabilities(output: Tensor) -> Tensor:
    """Predictions (N, C) without a gradient, in at least float32."""
    return log_softmax(output.detach()).exp()


def sum_over_all(values: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """The sum of values over the samples of all processes, in double precision, and the number of samples, a scalar;
    every process must call it.

    Args:
        values: (N, ...).
        rows: only the first ``rows`` of them are counted; None for all.
    """
    rows = len(values) if rows is None else rows
    total = precise(values[:rows]).sum(dim=0)
    summed = distributed.processes().sum(torch.cat([total.flatten(), total.new_full((1,), rows)]))
    return summed[:-1].view(values.shape[1:]), summed[-1]


def mean_over_all(values: Tensor, rows: int | None = None) -> Tensor:
    """The mean of values over the samples of all processes; see ``sum_over_all``."""
    total, count = sum_over_all(values, rows)
    return total / count
