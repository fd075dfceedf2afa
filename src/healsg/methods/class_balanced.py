"""Class-balanced loss: weights by the effective number of samples (Cui et al. 2019, arXiv 1901.05555)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from healsg.losses.classification import class_balanced_weights, focal
from healsg.methods.counts import class_counts
from healsg.methods.supervised import Supervised
from healsg.types import NonNegative, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class ClassBalanced(Supervised):
    """The cross entropy or focal loss of the softmax, each class weighted; the weights have a mean of 1 over classes.

    Args:
        beta: 0 weighs all classes alike; towards 1 the weight is the inverse of a class's samples. The paper uses 0.9
            to 0.9999 (section 5).
        gamma: of the focal loss; 0 is the cross entropy.
        common: the arguments of Supervised.
    """

    replaces_criterion = True
    class_weights: Tensor

    def __init__(self, beta: Share = 0.9999, gamma: NonNegative = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.beta = beta
        self.gamma = gamma

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.register_buffer("class_weights", class_balanced_weights(class_counts(task), self.beta).float())

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        input, mixed = self.labelled.inputs(task, batch)
        output = task.net(input)
        target = self.labelled.class_probabilities(batch["target"], output, mixed)
        return {"loss": focal(output, target * self.class_weights, self.gamma).mean()}
