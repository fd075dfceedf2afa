"""DINO: self-distillation without labels (Caron et al. 2021, arXiv 2104.14294)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg import distributed
from healsg.errors import ConfigError
from healsg.losses.agreement import self_distillation
from healsg.methods.selfsupervised import SelfSupervised, both_views, follow, full_precision, halves, rising, two_views
from healsg.training.step import rows_of
from healsg.types import Count, Kept, Positive, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


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
    """Match the probabilities that the teacher, a momentum encoder, gives of the other view (Algorithm 1). The teacher
    is evaluated and saved.

    There are two global views; the paper adds small local ones, warms the teacher's temperature up, and freezes the
    last layer for an epoch. The centre is the mean over all processes.

    Args:
        student_temperature, teacher_temperature: divide the logits.
        momentum: initial decay of the teacher's moving average; it rises to 1 over the run.
        center_momentum: decay of the centre, the moving mean of the teacher's logits.
        hidden, bottleneck, prototypes: units of the head's layers; 2,048, 256 and 65,536 in the paper.
        smallest_crop: the smallest area of a view, as a share of the image.
        saturation: the largest change of a view's saturation.
        solarise: the probability of solarising the first and the second view.
        common: the arguments of SelfSupervised.
    """

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
        smallest_crop: Share = 0.08,
        saturation: Share = 0.4,
        solarise: tuple[Share, Share] = (0.0, 0.0),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.needs = two_views(smallest_crop, saturation, solarise)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.momentum = momentum
        self.center_momentum = center_momentum
        self.hidden = hidden
        self.bottleneck = bottleneck
        self.prototypes = prototypes
        self.target: nn.Module = nn.Identity()
        self.sums: Tensor | None = None
        """(prototypes + 1,) the sum of the teacher's scores in the update so far, and of how many."""

    def head(self, features: int) -> nn.Module:
        return Prototypes(features, self.hidden, self.bottleneck, self.prototypes)

    def check(self, task: Task) -> None:
        super().check(task)
        if key := next((key for key in ("ema", "swa") if getattr(self, key)), None):
            raise ConfigError(f"method.{key}: DINO evaluates its teacher, which is an average already; set it to 0")

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.target = self.momentum_encoder(task)
        self.register_buffer("center", torch.zeros(self.prototypes))

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = batch["unlabelled"]
        input = both_views(views)
        with torch.no_grad():
            teacher1, teacher2 = halves(self.target(input))
        student1, student2 = halves(task.net(input))
        with full_precision(task):
            center = self.center.clone()
            temperatures = self.student_temperature, self.teacher_temperature
            losses = self_distillation(student1, teacher2, center, *temperatures)
            losses = losses + self_distillation(student2, teacher1, center, *temperatures)
            self.add_scores(torch.cat([teacher1, teacher2]), counts=rows_of(views, teacher1) > 0)
            return {"loss": losses.mean() / 2}

    def after_update(self, task: Task) -> None:
        super().after_update(task)
        self.move_center()
        progress = task.runner.step_count / task.runner.total_steps
        follow(self.target, task.model, rising(self.momentum, progress))

    @torch.no_grad()
    def add_scores(self, scores: Tensor, counts: bool) -> None:
        """Add up (N, prototypes) scores of the update, where this process's samples count."""
        sums = torch.cat([scores.sum(dim=0), scores.new_full((1,), len(scores))]) * float(counts)
        self.sums = sums if self.sums is None else self.sums + sums

    def move_center(self) -> None:
        """Move the centre towards the mean score of the update, over all processes (equation 4)."""
        assert self.sums is not None
        sums = distributed.processes().sum(self.sums)
        self.center.lerp_((sums[:-1] / sums[-1]).to(self.center.dtype), 1.0 - self.center_momentum)
        self.sums = None

    def eval_model(self, task: Task) -> nn.Module:
        return self.target
