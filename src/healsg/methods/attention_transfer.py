"""Attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.losses.distillation import attention
from healsg.methods.teacher import Distilled, ForwardOutput, Student
from healsg.methods.within import Probe
from healsg.types import NonNegative

if TYPE_CHECKING:
    from healsg.task import BasicTask


class AttentionTransfer(Distilled):
    """Look where the teacher looks, beside the labels.

    Without ``layers`` these are the last maps of each resolution, paired from the last one. Maps of different size are
    pooled to the smaller.

    Args:
        weight: of the squared distance of the looks, a mean over their places, summed over the pairs.
        layers, teacher_layers: the modules of both networks that are looked at: names with ``*`` and ``?``, several
            joined by ``|``.
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
        self.layers, self.teacher_layers = layers, teacher_layers

    def wrap(self, task: BasicTask, student: Probe, teacher: Probe) -> Student:
        layers, self.places = self.layers_of(student, teacher, "maps")
        for pair in zip(layers, self.places, strict=True):
            axes = len(student.shapes[pair[0]]), len(teacher.shapes[pair[1]])
            if min(axes) < 3 or axes[0] != axes[1]:
                raise ConfigError(f"method.layers: {pair[0]} and the teacher's {pair[1]} are no maps (N, C, ...) alike")
        return Student(task.model, layers, [nn.Identity() for _ in layers])

    def distillation_loss(
        self, task: BasicTask, batch: dict[str, Any], student: ForwardOutput, teacher: ForwardOutput
    ) -> Tensor:
        pairs = zip(student.inner, teacher.inner, strict=True)
        return self.weight * torch.stack([attention(*pair).mean() for pair in pairs]).sum()
