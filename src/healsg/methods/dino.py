"""DINO: self-distillation without labels (Caron et al. 2021, arXiv 2104.14294)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg import distributed
from healsg.losses.agreement import self_distillation
from healsg.methods.selfsupervised import Pair, SelfSupervised, Views
from healsg.training.step import rows_of
from healsg.types import Count, Kept, Positive, Share

if TYPE_CHECKING:
    from healsg.task import BasicTask


class Prototypes(nn.Module):
    """Three layers with GELU, length 1, then the cosine with each of ``outputs`` prototypes (section 3.2)."""

    def __init__(self, features: int, hidden: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.perceptron = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(outputs, bottleneck))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(self.perceptron(features), dim=1), F.normalize(self.prototypes, dim=1))


class DINO(SelfSupervised):
    """Tell what a momentum encoder, the teacher, tells of the other view. The teacher is evaluated and kept.

    Two global views; the paper adds small local ones, warms the teacher's temperature up, and holds the last layer
    still for an epoch. The centre is the mean over all processes.

    Args:
        student_temperature, teacher_temperature: what the scores are divided by.
        momentum: how much of the teacher an update keeps at first; it rises to 1 over the run.
        center_momentum: how much of the centre of the teacher's scores a batch keeps.
        hidden, bottleneck, prototypes: units of the head's layers; 2,048, 256 and 65,536 in the paper.
        common: the arguments of SelfSupervised.
    """

    momentum_rises = True
    center: Tensor

    def __init__(
        self,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        momentum: Kept = 0.99,
        center_momentum: Share = 0.9,
        hidden: Count = 512,
        bottleneck: Count = 128,
        prototypes: Count = 1024,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.temperatures = student_temperature, teacher_temperature
        self.momentum, self.center_momentum = momentum, center_momentum
        self.hidden, self.bottleneck, self.prototypes = hidden, bottleneck, prototypes

    def head(self, features: int) -> nn.Module:
        return Prototypes(features, self.hidden, self.bottleneck, self.prototypes)

    def setup(self, task: BasicTask) -> None:
        super().setup(task)
        self.register_buffer("center", torch.zeros(self.prototypes))

    def compare(self, task: BasicTask, batch: Views, output: list[Pair], wanted: list[Pair]) -> dict[str, Tensor]:
        (student, other), (first, second) = output[0], wanted[0]
        center = self.center.clone()
        losses = self_distillation(student, second, center, *self.temperatures)
        losses = losses + self_distillation(other, first, center, *self.temperatures)
        self.move_center(torch.cat([first, second]), counts=rows_of(batch, first) > 0)
        return {"loss": losses.mean() / 2}

    @torch.no_grad()
    def move_center(self, scores: Tensor, counts: bool) -> None:
        """Move towards the mean of (N, prototypes) scores, of all processes whose samples count."""
        sums = torch.cat([scores.sum(dim=0), scores.new_full((1,), len(scores))]) * float(counts)
        sums = distributed.sum_tensor(sums)
        self.center.lerp_((sums[:-1] / sums[-1]).to(self.center.dtype), 1.0 - self.center_momentum)

    def eval_model(self, task: BasicTask) -> nn.Module:
        assert self.target is not None
        return self.target
