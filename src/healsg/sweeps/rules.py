"""The update rules of SGD, Adam and AdamW for stacked networks, with the settings of each network's own optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

Kept = dict[str, Tensor]
"""What is remembered of a stacked parameter, by the name that the optimizer has for it, (J, ...) each."""


class Rule:
    """The update of stacked parameters. A subclass says what is remembered of each, and moves it.

    Args:
        optimizers: one a network, alike but for the numbers in their groups. Their state becomes views of the stacked
            one, and is at any time what it would be had their own updates made it.
        own: by network, the parameters that learn, in one order.
    """

    kept: tuple[str, ...] = ()

    def __init__(self, optimizers: Sequence[Optimizer], own: Sequence[Sequence[Tensor]]) -> None:
        self.optimizers, self.own = list(optimizers), own
        places = {id(tensor): place for place, tensor in enumerate(own[0])}
        self.groups = [[places[id(tensor)] for tensor in group["params"]] for group in optimizers[0].param_groups]
        self.begun = any(optimizer.state for optimizer in optimizers)
        self.memory = [self._remembered([row[place] for row in own]) for place in range(len(own[0]))]
        self.fixed = dict[tuple[int, str], Tensor]()
        if self.begun:
            self.hand_out()

    def _remembered(self, own: list[Tensor]) -> Kept:
        states = [optimizer.state.get(tensor, {}) for optimizer, tensor in zip(self.optimizers, own, strict=True)]
        made = {}
        for name in self.kept:
            blank = torch.zeros((), device=own[0].device) if name == "step" else torch.zeros_like(own[0])
            rows = [state.get(name) for state in states]
            made[name] = torch.stack([blank if row is None else row.to(blank.device) for row in rows])
        return made

    def hand_out(self) -> None:
        """Let each optimizer have its rows of what is remembered."""
        order = [place for places in self.groups for place in places if self.kept]
        for job, optimizer in enumerate(self.optimizers):
            for place in order:
                memory = {name: whole[job] for name, whole in self.memory[place].items()}
                optimizer.state[self.own[job][place]] = memory

    def settings(self, group: int, name: str) -> list[Any]:
        """What each network's optimizer says in one group of parameters."""
        return [optimizer.param_groups[group][name] for optimizer in self.optimizers]

    def constant(self, group: int, name: str) -> Tensor:
        """(J,) a setting that no schedule moves."""
        if (group, name) not in self.fixed:
            self.fixed[group, name] = self.vector(self.settings(group, name))
        return self.fixed[group, name]

    def vector(self, values: Sequence[Any]) -> Tensor:
        """(J,) numbers, in the parameters' type; (J, 2) pairs of them."""
        like = self.own[0][0]
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Move ``parameters``, (J, ...) each, in place."""
        for group, places in enumerate(self.groups):
            self.move(group, [(parameters[i], gradients[i], self.memory[i]) for i in places])
        if not self.begun:
            self.begun = True
            self.hand_out()

    def move(self, group: int, rows: list[tuple[Tensor, Tensor, Kept]]) -> None:
        """Move one group: each parameter with its gradient and what is remembered of it."""
        raise NotImplementedError


def over(numbers: Tensor, like: Tensor) -> Tensor:
    """(J,) numbers as (J, 1, ...), to go with a stacked parameter."""
    return numbers.view(-1, *[1] * (like.dim() - 1))


class StackedSGD(Rule):
    """SGD: weight decay in the gradient, momentum with dampening, Nesterov's look ahead."""

    def __init__(self, optimizers: Sequence[Optimizer], own: Sequence[Sequence[Tensor]]) -> None:
        if any(group["momentum"] for optimizer in optimizers for group in optimizer.param_groups):
            self.kept = ("momentum_buffer",)
        super().__init__(optimizers, own)

    def move(self, group: int, rows: list[tuple[Tensor, Tensor, Kept]]) -> None:
        rate, decay = -self.vector(self.settings(group, "lr")), self.constant(group, "weight_decay")
        momentum, nesterov = self.constant(group, "momentum"), self.settings(group, "nesterov")[0]
        decaying, damped = any(self.settings(group, "weight_decay")), any(self.settings(group, "dampening"))
        for parameter, change, memory in rows:
            if decaying:
                change = torch.addcmul(change, over(decay, change), parameter)
            if self.kept:
                buffer, share = memory["momentum_buffer"], over(momentum, change)
                damping = self.constant(group, "dampening") * (momentum > 0) if damped and self.begun else None
                buffer.mul_(share).add_(change if damping is None else change * over(1 - damping, change))
                change = torch.addcmul(change, share, buffer) if nesterov else buffer
            parameter.addcmul_(change, over(rate, change))


class StackedAdam(Rule):
    """Adam and, with decoupled weight decay, AdamW; without amsgrad."""

    kept = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, optimizers: Sequence[Optimizer], own: Sequence[Sequence[Tensor]]) -> None:
        super().__init__(optimizers, own)
        self.count = int(self.memory[0]["step"][0])

    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self.count += 1
        super().update(parameters, gradients)

    def move(self, group: int, rows: list[tuple[Tensor, Tensor, Kept]]) -> None:
        rates, betas, decays = (self.settings(group, name) for name in ("lr", "betas", "weight_decay"))
        decoupled = self.optimizers[0].param_groups[group].get("decoupled_weight_decay", False)
        pairs = list(zip(rates, betas, strict=True))
        step = self.vector([-rate / (1 - first**self.count) for rate, (first, _) in pairs])
        root = self.vector([(1 - second**self.count) ** -0.5 for _, (_, second) in pairs])
        left = self.vector([1 - rate * decay for rate, decay in zip(rates, decays, strict=True)])
        new = self.vector([[1 - first, 1 - second] for first, second in betas])
        decay, eps = self.constant(group, "weight_decay"), self.constant(group, "eps")
        for parameter, change, memory in rows:
            memory["step"].add_(1)
            if any(decays) and decoupled:
                parameter.mul_(over(left, change))
            elif any(decays):
                change = torch.addcmul(change, over(decay, change), parameter)
            mean, square = memory["exp_avg"], memory["exp_avg_sq"]
            mean.lerp_(change, over(new[:, 0], change))
            square.lerp_(change.square(), over(new[:, 1], change))
            below = torch.addcmul(over(eps, change), square.sqrt(), over(root, change))
            parameter.addcdiv_(mean * over(step, change), below)


def rule_of(optimizers: Sequence[Optimizer], own: Sequence[Sequence[Tensor]]) -> Rule:
    """The rule of these optimizers, which are SGD, Adam or AdamW, torch's or ours; see ``Rule``."""
    kind: Any = StackedSGD if type(optimizers[0]).__name__ == "SGD" else StackedAdam
    return cast(Rule, kind(optimizers, own))
