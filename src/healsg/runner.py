"""TaskRunner: where and how fast a task runs, and the loop over its epochs. It knows nothing of learning."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from healsg import distributed, faults, memory
from healsg.adopt import AnyLoader
from healsg.callbacks import Callback
from healsg.errors import RunError
from healsg.keeper import Keeper
from healsg.meter import Meter
from healsg.mirror import Progress
from healsg.monitor import Mode, Monitor
from healsg.placement import Compile, Place, Precision, both, clear_gradients
from healsg.seeding import mix, seed_device
from healsg.terms import Terms
from healsg.types import Count, NonNegative, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask


class TaskRunner:
    """The loop. Its verbs are what a method's step is made of: ``forward``, ``backward``, ``update``.

    Args:
        epochs, steps: passes over the training data, or updates in their place.
        device, precision, channels_last, threads, deterministic: see ``Place``.
        accumulate, clip_norm: batches an update, as one batch that many times as large; the gradient's largest norm.
        auto_accumulate: where memory runs out, take batches in halves, quarters, ... and add their gradients up.
        compile, cuda_graph: ``torch.compile`` the network, or ``regional``; so that a GPU replays it as CUDA graphs.
        log_every: updates between two step lines in ``metrics.jsonl``, and between two reads of the device.
        eval_every, save_every: epochs between two evaluations; updates between two saves, beside each epoch's end.
        monitor, mode, callbacks: what decides the best, see ``Monitor``; watchers by name.
        max_time, limit_batches: seconds from the command's start by which the run has stopped; batches a pass.
        find_unused_parameters: for several processes, where a step leaves parameters without a gradient.
    """

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
        channels_last: bool = False,
        threads: Count | None = None,
        deterministic: bool = False,
        log_every: Count = 50,
        eval_every: Count = 1,
        save_every: Count | None = None,
        monitor: str = "auto",
        mode: Mode = "auto",
        max_time: NonNegative | None = None,
        limit_batches: Count | None = None,
        find_unused_parameters: bool = False,
        callbacks: Mapping[str, Callback] | None = None,
    ) -> None:
        self.epochs, self.steps, self.accumulate, self.clip_norm = epochs, steps, accumulate, clip_norm
        self.auto_accumulate, self.pieces, self.updating, self.precision = auto_accumulate, 1, False, precision
        self.max_time, self.limit_batches, self.callbacks = max_time, limit_batches, dict(callbacks or {})
        self.log_every, self.eval_every, self.save_every = log_every, eval_every, save_every
        self._place, self.threads = (device, precision, channels_last, deterministic), threads
        self.wrapping = compile, cuda_graph, find_unused_parameters
        self.monitor, self.meter, self.progress = Monitor(monitor, mode), Meter(), Progress()
        self.epoch = self.step_count = self.position = 0
        self.stop_reason: str | None = None
        self.landed: Callable[[], object] = lambda: None  # waits for what a save still copies
        self.keeper: Keeper  # from fit on

    def prepare(self, seed: int, threads: int | None = None) -> None:
        """Take possession of the device; ``threads`` of the CPU where the settings name no number."""
        distributed.connect()
        self.place = Place(*self._place, self.threads or threads)
        self.seed = mix(seed, "step", distributed.rank())

    def terms(self, model: nn.Module, seed: int) -> Terms:
        """How this runner wants batches dealt. BatchNorm fails on one sample, hence at least two where there is one."""
        self.least = 1 + any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        ranks = distributed.rank(), distributed.world()
        return Terms(seed, self.place.device, *ranks, self.accumulate, self.least, self.limit_batches)

    def measure_run(self, train_loader: AnyLoader) -> None:
        """Fix the length of the run, in updates and in epochs."""
        self.length, self.nominal = len(train_loader), float(getattr(train_loader, "batch_size", 1))
        self.steps_per_epoch = -(-self.length // self.accumulate)
        self.total_steps = self.steps or self.epochs * self.steps_per_epoch
        self.max_epoch = -(-self.total_steps // self.steps_per_epoch)
        self.weighted = self.accumulate > 1 or distributed.launched()
        self.counted: Any = 0.0
        self.progress.total_steps, self.progress.max_epoch = self.total_steps, self.max_epoch

    def train_batches(self, task: BasicTask) -> Iterator[dict[str, Any]]:
        """The batches of this epoch that are still to come, on the device, each with its own randomness."""
        progress, place, epoch = self.progress, self.place, mix(self.seed, self.epoch)
        progress.phase, progress.length, progress.epoch = "train", self.length, task.epoch
        last = min(self.length, self.position + (self.total_steps - self.step_count) * self.accumulate)
        for batch, rows in islice(task.train_loader.batches(self.epoch, self.position), last - self.position):
            self.position += 1
            self.rows, progress.position, progress.samples = rows, self.position, progress.samples + rows
            self.closing = self.position % self.accumulate == 0 or self.position == self.length
            seed_device(place.device, self.position, state=epoch)
            yield place.move(batch)
        self.landed()  # what follows may change anything

    def eval_batches(self, task: BasicTask, split: str) -> Iterator[dict[str, Any]]:
        """The batches of a split that is only looked at."""
        loader, progress, keeper = task.loaders[split], self.progress, getattr(self, "keeper", None)
        progress.phase, progress.length = split, len(loader)
        for position, (batch, rows) in enumerate(loader.batches(0), 1):
            progress.position = position
            if rows:
                yield self.place.move(batch)
            if keeper and not distributed.launched() and keeper.halt.asked_within():
                keeper.stop(task)

    def step(self, task: BasicTask, batch: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The method's step as one callable: (its scalars with their ``count``, whether the weights moved)."""
        try:
            return memory.step_in_pieces(task, batch) if self.pieces > 1 else task.task_method.step(task, batch)
        except (RuntimeError, MemoryError) as error:
            if not memory.halve(task, error):
                raise
        return self.step(task, batch)

    def forward(self, task: BasicTask) -> contextlib.AbstractContextManager[Any]:
        """What surrounds a forward pass: precision, and no exchange of gradients before the last batch of an update."""
        if self.closing or not distributed.launched():
            return self.place.autocast()
        return both(task.net.no_sync(), self.place.autocast())  # type: ignore[operator]

    def backward(self, loss: torch.Tensor, count: Any) -> None:
        """Add the gradient of ``loss``, a mean over ``count`` samples, to that of the update."""
        if self.weighted:
            if isinstance(count, torch.Tensor):
                count = count.to(torch.promote_types(loss.dtype, torch.float32))
            loss = loss * (count / self.nominal)
            self.counted = self.counted + count
        torch.autograd.backward(self.place.scaler.scale(loss) if self.place.scaler else loss)

    def update(self, task: BasicTask, logs: dict[str, Any]) -> bool:
        """Backward; with the last batch of an update also clip, step and schedule. Whether the weights moved."""
        logs["count"] = logs.get("count", self.rows) if self.rows else 0
        self.backward(logs["loss"], logs["count"])
        if not self.closing:
            return False
        optimizer, scaler, self.updating = task.optimizer, self.place.scaler, True
        if self.weighted:
            self.place.weigh(task.model, self.counted, self.nominal)
            self.counted = 0.0
        if self.clip_norm is not None:
            if scaler:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(task.model.parameters(), self.clip_norm)
        self.landed()  # a save copies what is about to move
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        clear_gradients(optimizer)
        self.updating = False
        if task.scheduler is not None and task.interval == "update":
            task.scheduler.step()
        self.step_count = self.progress.step = self.step_count + 1
        return True

    def fit(self, task: BasicTask, keeper: Keeper) -> None:
        """Train from where the run stands to its end, keeping what must outlast a kill at any time."""
        self.keeper = keeper
        self.monitor.check(task)
        with faults.explained(task, keeper):
            while self.epoch < self.max_epoch and self.stop_reason is None:
                began = time.monotonic()
                self.end_epoch(task, task.run_epoch(), time.monotonic() - began)
            keeper.finish(task)

    def eval_due(self) -> bool:
        """Whether this epoch ends with an evaluation."""
        return (self.epoch + 1) % self.eval_every == 0 or self.epoch + 1 >= self.max_epoch

    def tick(self, task: BasicTask) -> None:
        """After each step: the one place of the training pass that may wait for the device."""
        if not self.closing:
            return
        keeper, logging = self.keeper, self.step_count % self.log_every == 0
        if logging:
            keeper.log_step(task)
        if self.save_every and self.step_count % self.save_every == 0:
            keeper.save(task)
        if (logging and keeper.halt.agreed()) if distributed.launched() else keeper.halt.asked():
            keeper.stop(task)

    def end_epoch(self, task: BasicTask, results: Mapping[str, Mapping[str, float]], seconds: float) -> None:
        """Book an epoch: its line, its schedule, whether it is the best, whether it is the last; then save."""
        measured = {f"{split}/{key}": value for split, row in results.items() for key, value in row.items()}
        numbers: dict[str, Any] = {"event": "epoch", "epoch": self.epoch + 1, "step": self.step_count, **measured}
        numbers |= {"lr": task.learning_rate, "seconds": round(seconds, 3)}
        name, sign = self.monitor.resolve(numbers)
        if task.interval == "epoch":
            task.step_scheduler(numbers.get(name), sign)
        best = self.monitor.better(numbers)
        reasons = [callback.on_epoch_end(numbers, name, sign) for callback in self.callbacks.values()]
        self.stop_reason = next((reason for reason in reasons if reason), None)
        self.epoch, self.position = self.epoch + 1, 0
        self.meter.clear()
        self.keeper.end_epoch(task, numbers, best)

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands: enough to go on at the next step."""
        return {
            "epoch": self.epoch,
            "step": self.step_count,
            "position": self.position,
            "pieces": self.pieces,
            "total_steps": self.total_steps,
            "stop_reason": self.stop_reason,
            "meter": self.meter.state_dict(),
            "monitor": self.monitor.state_dict(),
            "scaler": self.place.scaler.state_dict() if self.place.scaler else {},
            "callbacks": {name: callback.state_dict() for name, callback in self.callbacks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step_count, self.position = state["epoch"], state["step"], state["position"]
        self.pieces = state["pieces"]
        self.stop_reason = state["stop_reason"] if state["total_steps"] == self.total_steps else None
        if self.position > self.length:
            raise RunError(f"batch {self.position} of an epoch is where the run stands, and it has {self.length} now")
        begun = self.step_count - -(-self.position // self.accumulate)  # an epoch may have ended before its last batch
        self.max_epoch = self.progress.max_epoch = self.epoch - (begun - self.total_steps) // self.steps_per_epoch
        self.meter.load_state_dict(state["meter"])
        self.monitor.load_state_dict(state["monitor"])
        if self.place.scaler:
            self.place.scaler.load_state_dict(state["scaler"])
        for name, callback in self.callbacks.items():
            callback.load_state_dict(state["callbacks"].get(name, callback.state_dict()))
