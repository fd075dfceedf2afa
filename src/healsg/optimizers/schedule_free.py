"""Schedule-free AdamW: a mean of the iterates instead of a schedule (Defazio et al. 2024, arXiv 2405.15682)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from healsg.metric import precise
from healsg.optimizers.groups import GroupOptimizer
from healsg.torch_private import (
    foreach_add_,
    foreach_addcmul_,
    foreach_copy_,
    foreach_div,
    foreach_lerp,
    foreach_lerp_,
    foreach_mul_,
    foreach_sqrt_,
)
from healsg.types import Kept, NonNegative, Share


class ScheduleFreeAdamW(GroupOptimizer):
    """AdamW on the iterates z, whose weighted mean x is what is evaluated; gradients are taken at y between them.

    The parameters themselves are y = (1 - beta) z + beta x. ``averaged`` gives x, which a method has to evaluate:
    ``Supervised`` and its subclasses do. The mean weighs an update by the square of the largest learning rate so far,
    so that a warm-up counts little; a schedule should be constant but for that.

    Args:
        params: parameters, or groups of them.
        lr: the learning rate; larger than AdamW's with a schedule.
        betas: how near y is to x, above 0, so that the weights tell their average; the second moment's decay rate.
        eps: added to the denominator.
        weight_decay: decoupled weight decay, at y.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: NonNegative = 5e-3,
        betas: tuple[Kept, Share] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.01,
    ) -> None:
        settings = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "largest_lr": 0.0})

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Perform one update; ``closure``, if given, recomputes the loss and its gradients."""
        for group in self.param_groups:
            group["largest_lr"] = max(float(group["lr"]), group["largest_lr"])
        return super().step(closure)

    def update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """One update of all weights of a group. Each counts from its own first one."""
        counts = group["largest_lr"] ** 2
        for weight in weights:
            state = self.state[weight]
            if not state:
                state |= {"z": weight.clone(), "second_moment": torch.zeros_like(weight), "updates": 0, "counted": 0.0}
        states = [self.state[weight] for weight in weights]
        iterates = [state["z"] for state in states]
        moments = [state["second_moment"] for state in states]
        numbers = _numbers_on_device(weights, states) if self._counts_on_device(states) else []
        with self.loss_scaling(weights, gradients, iterates, moments, *numbers):
            for state in states:
                state["updates"] += 1
                state["counted"] += counts
            self._move(group, weights, gradients, states)

    def _counts_on_device(self, states: list[dict[str, Any]]) -> bool:
        """Whether it is known on the device alone how many updates there were: fp16's loss scaler may skip some."""
        return self.__dict__.get("found_inf") is not None or any(isinstance(own["updates"], Tensor) for own in states)

    def _move(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]]
    ) -> None:
        near, decay = group["betas"]
        lr = float(group["lr"])
        counts = group["largest_lr"] ** 2
        iterates = [state["z"] for state in states]
        moments = [state["second_moment"] for state in states]
        corrections, shares = _corrections_and_shares(weights, states, decay, counts)
        foreach_mul_(moments, decay)
        foreach_addcmul_(moments, gradients, gradients, 1 - decay)
        scales = list(foreach_div(moments, corrections))
        foreach_sqrt_(scales)
        foreach_add_(scales, group["eps"])
        steps = list(foreach_div(gradients, scales))
        if group["weight_decay"]:
            foreach_add_(steps, weights, alpha=group["weight_decay"])
        means = averages(weights, iterates, near)
        foreach_add_(iterates, steps, alpha=-lr)
        foreach_lerp_(means, iterates, shares)
        foreach_copy_(weights, foreach_lerp(iterates, means, near))

    @torch.no_grad()
    def averaged(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """x of each of ``parameters``: what is to be evaluated; themselves if they have not moved."""
        near = {weight: group["betas"][0] for group in self.param_groups for weight in group["params"]}
        found = []
        for parameter in parameters:
            state = self.state.get(parameter)
            found.append(averages([parameter], [state["z"]], near[parameter])[0] if state else parameter)
        return found


def _numbers_on_device(weights: list[Tensor], states: list[dict[str, Any]]) -> list[list[Tensor]]:
    """The counts of each weight as 0-dimensional tensors beside it, which its state then holds."""
    for weight, state in zip(weights, states, strict=True):
        for name in ("updates", "counted"):
            if not isinstance(state[name], Tensor):
                state[name] = torch.full((), float(state[name]), device=weight.device)
    return [[state[name] for state in states] for name in ("updates", "counted")]


def _corrections_and_shares(
    weights: list[Tensor], states: list[dict[str, Any]], decay: float, counts: float
) -> tuple[list[Any], list[Any]]:
    """By weight what the second moment is divided by, and how much of z enters the mean: numbers, or 0-dimensional
    tensors where the counts are tensors."""
    if not isinstance(states[0]["updates"], Tensor):
        shares = [counts / state["counted"] if counts else 0.0 for state in states]
        return [1 - decay ** state["updates"] for state in states], shares
    updates, counted = (torch.stack([state[name] for state in states]) for name in ("updates", "counted"))
    corrections = (1 - decay ** precise(updates)).to(weights[0].dtype)
    entering = (counts / counted if counts else torch.zeros_like(counted)).to(weights[0].dtype)
    return list(corrections.unbind()), list(entering.unbind())


def averages(weights: list[Tensor], iterates: list[Tensor], near: float) -> list[Tensor]:
    """x of y = (1 - near) z + near x: ``z + (y - z) / near``."""
    return list(foreach_lerp(iterates, weights, 1.0 / near))
