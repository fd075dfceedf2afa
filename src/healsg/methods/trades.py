"""TRADES: accuracy against robustness (Zhang et al. 2019, arXiv 1901.08573)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from healsg.losses.classification import divergence
from healsg.methods.attack import EVAL_SIZE, Attack, Robust
from healsg.types import Count, Natural, NonNegative, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask

SPREAD = 0.001
"""The deviation of the noise from which the attack begins: at the image itself the divergence has no slope."""


class TRADES(Robust):
    """The loss on images as they are, and ``beta`` times the divergence of what attacked ones give from that.

    The attack raises that divergence and sees the network as it is in evaluation; in the step, images as they are and
    attacked ones go through the network as one batch.

    Args:
        beta: of the divergence; 6 in the paper's CIFAR-10, 1 favours accuracy.
        eps, steps, step_size, eval_steps: see ``PGD``.
        common: the arguments of Supervised.
    """

    def __init__(
        self,
        beta: NonNegative = 6.0,
        eps: Positive = 0.031372549,
        steps: Count = 10,
        step_size: Positive = 0.25,
        eval_steps: Natural = 20,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.beta = beta
        self.attack = Attack(eps, steps, step_size, False)
        self.eval_attack = Attack(eps, eval_steps, EVAL_SIZE, True)

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Any]:
        input, mixed = self.prepare(task, batch)
        begin = input + SPREAD * self.attack.unit * torch.randn_like(input)
        with self.attack.seen(task, task.model):
            given = task.model(input).detach()
            attacked = self.attack(lambda images: divergence(given, task.model(images)).mean(), input, begin)
        output, shaken = task.net(torch.cat([input, attacked])).chunk(2)
        loss = self.loss(task, batch, output, self.soften(task, batch["target"], output, mixed))
        return {"loss": loss + self.beta * divergence(output, shaken).mean()}
