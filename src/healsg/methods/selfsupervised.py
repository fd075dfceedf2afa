"""Self-supervised learning: two views of each sample, a head instead of the classifier, a momentum encoder, and
evaluation by nearest neighbours."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from healsg.data.base import Needs
from healsg.errors import ConfigError
from healsg.losses.classification import wide
from healsg.method import TaskMethod
from healsg.methods import neighbours as knn
from healsg.torch_private import foreach_lerp_
from healsg.training.averaging import Average
from healsg.training.layers import head_of
from healsg.types import Count, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class SelfSupervised(TaskMethod):
    """Learn features from two views of each sample, without labels.

    A method's head replaces ``model.head``, so that a later ``init_from=RUN`` loads the body and starts with a new
    classifier. Both views go through the network as one batch: BatchNorm sees 2N samples. Evaluation is a k-NN vote of
    the labelled training samples (``neighbours``). With a schedule-free optimizer its averaged weights are evaluated,
    with BatchNorm's statistics of the network that learns.

    Args:
        neighbours, neighbour_temperature: of the evaluation; 200 and 0.07 in Wu et al. 2018 (arXiv 1805.01978).
        common: the arguments of TaskMethod.
    """

    needs = Needs(streams={"unlabelled": ("view1", "view2")})
    higher_is_better: ClassVar[Mapping[str, bool]] = {"acc": True}

    def __init__(self, neighbours: Count = 20, neighbour_temperature: Positive = 0.07, **common: Any) -> None:
        super().__init__(**common)
        self.neighbours = neighbours
        self.neighbour_temperature = neighbour_temperature

    def head(self, features: int) -> nn.Module:
        """The projector, which takes (N, features)."""
        raise NotImplementedError

    def check(self, task: Task) -> None:
        super().check(task)
        if task.info is None:
            name = type(self).__name__
            raise ConfigError(f"method: {name} needs views of the samples; a task with loaders of its own has none")

    def extend_network(self, task: Task, network: nn.Module) -> nn.Module:
        return self.evaluated(network)

    def evaluated(self, network: nn.Module) -> nn.Module:
        """Replace the classifier by the method's head."""
        head_of(network, type(self).__name__)
        network.head = self.head(network.num_features)  # type: ignore[arg-type]
        return network

    def momentum_encoder(self, task: Task) -> nn.Module:
        """A copy of the trained network without gradients, with the same frozen parts."""
        copied = copy.deepcopy(task.model).requires_grad_(False)
        if self.freezing is not None:
            self.freezing.include(copied)
        return copied

    def measure_statistics(self, task: Task, average: Average) -> None:
        """Measure them for ``swa`` alone; the averages of an optimizer are evaluated with those of the network that
        learns."""
        if self.swa:
            super().measure_statistics(task, average)

    def evaluate(self, task: Task, split: str) -> dict[str, float]:
        return knn.measure(task, split, self.neighbours, self.neighbour_temperature)


def two_views(smallest_crop: float, saturation: float, solarise: Sequence[float]) -> Needs:
    """Two views with other crops and colours than the default ones; see ``transforms.views.SelfSupervised``.

    Args:
        smallest_crop, saturation: of both views.
        solarise: the probability of it, in the first and in the second view.
    """
    usual = {"smallest_crop": 0.08, "saturation": 0.4, "solarise": 0.0}
    settings = {}
    for view, chance in zip(("view1", "view2"), solarise, strict=True):
        own = {"smallest_crop": smallest_crop, "saturation": saturation, "solarise": chance}
        settings[view] = {key: value for key, value in own.items() if value != usual[key]}
    return Needs(SelfSupervised.needs.streams, settings=settings)


# --- what a step is made of ------------------------------------------------------------------------------------------


def both_views(views: Mapping[str, Tensor]) -> Tensor:
    """(2N, ...) the first views of N samples, then the second ones."""
    return torch.cat([views["view1"], views["view2"]])


def halves(output: Tensor) -> tuple[Tensor, Tensor]:
    """The network's outputs for the first and the second views, (N, ...) each, in at least float32."""
    first, second = wide(output).chunk(2)
    return first, second


def full_precision(task: Task) -> contextlib.AbstractContextManager[Any]:
    """A context without autocast, for losses that are computed in the precision of their inputs."""
    return torch.autocast(task.device.type, enabled=False)


def follow(encoder: nn.Module, network: nn.Module, momentum: float) -> None:
    """Move the parameters of a momentum encoder towards those of the network: ``m * own + (1 - m) * new``."""
    foreach_lerp_([*encoder.parameters()], [*network.parameters()], 1.0 - momentum)


def rising(momentum: float, progress: float) -> float:
    """``1 - (1 - momentum) * (cos(pi * progress) + 1) / 2`` (Grill et al. 2020, arXiv 2006.07733, section 3.2)."""
    return 1.0 - (1.0 - momentum) * (math.cos(math.pi * progress) + 1.0) / 2.0


def perceptron(*sizes: int, norm: bool = True) -> nn.Sequential:
    """Linear layers of these sizes, with BatchNorm (unless ``norm`` is False) and ReLU between them."""
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
        self.projector = projector
        self.predictor = predictor

    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        projection: Tensor = self.projector(features)
        return (projection, self.predictor(projection)) if self.training else projection
