"""Averages of a network's weights over the updates, which are evaluated in the place of the network that learns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from healsg.metric import precise
from healsg.torch_private import BatchNorm, foreach_copy_, foreach_lerp_
from healsg.training.layers import frozen


def optimizer_averages(make_optimizer: Callable[..., Any]) -> bool:
    """Whether an optimizer averages the weights itself, as schedule-free ones do.

    Args:
        make_optimizer: as a method gets it, a ``functools.partial`` of the optimizer's class.
    """
    return hasattr(getattr(make_optimizer, "func", None), "averaged")


def ema_share(decay: float, updates: int) -> float:
    """The share of the new weights in an exponential moving average after so many updates, counted from 1.

    ``1 - min(decay, (1 + t) / (10 + t))``: early on the average spans about a tenth of the updates, so that the first
    weights are soon forgotten (the warm-up of TensorFlow's ExponentialMovingAverage).
    """
    return 1.0 - min(decay, (1 + updates) / (10 + updates))


class Average(nn.Module):
    """A copy of a network whose weights follow those of another.

    Args:
        network: the network that is copied; parts of it may already be frozen.
    """

    count: Tensor
    """Weights in the plain mean so far."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.learning = {name for name, module in network.named_modules() if not frozen(module)}
        self.network = deepcopy(network).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def follow(self, weights: Iterable[Tensor], buffers: Iterable[Tensor], share: float | Tensor = 1.0) -> None:
        """Move by ``share`` of the way to ``weights`` (1 copies them), and copy ``buffers``. Needs ``no_grad``.

        Both are in the order of the network's own parameters and buffers.
        """
        for own, new in same_type_pairs(self.network.parameters(), weights):
            if isinstance(share, Tensor):
                foreach_lerp_(own, new, [share.to(own[0].dtype)] * len(own))
            else:
                foreach_lerp_(own, new, share)
        for own, new in same_type_pairs(self.network.buffers(), buffers):
            foreach_copy_(own, new)

    def next_share(self, begun: bool) -> float | Tensor:
        """The share of the next weights in a plain mean: 1/n for the n-th, 1 while the mean has not begun."""
        if not begun:
            self.count.zero_()
            return 1.0
        self.count += 1
        return precise(self.count).reciprocal()

    def measure_statistics(
        self, inputs: Iterable[Tensor], autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> None:
        """Replace BatchNorm's running statistics, which belong to other weights, by their means over training batches
        (Izmailov et al. 2018, arXiv 1803.05407, Algorithm 1, last line).

        All else is in evaluation mode, and frozen BatchNorm keeps its statistics. No batch is read where there is no
        BatchNorm to measure.

        Args:
            inputs: of the network, batch by batch, on its device.
            autocast: makes the context of a forward pass.
        """
        named = self.network.named_modules()
        norms = [module for name, module in named if isinstance(module, BatchNorm) and name in self.learning]
        norms = [norm for norm in norms if norm.track_running_stats]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        with restored_modes(self.network), torch.no_grad():
            self.network.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            for number, input in enumerate(inputs, 1):
                for norm in norms:
                    norm.momentum = 1.0 / number
                with autocast():
                    self.network(input)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextlib.contextmanager
def restored_modes(network: nn.Module) -> Iterator[None]:
    """Give each module its training or evaluation mode back at the end."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def same_type_pairs(some: Iterable[Tensor], others: Iterable[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Pairs of tensors as two lists for each type and device, as torch's list operators take them."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for one, other in zip(some, others, strict=True):
        ones, their = groups.setdefault((one.dtype, one.device, other.dtype), ([], []))
        ones.append(one)
        their.append(other)
    return list(groups.values())
