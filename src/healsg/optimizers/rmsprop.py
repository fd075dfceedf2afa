"""RMSprop: gradients divided by the root of their mean square (Tieleman and Hinton 2012)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from healsg.optimizers.groups import GroupOptimizer
from healsg.torch_private import (
    foreach_add,
    foreach_add_,
    foreach_addcdiv_,
    foreach_addcmul,
    foreach_addcmul_,
    foreach_lerp_,
    foreach_mul_,
    foreach_sqrt,
    foreach_sqrt_,
)
from healsg.types import NonNegative, Share


class RMSprop(GroupOptimizer):
    """RMSprop (Tieleman and Hinton 2012, lecture 6.5 of Neural Networks for Machine Learning), bit for bit
    ``torch.optim.RMSprop``.

    With torch's own, fp16's loss scaler reads from the device in each update whether to skip it; this one skips it on
    the device.

    Args:
        params: parameters, groups of them, or pairs of name and parameter.
        lr: the learning rate.
        alpha: the decay rate of the mean square, in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        momentum: the momentum coefficient.
        centered: divide by the standard deviation instead of the root mean square (Graves 2013, arXiv 1308.0850).
    """

    takes_shards = True

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: NonNegative = 1e-3,
        alpha: Share = 0.99,
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        momentum: Share = 0.0,
        centered: bool = False,
    ) -> None:
        settings = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**settings, "centered": centered})

    def update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        names = ["square_avg"]
        if group["momentum"]:
            names.append("momentum_buffer")
        if group["centered"]:
            names.append("grad_avg")
        state = dict(zip(names, self.state_of(weights, *names), strict=True))
        with self.loss_scaling(weights, gradients, *state.values()):
            if group["weight_decay"]:
                gradients = list(foreach_add(gradients, weights, alpha=group["weight_decay"]))
            rms = root_mean_square(gradients, state["square_avg"], state.get("grad_avg"), group["alpha"], group["eps"])
            if group["momentum"]:
                foreach_mul_(state["momentum_buffer"], group["momentum"])
                foreach_addcdiv_(state["momentum_buffer"], gradients, rms)
                foreach_add_(weights, state["momentum_buffer"], alpha=-group["lr"])
            else:
                foreach_addcdiv_(weights, gradients, rms, value=-group["lr"])


def root_mean_square(
    gradients: list[Tensor], squares: list[Tensor], means: list[Tensor] | None, alpha: float, eps: float
) -> list[Tensor]:
    """What an update divides gradients by: the root of their running mean square, plus ``eps``.

    Args:
        gradients: of the weights, of any shapes.
        squares: the running means of their squares, of the same shapes; moved in place.
        means: those of the gradients, moved in place; given, the root is that of the variance.
        alpha: the share of the running means that is kept.
    """
    foreach_mul_(squares, alpha)
    foreach_addcmul_(squares, gradients, gradients, value=1 - alpha)
    if means is None:
        roots = foreach_sqrt(squares)
    else:
        foreach_lerp_(means, gradients, 1 - alpha)
        roots = foreach_addcmul(squares, means, means, value=-1)
        foreach_sqrt_(roots)
    foreach_add_(roots, eps)
    return list(roots)
