"""FlexMatch: FixMatch with a threshold for each class (Zhang et al. 2021, arXiv 2110.08263)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg import distributed
from healsg.errors import ConfigError
from healsg.losses.semi import curriculum_thresholds, hard_cross_entropy
from healsg.methods.consistency import (
    SemiSupervised,
    class_number,
    forward_together,
    masked_mean,
    mean_over,
    probabilities,
    unlabelled_source,
)
from healsg.training.step import rows_of
from healsg.types import Fraction

if TYPE_CHECKING:
    from healsg.protocols import Task


class FlexMatch(SemiSupervised):
    """FixMatch whose threshold is lower for classes of which fewer unlabelled samples are predicted confidently so far
    (curriculum pseudo labelling, equations 5 to 7).

    Several processes exchange the recorded classes: one number per unlabelled sample and step.

    Args:
        threshold: the confidence threshold, and the threshold of the class that is learned best; tau.
        common: the arguments of SemiSupervised.
    """

    records_pseudo_labels = True

    remembered: Tensor
    """(samples,) the class of each unlabelled sample when it was last predicted confidently; -1 for none yet."""

    def __init__(self, threshold: Fraction = 0.95, **common: Any) -> None:
        super().__init__(**common)
        self.threshold = threshold
        self.new: Tensor | None = None
        """The entries that the current update writes to ``remembered``; -1 for none."""

    def setup(self, task: Task) -> None:
        super().setup(task)
        source = unlabelled_source(task)
        if source is None:
            raise ConfigError(
                "method: FlexMatch remembers every unlabelled sample; the task's own loader does not define them"
            )
        class_number(task)
        self.register_buffer("remembered", torch.full((len(source),), -1))

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        input, _ = self.labelled.inputs(task, labelled)
        output, weak, strong = forward_together(task.net, input, unlabelled["weak"], unlabelled["strong"])
        supervised = self.labelled.loss(task.criterion, labelled, output)

        confidence, label = probabilities(weak).max(dim=1)
        thresholds = curriculum_thresholds(self.remembered, output.shape[1], self.threshold).to(confidence.dtype)
        confident = (confidence > thresholds[label]).to(confidence.dtype)
        task.runner.record_pseudo_labels(unlabelled, weak, confident)
        consistency = masked_mean(hard_cross_entropy(strong, label), confident, unlabelled)
        self.note(unlabelled, torch.where(confidence > self.threshold, label, -1))
        return {
            "loss": supervised + self.unlabelled_weight * consistency,
            "supervised": supervised,
            "unlabelled": consistency.detach(),
            "selected": mean_over(confident, unlabelled),
            "threshold": thresholds.mean(),
        }

    def after_update(self, task: Task) -> None:
        super().after_update(task)
        self.remember()

    def remember(self) -> None:
        """Write the entries noted since the last call, by all processes, to ``remembered``; every process must call
        it."""
        assert self.new is not None
        new = distributed.processes().largest(self.new)
        self.remembered.copy_(torch.where(new >= 0, new, self.remembered))
        self.new = None

    def note(self, unlabelled: dict[str, Any], label: Tensor) -> None:
        """Note the classes (N,) of a batch's confident predictions by the samples' index; -1 changes nothing.

        If a sample occurs in several batches of an update or several rows of a batch, the largest class index is kept.
        """
        if self.new is None:
            self.new = torch.full_like(self.remembered, -1)
        if not rows_of(unlabelled, label):  # the rows are another process's
            label = torch.full_like(label, -1)
        self.new.scatter_reduce_(0, unlabelled["index"], label, "amax")
