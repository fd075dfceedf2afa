"""Logit adjustment: logits that do not favour frequent classes (Menon et al. 2021, arXiv 2007.07314)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from healsg.losses.classification import priors
from healsg.methods.counts import class_counts
from healsg.methods.supervised import Supervised
from healsg.training.layers import head_of
from healsg.types import NonNegative

if TYPE_CHECKING:
    from healsg.protocols import Task


class ShiftedLinear(nn.Linear):
    """A linear layer that subtracts ``offset`` from its output in evaluation.

    Args:
        linear: the layer whose weights these are.
        offset: (C,) of each output.
    """

    offset: Tensor

    def __init__(self, linear: nn.Linear, offset: Tensor) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight = linear.weight
        self.bias = linear.bias
        self.register_buffer("offset", offset)

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output if self.training else output - self.offset


class LogitAdjustment(Supervised):
    """``tau log(prior)`` is added to the logits in the loss (equation 10), or subtracted from them after training
    (equation 9).

    Args:
        tau: the factor of the log prior; 1 minimises the balanced error.
        when: ``training`` (the paper's logit-adjusted loss), or ``after`` (its post-hoc adjustment; the last layer of
            the network that is evaluated and saved then has an ``offset``).
        common: the arguments of Supervised.
    """

    needs_one_class = True
    offset: Tensor

    def __init__(self, tau: NonNegative = 1.0, when: Literal["training", "after"] = "training", **common: Any) -> None:
        super().__init__(**common)
        self.tau = tau
        self.when = when

    def extend_network(self, task: Task, network: nn.Module) -> nn.Module:
        """Compute ``offset``; with ``after``, replace the head by a ``ShiftedLinear`` that has it."""
        offset = (self.tau * priors(class_counts(task)).log()).float()
        self.register_buffer("offset", offset)
        return self.shifted(network, offset.clone()) if self.when == "after" else network

    def evaluated(self, network: nn.Module) -> nn.Module:
        """With ``after``, replace the head by a ``ShiftedLinear``, whose offset a checkpoint fills in."""
        return self.shifted(network) if self.when == "after" else network

    def shifted(self, network: nn.Module, offset: Tensor | None = None) -> nn.Module:
        """Replace the head by a ``ShiftedLinear``; without ``offset`` by one that is 0."""
        head = head_of(network, "logit adjustment after training")
        network.head = ShiftedLinear(head, torch.zeros(head.out_features) if offset is None else offset)
        return network

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, mixed = self.labelled.inputs(task, batch)
        output = task.net(input)
        if self.when == "training":
            output = output + self.offset
        return {"loss": self.labelled.loss(task.criterion, batch, output, mixed)}
