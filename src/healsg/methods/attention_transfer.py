"""Attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from healsg.errors import ConfigError
from healsg.losses.distillation import attention
from healsg.methods.teacher import Distilled, Student
from healsg.methods.within import Probe
from healsg.types import NonNegative

if TYPE_CHECKING:
    from healsg.protocols import Task


class AttentionTransfer(Distilled):
    """Match the teacher's spatial attention maps, in addition to learning from the labels (section 3.1).

    Without ``layers`` these are those of the last maps of each resolution, paired from the last one. Maps of different
    size are pooled to the smaller.

    Args:
        weight: of the squared distance of the attention maps, a mean over their pixels, summed over the pairs.
        layers, teacher_layers: the modules of both networks whose outputs are compared: names with ``*`` and ``?``,
            several joined by ``|``.
        common: the arguments of Distilled.
    """

    def __init__(
        self,
        weight: NonNegative = 1000.0,
        layers: str | None = None,
        teacher_layers: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.weight = weight
        self.layers = layers
        self.teacher_layers = teacher_layers

    def with_heads(self, task: Task, network: nn.Module, student: Probe, teacher: Probe) -> tuple[nn.Module, list[str]]:
        layers, teacher_layers = self.layer_pairs(student, teacher, "maps")
        for pair in zip(layers, teacher_layers, strict=True):
            axes = len(student.shapes[pair[0]]), len(teacher.shapes[pair[1]])
            if min(axes) < 3 or axes[0] != axes[1]:
                raise ConfigError(f"method.layers: {pair[0]} and the teacher's {pair[1]} are no maps (N, C, ...) alike")
        return Student(network, layers, [nn.Identity() for _ in layers]), teacher_layers

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, mixed = self.labelled.inputs(task, batch)
        teacher = self.teach(input)
        output, maps = task.net(input)

        distances = [attention(own, taught).mean() for own, taught in zip(maps, teacher.inner, strict=True)]
        distillation = self.weight * torch.stack(distances).sum()
        labels = self.labelled.loss(task.criterion, batch, output, mixed)
        return {"loss": labels + distillation, "distillation": distillation.detach()}
