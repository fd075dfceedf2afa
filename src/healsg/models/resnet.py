"""Residual networks for images and volumes: the first form (He et al. 2015, arXiv 1512.03385), and the one whose
shortcuts are identities (He et al. 2016, arXiv 1603.05027)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.model import Network, TaskModel, takes_any
from healsg.types import Count

CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
"""The layers by the number of spatial dimensions."""

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks a stage by depth (Table 1 of the first paper)."""

LARGE = 64
"""The shortest side, in pixels, from which the stem of the paper is used."""


def convolution(dim: int, before: int, after: int, kernel: int, stride: int = 1) -> nn.Module:
    """A convolution without bias that keeps the size but for its stride."""
    layer: nn.Module = CONVOLUTION[dim](before, after, kernel, stride, kernel // 2, bias=False)
    return layer


def branch(dim: int, before: int, width: int, after: int, stride: int, bottleneck: bool) -> list[nn.Module]:
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, with norm and ReLU between them.

    The bottleneck's stride lies on its 3x3 convolution, as all later implementations have it (Goyal et al. 2017).

    Args:
        dim: spatial dimensions, 2 or 3.
        before: channels that come in.
        width: channels of the 3x3 convolutions.
        after: channels that go out.
        stride: the step of the block.
        bottleneck: which of the two.
    """
    norm = NORM[dim]
    if not bottleneck:
        layers = [convolution(dim, before, width, 3, stride), norm(width), nn.ReLU(inplace=True)]
        return [*layers, convolution(dim, width, after, 3)]
    layers = [convolution(dim, before, width, 1), norm(width), nn.ReLU(inplace=True)]
    layers += [convolution(dim, width, width, 3, stride), norm(width), nn.ReLU(inplace=True)]
    return [*layers, convolution(dim, width, after, 1)]


class Block(nn.Module):
    """``relu(residual(x) + shortcut(x))``, where the residual ends in a norm; its arguments are those of ``branch``."""

    def __init__(self, dim: int, before: int, width: int, after: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        norm = NORM[dim]
        self.residual = nn.Sequential(*branch(dim, before, width, after, stride, bottleneck), norm(after))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(convolution(dim, before, after, 1, stride), norm(after))

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(self.residual(input) + self.shortcut(input))


class PreactivationBlock(nn.Module):
    """``residual(relu(norm(x))) + x``; where the shape changes, a convolution of ``relu(norm(x))`` takes the place of
    x. Its arguments are those of ``branch``."""

    def __init__(self, dim: int, before: int, width: int, after: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.norm = NORM[dim](before)
        self.residual = nn.Sequential(*branch(dim, before, width, after, stride, bottleneck))
        changes = stride != 1 or before != after
        self.shortcut = convolution(dim, before, after, 1, stride) if changes else None

    def forward(self, input: Tensor) -> Tensor:
        active = torch.relu(self.norm(input))
        kept: Tensor = self.shortcut(active) if self.shortcut else input
        return kept + self.residual(active)  # type: ignore[no-any-return]


def stem(dim: int, channels: int, width: int, large: bool, active: bool = True) -> nn.Sequential:
    """7x7 of stride 2 and a max-pool as in the paper, or a plain 3x3 for small images; norm and ReLU if ``active``."""
    layers = [convolution(dim, channels, width, 7, 2) if large else convolution(dim, channels, width, 3)]
    layers += [NORM[dim](width), nn.ReLU(inplace=True)] * active
    return nn.Sequential(*layers, *[MAX_POOL[dim](3, 2, 1)] * large)


class ResidualNetwork(Network):
    """A stem, four stages of blocks, global average pooling, a linear head.

    Args:
        channels: channels of the input.
        classes: the number of outputs.
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        width: channels of the first stage; each later one has twice as many.
        dim: spatial dimensions, 2 or 3.
        large_stem: 7x7 of stride 2 with a max-pool instead of a plain 3x3.
        zero_init_residual: initialise each block as the identity.
        preactivation: the second form: norm and ReLU before the convolutions, and after the last block.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        depth: int,
        width: int,
        dim: int,
        large_stem: bool,
        zero_init_residual: bool,
        preactivation: bool,
    ) -> None:
        super().__init__()
        block = PreactivationBlock if preactivation else Block
        bottleneck = depth >= 50
        expansion = 4 if bottleneck else 1
        stages: list[nn.Module] = []
        before = width
        for stage, amount in enumerate(BLOCKS[depth]):
            inner = width * 2**stage
            for position in range(amount):
                stride = 2 if stage and not position else 1
                stages.append(block(dim, before, inner, inner * expansion, stride, bottleneck))
                before = inner * expansion
        self.stem = stem(dim, channels, width, large_stem, active=not preactivation)
        self.stages = nn.Sequential(*stages)
        self.last = nn.Sequential(*[NORM[dim](before), nn.ReLU(inplace=True)] * preactivation)
        self.num_features = before
        self.head = nn.Linear(before, classes)
        initialise(self, zero_init_residual)

    def features(self, input: Tensor) -> Tensor:
        """(N, channels, *spatial) to (N, num_features)."""
        hidden: Tensor = self.last(self.stages(self.stem(input)))
        return hidden.flatten(2).mean(2)


