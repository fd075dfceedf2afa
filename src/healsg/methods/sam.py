"""Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from healsg.methods.supervised import Supervised
from healsg.seeding import mix, seed_step
from healsg.torch_private import (
    BatchNorm,
    foreach_add_,
    foreach_clone,
    foreach_copy_,
    foreach_div,
    foreach_mul,
    foreach_norm,
)
from healsg.training.draws import only_from_torch
from healsg.training.step import Mean, MicroBatch, loss_of, reported
from healsg.types import NonNegative

if TYPE_CHECKING:
    from healsg.protocols import Task


class SAM(Supervised):
    """Follow the gradient at the worst point in a small ball around the weights (Algorithm 1); two passes a batch.

    The second pass has the same dropout and mixing as the first, and does not update BatchNorm's running statistics.
    Under fp16 a batch whose gradient overflows is skipped, as always.

    Args:
        rho: the radius of the ball; 0.05 for small images, 0 is the optimizer without SAM.
        common: the arguments of Supervised.
    """

    local_to_process: ClassVar[Mapping[str, str]] = {
        "worst point": "each process climbs to a point of its own (the paper's m-sharpness)"
    }
    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "worst point": "each micro-batch climbs to a point of its own (the paper's m-sharpness)"
    }

    def __init__(self, rho: NonNegative = 0.05, **common: Any) -> None:
        super().__init__(**common)
        self.rho = rho

    def step(self, task: Task, batch: dict[str, Any], micro: MicroBatch) -> tuple[dict[str, Any], bool]:
        runner = task.runner
        self.before_step(task)
        weights: list[Tensor] = [weight for weight in task.model.parameters() if weight.requires_grad]
        with runner.forward_context(task, micro):
            logs = self.train_step(task, batch)
        gradient = self.gradient(task, loss_of(logs["loss"]).value, weights)

        before = foreach_clone([weight.detach() for weight in weights])
        with torch.no_grad():
            foreach_add_(weights, ascent(gradient, self.rho))
        epoch_seed = mix(runner.plan.seed, runner.epoch)
        seed_step(task.device, runner.batch_count, epoch_seed, not only_from_torch(task))  # as in the first pass
        with runner.forward_context(task, micro), fixed_statistics(task.model):
            worst = loss_of(self.train_step(task, batch)["loss"])
        gradient = self.gradient(task, worst.value, weights)
        with torch.no_grad():
            foreach_copy_(weights, before)

        # The runner's backward pass, with loss scaling and gradient synchronisation, then uses this gradient. A loss of
        # several terms has a single gradient here, which is weighted by the denominator of the first term where
        # micro-batches or processes are combined.
        first, *_ = worst.terms
        loss = Mean(WithGradient.apply(worst.value.detach(), gradient, *weights), first.over)
        _, moved = runner.update(task, logs | {"loss": loss}, micro)
        return reported(logs, micro), moved

    def gradient(self, task: Task, loss: Tensor, weights: list[Tensor]) -> list[Tensor]:
        """The gradient of ``loss``, zero for weights that do not occur in it; under fp16 taken of the scaled loss."""
        scaler = task.runner.device_setup.scaler
        scale = scaler.scale(torch.ones_like(loss)) if scaler else None
        gradients = torch.autograd.grad(loss if scale is None else loss * scale, weights, allow_unused=True)
        dense = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
        return dense if scale is None else foreach_div(dense, scale)


def ascent(gradient: list[Tensor], rho: float) -> list[Tensor]:
    """The step of length ``rho`` along a gradient, tensor by tensor (equation 2 for p = 2)."""
    norm = torch.linalg.vector_norm(torch.stack(foreach_norm(gradient)))
    scaled: list[Tensor] = foreach_mul(gradient, rho / (norm + 1e-12))
    return scaled


class WithGradient(torch.autograd.Function):
    """A loss value whose gradient with respect to the weights is the given one, computed earlier at another point."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *foreach_mul(ctx.gradient, outer)


@contextlib.contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by its batch without updating its running statistics."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
