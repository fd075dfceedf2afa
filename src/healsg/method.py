"""TaskMethod: how a task learns. One ``train_step``, the optimizer, the schedule, and the method's own state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from healsg.data.base import Needs
from healsg.errors import ConfigError, one_line
from healsg.parts import defines, undefined
from healsg.training import layers
from healsg.training.averaging import Average, ema_share, optimizer_averages
from healsg.training.layers import Freezing
from healsg.types import Natural, Share

if TYPE_CHECKING:
    from healsg.protocols import Task
    from healsg.training.step import MicroBatch


class Schedule(Protocol):
    """What a ``Scheduler`` builds: ``step`` is called after every update or every epoch, depending on ``interval``."""

    interval: str

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Scheduler(Protocol):
    """A schedule as it is configured, before there is an optimizer."""

    def build(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> Schedule: ...


class TaskMethod(nn.Module):
    """How a task learns. A subclass defines ``train_step``; teachers, queues, thresholds are submodules and buffers.

    Averaging, freezing and layer-wise learning rates are parts of every method. A subclass that overrides ``check``,
    ``setup`` or ``after_update`` calls ``super()``. One that trains another network than the model's returns it from
    ``extend_network``.

    Args:
        optimizer: called with the parameters, or groups of them.
        scheduler: builds the schedule of the learning rate; None keeps it constant.
        decay_norms_and_biases: whether weight decay also applies to parameters with fewer than two dimensions.
        ema: the decay of an exponential moving average of the weights, which is then evaluated (see ``ema_share``); 0
            for none. BatchNorm's statistics are those of the trained network.
        swa: the share of the updates after which the weights at the ends of epochs are averaged; the average is then
            evaluated (Izmailov et al. 2018, arXiv 1803.05407); 0 for none. BatchNorm's statistics are recomputed on
            the training batches.
        layer_decay: the learning rate of each layer as a multiple of that of the next one (Clark et al. 2020, arXiv
            2003.10555); 0 for the same rate everywhere.
        freeze: what is not trained: ``body``, or patterns of names (see ``layers.freeze``). BatchNorm in it stays in
            evaluation mode.
        unfreeze_every: epochs after which one more layer is trained, from the last one on (Howard and Ruder 2018, arXiv
            1801.06146, section 3.3); 0 trains all from the start.
    """

    needs: Needs = Needs()
    """The streams and views that ``train_step`` gets in its batch."""

    mean_over_samples: ClassVar[bool] = False
    """Whether the loss of a batch is the mean of the losses of its samples, so that a batch can be split."""

    leaves_weights: ClassVar[bool] = False
    """Whether weights change only in ``runner.update`` and never in ``train_step``, so that a checkpoint can be copied
    while ``train_step`` runs. Each class declares this itself; an inherited value is ignored (``parts.declares``)."""

    draws_only_from_torch: ClassVar[bool] = False
    """Whether ``train_step`` draws random numbers from torch's generators alone and never from Python's or NumPy's,
    which then need not be seeded before each step. Each class declares this itself; an inherited value is ignored."""

    takes_shards: ClassVar[bool] = False
    """Whether weights are used only through ``task.net`` and never copied, so that they can be sharded over processes.
    Each class declares this itself; an inherited value is ignored."""

    starts_from_weights: ClassVar[bool] = False
    """Whether the method needs a trained network: the model then starts from its published weights if there are any."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {}
    """For each number that ``evaluate`` adds to the model's metrics, by name: whether a higher value is better."""

    local_to_process: ClassVar[Mapping[str, str]] = {}
    """What each process computes from its own samples only, so that the step depends on the number of processes: a
    short name and one sentence each. BatchNorm's statistics belong to the network and are not listed."""

    local_to_micro_batch: ClassVar[Mapping[str, str]] = {}
    """The same for what each accumulated micro-batch computes from its own samples only (of all processes where the
    sentence says so)."""

    required: ClassVar[Mapping[str, tuple[str, ...]]] = {"train_step": ("step",)}
    """What a subclass has to define; see ``TaskData.required``."""

    constructed = False
    """Whether the constructor has been called, as that of a subclass has to."""

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
        self.constructed = True
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
        """Whether the evaluated weights are an average."""
        return bool(self.ema or self.swa or optimizer_averages(self.make_optimizer))

    @cached_property
    def evaluates_itself(self) -> bool:
        """Whether a subclass overrides ``evaluate``, so that only an evaluation itself tells what it measures."""
        return defines(self, TaskMethod, "evaluate")

    @cached_property
    def custom_step(self) -> bool:
        """Whether a subclass overrides ``step``, which then need not be one forward and one backward pass."""
        return defines(self, TaskMethod, "step")

    @property
    def follows_updates(self) -> bool:
        """Whether ``after_update`` has something to do, once the method is set up; the loop asks once."""
        return self.average is not None or defines(self, TaskMethod, "after_update")

    def check(self, task: Task) -> None:
        """Check that the parts fit together, before any data are read. Raises ConfigError."""
        kinds = {
            "method.ema": self.ema,
            "method.swa": self.swa,
            "method/optimizer": optimizer_averages(self.make_optimizer),
        }
        if len(averaging := [key for key, value in kinds.items() if value]) > 1:
            raise ConfigError(f"{averaging[0]}: {averaging[1]} averages the weights already; leave one out")
        if self.unfreeze_every:
            reason = "method.unfreeze_every: works in one process; in several, method.freeze holds parts fixed"
            task.runner.parallel.require_single_process(reason)

    def extend_network(self, task: Task, network: nn.Module) -> nn.Module:
        """The network to train, ``task.model``: that of the model, or one with another head, or one that contains it,
        such as a pair of networks. Called before ``setup``, on the CPU.

        Args:
            task: its loaders and criterion are there.
            network: with its initial weights.

        Raises:
            ConfigError: something does not fit the network or the data.
        """
        return network

    def setup(self, task: Task) -> None:
        """Create what the method needs besides the network, such as teachers and memory banks, which stay in the
        method. Raises ConfigError if something does not fit the network or the data."""
        network = self.trained_network(task)
        if self.freeze:
            layers.freeze(network, self.freeze)
        frozen_norms = self.evaluation_modules(task.model)
        if self.unfreeze_every or frozen_norms:
            self.freezing = Freezing(task.model, network, self.unfreeze_every, frozen_norms)
        if self.average is None and self.averages:
            self.average = Average(network)

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute named scalars of a batch, on the device; ``loss`` is minimised.

        A scalar tensor is a mean over the samples of the batch (of its first stream, if there are several). A mean over
        anything else is given as a ``step.Mean`` with its denominator, in a loss of several terms for each of them.
        Alternatively ``count`` is the denominator of all scalars: a number or tensor, such as a sum of class weights.
        """
        raise undefined("method", self, "train_step")

    def step(self, task: Task, batch: dict[str, Any], micro: MicroBatch) -> tuple[dict[str, Any], bool]:
        """Forward, backward and, with the last micro-batch of an update, the update itself.

        Args:
            batch: as ``train_step`` gets it.
            micro: whether this is the last micro-batch of an update, and how its gradient is weighted.

        Returns:
            The scalars with their counts, and whether the weights were updated.
        """
        self.before_step(task)
        with task.runner.forward_context(task, micro):
            logs = self.train_step(task, batch)
        return task.runner.update(task, logs, micro)

    def before_step(self, task: Task) -> None:
        """Keep frozen parts frozen; a method that overrides ``step`` calls this first."""
        if self.freezing is not None:
            self.freezing.before_step(task.runner.epoch)

    def after_update(self, task: Task) -> None:
        """Called after each update, under ``no_grad``: averages, momentum encoders."""
        average = self.average
        if average is None:
            return
        runner = task.runner
        epoch_ends = runner.batch_count == runner.length or runner.step_count == runner.total_steps
        swa_has_begun = runner.step_count >= self.swa * runner.total_steps
        if self.swa:
            if not epoch_ends:
                return
            share = average.next_share(swa_has_begun)
        elif self.ema:
            share = ema_share(self.ema, runner.step_count)
        else:
            share = 1.0  # the optimizer averages, and its averages are copied
        average.follow(self.weights_to_average(task), self.trained_network(task).buffers(), share)
        if epoch_ends and swa_has_begun and not self.ema:
            self.measure_statistics(task, average)

    def measure_statistics(self, task: Task, average: Average) -> None:
        """Measure the BatchNorm statistics of averaged weights on the training batches of epoch 0."""

        def inputs() -> Iterator[Tensor]:
            for batch, _ in task.train_loader.batches(0):
                yield self.network_input(task.runner.device_setup.move(batch))

        average.measure_statistics(inputs(), task.runner.device_setup.autocast)

    def network_input(self, batch: Mapping[str, Any]) -> Tensor:
        """The network's input in a batch, for measuring BatchNorm's statistics: all views of the first stream."""
        stream, views = next(iter(self.needs.streams.items()))
        samples = batch if self.needs.flat else batch[stream]
        return torch.cat([samples[view] for view in views])

    def evaluation_modules(self, model: nn.Module) -> list[str]:
        """The names of the modules of ``task.model`` that stay in evaluation mode: the frozen BatchNorm."""
        return layers.frozen_norms(model)

    def trained_network(self, task: Task) -> nn.Module:
        """The network to freeze, average and evaluate; overridden where ``task.model`` contains more than it."""
        return task.model

    def weights_to_average(self, task: Task) -> list[Tensor]:
        """The tensors that are averaged, in the order of the average's parameters."""
        return self.learned_values(task, list(self.trained_network(task).parameters()))

    def learned_values(self, task: Task, parameters: list[nn.Parameter]) -> list[Tensor]:
        """These parameters, or the optimizer's averages of them if it keeps any."""
        if optimizer_averages(self.make_optimizer):
            averaged: list[Tensor] = task.optimizer.averaged(parameters)  # type: ignore[attr-defined]
            return averaged
        return [*parameters]

    def eval_model(self, task: Task) -> nn.Module:
        """The network to evaluate, save as best and export: the average or the teacher if there is one."""
        return self.trained_network(task) if self.average is None else self.average.network

    def evaluated(self, network: nn.Module) -> nn.Module:
        """Give the network that the model builds the structure of ``eval_model``, so that ``best.pt`` fits it.

        Prediction and evaluation use it, without the training data. A method that gives ``eval_model`` another
        structure (``extend_network``) makes the same change here.
        """
        return network

    def evaluated_weights(self, model: dict[str, Any], method: dict[str, Any]) -> dict[str, Any] | None:
        """Select the weights for ``evaluated`` from a checkpoint of the run, so that ``last.pt`` can be evaluated.

        Args:
            model: the state of ``task.model``.
            method: the state of this method.

        Returns:
            None if they are unknown, as when a subclass overrides ``eval_model`` but not this method; the whole task is
            then built to evaluate ``last.pt``.
        """
        if defines(self, TaskMethod, "eval_model", "trained_network"):
            return None
        prefix = "average.network."
        averaged = {name.removeprefix(prefix): value for name, value in method.items() if name.startswith(prefix)}
        return averaged or model

    def evaluate(self, task: Task, split: str) -> dict[str, float] | None:
        """Replace the evaluation pass of ``split``; None keeps the usual one."""
        return None

    def build_optimizer(self, task: Task) -> Optimizer:
        """The optimizer over the trainable parameters of ``task.model``."""
        if (self.ema or self.swa) and self.average is None:
            name = type(self).__name__
            raise ConfigError(f"method: {name}.setup does not call super().setup(task), which makes the average")
        if self.layer_decay:
            groups = layers.scaled_groups(task.model, self.layer_decay, self.decay_norms_and_biases)
            optimizer = layers.scale_rates(self.optimizer_over(groups))
        else:
            optimizer = self.optimizer_over(parameter_groups(task.model, self.decay_norms_and_biases))
        if self.unfreeze_every and isinstance(optimizer, SGD):
            for group in optimizer.param_groups:  # torch's fused SGD needs momentum buffers for all parameters or none
                group["fused"] = False
        return optimizer

    def optimizer_over(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over groups of parameters. Raises ConfigError if it rejects its settings."""
        try:
            return self.make_optimizer(groups)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"method.optimizer: {one_line(error)}") from error

    def build_scheduler(self, task: Task) -> Schedule | None:
        """The schedule over the length of the run; None for a constant learning rate."""
        if self.scheduler is None:
            return None
        return self.scheduler.build(task.optimizer, task.runner.total_steps, task.runner.steps_per_epoch)


def parameter_groups(model: nn.Module, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """The trainable parameters as one group, or as two, the second of which (norms, biases) has no weight decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if decay_norms_and_biases:
        return [{"params": trainable}]
    matrices = [parameter for parameter in trainable if parameter.dim() >= 2]
    undecayed = [parameter for parameter in trainable if parameter.dim() < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
