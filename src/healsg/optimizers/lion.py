"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from healsg.optimizers.groups import GroupOptimizer
from healsg.torch_private import foreach_add_, foreach_lerp, foreach_lerp_, foreach_mul_, foreach_sign_
from healsg.types import NonNegative, Share


def lion_update(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    lr: float | Tensor,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """One update of Algorithm 2, in place on ``weights`` and ``momenta`` (lists of tensors of the same shapes)."""
    steps = foreach_lerp(momenta, gradients, 1 - betas[0])
    foreach_sign_(steps)
    foreach_mul_(steps, -lr)
    if weight_decay:
        foreach_mul_(weights, 1 - lr * weight_decay)
    foreach_add_(weights, steps)
    foreach_lerp_(momenta, gradients, 1 - betas[1])


class Lion(GroupOptimizer):
    """Lion with decoupled weight decay (arXiv 2302.06675, Algorithm 2).

    Every element moves by ``lr`` in each update, so ``lr`` is 3 to 10 times smaller than AdamW's and ``weight_decay``
    as many times larger (section 5 of the paper).

    Args:
        params: parameters, groups of them, or pairs of name and parameter.
        lr: the learning rate.
        betas: the weight of the momentum in the update, and its decay rate; each in [0, 1).
        weight_decay: decoupled weight decay.
    """

    takes_shards = True

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: NonNegative = 3e-4,
        betas: tuple[Share, Share] = (0.9, 0.99),
        weight_decay: NonNegative = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    def update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        (momenta,) = self.state_of(weights, "momentum")
        with self.loss_scaling(weights, gradients, momenta):
            lion_update(weights, gradients, momenta, group["lr"], group["betas"], group["weight_decay"])
