"""The network that is evaluated where it is not the one that learns: averages of weights, merged or other weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from healsg.evaluation.evaluator import evaluating
from healsg.metric import precise

if TYPE_CHECKING:
    from healsg.method import TaskMethod
    from healsg.task import BasicTask

BatchNorm = nn.modules.batchnorm._BatchNorm
"""In one, two and three dimensions, and over several processes."""


def optimizer_averages(method: TaskMethod) -> bool:
    """Whether a method's optimizer has weights of its own to be evaluated, as schedule-free ones have."""
    return hasattr(getattr(method.make_optimizer, "func", None), "averaged")


def ema_share(decay: float, updates: int) -> float:
    """How much of the new weights enters an exponential moving average after so many updates, counted from 1.

    ``1 - min(decay, (1 + t) / (10 + t))``: early on the average looks back over about a tenth of the updates, so that
    the first weights are soon forgotten (the warm-up of TensorFlow's ExponentialMovingAverage).
    """
    return 1.0 - min(decay, (1 + updates) / (10 + updates))


class Average(nn.Module):
    """A copy of a network whose weights follow those of another.

    Args:
        network: what is copied; it may already be frozen in parts.
    """

    count: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.learning = {name for name, module in network.named_modules() if not frozen(module)}
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def follow(self, weights: Iterable[Tensor], buffers: Iterable[Tensor], share: float | Tensor = 1.0) -> None:
        """Move by ``share`` of the way to ``weights`` (all of it: become them), and take over ``buffers``.

        Both are in the order of the network's own parameters and buffers. Wants ``no_grad``.
        """
        for own, new in alike(self.network.parameters(), weights):
            if isinstance(share, Tensor):
                torch._foreach_lerp_(own, new, [share.to(own[0].dtype)] * len(own))
            else:
                torch._foreach_lerp_(own, new, share)
        for own, new in alike(self.network.buffers(), buffers):
            torch._foreach_copy_(own, new)

    def next_share(self, begun: bool) -> float | Tensor:
        """What a plain mean takes of the next weights: 1/n of the n-th; all of them while it has not begun."""
        if not begun:
            self.count.zero_()
            return 1.0
        self.count += 1
        return precise(self.count).reciprocal()

    def measure_statistics(self, task: BasicTask) -> None:
        """Replace BatchNorm's running statistics, which are of other weights, by the means over one pass of the
        training batches (Izmailov et al. 2018, arXiv 1803.05407, Algorithm 1, last line).

        The batches are those of epoch 0; all else is as in evaluation. Frozen BatchNorm keeps what it has. Nothing is
        done, and nothing read, where there is no BatchNorm.
        """
        named = self.network.named_modules()
        norms = [module for name, module in named if isinstance(module, BatchNorm) and name in self.learning]
        norms = [norm for norm in norms if norm.track_running_stats]
        if not norms:
            return
        rates = [norm.momentum for norm in norms]
        with evaluating(self.network), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            for position, (batch, _) in enumerate(task.train_loader.batches(0), 1):
                moved = task.runner.place.move(batch)
                for norm in norms:
                    norm.momentum = 1.0 / position
                with task.runner.place.autocast():
                    self.network(moved.get("labelled", moved)["input"])
        for norm, rate in zip(norms, rates, strict=True):
            norm.momentum = rate


def alike(some: Iterable[Tensor], others: Iterable[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Pairs of tensors as two lists for each type and device: what a list operator does by few kernels."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for one, other in zip(some, others, strict=True):
        mine, theirs = groups.setdefault((one.dtype, one.device, other.dtype), ([], []))
        mine.append(one)
        theirs.append(other)
    return list(groups.values())


def frozen(module: nn.Module) -> bool:
    """Whether a module has parameters of its own, and none of them learns."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)
