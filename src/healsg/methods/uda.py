"""Unsupervised data augmentation (Xie et al. 2019, arXiv 1904.12848)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from healsg.losses.classification import cross_entropy
from healsg.losses.semi import sharpen, signal_threshold
from healsg.methods.consistency import SemiSupervised, probabilities
from healsg.training.step import Loss, Mean
from healsg.types import Fraction, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask


class UDA(SemiSupervised):
    """Predict of the strong view of an unlabelled sample what is predicted, and surely, of the weak one.

    Args:
        threshold: the probability from which a prediction counts; beta.
        temperature: with which predictions are sharpened; tau.
        annealing: how the probability rises from which a labelled sample no longer counts, so that the few labels are
            not learned by heart: training signal annealing.
        common: the arguments of SemiSupervised and Supervised.
    """

    replaces_criterion = True

    def __init__(
        self,
        threshold: Fraction = 0.8,
        temperature: Positive = 0.4,
        annealing: Literal["none", "linear", "log", "exp"] = "none",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.threshold, self.temperature, self.annealing = threshold, temperature, annealing

    def loss(self, task: BasicTask, batch: dict[str, Any], output: Tensor, target: Tensor) -> Tensor | Loss:
        losses = cross_entropy(output, target)
        if self.annealing == "none":
            return losses.mean()
        highest = signal_threshold(self.annealing, task.runner.step_count / task.runner.total_steps, output.shape[1])
        right = probabilities(output).gather(1, batch["target"][:, None]).squeeze(1)
        counts = (right <= highest).to(losses.dtype)
        return Mean((losses * counts).sum() / counts.sum().clamp(min=1.0), counts.sum())

    def term(self, task: BasicTask, batch: dict[str, Any], *outputs: Tensor) -> tuple[Loss, dict[str, Any]]:
        weak, strong = outputs
        predicted = probabilities(weak)
        losses = cross_entropy(strong, sharpen(predicted, self.temperature))
        return self.selected(batch, losses, predicted.amax(dim=1) > self.threshold)
