"""VICReg: variance, invariance and covariance (Bardes, Ponce and LeCun 2022, arXiv 2105.04906)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from healsg.losses.redundancy import vicreg
from healsg.methods.gathered import gather
from healsg.methods.selfsupervised import SelfSupervised, both_views, full_precision, halves, perceptron, two_views
from healsg.training.step import rows_of
from healsg.types import Count, NonNegative, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class VICReg(SelfSupervised):
    """Make both views' embeddings agree, keep the variance of every dimension, and decorrelate the dimensions
    (equations 1 to 6).

    The statistics are over the batch of all processes.

    Args:
        invariance, variance, covariance: the weights of the three terms.
        hidden, size: units of the expander's two hidden layers, and of its output; 8,192 each in the paper.
        smallest_crop: the smallest area of a view, as a share of the image.
        saturation: the largest change of a view's saturation.
        solarise: the probability of solarising the first and the second view.
        common: the arguments of SelfSupervised.
    """

    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "statistics": "the variances and covariances are those of a micro-batch (of all processes)"
    }

    def __init__(
        self,
        invariance: NonNegative = 25.0,
        variance: NonNegative = 25.0,
        covariance: NonNegative = 1.0,
        hidden: Count = 512,
        size: Count = 512,
        smallest_crop: Share = 0.08,
        saturation: Share = 0.4,
        solarise: tuple[Share, Share] = (0.0, 0.0),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.needs = two_views(smallest_crop, saturation, solarise)
        self.invariance = invariance
        self.variance = variance
        self.covariance = covariance
        self.hidden = hidden
        self.size = size

    def head(self, features: int) -> nn.Module:
        return perceptron(features, self.hidden, self.hidden, self.size)

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = batch["unlabelled"]
        first, second = halves(task.net(both_views(views)))
        with full_precision(task):
            rows = rows_of(views, first)
            first, second = gather(first, rows), gather(second, rows)  # the batch of all processes
            invariance, variance, covariance = vicreg(first, second)
            loss = self.invariance * invariance + self.variance * variance + self.covariance * covariance
        return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}
