"""Co-teaching: two networks that choose each other's samples among noisy labels (Han et al. 2018, arXiv 1804.06872)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from healsg.losses.classification import cross_entropy
from healsg.methods.gathered import gather
from healsg.methods.pair import Pair, refuse_parts
from healsg.methods.supervised import Supervised
from healsg.training.step import rows_of
from healsg.types import Fraction, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class CoTeaching(Supervised):
    """Each of two networks learns from the samples of a batch on which the other has the smallest losses.

    ``train/loss`` is the sum of both networks' losses on these. The first network is evaluated and saved; the second
    has other initial weights. They share one optimizer, and gradient clipping uses their joint norm.

    Args:
        noise: the share of wrong labels, which is also the final share of dropped samples.
        ramp: the share of the run over which that share of samples is reached, from 0 in the first epoch to ``noise``
            in the ramp's last one (the paper's T_k); the paper takes 10 of 200 epochs.
        common: the arguments of Supervised.
    """

    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "selection": "the samples with the smallest losses are those of a micro-batch (of all processes)"
    }

    replaces_criterion = True
    mean_over_samples = False

    def __init__(self, noise: Share = 0.4, ramp: Fraction = 0.05, **common: Any) -> None:
        super().__init__(**common)
        self.noise = noise
        self.ramp = ramp

    def check(self, task: Task) -> None:
        super().check(task)
        refuse_parts(self, "co-teaching")

    def extend_network(self, task: Task, network: nn.Module) -> nn.Module:
        return Pair(network, task.build_model())

    def trained_network(self, task: Task) -> nn.Module:
        first: nn.Module = task.model.first  # type: ignore[assignment]
        return first

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        input, mixed = self.labelled.inputs(task, batch)
        first, second = task.net(input)
        target = self.labelled.class_probabilities(batch["target"], first, mixed)
        first_losses = cross_entropy(first, target)
        second_losses = cross_entropy(second, target)

        runner = task.runner
        left_out = left_out_share(self.noise, self.ramp, runner.step_count, runner.total_steps, runner.steps_per_epoch)
        both = gather(torch.stack([first_losses, second_losses], dim=1), rows_of(batch, input))  # of all processes
        first_losses, second_losses = both.unbind(dim=1)
        kept = max(1, int((1.0 - left_out) * len(both)))
        for_first, for_second = exchange(first_losses, second_losses, kept)
        return {"loss": first_losses[for_first].mean() + second_losses[for_second].mean()}


def left_out_share(noise: float, ramp: float, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The share of samples dropped at update ``step``, counted from 0.

    It rises from epoch to epoch, as ``numpy.linspace(0, noise, T_k)`` in the authors' main.py (bhanML/Co-teaching) over
    the ``T_k`` epochs of the ramp, the last of which drops ``noise``. A ramp of less than two epochs, which has no such
    steps, rises with each update.
    """
    updates = ramp * total_steps
    if updates < 2 * steps_per_epoch:
        return noise * min(1.0, step / max(1.0, updates))
    return noise * min(1.0, step // steps_per_epoch * steps_per_epoch / (updates - steps_per_epoch))


def exchange(first: Tensor, second: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The samples that each of two networks learns from: the indices (kept,) of the other's smallest losses."""
    ranked = [losses.detach().topk(number, largest=False).indices for losses in (second, first)]
    return ranked[0], ranked[1]
