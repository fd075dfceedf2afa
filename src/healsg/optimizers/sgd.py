"""SGD with momentum (Sutskever et al. 2013, section 2), fused."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from healsg.errors import ConfigError
from healsg.optimizers.groups import GroupOptimizer
from healsg.torch_private import fused_sgd_
from healsg.types import Excludes, Fraction, NonNegative, Requires, Share


class SGD(GroupOptimizer):
    """SGD by torch's fused kernel, bit for bit ``torch.optim.SGD(fused=True)``, with less Python around it.

    A weight's momentum begins with its own first gradient, also where other weights of its group have had theirs; with
    ``1 - dampening`` of it where fp16's loss scaler left the first update out.

    Args:
        params: parameters, groups of them, or pairs of name and parameter.
        lr: the learning rate.
        momentum: the momentum coefficient.
        dampening: dampening of the momentum.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: use Nesterov momentum.

    Raises:
        ConfigError: ``nesterov`` without momentum, or with dampening.
    """

    takes_shards = True
    draws_only_from_torch = True

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: NonNegative = 0.1,
        momentum: Share = 0.9,
        dampening: Fraction = 0.0,
        weight_decay: NonNegative = 5e-4,
        nesterov: Annotated[bool, Requires("momentum"), Excludes("dampening")] = True,
    ) -> None:
        if nesterov and (dampening or not momentum):
            raise ConfigError("method.optimizer.nesterov: needs momentum above 0 and no dampening; set it to false")
        settings = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "nesterov": nesterov})

    def kind(self, weight: Tensor) -> Any:
        return super().kind(weight), weight in self.state

    def update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        begins = bool(group["momentum"]) and weights[0] not in self.state
        momenta = self.state_of(weights, "momentum_buffer")[0] if group["momentum"] else []
        if hasattr(weights[0], "to_local"):  # sharded tensors, which this torch kernel does not support
            weights, gradients, momenta = map(_local, (weights, gradients, momenta))
        fused_sgd_(
            weights,
            gradients,
            momenta,
            lr=group["lr"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=begins,
            grad_scale=self.__dict__.get("grad_scale"),
            found_inf=self.__dict__.get("found_inf"),
        )


def _local(sharded: list[Any]) -> list[Tensor]:
    """The local shards of sharded tensors, which share their memory."""
    return [tensor.to_local() for tensor in sharded]
