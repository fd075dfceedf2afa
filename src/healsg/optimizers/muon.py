"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from healsg.optimizers.adam import adam_update
from healsg.optimizers.groups import GroupOptimizer, as_groups, tensor_of
from healsg.torch_private import foreach_add_, foreach_lerp, foreach_lerp_, foreach_mul_
from healsg.types import Count, NonNegative, Positive, Share

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The quintic's coefficients: the steepest slope at zero that keeps singular values within about 0.7 to 1.2."""


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Replace the singular values by numbers near 1, by Newton-Schulz iterations ``X <- a X + (b XX' + c (XX')^2) X``.

    Args:
        matrices: (N, rows, columns).
        steps: iterations.
        dtype: of the computation.

    Returns:
        A tensor of the same shape, in ``dtype``.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        quartic = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, quartic, x, beta=a)
    made: Tensor = x.mT if tall else x
    return made


def step_scale(rows: int, columns: int, adjust: str, convolution: bool = False) -> float:
    """The factor of a matrix's learning rate: ``original`` as Jordan has it; ``match_rms_adamw`` gives updates the size
    of AdamW's, so that its learning rates serve (Liu et al. 2025, arXiv 2502.16982, section 2.2).

    Jordan's code (KellerJordan/Muon, muon.py) divides the sizes of the last two dimensions of the weight as it is: the
    rows and columns of a matrix, but the kernel's height and width of a convolution, which is thus not scaled.
    """
    if adjust == "match_rms_adamw":
        return float(0.2 * max(rows, columns) ** 0.5)
    return 1.0 if convolution else float(max(1.0, rows / columns) ** 0.5)


def is_matrix(weight: Tensor) -> bool:
    """Whether a parameter, flattened to (out, rest), has more than one row and more than one column."""
    return weight.dim() >= 2 and 1 < weight.size(0) < weight.numel()


def hidden_weights(groups: Iterable[dict[str, Any]]) -> set[Tensor]:
    """All weight matrices but the first and the last, in the order of the parameters."""
    weights = [weight for group in groups for weight in map(tensor_of, group["params"]) if is_matrix(weight)]
    return set(weights[1:-1])


class Muon(GroupOptimizer):
    """Muon for hidden weights, AdamW for everything else, as one optimizer.

    Weights of two and more dimensions are flattened to (out, rest). The first and the last of them in the order of the
    parameters, norms and biases go to AdamW; a network with no more than two weight matrices is thus trained by AdamW
    alone. Each group that comes in becomes two; both keep its weight decay, and a learning rate of the group's own
    moves AdamW's in proportion.

    Args:
        params: parameters, groups of them, or pairs of name and parameter.
        lr: the learning rate of the hidden weights.
        momentum: the momentum coefficient.
        nesterov: use Nesterov momentum.
        weight_decay: decoupled weight decay, of hidden weights and of the rest.
        ns_steps: Newton-Schulz iterations.
        adjust: how a matrix's shape scales its learning rate; see ``step_scale``.
        dtype: of the iterations.
        adamw_lr: AdamW's learning rate.
        adamw_betas: AdamW's decay rates of the moments; each in [0, 1).
        adamw_eps: what AdamW adds to its denominator.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: Positive = 0.02,
        momentum: Share = 0.95,
        nesterov: bool = True,
        weight_decay: NonNegative = 0.01,
        ns_steps: Count = 5,
        adjust: Literal["original", "match_rms_adamw"] = "original",
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        adamw_lr: NonNegative = 3e-3,
        adamw_betas: tuple[Share, Share] = (0.9, 0.95),
        adamw_eps: Positive = 1e-8,
    ) -> None:
        muon: dict[str, Any] = {"algorithm": "muon", "lr": lr, "momentum": momentum, "nesterov": nesterov}
        muon |= {"ns_steps": ns_steps, "adjust": adjust, "dtype": dtype}
        rest: dict[str, Any] = {
            "algorithm": "adamw",
            "lr": adamw_lr,
            "betas": tuple(adamw_betas),
            "eps": adamw_eps,
            "fused": True,
        }
        groups = as_groups(params)
        hidden = hidden_weights(groups)
        split = []
        for group in groups:
            factor = group.pop("lr", lr) / lr
            for settings, wanted in ((muon, True), (rest, False)):
                chosen = [param for param in group["params"] if (tensor_of(param) in hidden) == wanted]
                if chosen:
                    split.append({**settings, **group, "params": chosen, "lr": settings["lr"] * factor})
        super().__init__(split, {**rest, "weight_decay": weight_decay})

    def update(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        move = self._muon if group["algorithm"] == "muon" else self._adamw
        move(group, weights, gradients)

    def _adamw(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        state = self.state_of(weights, "step", "exp_avg", "exp_avg_sq")
        scale, infinite = self.__dict__.get("grad_scale"), self.__dict__.get("found_inf")
        adam_update(group, weights, gradients, state, decoupled=True, scale=scale, infinite=infinite)

    def _muon(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        (buffers,) = self.state_of(weights, "momentum_buffer")
        with self.loss_scaling(weights, gradients, buffers):
            muon_update(group, weights, gradients, buffers)


def muon_update(group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], buffers: list[Tensor]) -> None:
    """One update in place on ``weights`` and ``buffers``; ``group`` holds Muon's settings."""
    foreach_lerp_(buffers, gradients, 1 - group["momentum"])
    ahead = foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
    if group["weight_decay"]:
        foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    alike: dict[Any, list[int]] = defaultdict(list)
    for position, weight in enumerate(weights):
        columns = weight.numel() // weight.size(0)
        alike[weight.size(0), columns, weight.dim() > 2, weight.device, weight.dtype].append(position)
    for (rows, columns, convolution, _, dtype), positions in alike.items():
        matrices = torch.stack([ahead[position].reshape(rows, columns) for position in positions])
        made = orthogonalise(matrices, group["ns_steps"], getattr(torch, group["dtype"])).to(dtype)
        made = made * (-group["lr"] * step_scale(rows, columns, group["adjust"], convolution))
        chosen = [weights[position] for position in positions]
        steps = [piece.reshape(weight.shape) for piece, weight in zip(made, chosen, strict=True)]
        foreach_add_(chosen, steps)
