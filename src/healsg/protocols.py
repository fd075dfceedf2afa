"""The interfaces of task, runner and method that methods, the loop, evaluation and saving use.

``task.BasicTask``, ``runner.TaskRunner`` and ``method.TaskMethod`` implement these protocols. A function that takes a
task annotates it with ``Task`` from here and does not import those three, so that imports run in one direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from healsg.data.base import TaskData
    from healsg.data.foreign import AnyLoader
    from healsg.data.info import DataInfo
    from healsg.model import TaskModel
    from healsg.training.best import BestTracker, Directions
    from healsg.training.device import Compile, DeviceSetup
    from healsg.training.meter import Meter
    from healsg.training.parallel import Parallel
    from healsg.training.plan import Plan, Position
    from healsg.training.progress import Progress
    from healsg.training.step import Accumulator, MicroBatch, Samples, TrainBatch


class Watcher:
    """Receives the events of the loop. This base class ignores them; a ``Checkpointer`` saves, logs and stops."""

    def snapshot_done(self) -> None:
        """Weights and optimizer state are about to change: wait until a save in progress has copied them."""

    def updated(self, task: Task) -> None:
        """An update was made."""

    def evaluating(self, task: Task) -> None:
        """A batch or another part of an evaluation is done."""

    def log_media(self, kind: str, name: str, task: Task, *content: Any, **options: Any) -> None:
        """The task logs an image, a table or a plot; see ``MediaLog``, whose methods are the kinds."""

    def end_epoch(self, task: Task, numbers: dict[str, Any], best: bool) -> None:
        """An epoch is complete; ``numbers`` is its line in ``metrics.jsonl``."""


class SampleLedger(Protocol):
    """What a training run records about each sample; see ``training.ledger.Ledger``."""

    def end_epoch(self) -> None: ...

    def write(self, folder: Path, epoch: int) -> None: ...


class Pass(Protocol):
    """One pass over a split: ``task.train_epoch`` and ``task.val_epoch``."""

    def run(self) -> dict[str, float]:
        """The numbers of the pass, such as ``{"loss": 0.31}``."""


class TrainPass(Pass, Protocol):
    """A pass over the training split; see ``training.epoch.TrainEpoch``."""

    def finish_step(self, micro: MicroBatch, scalars: dict[str, Any], updated: bool) -> None: ...


class Method(Protocol):
    """How a task learns; see ``method.TaskMethod``."""

    @property
    def mean_over_samples(self) -> bool: ...

    @property
    def leaves_weights(self) -> bool: ...

    @property
    def average(self) -> nn.Module | None: ...

    @property
    def averages(self) -> bool: ...

    @property
    def make_optimizer(self) -> Callable[[Any], Optimizer]: ...

    @property
    def higher_is_better(self) -> Mapping[str, bool]: ...

    @property
    def evaluates_itself(self) -> bool: ...

    @property
    def custom_step(self) -> bool: ...

    @property
    def follows_updates(self) -> bool: ...

    def step(self, task: Task, batch: dict[str, Any], micro: MicroBatch) -> tuple[dict[str, Any], bool]: ...

    def after_update(self, task: Task) -> None: ...

    def eval_model(self, task: Task) -> nn.Module: ...

    def evaluate(self, task: Task, split: str) -> dict[str, float] | None: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> Any: ...


class Runner(Protocol):
    """Where and how fast a task runs, and how far it is; see ``runner.TaskRunner``."""

    # --- its settings

    @property
    def accumulate(self) -> int: ...

    @property
    def auto_accumulate(self) -> bool: ...

    @property
    def precision(self) -> str: ...

    @property
    def log_every(self) -> int: ...

    @property
    def save_every(self) -> int | None: ...

    @property
    def keep_every(self) -> int | None: ...

    @property
    def keep_best(self) -> int | None: ...

    @property
    def compile(self) -> Compile: ...

    @property
    def cuda_graph(self) -> bool: ...

    # --- its parts

    @property
    def parallel(self) -> Parallel: ...

    @property
    def device_setup(self) -> DeviceSetup: ...

    @property
    def best_tracker(self) -> BestTracker: ...

    @property
    def meter(self) -> Meter: ...

    @property
    def progress(self) -> Progress: ...

    @property
    def plan(self) -> Plan: ...

    @property
    def accumulator(self) -> Accumulator: ...

    @property
    def ledger(self) -> SampleLedger | None: ...

    # --- how far the run is

    position: Position

    @property
    def epoch(self) -> int: ...

    @property
    def max_epoch(self) -> int: ...

    @property
    def step_count(self) -> int: ...

    @property
    def total_steps(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def batch_count(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def pieces(self) -> int: ...

    @property
    def stop_reason(self) -> str | None: ...

    # --- the verbs of a step

    def train_batches(self, task: Task) -> Iterator[tuple[TrainBatch, MicroBatch]]: ...

    def eval_batches(self, task: Task, split: str) -> Iterator[dict[str, Any]]: ...

    def pause(self, task: Task) -> None: ...

    def step(self, task: Task, batch: TrainBatch, micro: MicroBatch) -> tuple[dict[str, Any], bool]: ...

    def halve_pieces(self, micro: MicroBatch) -> bool: ...

    def forward_context(self, task: Task, micro: MicroBatch) -> AbstractContextManager[Any]: ...

    def drawn_together(self, batch: Mapping[str, Any]) -> AbstractContextManager[Samples | None]: ...

    def record_pseudo_labels(
        self, unlabelled: Mapping[str, Any], scores: torch.Tensor, weight: torch.Tensor | None = None
    ) -> None: ...

    def backward(self, logs: dict[str, Any], micro: MicroBatch) -> dict[str, Any]: ...

    def update(self, task: Task, logs: dict[str, Any], micro: MicroBatch) -> tuple[dict[str, Any], bool]: ...

    # --- the loop

    def reporting_to(self, checkpointer: Watcher) -> AbstractContextManager[None]: ...

    def eval_due(self) -> bool: ...

    def tick(self, task: Task) -> None: ...

    def epoch_numbers(
        self, task: Task, results: Mapping[str, Mapping[str, float]], seconds: float
    ) -> dict[str, Any]: ...

    def seed_epoch(self, task: Task, purpose: str) -> None: ...

    def step_epoch_schedule(
        self, task: Task, numbers: Mapping[str, Any], directions: Mapping[str, bool | None]
    ) -> None: ...

    def next_epoch(self) -> None: ...

    def last_rate(self, task: Task) -> float: ...


class Task(Protocol):
    """Data, model and method joined; see ``task.BasicTask``."""

    @property
    def model(self) -> nn.Module:
        """The network that is trained; see ``TaskMethod.extend_network``."""

    @property
    def config(self) -> Any: ...

    @property
    def info(self) -> DataInfo | None: ...

    @property
    def data_info(self) -> DataInfo | None: ...

    @property
    def task_data(self) -> TaskData: ...

    @property
    def task_model(self) -> TaskModel: ...

    @property
    def task_method(self) -> Method: ...

    @property
    def runner(self) -> Runner: ...

    @property
    def loaders(self) -> dict[str, AnyLoader]: ...

    @property
    def train_loader(self) -> AnyLoader: ...

    @property
    def net(self) -> nn.Module: ...

    @property
    def criterion(self) -> nn.Module: ...

    @property
    def optimizer(self) -> Optimizer: ...

    @property
    def scheduler(self) -> Any: ...

    @property
    def interval(self) -> str: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def epoch(self) -> int: ...

    @property
    def max_epoch(self) -> int: ...

    @property
    def train_epoch(self) -> TrainPass: ...

    @property
    def val_epoch(self) -> Pass: ...

    @property
    def custom_network(self) -> bool: ...

    @property
    def custom_epoch(self) -> bool: ...

    @property
    def custom_state(self) -> bool: ...

    def measured_names(self) -> list[str] | None: ...

    def directions(self) -> Directions: ...

    def build_model(self) -> nn.Module: ...

    def run_epoch(self) -> Mapping[str, Mapping[str, float]]: ...

    def step_scheduler(self, monitored: float | None, sign: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def state_between_updates(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
