"""TaskMethod: how a task learns. One ``train_step``, the optimizer, the schedule, and what must be remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import nn
from torch.optim import Optimizer

from healsg.data.base import Needs
from healsg.errors import ConfigError, one_line

if TYPE_CHECKING:
    from healsg.protocols import Task
    from healsg.training.step import MicroBatch


class Schedule(Protocol):
    """What a scheduler builds: ``step`` is called after every update, or after every epoch, as ``interval`` says."""

    interval: str

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Scheduler(Protocol):
    """A schedule as it is configured, before there is an optimizer."""

    def build(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> Schedule: ...


class TaskMethod(nn.Module):
    """How a task learns. A subclass gives ``train_step``; teachers, queues and thresholds are submodules and buffers.

    Args:
        optimizer: called with the parameters, or groups of them.
        scheduler: builds the schedule of the learning rate; a constant one where it is None.
        decay_norms_and_biases: weight decay acts on every parameter; False spares those of fewer than two dimensions.
    """

    needs: Needs = Needs()
    """The streams and views that ``train_step`` finds in its batch."""

    mean_over_samples: ClassVar[bool] = False
    """Whether the loss of a batch is the mean of its samples' own, so that a batch can be taken in pieces."""

    leaves_weights: ClassVar[bool] = False
    """Whether weights move in ``runner.update`` alone and never in ``train_step``, so that a checkpoint may be copied
    beside it. A class says so for itself: what it inherits does not count."""

    starts_from_weights: ClassVar[bool] = False
    """Whether it is for a network that has been trained: published weights are then what a model begins with."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {}
    """By name of a number that ``evaluate`` gives, beside the model's metrics, whether more of it is better."""

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Scheduler | None = None,
        decay_norms_and_biases: bool = True,
    ) -> None:
        super().__init__()
        self.make_optimizer, self.scheduler = optimizer, scheduler
        self.decay_norms_and_biases = decay_norms_and_biases

    def replaces(self, name: str) -> bool:
        """Whether this method's class has a ``name`` of its own, such as ``step``, in the place of ``TaskMethod``'s."""
        return getattr(type(self), name) is not getattr(TaskMethod, name)

    def check(self, task: Task) -> None:
        """Refuse parts that do not fit, before any data are read. Raises ConfigError."""

    def setup(self, task: Task) -> None:
        """Make what the method needs beside the network: heads join ``task.model``, memory stays here."""

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        """From a batch to named scalars on the device, of which ``loss`` is minimised.

        A scalar tensor is a mean over the samples of the batch, of its first stream where there are several. What is a
        mean over something else says so, a loss of several terms for each of them (``step.Mean``); or ``count`` says it
        for all scalars: a number or tensor, such as a sum of class weights.
        """
        raise NotImplementedError

    def step(self, task: Task, batch: dict[str, Any], micro: MicroBatch) -> tuple[dict[str, Any], bool]:
        """Forward, backward and, with the last micro-batch of an update, the update itself.

        Args:
            batch: as ``train_step`` gets it.
            micro: whether this is the last micro-batch, and how its gradient is weighed.

        Returns:
            The scalars with what they count, and whether the weights moved.
        """
        with task.runner.forward(task, micro):
            logs = self.train_step(task, batch)
        return task.runner.update(task, logs, micro)

    def after_update(self, task: Task) -> None:
        """Called after each update, under ``no_grad``: averages, queues, thresholds."""

    def eval_model(self, task: Task) -> nn.Module:
        """The network that is evaluated, kept as best and exported: the average or the teacher where there is one."""
        return task.model

    def evaluated(self, network: nn.Module) -> nn.Module:
        """What has the structure of ``eval_model``, made of the network that the model builds, so that the weights of
        ``best.pt`` fit it. It is what a run is used with later, without its data; a method that changes ``task.model``
        in ``setup`` so that ``eval_model`` differs from the model's own network makes the same change here.
        """
        return network

    def evaluated_weights(self, model: dict[str, Any], method: dict[str, Any]) -> dict[str, Any] | None:
        """The weights of ``evaluated`` in a checkpoint of the run, whose ``last.pt`` is evaluated by them.

        Args:
            model: the state of ``task.model``.
            method: the state of this method.

        Returns:
            None where they are not known, as where ``eval_model`` is replaced and this is not; the whole task is then
            built for an evaluation of ``last.pt``.
        """
        return None if self.replaces("eval_model") else model

    def evaluate(self, task: Task, split: str) -> dict[str, float] | None:
        """Replace the evaluation pass of ``split``; None keeps the usual one."""
        return None

    def build_optimizer(self, task: Task) -> Optimizer:
        """The optimizer over what learns in ``task.model``."""
        return self.optimizer_over(parameter_groups(task.model, self.decay_norms_and_biases))

    def optimizer_over(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over groups of parameters. Raises ConfigError where it does not take its settings."""
        try:
            return self.make_optimizer(groups)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"method.optimizer: {one_line(error)}") from error

    def build_scheduler(self, task: Task) -> Schedule | None:
        """The schedule of the run's length."""
        if self.scheduler is None:
            return None
        return self.scheduler.build(task.optimizer, task.runner.total_steps, task.runner.steps_per_epoch)


def parameter_groups(model: nn.Module, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """The parameters that learn, as one group, or as two of which the second (norms, biases) has no weight decay."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if decay_norms_and_biases:
        return [{"params": learning}]
    matrices = [parameter for parameter in learning if parameter.dim() >= 2]
    spared = [parameter for parameter in learning if parameter.dim() < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
