"""Logit adjustment: scores that do not favour frequent classes (Menon et al. 2021, arXiv 2007.07314)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from healsg.losses.classification import priors
from healsg.methods.counts import class_counts
from healsg.methods.depth import head_of
from healsg.methods.supervised import Supervised
from healsg.training.step import Loss
from healsg.types import NonNegative

if TYPE_CHECKING:
    from healsg.task import BasicTask


class ShiftedLinear(nn.Linear):
    """A linear layer that takes ``offset`` off its output in evaluation; its other keys are those of ``nn.Linear``."""

    offset: Tensor

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output if self.training else output - self.offset


class LogitAdjustment(Supervised):
    """``tau log(prior)`` is added to the scores in the loss, or taken off them after training.

    Args:
        tau: how much of the logarithm of the classes' shares; 1 aims at the balanced error.
        when: ``training`` (the paper's logit-adjusted loss), or ``after`` (its post-hoc adjustment, which is part of
            the network that is evaluated and kept: its last layer has an ``offset``).
        common: the arguments of Supervised.
    """

    counts_classes = True
    offset: Tensor

    def __init__(self, tau: NonNegative = 1.0, when: Literal["training", "after"] = "training", **common: Any) -> None:
        super().__init__(**common)
        self.tau, self.when = tau, when

    def setup(self, task: BasicTask) -> None:
        offset = (self.tau * priors(class_counts(task)).log()).float()
        self.register_buffer("offset", offset)
        task.model = self.evaluated(task.model)
        if self.when == "after":
            task.model.head.offset.copy_(offset)  # type: ignore[union-attr, operator]
        super().setup(task)

    def evaluated(self, network: nn.Module) -> nn.Module:
        """With ``after``, a head that takes an offset off its output; the checkpoint has its values."""
        if self.when == "after":
            head = head_of(network, "logit adjustment after training")
            shifted = ShiftedLinear(head.in_features, head.out_features, head.bias is not None)
            shifted.weight, shifted.bias = head.weight, head.bias
            shifted.register_buffer("offset", torch.zeros(head.out_features))
            network.head = shifted
        return network

    def loss(self, task: BasicTask, batch: dict[str, Any], output: Tensor, target: Tensor) -> Tensor | Loss:
        return super().loss(task, batch, output + self.offset if self.when == "training" else output, target)
