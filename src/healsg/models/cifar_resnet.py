"""Residual networks of three stages for small images (He et al. 2015, arXiv 1512.03385, section 4.2), widened as
papers on distillation have them: resnet8x4 and resnet32x4 (Tian et al. 2020, arXiv 1910.10699, RepDistiller)."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.model import Network, TaskModel
from healsg.models.resnet import Block, initialise, stem
from healsg.models.wide_resnet import check_images
from healsg.types import Count, Range

SMALLEST = 4
"""The side of the smallest image, in pixels: the last stage sees a quarter of it."""


class CifarResidualNetwork(Network):
    """A 3x3 convolution, three stages of basic blocks (``stages``), global average pooling, a linear head.

    Args:
        channels: channels of the images.
        classes: the number of outputs.
        depth: the number of layers, 6 n + 2 with n blocks a stage.
        width_factor: channels of the stages in multiples of 16, 32 and 64.
        stem_width: channels of the first convolution.
    """

    def __init__(self, channels: int, classes: int, depth: int, width_factor: int, stem_width: int) -> None:
        super().__init__()
        self.stem = stem(2, channels, stem_width, large=False)
        before = stem_width
        stages = []
        for stage in range(3):
            after, blocks = 16 * width_factor * 2**stage, []
            for position in range((depth - 2) // 6):
                stride = 2 if stage and not position else 1
                blocks.append(Block(2, before, after, after, stride, bottleneck=False))
                before = after
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.num_features, self.head = before, nn.Linear(before, classes)
        initialise(self, zero_init_residual=False)

    def features(self, input: Tensor) -> Tensor:
        """(N, channels, height, width) to (N, num_features)."""
        hidden: Tensor = self.stages(self.stem(input))
        return hidden.mean((2, 3))


class CifarResNet(TaskModel):
    """Residual networks of basic blocks in three stages, for small images.

    Args:
        depth: the number of layers, 6 n + 2 (8 has one block in each of the three stages).
        width_factor: channels of the stages in multiples of 16, 32 and 64.
        stem_width: channels of the first convolution: 32 in the networks of four times the width, 16 in the paper's.
        common: the arguments of TaskModel.
    """

    leaves_weights = True
    draws_only_from_torch = True

    def __init__(
        self,
        depth: Annotated[int, Range(low=8, step=6)] = 8,
        width_factor: Count = 4,
        stem_width: Count = 32,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"model.depth: {depth} is not 6 n + 2 (8, 14, 20, 32, 44, 56, 110, ...)")
        self.depth = depth
        self.width_factor = width_factor
        self.stem_width = stem_width

    def check(self, info: DataInfo) -> None:
        super().check(info)
        check_images("CifarResNet", info, SMALLEST)

    def build(self, info: DataInfo) -> nn.Module:
        return CifarResidualNetwork(
            info.input_shape[0], info.num_classes, self.depth, self.width_factor, self.stem_width
        )
