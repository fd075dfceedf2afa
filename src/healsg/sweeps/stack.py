"""Stack: networks of one shape as one, each with its own weights, batch, loss and optimizer settings.

The weights of all lie in one tensor a parameter, (J, ...), on which ``torch.func.vmap`` runs forward and backward. Each
task's own network and optimizer hold views of their rows, so that whatever saves, restores or evaluates a task finds
there what it would find had the task been trained alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from healsg.sweeps.rules import rule_of
from healsg.task import BasicTask


class Stack:
    """Takes tasks over as they stand; their weights and the optimizer's state become views from then on.

    Args:
        tasks: built, of one architecture, at the same step.
    """

    def __init__(self, tasks: Sequence[BasicTask]) -> None:
        self.tasks, first = list(tasks), tasks[0]
        for task in tasks:
            task.runner.landed()  # a save copies what is about to be a view
        models = [task.model for task in tasks]
        self.network = copy.deepcopy(first.model).to("meta").train()
        self.criterion, self.place = first.criterion, first.runner.place
        own = [dict(model.named_parameters()) for model in models]
        self.parameters = {name: _joined([row[name] for row in own]) for name in own[0]}
        buffers = [dict(model.named_buffers()) for model in models]
        self.buffers = {name: _joined([row[name] for row in buffers]) for name in buffers[0]}
        self.learning = [name for name, parameter in own[0].items() if parameter.requires_grad]
        learning = [[row[name] for name in self.learning] for row in own]
        self.rule = rule_of([task.optimizer for task in tasks], learning)
        like = next(iter(self.parameters.values()))
        shares = [float(task.task_method.label_smoothing) for task in tasks]  # type: ignore[arg-type]
        self.smoothed, self.smoothing = any(shares), torch.tensor(shares, dtype=like.dtype, device=like.device)
        limits = [task.runner.clip_norm for task in tasks]
        clipped = None not in limits
        self.clip_norm = torch.tensor(limits, dtype=like.dtype, device=like.device) if clipped else None

    def losses(self, input: Tensor, target: Tensor, shared: bool) -> Tensor:
        """(J,) the mean loss of each network on its batch.

        Args:
            input: (J, N, ...) a batch for each network or, where it is ``shared``, (N, ...) one for all.
            target: (J, N, ...) or (N, ...) likewise.
            shared: see above.
        """
        each = None if shared else 0
        with self.place.autocast():
            losses: Tensor = vmap(self._loss, in_dims=(0, 0, each, each, 0))(
                self.parameters, self.buffers, input, target, self.smoothing
            )
        return losses

    def _loss(self, parameters: Any, buffers: Any, input: Tensor, target: Tensor, share: Tensor) -> Tensor:
        output = functional_call(self.network, (parameters, buffers), (input,))
        if self.smoothed:
            target = softened(target, output, share)
        loss: Tensor = self.criterion(output, target)
        return loss

    def step(self, input: Tensor, target: Tensor, shared: bool = False) -> Tensor:
        """One update of all networks: their losses before it, (J,)."""
        losses = self.losses(input, target, shared)
        learning = [self.parameters[name] for name in self.learning]
        gradients = list(torch.autograd.grad(losses.sum(), learning))
        with torch.no_grad():
            if self.clip_norm is not None:
                clip(gradients, self.clip_norm)
            for task in self.tasks:
                task.runner.landed()  # a save copies what is about to move
            self.rule.update(learning, gradients)
        return losses.detach()


def _joined(tensors: list[Tensor]) -> Tensor:
    """Tensors as rows of one, (J, ...); they are views of it from then on."""
    whole = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, row in zip(tensors, whole, strict=True):
        tensor.data = row
    return whole.requires_grad_(tensors[0].requires_grad)


def softened(target: Tensor, output: Tensor, share: Tensor) -> Tensor:
    """``losses.classification.smooth`` for a share that is a tensor, in operations that ``vmap`` knows."""
    if target.is_floating_point():
        return target
    classes = torch.arange(output.shape[1], device=output.device).view(-1, *[1] * (output.dim() - 2))
    share = share.to(torch.promote_types(output.dtype, torch.float32))
    return (target.unsqueeze(1) == classes) * (1.0 - share) + share / output.shape[1]


def clip(gradients: list[Tensor], limits: Tensor) -> None:
    """Scale each network's gradients, rows of (J, ...), to a norm of at most its limit, (J,); in place."""
    squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients]).sum(dim=0)
    factors = (limits / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1)))
