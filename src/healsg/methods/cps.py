"""Cross pseudo supervision: two networks label each other's samples (Chen et al. 2021, CVPR, arXiv 2106.01226)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from healsg.losses.semi import hard_cross_entropy, sigmoid_ramp
from healsg.methods.consistency import (
    SemiSupervised,
    finest,
    forward_together,
    inside,
    mean_over,
    probabilities,
)
from healsg.methods.pair import Pair, refuse_parts
from healsg.training.step import Mean
from healsg.types import Count, Fraction, NonNegative, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class CrossPseudoSupervision(SemiSupervised):
    """The class that each of two networks predicts of a pixel (or sample) is the label of the other one, of unlabelled
    and of labelled samples (equations 2 to 4).

    The networks have the same structure and different initial weights, see the same images, weakly augmented, and share
    one optimizer. The first one is evaluated and saved.

    Args:
        unlabelled_ratio: as for SemiSupervised.
        unlabelled_weight: of the cross pseudo supervision; the paper's lambda, which depends on the data: the authors'
            code (TorchSemiSeg) has 6 for Cityscapes.
        threshold: the confidence threshold of a pseudo-label; 0, as in the paper, takes all.
        ramp: the share of the run over which the weight grows, along a sigmoid; 0, as in the paper, is at once.
        ema: as for SemiSupervised, of the first network; the paper has none.
        common: the arguments of SemiSupervised.
    """

    dense = True
    records_pseudo_labels = True

    views = ("weak",)

    def __init__(
        self,
        unlabelled_ratio: Count = 1,
        unlabelled_weight: NonNegative = 1.5,
        threshold: Share = 0.0,
        ramp: Fraction = 0.0,
        ema: Share = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(unlabelled_ratio=unlabelled_ratio, unlabelled_weight=unlabelled_weight, ema=ema, **common)
        self.threshold = threshold
        self.ramp = ramp

    def check(self, task: Task) -> None:
        super().check(task)
        refuse_parts(self, "cross pseudo supervision")

    def extend_network(self, task: Task, network: nn.Module) -> nn.Module:
        return Pair(network, task.build_model())

    def trained_network(self, task: Task) -> nn.Module:
        first: nn.Module = task.model.first  # type: ignore[assignment]
        return first

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        input, _ = self.labelled.inputs(task, labelled)
        (first, second), (first_weak, second_weak) = forward_together(task.net, input, unlabelled["weak"])
        supervised = self.labelled.loss(task.criterion, labelled, first)
        supervised = supervised + self.labelled.loss(task.criterion, labelled, second)

        scores = finest(second_weak)  # from which the first network learns, the one that is evaluated
        task.runner.record_pseudo_labels(unlabelled, scores, self.counted(scores))

        known = labelled_pixels(task, labelled)
        on_labelled = self.crossed(finest(first), finest(second), labelled, known)
        on_unlabelled = self.crossed(finest(first_weak), finest(second_weak), unlabelled, inside(unlabelled))
        growth = sigmoid_ramp(task.runner.step_count / task.runner.total_steps, self.ramp)
        loss = supervised + growth * self.unlabelled_weight * (on_unlabelled + on_labelled)
        return {"loss": loss, "supervised": supervised, "unlabelled": on_unlabelled.detach()}

    def counted(self, output: Tensor) -> Tensor | None:
        """(N, *spatial) 1 for the predictions that are labels of the other network; None if all are."""
        if not self.threshold:
            return None
        confidence = probabilities(output).amax(dim=1)
        return (confidence >= self.threshold).to(confidence.dtype)

    def crossed(self, first: Tensor, second: Tensor, batch: dict[str, Any], counted: Tensor | None) -> Mean:
        """Both networks' cross entropies with the other one's confident predictions, a mean over pixels (or samples).

        Args:
            first, second: (N, C, ...) logits.
            batch: the stream of the samples.
            counted: see ``mean_over``.
        """
        losses = []
        for output, other in ((first, second), (second, first)):
            confidence, label = probabilities(other).max(dim=1)
            losses.append(hard_cross_entropy(output, label) * (confidence >= self.threshold))
        return mean_over(losses[0] + losses[1], batch, counted)


def labelled_pixels(task: Task, batch: dict[str, Any]) -> Tensor | None:
    """(N, *spatial) bool: the pixels of labelled samples that are not to be ignored; None if all count."""
    if task.info is None or not task.info.dense or task.info.ignore is None:
        return None
    counted: Tensor = batch["target"] != task.info.ignore
    return counted
