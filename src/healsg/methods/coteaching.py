"""Co-teaching: two networks that choose each other's samples among noisy labels (Han et al. 2018, arXiv 1804.06872)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.losses.classification import cross_entropy
from healsg.methods.supervised import Supervised
from healsg.types import Fraction, Share

if TYPE_CHECKING:
    from healsg.task import BasicTask


class Pair(nn.Module):
    """Two networks on the same input: in training the outputs of both, (2, N, C); in evaluation the first one's."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.first(input)
        return torch.stack([output, self.second(input)]) if self.training else output


class CoTeaching(Supervised):
    """Each of two networks learns from the samples of a batch on which the other has the smallest losses.

    ``train/loss`` is the sum of both networks' losses on these. The first is evaluated and kept; the second begins
    from weights drawn anew. They share one optimizer, and one norm where gradients are clipped.

    Args:
        noise: the share of wrong labels, and so of the samples that are left out in the end.
        ramp: the share of the run over which so many are left out; the paper takes 10 of 200 epochs.
        common: the arguments of Supervised.
    """

    replaces_criterion = True
    mean_over_samples = False

    def __init__(self, noise: Share = 0.4, ramp: Fraction = 0.05, **common: Any) -> None:
        super().__init__(**common)
        self.noise, self.ramp = noise, ramp

    def check(self, task: BasicTask) -> None:
        super().check(task)
        if key := next((key for key in ("layer_decay", "freeze", "unfreeze_every") if getattr(self, key)), None):
            raise ConfigError(f"method.{key}: co-teaching trains two networks from scratch; leave it out")

    def setup(self, task: BasicTask) -> None:
        task.model = Pair(task.model, task.build_model())
        super().setup(task)

    def learner(self, task: BasicTask) -> nn.Module:
        first: nn.Module = task.model.first  # type: ignore[assignment]
        return first

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
        input, mixed = self.prepare(task, batch)
        first, second = task.net(input).unbind()
        target = self.soften(task, batch["target"], first, mixed)
        losses = cross_entropy(first, target), cross_entropy(second, target)
        left_out = self.noise * min(1.0, task.runner.step_count / max(1.0, self.ramp * task.runner.total_steps))
        chosen = exchange(*losses, max(1, int((1.0 - left_out) * len(input))))
        return {"loss": losses[0][chosen[0]].mean() + losses[1][chosen[1]].mean()}


def exchange(first: Tensor, second: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """What each of two networks learns from: the places of the ``kept`` smallest of the other's losses, (N,) each."""
    ranked = [losses.detach().topk(kept, largest=False).indices for losses in (second, first)]
    return ranked[0], ranked[1]
