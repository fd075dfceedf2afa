"""The default loss of each kind of task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.data.info import DataInfo
from healsg.losses.classification import require_pixels, wide


def usual(info: DataInfo) -> nn.Module | None:
    """The loss of a task of this kind, from ``(output, target)`` to a scalar mean; None for an unknown kind."""
    if info.kind == "multiclass":
        return nn.CrossEntropyLoss()
    if info.kind == "multilabel":
        return LabelsLoss()
    if info.kind == "regression":
        scale = info.preprocessing
        return RegressionLoss(scale.get("target_mean"), scale.get("target_std"))
    if info.dense and info.regions:
        from healsg.losses.segmentation import CrossEntropy

        return CrossEntropy(info.ignore, list(info.regions.values()))
    return MaskLoss(info.ignore) if info.dense else None


def fitted(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs reshaped to their targets' shape, such as (N, 1) to (N,), and both in one type, at least float32."""
    output = wide(output)
    return output.reshape(target.shape), target.to(output.dtype)


class LabelsLoss(nn.BCEWithLogitsLoss):
    """Binary cross entropy of logits (N, C) and targets (N, C) of 0 and 1, of any type; the mean over both."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(*fitted(input, target))


class RegressionLoss(nn.MSELoss):
    """Mean squared error of targets (N,) or (N, K) and outputs of that shape or, for one number, (N, 1).

    Args:
        mean: the mean of each of the K numbers. The outputs are compared with ``(target - mean) / std``, so that the
            loss does not depend on the unit. None uses the targets as they are.
        std: the standard deviation of each number.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        self.scales = mean is not None
        if mean is not None and std is not None:
            self.register_buffer("mean", torch.tensor(mean), persistent=False)
            self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        output, fitted_target = fitted(input, target)
        if self.scales:
            fitted_target = (fitted_target - self.mean.view(-1)) / self.std.view(-1)
        return super().forward(output, fitted_target)


class MaskLoss(nn.CrossEntropyLoss):
    """Cross entropy of logits (N, C, *spatial) and masks (N, *spatial) of labels, of any whole type; the mean over the
    pixels that are not ignored, 0 where all are. Class probabilities (N, C, *spatial) count all pixels.

    Args:
        ignore: the label of pixels that do not count; None if all do.
    """

    divides_as_torch = True
    """See ``training.denominator.weighs_classes``."""

    def __init__(self, ignore: int | None = None) -> None:
        super().__init__(ignore_index=-100 if ignore is None else ignore)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        require_pixels(input, target)
        if target.is_floating_point():
            return F.cross_entropy(wide(input), target)
        target = target.long()
        total = F.cross_entropy(wide(input), target, ignore_index=self.ignore_index, reduction="sum")
        return total / (target != self.ignore_index).sum().clamp(min=1)
