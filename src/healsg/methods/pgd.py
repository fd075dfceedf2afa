"""Adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from healsg.methods.attack import EVAL_SIZE, Attack
from healsg.methods.supervised import Supervised
from healsg.training import draws
from healsg.training.step import Loss, loss_of
from healsg.types import Count, Natural, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class PGD(Supervised):
    """Learn from attacked images instead of the clean ones (section 2, equation 2.1).

    The attack uses the network in evaluation mode (running statistics, no dropout) unless ``train_mode`` says
    otherwise.

    Args:
        eps: the largest change of a pixel, where 0 is black and 1 full intensity.
        steps: of the attack in training.
        step_size: of that attack, as a share of ``eps``.
        random_start: begin the attack in training at a random point within ``eps``.
        train_mode: the attack in training uses the network in training mode: BatchNorm uses the batch's statistics, and
            its running ones also follow attacked images (locuslab/fast_adversarial, CIFAR10/train_fgsm.py).
        eval_steps: of the attack that gives ``robust_acc`` in evaluation, from a random start; 0 leaves it out.
        common: the arguments of Supervised.
    """

    needs_one_class = True
    higher_is_better: ClassVar[Mapping[str, bool]] = {"robust_acc": True}

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

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.attack.setup(task)
        self.eval_attack.setup(task)

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, mixed = self.labelled.inputs(task, batch)

        def loss(output: Tensor) -> Tensor | Loss:
            return self.labelled.loss(task.criterion, batch, output, mixed)

        drawn = draws.uniform(task, batch, "attack", tuple(input.shape))
        with self.attack.context(task, task.model, self.train_mode):
            begin = self.attack.start(input, drawn)
            attacked = self.attack(lambda images: loss_of(loss(task.model(images))).value, input, begin)
        return {"loss": loss(task.net(attacked))}

    def evaluate(self, task: Task, split: str) -> dict[str, float]:
        return self.eval_attack.measure(task, split)
