"""Averages of a network's weights over the updates, which are evaluated instead of the trained weights."""

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
        make_optimizer: the optimizer as configured, a ``functools.partial`` of its class.
    """
    return hasattr(getattr(make_optimizer, "func", None), "averaged")


def ema_share(decay: float, updates: int) -> float:
    """The weight of the new weights in an exponential moving average after ``updates`` updates, counted from 1.

    It is ``1 - min(decay, (1 + t) / (10 + t))``: at first the average spans about a tenth of the updates, so that the
    initial weights are forgotten soon (the warm-up of TensorFlow's ExponentialMovingAverage).
    """
    return 1.0 - min(decay, (1 + updates) / (10 + updates))


class Average(nn.Module):
    """A copy of a network whose weights follow those of another.

    Args:
        network: the network that is copied; parts of it may already be frozen.
    """

    count: Tensor
    """Number of weights in the plain mean so far."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.learning = {name for name, module in network.named_modules() if not frozen(module)}
        self.network = deepcopy(network).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def follow(self, weights: Iterable[Tensor], buffers: Iterable[Tensor], rate: float | Tensor = 1.0) -> None:
        """Move by ``rate`` of the way to ``weights`` (1 copies them), and copy ``buffers``. Needs ``no_grad``.

        Both are in the order of the network's own parameters and buffers.
        """
        for averaged, new in same_type_pairs(self.network.parameters(), weights):
            if isinstance(rate, Tensor):
                foreach_lerp_(averaged, new, [rate.to(averaged[0].dtype)] * len(averaged))
            else:
                foreach_lerp_(averaged, new, rate)
        for copied, new in same_type_pairs(self.network.buffers(), buffers):
            foreach_copy_(copied, new)

    def next_share(self, begun: bool) -> float | Tensor:
        """The share of the next weights in a plain mean: 1/n for the n-th, 1 before the mean starts."""
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

        All other modules are in evaluation mode, and frozen BatchNorm keeps its statistics. Without BatchNorm to
        measure, no batch is read.

        Args:
            inputs: the network's inputs, batch by batch, on its device.
            autocast: returns the context of a forward pass.
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
    """A context after which each module is in training or evaluation mode as before."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def same_type_pairs(some: Iterable[Tensor], others: Iterable[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Pairs of tensors, grouped into two lists for each type and device, as torch's list operators need them."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for first, second in zip(some, others, strict=True):
        firsts, seconds = groups.setdefault((first.dtype, first.device, second.dtype), ([], []))
        firsts.append(first)
        seconds.append(second)
    return list(groups.values())
