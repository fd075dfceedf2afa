"""BasicTask: data, model and method joined. Six builders, each one line by default and each open to overriding."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from healsg import distributed
from healsg.data import fingerprint
from healsg.data.base import DataInfo, TaskData
from healsg.data.fingerprint import Fingerprint
from healsg.data.foreign import AnyLoader, ForeignLoader, wrap_loader
from healsg.data.info import differing_inputs
from healsg.data.loader import Loader
from healsg.data.summary import data_lines, data_warnings
from healsg.evaluation.evaluator import EvalEpoch
from healsg.method import TaskMethod
from healsg.metric import directions_of
from healsg.model import TaskModel
from healsg.parts import defines, require_defined
from healsg.paths import current_folder
from healsg.runner import TaskRunner
from healsg.runs import weights
from healsg.runs.folder import weights_file
from healsg.seeding import seed_everything
from healsg.torch_private import BatchNorm
from healsg.training import memory, returned, shardable
from healsg.training.device import lay_out_state
from healsg.training.epoch import TrainEpoch
from healsg.training.split import local_lines

if TYPE_CHECKING:
    from healsg.config.schema import TaskConfig

log = logging.getLogger("healsg")


class BasicTask:
    """A task: what is learned, with what, and how.

    Override a builder to supply your own part; the others stay as they are. ``build`` calls them in this order, and
    each finds on ``self`` what the previous ones created: loaders, ``model``, ``criterion``, ``task_method.setup``, the
    move to the device, ``optimizer``, ``scheduler``.
    """

    constructed = False
    """Whether the constructor has been called, as that of a subclass has to."""

    def __init__(
        self,
        config: TaskConfig,
        task_data: TaskData,
        task_model: TaskModel,
        task_method: TaskMethod,
        runner: TaskRunner,
    ) -> None:
        self.constructed = True
        self.config = config
        self.args = config.args
        self.task_data = task_data
        self.task_model = task_model
        self.task_method = task_method
        self.runner = runner
        self.loaders: dict[str, AnyLoader] = {}
        self._start = current_folder()
        """The folder that the path in ``init_from`` is relative to, even if a builder changes the current directory."""
        self.data_info: DataInfo | None = None

    # --- the six builders ------------------------------------------------------------------------------------------

    def build_dataloader(self) -> Any:
        """The loaders: ``(train, val)``, or a dict of loaders by split."""
        return self.task_data.loaders(self.task_method.needs)

    def build_model(self) -> nn.Module:
        """The network."""
        network, train = self.task_model.build(self.task_data.info), self.train_loader
        samples = train.evaluation_view() if isinstance(train, Loader) else train
        self.task_model.adapt(network, (batch["input"] for batch in samples))
        return network

    def build_criterion(self) -> nn.Module:
        """The loss, called with ``(output, target)``."""
        return self.task_model.criterion(self.data_info or self.task_data.info)

    def build_optimizer(self) -> Optimizer:
        """The optimizer over ``self.model``."""
        return self.task_method.build_optimizer(self)

    def build_scheduler(self) -> Any:
        """The schedule of ``self.optimizer``, or None. One from torch is stepped once an epoch."""
        return self.task_method.build_scheduler(self)

    def run_epoch(self) -> Mapping[str, Mapping[str, float]]:
        """One epoch; returns the numbers of each split."""
        train = self.train_epoch.run()
        return {"train": train, "val": self.val_epoch.run() if self.runner.eval_due() else {}}

    # --- assembly --------------------------------------------------------------------------------------------------

    @property
    def info(self) -> DataInfo | None:
        """The ``DataInfo`` that is known before the data are read; None if the task builds its own loaders."""
        return None if self.custom_loaders else self.task_data.info

    @cached_property
    def custom_loaders(self) -> bool:
        """Whether the task builds its own loaders, so that ``task_data`` is not used."""
        return defines(self, BasicTask, "build_dataloader")

    @cached_property
    def custom_network(self) -> bool:
        """Whether the task builds its own network, instead of ``task_model``."""
        return defines(self, BasicTask, "build_model")

    @cached_property
    def custom_epoch(self) -> bool:
        """Whether the task has its own ``run_epoch``; the names of its numbers are then known only after an epoch."""
        return defines(self, BasicTask, "run_epoch")

    @cached_property
    def custom_state(self) -> bool:
        """Whether the task saves a state of its own."""
        return defines(self, BasicTask, "state_dict")

    def require_defined(self) -> None:
        """Check that the classes of the parts define what this task will call. Raises ConfigError."""
        if not self.custom_loaders:
            require_defined("data", self.task_data, TaskData)
        if not self.custom_network:
            require_defined("model", self.task_model, TaskModel)
        require_defined("method", self.task_method, TaskMethod)

    def check(self) -> None:
        """Check that the parts fit together, before any data are read. Raises ConfigError."""
        if self.info is not None and not self.custom_network:
            self.task_model.check(self.info)
        self.task_method.check(self)
        self.runner.best_tracker.check(self.measured_names(), self.directions())
        memory.check(self.runner, self.task_method)
        shardable.check(self.runner, self.task_method)

    def measured_names(self) -> list[str] | None:
        """The names of the numbers that every epoch will measure; None if they are known only afterwards."""
        if self.custom_epoch or self.task_method.evaluates_itself:
            return None
        if self.info is None and not self.loaders:
            return None
        names = ["train/loss"]
        if not self.loaders or "val" in self.loaders:
            names += [f"val/{metric}" for metric in ("loss", *self.task_model.metrics(self.info))]
        return names

    def directions(self) -> dict[str, bool | None]:
        """For each number of an evaluation, by name: whether a higher value is better; None if not declared."""
        declared = directions_of(self.task_model.metrics(self.info))
        return {"loss": False, **declared, **self.task_method.higher_is_better}

    def build(
        self,
        threads: int | None = None,
        fresh_weights: bool = True,
        training: bool = True,
        data_info: DataInfo | None = None,
    ) -> None:
        """Run the six builders, and move what they create to the device. Data and model are seeded separately.

        Args:
            threads: CPU threads that a resumed run started with; None for torch's choice.
            fresh_weights: whether to initialise the weights, from ``init_from`` if it is set; False if the weights of a
                checkpoint are loaded afterwards.
            training: whether to create the optimizer and the schedule too; False for an evaluation.
            data_info: that of the checkpoint whose weights are loaded afterwards: the data are read with its classes
                and its fitted preprocessing.

        Raises:
            DataError: the data do not fit ``data_info``.
        """
        self.runner.prepare(threads)
        self._build_data(data_info)
        self.model: nn.Module = self._initial_network(fresh_weights)
        self.criterion = returned.criterion(self.build_criterion())
        returned.require_classes(self.loaders, self.info, self.criterion)
        self.model = self.task_method.extend_network(self, self.model)
        self.task_method.setup(self)
        self._plan_run()
        self._move_to_device()
        self.train_epoch = TrainEpoch(self)
        self.val_epoch = EvalEpoch(self, "val")
        if training:
            distributed.meet()  # reading data may take one process longer than the timeout of what follows
            self._build_training()

    def _build_data(self, data_info: DataInfo | None) -> None:
        """Create the loaders, which read the data, and ``data_info``, which is fitted on them; see ``build``."""
        if data_info is not None and self.info is not None:
            self.task_data = self.task_data.restored(data_info)
        seed_everything(self.config.seed, "data")
        loaders = returned.loaders(self.build_dataloader())
        reading = self.task_data.reading
        self.loaders = {split: wrap_loader(loader, split, reading) for split, loader in loaders.items()}
        self.data_info = None if self.info is None else self.task_data.fitted()
        if self.data_info and data_info:
            self.data_info = self.data_info.scaled_as(data_info)
            _warn_of_other_inputs(data_info, self.data_info)

    def _initial_network(self, fresh_weights: bool) -> nn.Module:
        """The network with its initial weights, on the CPU; see ``build``."""
        self.choose_weights(fresh_weights)
        seed_everything(self.config.seed, "model")
        network = returned.network(self.build_model())
        if self.config.init_from and fresh_weights:
            file = weights_file(self.config.init_from, self._start)
            report, warnings = weights.initialise(network, file, self.data_info)
            log.info("%s", report)
            for warning in warnings:
                log.warning("%s", warning)
        return network

    def _plan_run(self) -> None:
        """Divide the batches among processes and updates, and derive the length of the run."""
        seed = self.config.seed
        min_rows = least_rows(self.model, self.info)
        sharding = self.runner.sharding(seed, min_rows)
        self.loaders = {split: loader.sharded(sharding) for split, loader in self.loaders.items()}
        self.runner.plan_run(self.train_loader, seed, min_rows)

    def _move_to_device(self) -> None:
        setup = self.runner.device_setup
        setup.choose_layout(self.model)
        for module in (self.model, self.criterion, self.task_method):
            if isinstance(module, nn.Module):
                setup.move_module(module)
        self.runner.parallel.synchronise_norms(self.device, self.model, self.task_method)

    def build_evaluation(self, network: nn.Module, split: str, data_info: DataInfo) -> EvalEpoch:
        """Build what the evaluation of ``network`` on one split needs, and nothing for training.

        Args:
            network: the evaluated network, with its weights.
            split: its name.
            data_info: what the weights were trained on.

        Raises:
            ConfigError: there is no such split, or a metric does not fit the data.
        """
        seed, runner = self.config.seed, self.runner
        runner.prepare()
        if self.info is not None:
            self.task_model.check(self.info)
        sharding = runner.sharding(seed, least_rows(network, data_info))
        loader = self.task_data.evaluation_loader(split).sharded(sharding)
        self.data_info = self.task_data.fitted().scaled_as(data_info)
        _warn_of_other_inputs(data_info, self.data_info)
        self.loaders = {split: loader}
        self.criterion = self.build_criterion()
        runner.device_setup.choose_layout(network)
        for module in (network, self.criterion):
            runner.device_setup.move_module(module)
        return EvalEpoch(self, split, network)

    def choose_weights(self, fresh_weights: bool) -> None:
        """Choose the model with published weights if the method starts from trained weights.

        Args:
            fresh_weights: False if the weights of a checkpoint are loaded afterwards, so that no others are read.
        """
        model = self.task_model
        method = self.task_method
        if method.starts_from_weights and not self.config.init_from and not self.custom_network:
            published = model.pretrained()
            if published is None and fresh_weights:
                log.warning(
                    "method: %s is for a trained network, and %s starts with random weights; load some by "
                    "init_from=RUN or init_from=FILE (a checkpoint, a PyTorch state dict, safetensors)",
                    type(method).__name__,
                    type(model).__name__,
                )
            model = published or model
        self.task_model = model if fresh_weights else model.untrained()

    def _build_training(self) -> None:
        """Create what only training needs: the network as a step calls it, the ledger, the optimizer, the schedule."""
        runner = self.runner
        setup = runner.device_setup
        self.net = setup.wrap(self.model, runner.compile, runner.cuda_graph, runner.find_unused_parameters)
        runner.open_ledger(self)
        self.optimizer = returned.optimizer(self.build_optimizer(), self.model, self.criterion, self.task_method)
        setup.unfuse_scaled_sgd(self.optimizer)
        self.scheduler = returned.scheduler(self.build_scheduler())
        setup.keep_freed_memory()

    def log_facts(self) -> None:
        """Log what a user should know about the data, the network and the processes before training starts."""
        for line in data_lines(self.loaders, self.info):
            log.info("%s", line)
        for line in data_warnings(self.loaders):
            log.warning("%s", line)
        if left_out := self.train_loader.left_out:
            log.info("data.drop_last: %d samples of each epoch do not fill an update and are left out", left_out)
        if isinstance(self.train_loader, ForeignLoader):
            log.info("the train loader is not a plain one: seeded each epoch, skipped forward when a run is resumed")
        for line in local_lines(self.task_method, self.model, self.runner.parallel, self.runner.accumulate):
            log.info("%s", line)
        if self.runner.shard and not self.runner.parallel.shards:
            log.info("runner.shard: there is one process, which holds all weights")
        for line in self.task_model.omissions(self.info) if self.info else ():
            log.info("%s", line)
        if self.info is not None and self.task_data.val_is_test:
            log.info("the test part serves as val: the best checkpoint is chosen on it")

    def facts(self) -> dict[str, Any]:
        """The facts about the parts for ``run.json``."""
        custom_loaders = self.info is None
        return {
            "device": str(self.device),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "val_is_test": None if custom_loaders else self.task_data.val_is_test,
            "samples_left_out": self.train_loader.left_out,
            **({} if custom_loaders else self.task_data.facts()),
        }

    def data_fingerprint(self) -> Fingerprint:
        """Which files or tensors the samples come from, by part; by loader if the task builds its own."""
        fingerprints = self.task_data.fingerprints
        return fingerprints or {split: fingerprint.of_loader(loader) for split, loader in self.loaders.items()}

    @property
    def split_digest(self) -> str | None:
        """The digest of which samples each split contains; None if the data set does not provide it."""
        digest: str | None = self.task_data.facts().get("samples", {}).get("split_digest")
        return digest

    @property
    def train_loader(self) -> AnyLoader:
        return self.loaders["train"]

    @property
    def val_loader(self) -> AnyLoader | None:
        return self.loaders.get("val")

    @property
    def device(self) -> torch.device:
        return self.runner.device_setup.device

    @property
    def epoch(self) -> int:
        """The current epoch, from 1."""
        return self.runner.epoch + 1

    @property
    def max_epoch(self) -> int:
        return self.runner.max_epoch

    # --- what a task logs beside numbers -----------------------------------------------------------------------------

    def log_image(self, name: str, picture: Any, caption: str = "") -> None:
        """Log an image into ``media/`` and to the loggers. Does nothing outside a run and on ranks other than 0.

        Args:
            name: such as ``val/overlay``.
            picture: (H, W) or (H, W, 3) uint8 pixels, or the bytes of a PNG or JPEG file.
            caption: a line below it.

        Raises:
            ValueError: ``picture`` is none of these.
        """
        self.runner.checkpointer.log_media("image", name, self, picture, caption=caption)

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> None:
        """Log a table of plain values; see ``log_image``. Raises ValueError if a row does not fit the columns."""
        self.runner.checkpointer.log_media("table", name, self, columns, rows, caption=caption)

    def log_plot(
        self, name: str, curves: Mapping[str, Sequence[tuple[float, float]]], x: str = "x", caption: str = ""
    ) -> None:
        """Log curves, each a list of points, by name; ``x`` labels the horizontal axis. See ``log_image``."""
        self.runner.checkpointer.log_media("plot", name, self, curves, x=x, caption=caption)

    # --- the schedule ----------------------------------------------------------------------------------------------

    @property
    def interval(self) -> str:
        """When the scheduler is stepped: ``update`` or ``epoch``."""
        return getattr(self.scheduler, "interval", "epoch")

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step_scheduler(self, monitored: float | None, sign: int) -> None:
        """Step the scheduler at the end of an epoch; a ``ReduceLROnPlateau`` gets the monitored metric.

        Args:
            monitored: its value, None in an epoch without an evaluation.
            sign: +1 if a higher value is better, -1 if a lower one is.
        """
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            if self.scheduler is not None:
                self.scheduler.step()
        elif monitored is not None:
            self.scheduler.step(*([monitored, sign] if getattr(self.scheduler, "needs_metric", False) else [monitored]))

    # --- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to continue: tensors and plain values."""
        sharded = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return self.runner.parallel.gathered(sharded) | self.state_between_updates()

    def state_between_updates(self) -> dict[str, Any]:
        """The part of the state that may change between two updates, as the network's buffers may."""
        return {
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else {},
            "method": self.task_method.state_dict(),
            "runner": self.runner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parallel = self.runner.parallel
        self.model.load_state_dict(parallel.shard_state(self.model, state["model"]))
        self.optimizer.load_state_dict(parallel.shard_optimizer_state(self.optimizer, state["optimizer"]))
        lay_out_state(self.optimizer)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.task_method.load_state_dict(state["method"])
        self.runner.load_state_dict(state["runner"])


def least_rows(model: nn.Module, info: DataInfo | None = None) -> int:
    """The smallest number of samples in a batch that a network can be trained with.

    BatchNorm fails on a single value per channel, so a network with BatchNorm needs two; one is enough if targets are
    spatial, since a sample then has many pixels.
    """
    if info is not None and info.dense:
        return 1
    return 1 + any(isinstance(module, BatchNorm) for module in model.modules())


def _warn_of_other_inputs(trained_on: DataInfo, current: DataInfo) -> None:
    """Warn if inputs are not preprocessed as in training, which only a changed setting can cause."""
    if differing := list(differing_inputs(trained_on, current)):
        log.warning("data: the weights were trained on other inputs: %s", "; ".join(differing))
