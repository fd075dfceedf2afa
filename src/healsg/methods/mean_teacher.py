"""Mean Teacher: consistency with a teacher that averages the student's weights (Tarvainen and Valpola 2017, arXiv
1703.01780)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from healsg.data.base import Needs
from healsg.errors import ConfigError
from healsg.losses.semi import sigmoid_ramp, squared_distance
from healsg.methods.consistency import SemiSupervised, finest, forward_together, inside, mean_over, probabilities
from healsg.training.averaging import optimizer_averages
from healsg.types import Count, Fraction, NonNegative

if TYPE_CHECKING:
    from healsg.protocols import Task


class MeanTeacher(SemiSupervised):
    """The prediction of an unlabelled sample is trained towards that of the teacher, a moving average of the network's
    weights, of another view of it (section 2).

    The network sees the sample as ``data.augment`` makes it, the teacher its weak view; the teacher is in evaluation
    mode, and is what is evaluated. Its decay is ``ema``. Where targets are masks, pixels take the place of samples
    (Yu et al. 2019, arXiv 1907.07034, without their mask of uncertainty).

    Args:
        unlabelled_ratio: as for SemiSupervised; 62 labelled samples of 256 in the authors' code.
        unlabelled_weight: the final weight of the squared distance, a mean over classes.
        ramp: the share of the run over which that weight grows; 40,000 of 150,000 updates in the paper.
        view: what the network sees of an unlabelled sample: ``input``, as ``data.augment`` makes it, or ``strong``,
            which with masks is moved as the teacher's view is.
        common: the arguments of SemiSupervised.
    """

    dense = True
    records_pseudo_labels = True

    views = ("input", "weak")

    def __init__(
        self,
        unlabelled_ratio: Count = 3,
        unlabelled_weight: NonNegative = 100.0,
        ramp: Fraction = 0.25,
        view: Literal["input", "strong"] = "input",
        **common: Any,
    ) -> None:
        super().__init__(unlabelled_ratio=unlabelled_ratio, unlabelled_weight=unlabelled_weight, **common)
        self.view = view
        self.needs = Needs({"labelled": ("input",), "unlabelled": (view, "weak")}, {"unlabelled": unlabelled_ratio})
        self.ramp = ramp

    def check(self, task: Task) -> None:
        super().check(task)
        if not self.ema and not optimizer_averages(self.make_optimizer):
            raise ConfigError("method.ema: is the decay of the teacher, usually 0.99 to 0.999; it cannot be 0")

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.eval_model(task).eval()

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        input, _ = self.labelled.inputs(task, labelled)
        output, student = forward_together(task.net, input, unlabelled[self.view])
        supervised = self.labelled.loss(task.criterion, labelled, output)

        with torch.no_grad():
            scores = self.eval_model(task)(unlabelled["weak"])
            teacher = probabilities(scores)
        task.runner.record_pseudo_labels(unlabelled, scores)
        distance = mean_over(squared_distance(finest(student), teacher), unlabelled, inside(unlabelled))
        growth = sigmoid_ramp(task.runner.step_count / task.runner.total_steps, self.ramp)
        loss = supervised + growth * self.unlabelled_weight * distance
        return {"loss": loss, "supervised": supervised, "unlabelled": distance}
