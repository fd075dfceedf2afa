"""Options for labelled samples: Random Erasing, Mixup, CutMix and label smoothing, and the loss of the model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.losses.classification import require_pixels, smooth
from healsg.methods import mixing
from healsg.methods.mixing import Mixing
from healsg.training.denominator import (
    counts_alike,
    counts_alike_if_nonnegative,
    ignored,
    loss_over,
    mean_over_samples,
    weighs_classes,
)
from healsg.training.step import Loss, Mean, TrainBatch, samples_of

if TYPE_CHECKING:
    from healsg.protocols import Task

log = logging.getLogger("healsg")


class LabelledSamples:
    """The labelled samples of a step: their augmented inputs, their targets, and the criterion's loss.

    An option of 0 is off and costs nothing.

    Args:
        label_smoothing: the share of the target's probability that is spread evenly over all classes (Szegedy et al.
            2016, arXiv 1512.00567, section 7). The loss must take class probabilities, as for mixup and cutmix.
        mixup, cutmix: alpha of the Beta distribution of the shares in which two samples are mixed (see ``mixing``);
            with both, each batch draws one of them with probability 1/2. CutMix pastes its box into masks too.
        random_erasing: the probability that a rectangle of an image is filled with noise (see ``mixing``); a mask
            stays as it is.
    """

    def __init__(
        self, label_smoothing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0, random_erasing: float = 0.0
    ) -> None:
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.cutmix = cutmix
        self.random_erasing = random_erasing
        self.alike = True
        """Whether the criterion weighs every sample equally, so that no denominator has to be counted."""
        self.alike_if_nonnegative = True
        """The same for a batch of whose targets none is negative (``Samples.nonnegative``)."""

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with each other."""
        return bool(self.mixup or self.cutmix)

    def check(self, task: Task, one_class: str | None) -> None:
        """Check that the options suit the data, before these are read. Raises ConfigError.

        Args:
            task: the task.
            one_class: the name of a method that needs one class per sample, whatever its loss; None for any other.
        """
        shape = task.info.input_shape if task.info else (1, 1, 1)
        if self.cutmix and len(shape) < 3:
            raise ConfigError(f"method.cutmix: needs images or volumes, and a sample here is {shape}; set it to 0")
        if self.random_erasing and len(shape) != 3:
            raise ConfigError(f"method.random_erasing: needs images, and a sample here is {shape}; set it to 0")
        labels_of_pixels = task.info is not None and task.info.dense and not task.info.regions
        smoothed = self.label_smoothing and not labels_of_pixels
        if task.info and task.info.kind != "multiclass" and (one_class or smoothed):
            key = f"method: {one_class}" if one_class else "method.label_smoothing:"
            raise ConfigError(f"{key} needs one class a sample, and this task is {task.info.kind}")

    def refuse_mixing(self, reason: str) -> None:
        """Raise ConfigError, with the method's reason, if samples are mixed."""
        if self.mixes:
            key = "mixup" if self.mixup else "cutmix"
            raise ConfigError(f"method.{key}: {reason}; set it to 0")

    def setup(self, task: Task, own_loss: str | None = None) -> None:
        """Determine how the criterion weighs the samples, from the criterion and the training targets.

        Args:
            task: the task, with its loaders and criterion.
            own_loss: the name of the method if its own loss replaces the criterion.

        Raises:
            ConfigError: the criterion does not fit the method or its options.
        """
        softened = {"label_smoothing": self.label_smoothing, "mixup": self.mixup, "cutmix": self.cutmix}
        if task.info and task.info.dense and not self.mixup:
            softened["cutmix"] = 0.0  # the box is pasted into the mask, whose labels stay class indices
        key = next((key for key, value in softened.items() if value), None)
        if own_loss and not is_plain(task.criterion):
            conflict = f"has its own loss for one class a sample, and cannot use the model's, {task.criterion}"
            raise ConfigError(f"method: {own_loss} {conflict}; method=supervised does")
        if key and not takes_probabilities(task.criterion):
            raise ConfigError(
                f"method.{key}: {type(task.criterion).__name__} takes no class probabilities; set it to 0"
            )
        self.alike = bool(own_loss) or counts_alike(task.criterion, training_targets(task))
        self.alike_if_nonnegative = self.alike or counts_alike_if_nonnegative(task.criterion)
        if not (own_loss or mean_over_samples(task.criterion)):
            report_batch_criterion(task)

    def inputs(self, task: Task, batch: dict[str, Any]) -> tuple[Tensor, Mixing | None]:
        """The network's input for a batch, and how its samples were mixed; None for unmixed ones."""
        input: Tensor = batch["input"]
        if not (self.random_erasing or self.mixup or self.cutmix):
            return input, None
        with task.runner.drawn_together(batch) as samples:
            if self.random_erasing:
                input = mixing.random_erasing(input, self.random_erasing, samples)
            if not self.mixes:
                return input, None
            return mixing.mix(input, self.mixup, self.cutmix, samples)

    def loss(
        self, criterion: nn.Module, batch: dict[str, Any], output: Tensor, mixed: Mixing | None = None
    ) -> Tensor | Loss:
        """The criterion's loss: a tensor if it is a mean over the samples of the batch, else a ``step.Loss`` with its
        denominator."""
        labels: Tensor = batch["target"]
        if labels.ndim > 2 and getattr(output, "ndim", 3) == 2:
            require_pixels(output, labels)
        # a plain dict is made by a train_step of the user's own, with any targets
        unchanged = isinstance(batch, TrainBatch) and batch.target_is_unchanged
        alike = self.alike and unchanged
        pasted = mixed.pasted(labels) if mixed is not None else None
        if pasted is not None:  # CutMix pastes its box into a mask, whose labels then need no mixing
            labels = pasted
            mixed = None
        target = labels
        if mixed is not None or self.label_smoothing:
            target = self.class_probabilities(target, output, mixed, None if alike else criterion)
        if alike:
            value: Tensor = criterion(output, target)
            return value
        samples = samples_of(batch)
        if unchanged and self.alike_if_nonnegative and samples is not None and samples.nonnegative:
            return Mean(criterion(output, target), float(samples.rows))
        return loss_over(criterion, output, target, labels)

    def class_probabilities(
        self, target: Tensor, output: Tensor, mixed: Mixing | None = None, criterion: nn.Module | None = None
    ) -> Tensor:
        """(N, C, ...) targets, smoothed and mixed as the samples were.

        Args:
            target: (N, ...) class indices, or probabilities (N, C, ...), which are not smoothed.
            output: (N, C, ...) the network's logits.
            mixed: how the samples were mixed.
            criterion: the criterion if it may ignore some targets, which then become 0 for every class; else None.
        """
        left_out = None if criterion is None else ignored(criterion, target)
        if left_out is None:
            soft = smooth(target, output, self.label_smoothing)
        else:
            soft = smooth(target.masked_fill(left_out, 0), output, self.label_smoothing)
            soft = soft.masked_fill(left_out.unsqueeze(1), 0.0)
        return soft if mixed is None else mixed.of(soft)


