"""LoRA: low-rank adaptation of a pretrained network (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from healsg.methods.supervised import Supervised
from healsg.training.averaging import Average
from healsg.training.layers import freeze, head_of
from healsg.types import Count, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task

ADAPTED: dict[type[nn.Module], str] = {
    nn.Linear: "weight",
    nn.Conv1d: "weight",
    nn.Conv2d: "weight",
    nn.Conv3d: "weight",
    nn.MultiheadAttention: "in_proj_weight",
}
"""The modules that are adapted, with the name of their weight; a convolution's is taken as a matrix (out, rest)."""


def low_rank(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """``weight + scale * up @ down``, where the product (rows, columns) takes the weight's shape (rows, ...)."""
    return weight + scale * (up @ down).view(weight.shape)


class LowRank(nn.Module):
    """The trained low-rank matrix that is added to a frozen weight; zero at first.

    Args:
        weight: (rows, ...).
        rank: of the matrix.
        alpha: the matrix is multiplied by ``alpha / rank``.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight[0].numel()))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return low_rank(weight, self.down, self.up, self.scale)


class LoRA(Supervised):
    """Train the head and, for every linear layer and convolution before it, a low-rank matrix that is added to the
    frozen weight (section 4.1).

    The network that is evaluated, saved and exported is the plain one, with the low-rank matrices added to its weights.

    Args:
        rank: of the matrices.
        alpha: a matrix is multiplied by ``alpha / rank``.
        common: the arguments of Supervised.
    """

    starts_from_weights = True

    def __init__(self, rank: Count = 8, alpha: Positive = 16.0, **common: Any) -> None:
        super().__init__(**common)
        self.rank = rank
        self.alpha = alpha

    def setup(self, task: Task) -> None:
        head = head_of(task.model, "LoRA")
        freeze(task.model, "body")
        self.average = Average(task.model)
        adapt(task.model, head, self.rank, self.alpha)
        super().setup(task)

    def weights_to_average(self, task: Task) -> list[Tensor]:
        assert self.average is not None
        own = list(task.model.parameters())
        values = dict(zip(own, self.learned_values(task, own), strict=True))
        return [merged(task.model, name, values) for name, _ in self.average.network.named_parameters()]


def adapt(model: nn.Module, head: nn.Module, rank: int, alpha: float) -> None:
    """Add a trained low-rank matrix to every weight in ``ADAPTED`` except that of ``head``."""
    for module in [module for module in model.modules() if module is not head]:
        for kind, name in ADAPTED.items():
            weight = getattr(module, name, None) if isinstance(module, kind) else None
            if isinstance(weight, Tensor):
                parametrize.register_parametrization(module, name, LowRank(weight, rank, alpha))


def merged(model: nn.Module, name: str, values: dict[nn.Parameter, Tensor]) -> Tensor:
    """A weight of an adapted network with its low-rank matrix added.

    Args:
        model: the adapted network.
        name: of the weight, before the network was adapted.
        values: the values that stand for the network's parameters.
    """
    path, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(path)
    if not parametrize.is_parametrized(module, leaf):
        return values[getattr(module, leaf)]
    given = module.parametrizations[leaf]
    change = given[0]
    return low_rank(values[given.original], values[change.down], values[change.up], change.scale)
