"""Unsupervised data augmentation (Xie et al. 2019, arXiv 1904.12848)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from healsg.losses.classification import cross_entropy
from healsg.losses.semi import sharpen, signal_threshold
from healsg.methods.consistency import SemiSupervised, forward_together, masked_mean, mean_over, probabilities
from healsg.training.step import Mean
from healsg.types import Fraction, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class UDA(SemiSupervised):
    """The strong view of an unlabelled sample is trained towards the sharpened prediction of the weak one, where that
    is confident (sections 2.2 and 3.2).

    Args:
        threshold: the confidence threshold; beta.
        temperature: with which predictions are sharpened; tau.
        annealing: training signal annealing: the schedule of the probability above which a labelled sample is excluded
            from the loss, so that the few labels are not memorised.
        common: the arguments of SemiSupervised.
    """

    replaces_criterion = True
    records_pseudo_labels = True

    def __init__(
        self,
        threshold: Fraction = 0.8,
        temperature: Positive = 0.4,
        annealing: Literal["none", "linear", "log", "exp"] = "none",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.threshold = threshold
        self.temperature = temperature
        self.annealing = annealing

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        input, _ = self.labelled.inputs(task, labelled)
        output, weak, strong = forward_together(task.net, input, unlabelled["weak"], unlabelled["strong"])

        losses = cross_entropy(output, self.labelled.class_probabilities(labelled["target"], output))
        if self.annealing == "none":
            supervised: Tensor | Mean = losses.mean()
        else:
            progress = task.runner.step_count / task.runner.total_steps
            highest = signal_threshold(self.annealing, progress, output.shape[1])
            right = probabilities(output).gather(1, labelled["target"][:, None]).squeeze(1)
            counts = (right <= highest).to(losses.dtype)
            supervised = Mean((losses * counts).sum() / counts.sum().clamp(min=1.0), counts.sum())

        predicted = probabilities(weak)
        confident = (predicted.amax(dim=1) > self.threshold).to(predicted.dtype)
        task.runner.record_pseudo_labels(unlabelled, weak, confident)
        consistency = masked_mean(cross_entropy(strong, sharpen(predicted, self.temperature)), confident, unlabelled)
        return {
            "loss": supervised + self.unlabelled_weight * consistency,
            "supervised": supervised,
            "unlabelled": consistency.detach(),
            "selected": mean_over(confident, unlabelled),
        }