def training_targets(task: Task) -> Tensor | None:
    """The targets of all labelled training samples; None if they are not known without reading samples."""
    sources = getattr(task.train_loader, "sources", {})
    source = sources.get("labelled")
    return None if source is None else source.targets


def report_batch_criterion(task: Task) -> None:
    """Log how a criterion that is not a mean over samples is computed when a batch is split. Raises ConfigError with
    ``auto_accumulate``."""
    name = type(task.criterion).__name__
    if task.runner.auto_accumulate:
        raise ConfigError(f"runner.auto_accumulate: {name} is no mean over samples; set it to false")
    if task.runner.accumulate > 1 or task.runner.parallel.several:
        log.info("%s is no mean over samples: each accumulated batch and process has its own", name)


def is_plain(criterion: nn.Module) -> bool:
    """Whether a criterion is the mean cross entropy of one class a sample without weights or smoothing."""
    if type(criterion) is not nn.CrossEntropyLoss or criterion.weight is not None:
        return False
    return (criterion.ignore_index, criterion.reduction, criterion.label_smoothing) == (-100, "mean", 0.0)


def takes_probabilities(criterion: nn.Module) -> bool:
    """Whether ``criterion(output, target)`` accepts class probabilities instead of indices."""
    if weighs_classes(criterion):
        return isinstance(criterion, nn.CrossEntropyLoss)
    weight = getattr(criterion, "weight", None)
    classes = len(weight) if isinstance(weight, Tensor) and weight.dim() else 2
    scores = torch.zeros(2, classes)
    try:
        return bool(torch.isfinite(criterion(scores, torch.full_like(scores, 1 / classes))).all())
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
