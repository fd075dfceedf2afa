"""Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from healsg.methods.averaging import BatchNorm
from healsg.methods.supervised import Supervised
from healsg.seeding import seed_device
from healsg.training.step import Mean, MicroBatch, loss_of, reported
from healsg.types import NonNegative

if TYPE_CHECKING:
    from healsg.task import BasicTask


class SAM(Supervised):
    """Follow the gradient of the worst point in a small ball around the weights; two passes a batch.

    The second pass has the same dropout and mixing as the first, and leaves BatchNorm's statistics alone. With
    ``runner.accumulate``, and on several processes, each batch has a point of its own (the paper's m-sharpness).
    Under fp16 a batch whose gradient overflows is skipped, as always.

    Args:
        rho: the radius of the ball; 0.05 for small images, 0 is the optimizer without SAM.
        common: the arguments of Supervised.
    """

    def __init__(self, rho: NonNegative = 0.05, **common: Any) -> None:
        super().__init__(**common)
        self.rho = rho

    def step(self, task: BasicTask, batch: dict[str, Any], micro: MicroBatch) -> tuple[dict[str, Any], bool]:
        runner = task.runner
        with runner.forward(task, micro):
            logs = self.train_step(task, batch)
        weights: list[Tensor] = [weight for weight in task.model.parameters() if weight.requires_grad]
        before = [weight.detach().clone() for weight in weights]
        climb = ascent(self.gradient(task, loss_of(logs["loss"]).value, weights), self.rho)
        with torch.no_grad():
            torch._foreach_add_(weights, climb)
        seed_device(task.device, runner.plan.seed, runner.epoch, runner.position)
        with runner.forward(task, micro), still_statistics(task.model):
            loss = loss_of(self.train_step(task, batch)["loss"])
        slopes = self.gradient(task, loss.value, weights)
        with torch.no_grad():
            torch._foreach_copy_(weights, before)
        # What has these slopes as its gradient at the weights themselves, for the runner's own backward and update.
        line = torch.stack([(weight * slope).sum() for weight, slope in zip(weights, slopes, strict=True)]).sum()
        _, moved = runner.update(task, logs | {"loss": Mean(line, loss.terms[0].over)}, micro)
        return reported(logs, micro), moved

    def gradient(self, task: BasicTask, loss: Tensor, weights: list[Tensor]) -> list[Tensor]:
        """The gradient of ``loss``, zero where a weight took no part; it goes through fp16 at the scaler's scale."""
        scale = task.runner.place.scaler.scale(torch.ones_like(loss)) if task.runner.place.scaler else None
        given = torch.autograd.grad(loss if scale is None else loss * scale, weights, allow_unused=True)
        slopes = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, given, strict=True)]
        return slopes if scale is None else [slope / scale for slope in slopes]


def ascent(slopes: list[Tensor], rho: float) -> list[Tensor]:
    """The step of length ``rho`` along a gradient that is given in pieces (the paper's epsilon for p = 2)."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(slopes)))
    return [slope * (rho / (norm + 1e-12)) for slope in slopes]


@contextlib.contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by its batch without remembering it."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