def initialise(network: nn.Module, zero_init_residual: bool) -> None:
    """Draw the convolutions' weights (He et al. 2015, arXiv 1502.01852), and initialise blocks as the identity if
    requested (Goyal et al. 2017, arXiv 1706.02677, section 5.1)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in network.modules():
        if zero_init_residual and isinstance(module, (Block, PreactivationBlock)):
            last: Any = module.residual[-1]
            nn.init.zeros_(last.weight)


class ResNet(TaskModel):
    """Residual networks of 18 to 152 layers, for images and volumes of any number of channels.

    Args:
        depth: the number of layers: 18 and 34 of basic blocks, 50, 101 and 152 of bottlenecks.
        width: channels of the first stage; 64 in the paper.
        stem: ``large`` is the paper's 7x7 of stride 2 with a max-pool, ``small`` a plain 3x3; ``auto`` takes the
            small one where a side is shorter than 64 pixels.
        dim: spatial dimensions; those of the data if it is None.
        zero_init_residual: initialise each block as the identity.
        preactivation: norm and ReLU before each convolution instead of after it (He et al. 2016).
        common: the arguments of TaskModel.
    """

    leaves_weights = True
    draws_only_from_torch = True

    def __init__(
        self,
        depth: Literal[18, 34, 50, 101, 152] = 18,
        width: Count = 64,
        stem: Literal["auto", "small", "large"] = "auto",
        dim: Literal[2, 3] | None = None,
        zero_init_residual: bool = True,
        preactivation: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.depth = depth
        self.width = width
        self.stem = stem
        self.dim = dim
        self.zero_init_residual, self.preactivation = zero_init_residual, preactivation

    def check(self, info: DataInfo) -> None:
        super().check(info)
        shape = info.input_shape
        given = len(shape) - 1
        if given not in CONVOLUTION:
            raise ConfigError(
                f"model: ResNet takes images (channels, height, width) or volumes (channels, depth, height, width), "
                f"not {shape}; {takes_any(info)}"
            )
        if self.dim not in (None, given):
            raise ConfigError(f"model: model.dim={self.dim} does not fit inputs of shape {shape}; model.dim=null does")

    def build(self, info: DataInfo) -> nn.Module:
        channels, *spatial = info.input_shape
        large = min(spatial) >= LARGE if self.stem == "auto" else self.stem == "large"
        sizes = (channels, info.num_classes, self.depth, self.width, len(spatial))
        return ResidualNetwork(*sizes, large, self.zero_init_residual, self.preactivation)
