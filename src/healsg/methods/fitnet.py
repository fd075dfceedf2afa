"""FitNets: hints from within the teacher, then its probabilities (Romero et al. 2015, arXiv 1412.6550)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.losses.distillation import hint, soft_targets
from healsg.methods.teacher import Distilled, ForwardOutput, Student
from healsg.methods.within import Probe
from healsg.types import Fraction, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask


class Regressor(nn.Linear):
    """A linear map of the channels of (N, C, ...), at each place of a map."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class FitNet(Distilled):
    """First let a layer of the student say what a layer of the teacher says, then learn labels and probabilities.

    Without ``layers`` these are the last maps before the pooling or, where either network has none, the last features.
    Maps of different size are pooled to the smaller.

    Args:
        hints: the share of the run in which the hints alone are learned.
        temperature, alpha: of what follows, as in ``KD``.
        layers, teacher_layers: the modules of both networks that are looked at: names with ``*`` and ``?``, several
            joined by ``|``.
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
        self.hints, self.temperature, self.alpha = hints, temperature, alpha
        self.layers, self.teacher_layers = layers, teacher_layers

    def wrap(self, task: BasicTask, student: Probe, teacher: Probe) -> Student:
        kind = "maps" if student.maps() and teacher.maps() else "features"
        layers, self.places = self.layers_of(student, teacher, kind, last=True)
        shapes = student.shapes[layers[0]], teacher.shapes[self.places[0]]
        if len(layers) > 1 or len({len(shape) for shape in shapes}) > 1:
            raise ConfigError(
                f"method.layers: {layers} and {self.places} give {shapes}; name one pair of maps of as many axes"
            )
        return Student(task.model, layers, [Regressor(shapes[0][1], shapes[1][1])])

    def hinting(self, task: BasicTask) -> bool:
        """Whether the run is in its first part."""
        return task.runner.step_count < self.hints * task.runner.total_steps

    def label_share(self, task: BasicTask) -> float:
        return 0.0 if self.hinting(task) else 1.0 - self.alpha

    def distillation_loss(
        self, task: BasicTask, batch: dict[str, Any], student: ForwardOutput, teacher: ForwardOutput
    ) -> Tensor:
        first = float(self.hinting(task))
        hints = hint(student.inner[0], teacher.inner[0]).mean()
        rest = soft_targets(student.output, teacher.output, self.temperature).mean()
        return (
            first * hints + (1.0 - first) * self.alpha * rest
        )  # 0 times a part, so that all that learns has a gradient
