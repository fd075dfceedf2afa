"""TaskModel: the network, its loss, its metrics, and ``predict``, the one door through which evaluation runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.metric import Metric
from healsg.parts import undefined


def takes_any(info: DataInfo) -> str:
    """A hint for the error of a network that does not accept its inputs: which network does."""
    return "model=unet takes images and volumes with masks" if info.dense else "model=mlp takes any shape"


class Network(nn.Module):
    """A network with a body and a head, so that methods can ask for either: ``net(x)`` or ``net(x, features=True)``.

    A subclass defines ``features(x) -> (N, num_features)`` and ``self.head``, the module that makes outputs of them.
    """

    head: nn.Module
    num_features: int

    def features(self, input: Tensor) -> Tensor:
        """(N, ...) inputs to (N, num_features)."""
        raise NotImplementedError

    def forward(self, input: Tensor, features: bool = False) -> Tensor:
        hidden = self.features(input)
        return hidden if features else self.head(hidden)


class TaskModel:
    """The network, its loss and its metrics. A subclass defines ``build``; its constructor's arguments are YAML keys.

    Args:
        metrics: metrics by name, in addition to the loss and the usual metrics of the kind of task.
    """

    leaves_weights: ClassVar[bool] = False
    """Whether the network's forward pass changes none of its parameters; see ``TaskMethod.leaves_weights``."""

    draws_only_from_torch: ClassVar[bool] = False
    """Whether the network draws random numbers from torch's generators alone; see ``TaskMethod``."""

    required: ClassVar[Mapping[str, tuple[str, ...]]] = {"build": ()}
    """What a subclass has to define; see ``TaskData.required``."""

    chosen: Mapping[str, Metric] | None = None
    """The configured metrics. A subclass may leave out the call of this class's constructor, and then has none."""

    def __init__(self, metrics: Mapping[str, Metric] | None = None) -> None:
        self.chosen = metrics

    def check(self, info: DataInfo) -> None:
        """Raise ConfigError if the network, the loss or a metric does not accept the data, before any are read."""
        self.criterion(info)
        self.metrics(info)

    def build(self, info: DataInfo) -> nn.Module:
        """The network for samples of ``info.input_shape`` with ``info.num_classes`` outputs."""
        raise undefined("model", self, "build")

    def pretrained(self) -> TaskModel | None:
        """This model with published weights: the configured ones, else its default ones. None if there are none."""
        return None

    def untrained(self) -> TaskModel:
        """This model without published weights, for a network whose weights are loaded afterwards."""
        return self

    def adapt(self, network: nn.Module, inputs: Iterable[Tensor]) -> None:
        """Fit what the network takes from the training samples; ``inputs`` are prepared as in evaluation, by batch."""

    def criterion(self, info: DataInfo) -> nn.Module:
        """The loss, from ``(output, target)`` to a scalar mean over the batch."""
        from healsg.losses.usual import usual

        loss = usual(info)
        if loss is None:
            raise ConfigError(f"model: {type(self).__name__} has no loss for a task of kind {info.kind!r}")
        return loss

    def metrics(self, info: DataInfo | None) -> dict[str, Metric]:
        """The metrics of an evaluation by name, beside the loss. ``info`` is None if a task brings its own data.

        Raises ConfigError for one that is not for this kind of task.
        """
        from healsg.metrics.usual import with_chosen

        return with_chosen(info, self.chosen or {})

    def omissions(self, info: DataInfo) -> list[str]:
        """A line for each metric that is skipped for this task, e.g. because of too many classes."""
        from healsg.metrics.usual import omissions

        return omissions(info, self.chosen or {})

    def predict(self, network: nn.Module, batch: Mapping[str, Any]) -> Any:
        """The output for ``batch["input"]``, under ``no_grad`` and in evaluation mode.

        A model whose outputs depend on more than the input, such as a volume's spacing, gets the facts about each
        sample from ``healsg.data.case.cases_of(batch)``.
        """
        return network(batch["input"])
