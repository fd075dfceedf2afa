"""Adam (Kingma and Ba 2014, arXiv 1412.6980) and AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), fused."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from healsg.optimizers.groups import GroupOptimizer
from healsg.torch_private import foreach_add_, foreach_sub_, fused_adam_, fused_adamw_
from healsg.types import NonNegative, Share


def adam_update(
    group: dict[str, Any],
    weights: list[Tensor],
    gradients: list[Tensor],
    state: list[list[Tensor]],
    *,
    decoupled: bool,
    scale: Tensor | None = None,
    infinite: Tensor | None = None,
) -> None:
    """One update by torch's fused kernel, in place on ``weights`` and ``state``.

    Args:
        group: ``lr``, ``betas``, ``eps`` and ``weight_decay``, decoupled from the gradient or added to it.
        weights, gradients: tensors of the same shapes, of one device and type.
        state: by weight the step, the first and the second moment and, with amsgrad, the largest second moment.
        scale, infinite: divisor of fp16 gradients; above 0 if the update is to be skipped.
    """
    steps, means, squares, *largest = state
    kernel = fused_adamw_ if decoupled else fused_adam_
    foreach_add_(steps, 1)
    kernel(
        weights,
        gradients,
        means,
        squares,
        largest[0] if largest else [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=bool(largest),
        maximize=False,
        grad_scale=scale,
        found_inf=infinite,
    )
    if infinite is not None:
        foreach_sub_(steps, [infinite] * len(steps))


class Adam(GroupOptimizer):
    """Adam by torch's fused kernel, bit for bit ``torch.optim.Adam(fused=True)``, with less Python around it.

    Args:
        params: parameters, groups of them, or pairs of name and parameter.
        lr: the learning rate.
        betas: the decay rates of the first and the second moment, each in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        amsgrad: use the largest second moment so far (Reddi et al. 2018, arXiv 1904.09237).
    """

    takes_shards = True
    draws_only_from_torch = True

    decoupled = False
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: NonNegative = 1e-3,
        betas: tuple[Share, Share] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        amsgrad: bool = False,
    ) -> None:
        settings = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, {**settings, "decoupled_weight_decay": self.decoupled, "fused": True})

    def update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        names = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 + group["amsgrad"]]
        adam_update(
            group,
            weights,
            gradients,
            self.state_of(weights, *names),
            decoupled=group["decoupled_weight_decay"],
            scale=self.__dict__.get("grad_scale"),
            infinite=self.__dict__.get("found_inf"),
        )


class AdamW(Adam):
    """Adam with decoupled weight decay, bit for bit ``torch.optim.AdamW(fused=True)``; see ``Adam``."""

    takes_shards = True
    draws_only_from_torch = True

    decoupled = True

    def __init__(
        self,
        params: ParamsT,
        lr: NonNegative = 3e-3,
        betas: tuple[Share, Share] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.01,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)
