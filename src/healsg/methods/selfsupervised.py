"""What self-supervised methods share: heads in the place of the classifier, a momentum encoder, k-NN evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from healsg.data.base import Needs
from healsg.errors import ConfigError
from healsg.losses.classification import wide
from healsg.method import Scheduler, TaskMethod
from healsg.methods import neighbours as knn
from healsg.methods.averaging import Average, optimizer_averages
from healsg.methods.depth import head_of
from healsg.types import Count, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask

Pair = tuple[Tensor, Tensor]
"""What was made of the first and of the second view of the same samples."""

Views = Mapping[str, Any]
"""The views of some samples by name; see ``step.rows_of``."""


class SelfSupervised(TaskMethod):
    """Learn features from two views of each sample, without labels.

    A method's own head stands in the place of ``model.head``, so that a later ``init_from=RUN`` finds the body and
    begins with a fresh classifier. Both views go through the network as one batch: BatchNorm sees 2N samples. An
    evaluation is a vote of the nearest labelled training samples (``neighbours``). With a schedule-free optimizer its
    averaged weights are evaluated, with BatchNorm's statistics of the network that learns.

    Args:
        optimizer, scheduler, decay_norms_and_biases: see ``TaskMethod``.
        neighbours, neighbour_temperature: of the evaluation; 200 and 0.07 in Wu et al. 2018 (arXiv 1805.01978).
    """

    needs = Needs(streams={"unlabelled": ("view1", "view2")})
    higher_is_better: ClassVar[Mapping[str, bool]] = {"acc": True}

    momentum_rises: ClassVar[bool] = False
    """Whether ``momentum`` rises to 1 over the run, by half a cosine."""

    momentum: float = 0.0
    """How much of the momentum encoder an update keeps."""

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Scheduler | None = None,
        decay_norms_and_biases: bool = True,
        neighbours: Count = 20,
        neighbour_temperature: Positive = 0.07,
    ) -> None:
        super().__init__(optimizer, scheduler, decay_norms_and_biases)
        self.neighbours, self.neighbour_temperature = neighbours, neighbour_temperature
        self.target: nn.Module | None = None
        self.average: Average | None = None

    # --- what a subclass brings -------------------------------------------------------------------------------------

    def head(self, features: int) -> nn.Module:
        """What turns (N, features) into what is compared."""
        raise NotImplementedError

    def compare(self, task: BasicTask, batch: Views, output: list[Pair], wanted: list[Pair]) -> dict[str, Tensor]:
        """The step's scalars from what network and momentum encoder make of both views, in at least float32.

        Args:
            batch: both views, and which samples they are of.
            output: by head, what the network made of the first and of the second view.
            wanted: the same of the momentum encoder; empty where there is none.
        """
        raise NotImplementedError

    # --- the method -------------------------------------------------------------------------------------------------

    def check(self, task: BasicTask) -> None:
        if task.info is None:
            name = type(self).__name__
            raise ConfigError(f"method: {name} needs views of the samples; a task with loaders of its own has none")

    def setup(self, task: BasicTask) -> None:
        task.model = self.evaluated(task.model)
        if self.momentum:
            self.target = copy.deepcopy(task.model).requires_grad_(False)
        self.average_too(task)

    def evaluated(self, network: nn.Module) -> nn.Module:
        head_of(network, type(self).__name__)
        network.head = self.head(network.num_features)  # type: ignore[arg-type]
        return network

    def average_too(self, task: BasicTask) -> None:
        """Keep the optimizer's own averages of the weights, where it has them."""
        if optimizer_averages(self):
            self.average = Average(task.model)

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = batch["unlabelled"]
        input = torch.cat([views["view1"], views["view2"]])
        with torch.no_grad():
            wanted = [] if self.target is None else pairs(self.target(input))
        output = pairs(task.net(input))
        with torch.autocast(task.device.type, enabled=False):
            return self.compare(task, views, output, wanted)

    def after_update(self, task: BasicTask) -> None:
        if self.target is not None:
            progress = task.runner.step_count / task.runner.total_steps
            kept = rising(self.momentum, progress) if self.momentum_rises else self.momentum
            torch._foreach_lerp_([*self.target.parameters()], [*task.model.parameters()], 1.0 - kept)
        if self.average is not None:
            weights = task.optimizer.averaged([*task.model.parameters()])  # type: ignore[attr-defined]
            self.average.follow(weights, task.model.buffers())

    def eval_model(self, task: BasicTask) -> nn.Module:
        return task.model if self.average is None else self.average.network

    def evaluate(self, task: BasicTask, split: str) -> dict[str, float]:
        return knn.measure(task, split, self.neighbours, self.neighbour_temperature)


def pairs(output: Tensor | Sequence[Tensor]) -> list[Pair]:
    """What was made of 2N views, first all first ones, as pairs, one a head."""
    heads = [output] if isinstance(output, Tensor) else output
    halves = [wide(head).chunk(2) for head in heads]
    return [(first, second) for first, second in halves]


def rising(momentum: float, progress: float) -> float:
    """``1 - (1 - momentum) * (cos(pi * progress) + 1) / 2`` (Grill et al. 2020, arXiv 2006.07733, section 3.2)."""
    return 1.0 - (1.0 - momentum) * (math.cos(math.pi * progress) + 1.0) / 2.0


def perceptron(*sizes: int, norm: bool = True) -> nn.Sequential:
    """Linear layers of these sizes, with BatchNorm (or without) and ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias=not norm), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    last = layers[-3 if norm else -2]
    assert isinstance(last, nn.Linear)
    return nn.Sequential(*layers[: -3 if norm else -2], nn.Linear(last.in_features, last.out_features))


class Predicted(nn.Module):
    """A projector and a predictor on top of it: (projection, prediction) in training, the projection in evaluation."""

    def __init__(self, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.projector, self.predictor = projector, predictor

    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        projection: Tensor = self.projector(features)
        return (projection, self.predictor(projection)) if self.training else projection
