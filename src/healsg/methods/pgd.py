"""Adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from healsg.methods.attack import EVAL_SIZE, Attack, Robust
from healsg.training.step import Loss, loss_of
from healsg.types import Count, Natural, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask


class PGD(Robust):
    """Learn from attacked images in the place of those that are given.

    The step sees the network as in training, the attack as in evaluation (running statistics, no dropout) unless
    ``train_mode`` says otherwise.

    Args:
        eps: the largest change of a pixel, where 0 is black and 1 full intensity.
        steps: of the attack in training.
        step_size: of that attack, as a share of ``eps``.
        random_start: begin the attack in training at a random place within ``eps``.
        train_mode: the attack in training sees the network as it trains: BatchNorm uses the batch's statistics, and
            learns its running ones from attacked images too (locuslab/fast_adversarial, CIFAR10/train_fgsm.py).
        eval_steps: of the attack that gives ``robust_acc`` in evaluation, from a random start; 0 leaves it out.
        common: the arguments of Supervised.
    """

    def __init__(
        self,
        eps: Positive = 0.031372549,
        steps: Count = 10,
        step_size: Positive = 0.25,
        random_start: bool = True,
        train_mode: bool = False,
        eval_steps: Natural = 20,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.train_mode = train_mode
        self.attack = Attack(eps, steps, step_size, random_start)
        self.eval_attack = Attack(eps, eval_steps, EVAL_SIZE, True)

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Any]:
        input, mixed = self.prepare(task, batch)

        def loss(output: Tensor) -> Tensor | Loss:
            return self.loss(task, batch, output, self.soften(task, batch["target"], output, mixed))

        with self.attack.seen(task, task.model, self.train_mode):
            attacked = self.attack(lambda images: loss_of(loss(task.model(images))).value, input)
        return {"loss": loss(task.net(attacked))}
