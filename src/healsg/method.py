"""TaskMethod: how a task learns. One ``train_step``, the optimizer, the schedule, and what must be remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from healsg.data.base import Needs
from healsg.errors import ConfigError, one_line
from healsg.training import layers
from healsg.training.averaging import Average, ema_share, optimizer_averages
from healsg.training.layers import Freezing
from healsg.types import Natural, Share

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

    Averaging, freezing and learning rates by depth are parts of every method. A subclass that overrides ``check``,
    ``setup`` or ``after_update`` calls the overridden one as well; one that replaces ``task.model`` in ``setup`` does
    so before that, so that the parts see the network that learns.

    Args:
        optimizer: called with the parameters, or groups of them.
        scheduler: builds the schedule of the learning rate; a constant one where it is None.
        decay_norms_and_biases: weight decay acts on every parameter; False spares those of fewer than two dimensions.
        ema: the decay of an exponential moving average of the weights, which is evaluated (see ``ema_share``); 0 keeps
            none. BatchNorm's statistics are those of the network that learns.
        swa: the share of the updates after which the weights at the ends of epochs are averaged, which is evaluated
            (Izmailov et al. 2018, arXiv 1803.05407); 0 keeps none. BatchNorm's statistics are measured anew on the
            training batches.
        layer_decay: the learning rate of each layer as a multiple of that of the next one (Clark et al. 2020, arXiv
            2003.10555); 0 gives all the same.
        freeze: what does not learn: ``body``, or patterns of names (see ``layers.freeze``). The BatchNorm in it stays
            in evaluation mode.
        unfreeze_every: epochs after which one more layer learns, from the last one on (Howard and Ruder 2018, arXiv
            1801.06146, section 3.3); 0 lets all learn.
    """

    needs: Needs = Needs()
    """The streams and views that ``train_step`` finds in its batch."""

    mean_over_samples: ClassVar[bool] = False
    """Whether the loss of a batch is the mean of the losses of its samples, so that a batch can be split."""

    leaves_weights: ClassVar[bool] = False
    """Whether weights move in ``runner.update`` alone and never in ``train_step``, so that a checkpoint may be copied
    beside it. A class says so for itself: what it inherits does not count."""

    takes_shards: ClassVar[bool] = False
    """Whether weights are reached through ``task.net`` alone and none are copied, so that each process may hold a part
    of them. A class says so for itself: what it inherits does not count."""

    starts_from_weights: ClassVar[bool] = False
    """Whether it is for a trained network: the model then starts with its published weights where it has any."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {}
    """Whether more is better, by name of each number that ``evaluate`` adds to the model's metrics."""

    local_to_process: ClassVar[Mapping[str, str]] = {}
    """What each process computes of its own samples, so that the step depends on how many processes there are: by a
    short name, one sentence each. BatchNorm's statistics, which are the network's, are not listed."""

    local_to_micro_batch: ClassVar[Mapping[str, str]] = {}
    """The same of what each accumulated micro-batch computes of its own samples, of all processes where it says so."""

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Scheduler | None = None,
        decay_norms_and_biases: bool = True,
        ema: Share = 0.0,
        swa: Share = 0.0,
        layer_decay: Share = 0.0,
        freeze: str | None = None,
        unfreeze_every: Natural = 0,
    ) -> None:
        super().__init__()
        self.make_optimizer = optimizer
        self.scheduler = scheduler
        self.decay_norms_and_biases = decay_norms_and_biases
        self.ema = ema
        self.swa = swa
        self.layer_decay = layer_decay
        self.freeze = freeze
        self.unfreeze_every = unfreeze_every
        self.average: Average | None = None
        self.freezing: Freezing | None = None

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is evaluated."""
        return bool(self.ema or self.swa or optimizer_averages(self.make_optimizer))

    def replaces(self, name: str) -> bool:
        """Whether this method's class has a ``name`` of its own, such as ``step``, in the place of ``TaskMethod``'s."""
        return getattr(type(self), name) is not getattr(TaskMethod, name)

    def check(self, task: Task) -> None:
        """Refuse parts that do not fit, before any data are read. Raises ConfigError."""
        kinds = {
            "method.ema": self.ema,
            "method.swa": self.swa,
            "method/optimizer": optimizer_averages(self.make_optimizer),
        }
        if len(given := [key for key, value in kinds.items() if value]) > 1:
            raise ConfigError(f"{given[0]}: {given[1]} averages the weights already; leave one out")
        if self.unfreeze_every:
            one = "method.unfreeze_every: works in one process; in several, method.freeze holds parts fixed"
            task.runner.parallel.require_one(one)

    def setup(self, task: Task) -> None:
        """Make what the method needs beside the network: heads join ``task.model``, memory stays here. Raises
        ConfigError where something does not fit the network or the data."""
        network = self.trained_network(task)
        if self.freeze:
            layers.freeze(network, self.freeze)
        held = self.evaluation_modules(task.model)
        if self.unfreeze_every or held:
            self.freezing = Freezing(task.model, network, self.unfreeze_every, held)
        if self.average is None and self.averages:
            self.average = Average(network)

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
        self.before_step(task)
        with task.runner.forward(task, micro):
            logs = self.train_step(task, batch)
        return task.runner.update(task, logs, micro)

    def before_step(self, task: Task) -> None:
        """Hold frozen parts still; a method that overrides ``step`` calls it first."""
        if self.freezing is not None:
            self.freezing.before_step(task.runner.epoch)

    def after_update(self, task: Task) -> None:
        """Called after each update, under ``no_grad``: averages, momentum encoders."""
        if self.average is None:
            return
        runner = task.runner
        epoch_ends = runner.position == runner.length or runner.step_count == runner.total_steps
        begun = runner.step_count >= self.swa * runner.total_steps
        if self.swa and not epoch_ends:
            return
        if self.swa:
            share = self.average.next_share(begun)
        else:
            share = ema_share(self.ema, runner.step_count) if self.ema else 1.0
        self.average.follow(self.weights_to_average(task), self.trained_network(task).buffers(), share)
        if epoch_ends and begun and not self.ema:
            self.measure_statistics(task, self.average)

    def measure_statistics(self, task: Task, average: Average) -> None:
        """Measure the BatchNorm statistics of averaged weights on the training batches of epoch 0."""

        def inputs() -> Iterator[Tensor]:
            for batch, _ in task.train_loader.batches(0):
                yield self.network_input(task.runner.device_setup.move(batch))

        average.measure_statistics(inputs(), task.runner.device_setup.autocast)

    def network_input(self, batch: Mapping[str, Any]) -> Tensor:
        """What the network sees of a batch, for measuring BatchNorm's statistics: all views of the first stream."""
        stream, views = next(iter(self.needs.streams.items()))
        samples = batch if self.needs.flat else batch[stream]
        return torch.cat([samples[view] for view in views])

    def evaluation_modules(self, model: nn.Module) -> list[str]:
        """The names of the modules of ``task.model`` that stay in evaluation mode: the frozen BatchNorm."""
        return layers.frozen_norms(model)

    def trained_network(self, task: Task) -> nn.Module:
        """The network that learns, is frozen in parts, averaged and evaluated, where ``task.model`` holds more."""
        return task.model

    def weights_to_average(self, task: Task) -> list[Tensor]:
        """What the parameters of the evaluated average follow, in their order."""
        return self.learned_values(task, list(self.trained_network(task).parameters()))

    def learned_values(self, task: Task, parameters: list[nn.Parameter]) -> list[Tensor]:
        """These parameters, or the optimizer's own averages of them where it has any."""
        if optimizer_averages(self.make_optimizer):
            averaged: list[Tensor] = task.optimizer.averaged(parameters)  # type: ignore[attr-defined]
            return averaged
        return [*parameters]

    def eval_model(self, task: Task) -> nn.Module:
        """The network that is evaluated, kept as best and exported: the average or the teacher where there is one."""
        return self.trained_network(task) if self.average is None else self.average.network

    def evaluated(self, network: nn.Module) -> nn.Module:
        """The network that the model builds, with the structure of ``eval_model``, so that ``best.pt`` fits it.

        Prediction and evaluation use it, without the training data. A method whose ``setup`` changes ``task.model`` so
        that ``eval_model`` has another structure makes the same change here.
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
        if self.replaces("eval_model") or self.replaces("trained_network"):
            return None
        prefix = "average.network."
        averaged = {name.removeprefix(prefix): value for name, value in method.items() if name.startswith(prefix)}
        return averaged or model

    def evaluate(self, task: Task, split: str) -> dict[str, float] | None:
        """Replace the evaluation pass of ``split``; None keeps the usual one."""
        return None

    def build_optimizer(self, task: Task) -> Optimizer:
        """The optimizer over what learns in ``task.model``."""
        if (self.ema or self.swa) and self.average is None:
            name = type(self).__name__
            raise ConfigError(f"method: {name}.setup does not call super().setup(task), which makes the average")
        if self.layer_decay:
            groups = layers.scaled_groups(task.model, self.layer_decay, self.decay_norms_and_biases)
            optimizer = layers.scale_rates(self.optimizer_over(groups))
        else:
            optimizer = self.optimizer_over(parameter_groups(task.model, self.decay_norms_and_biases))
        if self.unfreeze_every and isinstance(optimizer, SGD):
            for group in optimizer.param_groups:  # torch's fused SGD takes a momentum of all parameters or of none
                group["fused"] = False
        return optimizer

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
