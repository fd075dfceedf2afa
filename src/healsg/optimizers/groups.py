"""Base class of the optimizers: parameter groups, and the step over them."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from healsg.torch_private import foreach_mul_, step_is_watched


class GroupOptimizer(Optimizer):
    """An optimizer that updates all weights of a group in one call; a subclass defines ``update``.

    Unlike torch's base class, this one does not exclude its methods from compilation, for which torch imports its
    compiler (a second of start-up): only the network is compiled, never its update. The wrapper around each update for
    hooks and the profiler is used only while there are any.
    """

    takes_shards: ClassVar[bool] = False
    """Whether the update is elementwise, so that each process may hold a shard of a weight. A class declares this
    itself; an inherited value does not count."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """The wrapper that torch puts around a class's ``step`` when its first instance is made."""
        watched = Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(own: Any, *args: Any, **kwargs: Any) -> Any:
            if step_is_watched(own):
                return watched(own, *args, **kwargs)
            return func(own, *args, **kwargs)

        return step

    def kind(self, weight: Tensor) -> Any:
        """What the weights of one ``update`` have in common."""
        return weight.device, weight.dtype

    def update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Update the weights of a group that have gradients (at least one), in place; all are of one ``kind``."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Perform one update; ``closure``, if given, recomputes the loss and its gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            kinds = [self.kind(weight) for weight in moved]
            for kind in dict.fromkeys(kinds):
                weights = [weight for weight, own in zip(moved, kinds, strict=True) if own == kind]
                self.update(group, weights, [weight.grad for weight in weights])
        return loss

    @contextlib.contextmanager
    def loss_scaling(self, weights: list[Tensor], gradients: list[Tensor], *state: list[Tensor]) -> Iterator[None]:
        """Surrounds an update that has no fused kernel, under fp16's loss scaler: divides gradients by the scale and
        afterwards gives weights and state their old values back where a gradient is not finite.

        A class whose ``update`` uses it, or hands scale and ``found_inf`` to a fused kernel, declares
        ``_step_supports_amp_scaling``: the scaler then leaves it to the optimizer to skip an update, and reads nothing.

        Args:
            weights, gradients: what ``update`` got.
            state: all other tensors that the update changes.
        """
        scale, infinite = self.__dict__.get("grad_scale"), self.__dict__.get("found_inf")
        if infinite is None:
            yield
            return
        if scale is not None:
            foreach_mul_(gradients, scale.reciprocal().to(gradients[0].dtype))
        moving = [tensor for tensors in (weights, *state) for tensor in tensors]
        before = [tensor.clone() for tensor in moving]
        yield
        skipped = infinite.to(weights[0].device) > 0
        for tensor, old in zip(moving, before, strict=True):
            torch.where(skipped, old, tensor, out=tensor)

    def state_of(self, weights: list[Tensor], *names: str) -> list[list[Tensor]]:
        """The state of the weights by name, begun with zeros; ``step`` is a number on the weight's device."""
        states = [self.state[weight] for weight in weights]
        for weight, state in zip(weights, states, strict=True):
            if not state:
                for name in names:
                    zeros = torch.zeros((), device=weight.device) if name == "step" else torch.zeros_like(weight)
                    state[name] = zeros
        return [[state[name] for state in states] for name in names]


def as_groups(params: ParamsT) -> list[dict[str, Any]]:
    """Parameters, pairs of name and parameter, or groups of either, as groups that hold lists."""
    given: list[Any] = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    return [
        {**group, "params": [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])}
        for group in groups
    ]


def tensor_of(param: Any) -> Tensor:
    """The parameter of what may be a pair of name and parameter."""
    value: Tensor = param[1] if isinstance(param, tuple) else param
    return value
