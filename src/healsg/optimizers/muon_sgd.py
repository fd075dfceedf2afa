"""Muon for convolutions, SGD for the rest, as airbench94 has it (K. Jordan, cifar10-airbench, airbench94_muon.py)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from healsg.optimizers.groups import GroupOptimizer, as_groups, tensor_of
from healsg.optimizers.muon import orthogonalise
from healsg.torch_private import foreach_add, foreach_add_, foreach_div_, foreach_mul_, foreach_norm
from healsg.types import Count, NonNegative, Positive, Share


class MuonSGD(GroupOptimizer):
    """Muon on weights of more than two dimensions, each of which keeps the norm of an orthogonal one; SGD with
    Nesterov momentum on biases, and with another learning rate on matrices, such as the head's.

    The published learning rates of SGD, 0.053 and 0.67, are those of a loss that sums over a batch of 2,000 and of
    a head with weights of deviation 1 whose outputs are divided by 256. For the mean, and where the weights are divided
    and not the outputs, the head's is 0.67 * 2000 / 256**2. A head of small weights passes small gradients to what lies
    before it: the biases' is 0.053 * 2000 / 256 over the deviation of the last matrix, to the nearest power of two, so
    that it is the same for every seed.

    Args:
        params: parameters, or groups of them; what a group says of its weight decay or learning rate is left out.
        lr: Muon's learning rate.
        momentum: Muon's momentum coefficient.
        ns_steps: Newton-Schulz iterations.
        bias_lr: the learning rate of biases before a head whose weights have the deviation 1.
        head_lr: the learning rate of matrices.
        sgd_momentum: SGD's momentum coefficient.
        weight_decay: decoupled weight decay of SGD: the share removed per step at the full learning rate.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: Positive = 0.24,
        momentum: Share = 0.6,
        ns_steps: Count = 3,
        bias_lr: Positive = 0.414,
        head_lr: Positive = 0.0204,
        sgd_momentum: Share = 0.85,
        weight_decay: NonNegative = 0.004,
    ) -> None:
        weights = [tensor_of(weight) for group in as_groups(params) for weight in group["params"]]
        heads = [weight for weight in weights if weight.dim() == 2]
        deviation = float(heads[-1].detach().std()) if heads else 1.0
        rate = bias_lr / 2 ** round(math.log2(max(deviation, 2**-20)))
        muon = {"algorithm": "muon", "lr": lr, "momentum": momentum, "ns_steps": ns_steps}
        groups: list[dict[str, Any]] = [{"params": [weight for weight in weights if weight.dim() > 2], **muon}]
        for lr, chosen in ((rate, [weight for weight in weights if weight.dim() < 2]), (head_lr, heads)):
            settings = {"algorithm": "sgd", "lr": lr, "momentum": sgd_momentum, "weight_decay": weight_decay / lr}
            groups.append({"params": chosen, **settings})
        super().__init__([group for group in groups if group["params"]], {})

    def update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        move = _muon if group["algorithm"] == "muon" else _sgd
        (buffers,) = self.state_of(weights, "momentum_buffer")
        with self.loss_scaling(weights, gradients, buffers):
            move(group, weights, gradients, buffers)


def _muon(group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], buffers: list[Tensor]) -> None:
    foreach_mul_(buffers, group["momentum"])
    foreach_add_(buffers, gradients)
    ahead = foreach_add(gradients, buffers, alpha=group["momentum"])
    norms = foreach_norm(weights)
    foreach_div_(weights, norms)
    foreach_mul_(weights, [weight.size(0) ** 0.5 for weight in weights])
    for weight, direction in zip(weights, ahead, strict=True):
        step = orthogonalise(direction.reshape(1, len(direction), -1), group["ns_steps"])
        weight.add_(step.reshape(weight.shape).to(weight.dtype), alpha=-group["lr"])


def _sgd(group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], buffers: list[Tensor]) -> None:
    settings: dict[str, Any] = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
    sgd(weights, gradients, [*buffers], **settings, dampening=0.0, nesterov=True, maximize=False, foreach=True)
