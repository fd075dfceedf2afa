"""TaskRunner: where and how fast a task runs, and the loop over its epochs. It knows nothing of learning."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from healsg import distributed
from healsg.callbacks import Callback
from healsg.data.foreign import AnyLoader
from healsg.data.sharding import Sharding
from healsg.errors import RunError
from healsg.protocols import Task, Watcher
from healsg.seeding import mix, seed_device, seed_step
from healsg.training import diagnose, draws, memory, returned
from healsg.training.best import BestTracker, Mode
from healsg.training.device import Compile, DeviceSetup, Precision, clear_gradients
from healsg.training.ledger import Ledger
from healsg.training.meter import Meter
from healsg.training.parallel import Parallel
from healsg.training.plan import Plan, Position
from healsg.training.profiling import Profiling
from healsg.training.progress import Progress
from healsg.training.pseudo_labels import PseudoLabelLedger, ledger_of
from healsg.training.step import (
    Accumulator,
    MicroBatch,
    Samples,
    TrainBatch,
    loss_of,
    reported,
    samples_of,
    weighted_sum,
)
from healsg.types import Count, NonNegative, Positive, Threads, Timeout

if TYPE_CHECKING:
    from healsg.runs.checkpointer import Checkpointer


class TaskRunner:
    """The loop. Its verbs are what a method's step is made of: ``forward_context``, ``backward``, ``update``.

    Args:
        epochs, steps: passes over the training data, or updates instead of them.
        device, precision, channels_last, threads, deterministic: see ``DeviceSetup``.
        accumulate, clip_norm: batches per update, equivalent to one large batch; the largest norm of the gradient.
        auto_accumulate: when memory runs out, split batches into halves, quarters, ... and accumulate their gradients.
        compile, cuda_graph: ``torch.compile`` the network, or its repeated blocks (``regional``); with CUDA graphs.
        log_every: updates between two step lines in ``metrics.jsonl``, and between two reads of the device.
        eval_every, save_every: epochs between two evaluations; updates between two saves within an epoch.
        monitor, mode, callbacks: what decides the best checkpoint, see ``BestTracker``; callbacks by name.
        pause_after: epochs after which the run saves and stops. The schedule is still that of the full length, and the
            run can be resumed exactly.
        max_time, limit_batches: seconds from the command's start after which the run stops; most batches per pass.
        find_unused_parameters: for several processes, if a step leaves parameters without a gradient.
        sync_batchnorm: for several processes, compute BatchNorm's statistics over the batch of all of them.
        shard: for several processes, shard weights, gradients and optimizer state over them; see ``sharded``.
        processes: how many the command starts on this machine for the run (``commands.launch.processes``); None is one,
            or those that a launcher such as torchrun has started.
        timeout: seconds that one of several processes waits for another one before the run ends with an error.
        tune: seconds for which the command measures the fastest settings (``commands.train.tune``) before the run
            starts; in the run itself it is None, and the chosen settings are ordinary ones.
        ledger: record loss, confidence and correctness of every training sample in every epoch; see ``Ledger``.
        keep_every, keep_best: epochs between two checkpoints that are kept, and how many of the best are kept; see
            ``Retention``.
        keep_last: whether a finished run keeps, besides its best weights, the state to continue training from.
        profile: record where the time of a few updates goes; see ``Profiling``.
        forecast: before the run, estimate its cost in a separate process; ``run.json`` then has both the estimate and
            the real cost (``TaskTrainer`` does this).
    """

    leaves_weights: ClassVar[bool] = True
    """Weights change only in ``update``; see ``TaskMethod.leaves_weights``. A subclass declares it itself."""

    constructed = False
    """Whether the constructor has been called, as that of a subclass has to."""

    draws_only_from_torch: ClassVar[bool] = True
    """The loop draws nothing; see ``TaskMethod.draws_only_from_torch``. A subclass declares it itself."""

    def __init__(
        self,
        epochs: Count = 60,
        steps: Count | None = None,
        device: str | int = "auto",
        precision: Precision = "fp32",
        accumulate: Count = 1,
        auto_accumulate: bool = False,
        clip_norm: Positive | None = None,
        compile: Compile = False,
        cuda_graph: bool = False,
        channels_last: bool | Literal["auto"] = "auto",
        threads: Threads | None = None,
        deterministic: bool = False,
        log_every: Count = 50,
        eval_every: Count = 1,
        save_every: Count | None = None,
        monitor: str = "auto",
        mode: Mode = "auto",
        max_time: NonNegative | None = None,
        limit_batches: Count | None = None,
        find_unused_parameters: bool = False,
        sync_batchnorm: bool = False,
        shard: bool = False,
        timeout: Timeout = 300.0,
        ledger: bool = False,
        forecast: bool = False,
        keep_every: Count | None = None,
        keep_best: Count | None = None,
        keep_last: bool = True,
        profile: bool = False,
        callbacks: Mapping[str, Callback] | None = None,
        pause_after: Count | None = None,
        processes: Count | None = None,
        tune: Positive | None = None,
    ) -> None:
        self.constructed = True
        self.epochs = epochs
        self.steps = steps
        self.accumulate = accumulate
        self.auto_accumulate = auto_accumulate
        self.clip_norm = clip_norm
        self.precision = precision
        self.threads = threads
        self.log_every = log_every
        self.eval_every = eval_every
        self.save_every = save_every
        self.max_time = max_time
        self.pause_after = pause_after
        self.processes = processes
        self.tune = tune
        self.shard = shard
        self.limit_batches = limit_batches
        self.callbacks = dict(callbacks or {})
        self.compile = compile
        self.cuda_graph = cuda_graph
        self.find_unused_parameters = find_unused_parameters
        self.timeout = float(timeout)
        self.parallel = Parallel.of_launch(sync_batchnorm, shard)
        self.device_setup = DeviceSetup(device, precision, channels_last, deterministic, self.parallel)
        self.best_tracker = BestTracker(monitor, mode)
        self.meter = Meter(self.parallel)
        self.progress = Progress()
        self.plan = Plan(accumulate=accumulate)
        """The length of the run, once the train loader is there (``plan_run``)."""
        self.position = Position()
        """How far the run is."""
        self.accumulator = Accumulator(parallel=self.parallel)
        self.pieces = 1
        """The micro-batches into which ``auto_accumulate`` splits a batch."""
        self.rate: float | torch.Tensor | None = None
        """The learning rate of the last update; None before the first."""
        self.stop_reason: str | None = None
        """Why a callback has ended the run early."""
        self.checkpointer: Watcher = Watcher()
        self.keeps_ledger = ledger
        self.forecast = forecast
        self.keep_every = keep_every
        self.keep_best = keep_best
        self.keep_last = keep_last
        self.profiling = Profiling(profile)
        self.ledger: Ledger | PseudoLabelLedger | None = None
        """The records of the samples in this epoch, once the task is built for training."""

    # --- how long the run is, and how far ----------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.position.epoch

    @property
    def step_count(self) -> int:
        """Updates made so far."""
        return self.position.step

    @property
    def batch_count(self) -> int:
        """Micro-batches of the current epoch that have been used."""
        return self.position.batch

    @property
    def length(self) -> int:
        """Micro-batches per epoch."""
        return self.plan.length

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return self.plan.total_steps

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch."""
        return self.plan.steps_per_epoch

    @property
    def max_epoch(self) -> int:
        """Epochs in the whole run."""
        return self.plan.max_epoch(self.position)

    # --- assembly ----------------------------------------------------------------------------------------------------

    def prepare(self, threads: int | None = None) -> None:
        """Join the other processes and set up the device.

        Args:
            threads: CPU threads if the settings do not give a number.
        """
        distributed.connect(self.timeout)
        self.device_setup.activate(self.threads or threads)

    def sharding(self, seed: int, min_rows: int) -> Sharding:
        """How loaders divide batches among the processes of this run."""
        ranks = self.parallel.rank, self.parallel.world
        return Sharding(seed, self.device_setup.device, *ranks, self.accumulate, min_rows, self.limit_batches)

    def plan_run(self, train_loader: AnyLoader, seed: int, min_rows: int) -> None:
        """Set the length of the run, in updates and in epochs."""
        length = len(train_loader)
        total_steps = self.steps or self.epochs * -(-length // self.accumulate)
        batch_size = float(getattr(train_loader, "batch_size", 1))
        seeds = mix(seed, "step", self.parallel.rank), mix(seed, "step", 0)
        self.plan = Plan(length, self.accumulate, total_steps, batch_size, min_rows, *seeds)
        self.accumulator = Accumulator(batch_size, self.parallel)
        self.progress.plan(total_steps, self.max_epoch)

    def open_ledger(self, task: Task) -> None:
        """Start to record each step's outputs if ``ledger`` is set. Raises ConfigError if samples have no class."""
        if self.keeps_ledger:
            self.ledger = ledger_of(task)

    # --- the verbs of a step -----------------------------------------------------------------------------------------

    def train_batches(self, task: Task) -> Iterator[tuple[TrainBatch, MicroBatch]]:
        """The remaining batches of this epoch, on the device; the random generators are seeded before each."""
        plan = self.plan
        position = self.position
        loader = task.train_loader
        world = self.parallel.world
        epoch_seed = mix(plan.seed, position.epoch)
        self.progress.start_epoch(task.epoch, plan.length)
        libraries = not draws.only_from_torch(task)
        for values, rows in loader.batches_for_steps(position.epoch, position.batch, plan.last_batch(position)):
            batch = loader.as_train_batch(values, rows, position.batch)
            position.take_batch()
            self.progress.batch(position.batch, rows)
            seed_step(self.device_setup.device, position.batch, epoch_seed, libraries)
            micro = MicroBatch(batch.samples, plan.closes(position.batch), plan.accumulate, world)
            on_device = self.device_setup.move(batch)
            if self.ledger is not None:
                self.ledger.start_batch(on_device)
            yield on_device, micro
        self.checkpointer.snapshot_done()  # what follows may change anything

    def eval_batches(self, task: Task, split: str) -> Iterator[dict[str, Any]]:
        """The batches of an evaluation of a split, on the device; the random generators are seeded before each."""
        loader = task.loaders[split]
        length = len(loader)
        pass_seed = mix(loader.sharding.seed, "evaluation", split, self.parallel.rank)
        self.progress.start_pass(split, length)
        for position, (batch, rows) in enumerate(loader.batches_for_steps(0, 0, length), 1):
            self.progress.batch(position)
            seed_step(self.device_setup.device, position, pass_seed, libraries=True)
            if rows:
                yield self.device_setup.move(batch)
            self.pause(task)

    def pause(self, task: Task) -> None:
        """Stop the run here, within an evaluation, if a stop was requested."""
        self.checkpointer.evaluating(task)

    def step(self, task: Task, batch: TrainBatch, micro: MicroBatch) -> tuple[dict[str, Any], bool]:
        """The method's step: its scalars with their counts, and whether the weights were updated.

        With ``auto_accumulate``, a step that runs out of memory is repeated in smaller pieces.
        """
        try:
            if self.pieces > 1:
                return memory.step_in_pieces(task, batch, micro)
            return task.task_method.step(task, batch, micro)
        except KeyError as error:
            returned.explain_key(batch, error)
            raise
        except (RuntimeError, MemoryError) as error:
            if not memory.halve(task, micro, error):
                returned.explain_types(batch, error)
                raise
        return self.step(task, batch, micro)

    def halve_pieces(self, micro: MicroBatch) -> bool:
        """Split batches into twice as many pieces from now on; False if this one has too few samples for that."""
        self.pieces *= 2
        return micro.rows // self.pieces >= self.plan.min_rows

    def forward_context(self, task: Task, micro: MicroBatch) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass: autocast, and no gradient synchronisation before the update's last batch."""
        return self.parallel.forward_context(task.net, micro.closes, micro.samples.rows, self.device_setup.autocast())

    @contextlib.contextmanager
    def drawn_together(self, batch: Mapping[str, Any]) -> Iterator[Samples | None]:
        """A context in which all processes draw the same random numbers, those that a single process would draw.

        It yields which samples of the global batch this process has; or None, changing nothing, if there is no other
        process or the others' numbers of samples are not known.

        Raises:
            RunError: there are other processes, and the batch is a plain dict, which has no ``Samples``.
        """
        samples = samples_of(batch)
        if self.parallel.several and samples is None:
            raise RunError(
                "train_step: the batch became a plain dict, which does not tell which samples this process has; "
                'copy it by batch | {"target": ...}'
            )
        if not self.parallel.several or samples is None or samples.batch is None:
            yield None
            return
        seed_device(self.device_setup.device, self.batch_count, state=mix(self.plan.shared_seed, self.epoch))
        try:
            yield samples
        finally:
            seed_device(self.device_setup.device, "own", self.batch_count, state=mix(self.plan.seed, self.epoch))

    def backward(self, logs: dict[str, Any], micro: MicroBatch) -> dict[str, Any]:
        """Accumulate the gradient of ``logs["loss"]``; returns the step's scalars with their counts."""
        if not micro.weighted:
            scalars = reported(logs, micro)
            total = scalars["loss"]
        else:
            loss = loss_of(logs["loss"], logs.get("count"))
            weights = self.accumulator.weights(loss, micro)
            scalars = reported(logs, micro, weights)
            total = weighted_sum(loss, weights)
        torch.autograd.backward(self.device_setup.scaler.scale(total) if self.device_setup.scaler else total)
        return scalars

    def record_pseudo_labels(
        self, unlabelled: Mapping[str, Any], scores: torch.Tensor, weight: torch.Tensor | None = None
    ) -> None:
        """Record the pseudo-labels of unlabelled samples in the ledger, if there is one.

        Args:
            unlabelled: the stream of the samples.
            scores: (N, C); the pseudo-label of a sample is the class with the largest score.
            weight: (N,) weight of each pseudo-label in the loss; None is 1.
        """
        if isinstance(self.ledger, PseudoLabelLedger):
            self.ledger.add(unlabelled["index"], scores, weight)

    def update(self, task: Task, logs: dict[str, Any], micro: MicroBatch) -> tuple[dict[str, Any], bool]:
        """Backward; with the last batch of an update also clip, step and schedule.

        Args:
            logs: what ``train_step`` returned.

        Returns:
            The step's scalars with their counts (``step.reported``), and whether the weights were updated.
        """
        try:
            scalars = self.backward(logs, micro)
        except Exception:  # it is raised again, unless a more telling one of what train_step returned takes its place
            returned.explain_step(logs)
            raise
        if not micro.closes:
            return scalars, False
        optimizer = task.optimizer
        scaler = self.device_setup.scaler
        self.accumulator.close(task.model, micro)
        if self.clip_norm is not None:
            if scaler:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(task.model.parameters(), self.clip_norm)
        rate = optimizer.param_groups[0]["lr"]
        self.rate = rate.clone() if isinstance(rate, torch.Tensor) else rate
        self.checkpointer.snapshot_done()  # a save in progress must copy the weights before they change
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        clear_gradients(optimizer)
        self.accumulator.clear()
        if task.scheduler is not None and task.interval == "update":
            task.scheduler.step()
        self.position.count_update()
        self.progress.update(self.position.step)
        return scalars, True

    # --- the loop ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reporting_to(self, checkpointer: Watcher) -> Iterator[None]:
        """A context in which updates and evaluations are reported to ``checkpointer``."""
        before, self.checkpointer = self.checkpointer, checkpointer
        try:
            yield
        finally:
            self.checkpointer = before

    def fit(self, task: Task, checkpointer: Checkpointer) -> None:
        """Train from the current position to the end of the run; ``checkpointer`` saves on the way."""
        directions = task.directions()
        self.best_tracker.check(task.measured_names(), directions)
        recording = self.profiling.recording(checkpointer.folder.path, task.device)
        profiled = recording if self.parallel.rank == 0 else contextlib.nullcontext()
        with self.reporting_to(checkpointer), diagnose.explained(task, checkpointer), profiled:
            while self.epoch < self.max_epoch and self.stop_reason is None:
                if self.pause_after is not None and self.epoch >= self.pause_after:
                    checkpointer.pause(task)
                began = time.monotonic()
                self.seed_epoch(task, "epoch")
                results = task.run_epoch()
                seconds = time.monotonic() - began
                self.seed_epoch(task, "epoch end")
                self.end_epoch(task, results, seconds, directions)
            checkpointer.finish(task)

    def seed_epoch(self, task: Task, purpose: str) -> None:
        """Seed what is drawn outside of steps and evaluations: by a task's own ``run_epoch`` before its passes, and at
        the end of an epoch, which a resumed run may reach without a step, by the schedule and the callbacks."""
        seed = mix(task.train_loader.sharding.seed, purpose)
        seed_step(self.device_setup.device, self.epoch, seed, libraries=True)

    def eval_due(self) -> bool:
        """Whether this epoch ends with an evaluation."""
        return (self.epoch + 1) % self.eval_every == 0 or self.epoch + 1 >= self.max_epoch

    def tick(self, task: Task) -> None:
        """Called after each update: the only place in the training pass that may wait for the device."""
        if self.profiling.enabled:  # tested here, because one more call per step would cost time
            self.profiling.step()
        self.checkpointer.updated(task)

    def end_epoch(
        self,
        task: Task,
        results: Mapping[str, Mapping[str, float]],
        seconds: float,
        directions: Mapping[str, bool | None],
    ) -> None:
        """Finish an epoch: log its line, step the schedule, compare with the best, ask the callbacks, then save.

        Args:
            task: the trained task.
            results: the numbers of each split by name, as ``run_epoch`` returned them.
            seconds: the duration of the epoch.
            directions: of the task's metrics.
        """
        numbers = self.epoch_numbers(task, results, seconds)
        self.step_epoch_schedule(task, numbers, directions)
        best = self.best_tracker.update(numbers, directions)
        name, sign = self.best_tracker.resolve(numbers, directions)
        reasons = [callback.on_epoch_end(numbers, name, sign) for callback in self.callbacks.values()]
        self.stop_reason = next((reason for reason in reasons if reason), None)
        self.next_epoch()
        self.checkpointer.end_epoch(task, numbers, best)

    def epoch_numbers(self, task: Task, results: Mapping[str, Mapping[str, float]], seconds: float) -> dict[str, Any]:
        """The line of an epoch in ``metrics.jsonl``; the arguments are those of ``end_epoch``. Raises RunError if
        ``run_epoch`` returned anything else than numbers by split."""
        rows = returned.epoch_numbers(results)
        numbers: dict[str, Any] = {"event": "epoch", "epoch": self.epoch + 1, "step": self.step_count, **rows}
        return numbers | {"lr": self.last_rate(task), "seconds": round(seconds, 3)}

    def step_epoch_schedule(
        self, task: Task, numbers: Mapping[str, Any], directions: Mapping[str, bool | None]
    ) -> None:
        """Step a schedule whose interval is an epoch; ``numbers`` is the line of the epoch."""
        if task.interval == "epoch":
            name, sign = self.best_tracker.resolve(numbers, directions)
            task.step_scheduler(numbers.get(name), sign)

    def last_rate(self, task: Task) -> float:
        """The learning rate of the last update, of the first parameter group."""
        return task.learning_rate if self.rate is None else float(self.rate)

    def next_epoch(self) -> None:
        self.position.end_epoch()
        self.meter.clear()

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position of the run and the state of its parts: enough to continue at the next step."""
        ledger = self.ledger.state_dict() if self.ledger is not None else {}
        return {
            **({"ledger": ledger} if ledger else {}),
            **self.position.state_dict(),
            "pieces": self.pieces,
            "total_steps": self.total_steps,
            "stop_reason": self.stop_reason,
            "rate": None if self.rate is None else float(self.rate),
            "meter": self.meter.state_dict(),
            "monitor": self.best_tracker.state_dict(),
            "scaler": self.device_setup.scaler.state_dict() if self.device_setup.scaler else {},
            "callbacks": {name: callback.state_dict() for name, callback in self.callbacks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position.load_state_dict(state, self.accumulate)
        self.pieces = state["pieces"]
        self.stop_reason = state["stop_reason"] if state["total_steps"] == self.total_steps else None
        if self.batch_count > self.length:
            raise RunError(f"the run stopped at batch {self.batch_count} of an epoch, which has only {self.length} now")
        self.rate = state["rate"]
        if self.ledger is not None:
            self.ledger.load_state_dict(state.get("ledger", {}))
        self.progress.plan(self.total_steps, self.max_epoch)
        self.accumulator.clear()
        self.meter.load_state_dict(state["meter"])
        self.best_tracker.load_state_dict(state["monitor"])
        if self.device_setup.scaler:
            self.device_setup.scaler.load_state_dict(state["scaler"])
        for name, callback in self.callbacks.items():
            callback.load_state_dict(state["callbacks"].get(name, callback.state_dict()))
