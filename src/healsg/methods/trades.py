"""TRADES: accuracy against robustness (Zhang et al. 2019, arXiv 1901.08573)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from healsg.losses.classification import divergence
from healsg.methods.attack import EVAL_SIZE, Attack
from healsg.methods.supervised import Supervised
from healsg.training import draws
from healsg.types import Count, Natural, NonNegative, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task

NOISE = 0.001
"""The standard deviation of the noise at the start of the attack: the divergence has no gradient at the clean image."""


class TRADES(Supervised):
    """The loss on clean images, and ``beta`` times the divergence of the predictions on attacked images from those on
    clean ones (equation 5).

    The attack maximises that divergence, with the network in evaluation mode. In the step, clean and attacked images
    are separate batches for BatchNorm, and both move its running statistics, as in the authors' trades.py (which passes
    the clean images a second time).

    Args:
        beta: of the divergence; 6 in the paper's CIFAR-10, 1 favours accuracy.
        eps, steps, step_size, eval_steps: see ``PGD``.
        common: the arguments of Supervised.
    """

    needs_one_class = True
    higher_is_better: ClassVar[Mapping[str, bool]] = {"robust_acc": True}

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

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.attack.setup(task)
        self.eval_attack.setup(task)

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, mixed = self.labelled.inputs(task, batch)
        noise = draws.normal(task, batch, "attack", tuple(input.shape)).to(input.dtype)
        begin = input + NOISE * self.attack.unit * noise
        with self.attack.context(task, task.model):
            clean = task.model(input).detach()
            attacked = self.attack(lambda images: divergence(clean, task.model(images)).mean(), input, begin)

        output = task.net(input)
        attacked_output = task.net(attacked)
        natural = self.labelled.loss(task.criterion, batch, output, mixed)
        return {"loss": natural + self.beta * divergence(output, attacked_output).mean()}

    def evaluate(self, task: Task, split: str) -> dict[str, float]:
        return self.eval_attack.measure(task, split)
