"""FitNets: hints from within the teacher, then its probabilities (Romero et al. 2015, arXiv 1412.6550)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.losses.distillation import hint, soft_targets
from healsg.methods.teacher import Distilled, Student
from healsg.methods.within import Probe
from healsg.training.step import Loss
from healsg.types import Fraction, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class Regressor(nn.Linear):
    """A linear map of the channels of (N, C, ...), at each pixel of a map."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class FitNet(Distilled):
    """First train a layer of the student to predict a layer of the teacher (the hints, section 2.2), then learn from
    labels and the teacher's probabilities (section 2.1).

    Without ``layers`` these are the last maps before the pooling or, where either network has none, the last features.
    Maps of different size are pooled to the smaller.

    Args:
        hints: the share of the run in which the hints are the only loss.
        temperature, alpha: of the second stage, as in ``KD``.
        layers, teacher_layers: the modules of both networks whose outputs are compared: names with ``*`` and ``?``,
            several joined by ``|``.
        common: the arguments of Distilled.
    """

    def __init__(
        self,
        hints: Fraction = 0.3,
        temperature: Positive = 4.0,
        alpha: Fraction = 0.9,
        layers: str | None = None,
        teacher_layers: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.hints = hints
        self.temperature = temperature
        self.alpha = alpha
        self.layers = layers
        self.teacher_layers = teacher_layers

    def with_heads(self, task: Task, network: nn.Module, student: Probe, teacher: Probe) -> tuple[nn.Module, list[str]]:
        kind = "maps" if student.maps() and teacher.maps() else "features"
        layers, teacher_layers = self.layer_pairs(student, teacher, kind, last=True)
        shapes = student.shapes[layers[0]], teacher.shapes[teacher_layers[0]]
        if len(layers) > 1 or len({len(shape) for shape in shapes}) > 1:
            names = f"{layers} and {teacher_layers}"
            raise ConfigError(f"method.layers: {names} give {shapes}; name one pair of maps of as many axes")
        return Student(network, layers, [Regressor(shapes[0][1], shapes[1][1])]), teacher_layers

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, mixed = self.labelled.inputs(task, batch)
        teacher = self.teach(input)
        output, (regressed,) = task.net(input)

        hint_stage = task.runner.step_count < self.hints * task.runner.total_steps
        hints = hint(regressed, teacher.inner[0]).mean()
        soft = soft_targets(output, teacher.output, self.temperature).mean()
        # The other stage's loss has a factor of 0, so that every parameter has a gradient, as several processes need.
        stage = float(hint_stage)
        distillation = stage * hints + (1.0 - stage) * self.alpha * soft
        loss: Tensor | Loss = distillation
        if not hint_stage and self.alpha < 1.0:
            labels = self.labelled.loss(task.criterion, batch, output, mixed)
            loss = (1.0 - self.alpha) * labels + distillation
        return {"loss": loss, "distillation": distillation.detach()}
