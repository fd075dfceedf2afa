"""The loss of each kind of task where nothing else is chosen."""

from __future__ import annotations

from torch import Tensor, nn

from healsg.losses.classification import wide


def usual(kind: str) -> nn.Module | None:
    """The loss of a task of this kind, from ``(output, target)`` to a scalar mean; None for an unknown kind."""
    if kind == "multiclass":
        return nn.CrossEntropyLoss()
    return LabelsLoss() if kind == "multilabel" else RegressionLoss() if kind == "regression" else None


def fitted(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in the shape of their targets, so that (N, 1) is (N,); and both in one type, at least float32."""
    output = wide(output)
    return output.reshape(target.shape), target.to(output.dtype)


class LabelsLoss(nn.BCEWithLogitsLoss):
    """Binary cross entropy of scores (N, C) and targets (N, C) of 0 and 1, of any type; the mean over both."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(*fitted(input, target))


class RegressionLoss(nn.MSELoss):
    """Mean squared error of targets (N,) or (N, K) and outputs of that shape or, for one number, (N, 1)."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(*fitted(input, target))
