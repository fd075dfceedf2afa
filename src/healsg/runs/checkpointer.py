"""Checkpointer: saves, restores and stops a run. The loop reports to it; only rank 0 writes into the run's folder."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from healsg import safefiles
from healsg.data.loader import Loader
from healsg.data.skipped import skipped_samples
from healsg.errors import ConfigError, NotFiniteError, RunError, Stopped, one_line
from healsg.evaluation.evaluator import Collector, EvalEpoch, Evaluation
from healsg.protocols import Task, Watcher
from healsg.runs import binding, checkpoint
from healsg.runs.acquire import TRAINED, has_trained, new_id
from healsg.runs.binding import Binding
from healsg.runs.evaluations import log_cases, write_evaluation
from healsg.runs.folder import RunFolder, began_at, naming
from healsg.runs.media import MediaLog
from healsg.runs.metrics_log import MetricsLog
from healsg.runs.record import row_of
from healsg.runs.restoring import step_and_best
from healsg.runs.retention import Retention, described, file_of, others
from healsg.runs.snapshot import Snapshot
from healsg.runs.writer import Writer
from healsg.training.interrupt import StopSignal

log = logging.getLogger("healsg")

SAVE_INTERVAL = 1.0
"""The fewest seconds between two saves at the ends of epochs; a kill loses at most this much more work."""


MOST_COLLECTED = 10_000
"""The most samples of ``val`` for which a run without a test split ends with a pass over them for the report."""


class Checkpointer(Watcher):
    """Saves and restores a run, writes its lines into ``metrics.jsonl``, and stops it if requested.

    Args:
        folder: the run's folder.
        metrics_log: its metrics; None on ranks other than 0, which write nothing.
        stop_signal: when to stop.
        show: called with the line of each epoch, which includes ``best``.
        binding: the binding of each checkpoint, which is compared at a resume.
        snapshot: copies the state for a save.
        data_info: the meaning of the weights' inputs and outputs, saved in each checkpoint; None if the task builds its
            own loaders.
        force: whether to continue the run despite differences.
        collector: collects samples in the evaluation of the best weights, for the report; None for none.
        media_log: images, tables and plots; None on ranks other than 0.
    """

    def __init__(
        self,
        folder: RunFolder,
        metrics_log: MetricsLog | None,
        stop_signal: StopSignal,
        show: Callable[[dict[str, Any]], None],
        binding: Binding,
        snapshot: Snapshot,
        data_info: dict[str, Any] | None = None,
        force: bool = False,
        collector: Collector | None = None,
        media_log: MediaLog | None = None,
    ) -> None:
        self.media_log = media_log
        self.collector = collector
        self.folder = folder
        self.metrics_log = metrics_log
        self.stop_signal = stop_signal
        self.show = show
        self.binding = binding
        self.snapshot = snapshot
        self.data_info = data_info
        self.force = force
        self.saved_binding: dict[str, str] = {}
        """The binding in the checkpoints, once the run has started."""
        self.intact_last: checkpoint.Stamp | None = None
        """The ``last.pt`` that this process has written or verified; no other may become ``previous.pt``."""
        self.trained = has_trained(folder)
        """Whether ``run.json`` records that an update was made."""
        self.best_is_lost = False
        """Whether the run was continued without its ``best.pt``, by ``resume.force``."""
        self.writer = Writer(self._write)
        self.saved_at = -SAVE_INTERVAL
        self.unsaved_best: dict[str, Any] | None = None
        """The state that the next save writes as ``best.pt``; without ``model`` it gets the current weights."""
        self.retention = Retention(None, None)
        """Which epochs keep their own checkpoint, once the run has started."""
        self.unsaved_epoch: dict[str, Any] | None = None
        """The state that the next save writes as the checkpoint of its epoch."""
        self.monitored: dict[int, Any] = {}
        """The monitored metric by epoch."""
        self.exempt: set[str] = set()
        """The tensors that may contain inf or NaN."""
        self.testing = False
        """Whether training is over and the test split is being evaluated."""

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.writer.close()

    def begin(self, task: Task, path: Path, state: dict[str, Any] | None) -> None:
        """Resume from a checkpoint; a run that has none starts at step 0 and saves that state.

        Args:
            task: the trained task.
            path: the file of the checkpoint.
            state: its content, from ``resumable``; None if there is no checkpoint.

        Raises:
            RunError, ConfigError: the checkpoint or ``best.pt`` is of another run, other settings or other data.
        """
        task.runner.parallel.barrier()
        self.retention = Retention(task.runner.keep_every, task.runner.keep_best)
        if state is None:
            self._start(task)
        else:
            self._resume(task, path, state)

    def _resume(self, task: Task, path: Path, state: dict[str, Any]) -> None:
        """Restore the task from ``state``, which was saved in ``path``, and truncate ``metrics.jsonl`` to that save."""
        if path == self.folder.last:
            self.intact_last = checkpoint.stamp(path)
        lost_best, forced = task.runner.parallel.run_on_rank_zero(lambda: self._check(path, state))
        if lost_best:
            self.best_is_lost = True
            progress = state["runner"]
            state = state | {"runner": progress | {"monitor": progress["monitor"] | {"best": None}}}
        self._exempt_not_finite(state)
        try:
            task.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, RunError) as error:
            raise RunError(f"{path}: does not fit this task: {one_line(error)}") from error
        task.runner.parallel.run_on_rank_zero(lambda: self._truncate_lines(state))
        self._rank_epochs(task)
        runner = task.runner
        epoch = min(task.epoch, task.max_epoch)
        log.info("going on at step %d of %d, epoch %d", runner.step_count, runner.total_steps, epoch)
        if forced:
            self.save(task)  # from here on the checkpoint is of this run, its settings and data

    def _start(self, task: Task) -> None:
        """Start at step 0."""
        if self.metrics_log:
            self.saved_binding = self.binding.state_dict(self._identify(None), self.folder.path.name)
            if self.folder.record.get("continued"):
                log.info("no save of this run was ever completed: it starts at step 0")
            self.metrics_log.clear()
            if self.media_log:
                self.media_log.rewind(-1, -1)
            self.folder.previous.unlink(missing_ok=True)
        self._exempt_not_finite(task.state_dict())
        self.save(task)
        self.writer.wait()
        self.stop_signal.expect_saving(self.writer.seconds)

    def _check(self, path: Path, state: dict[str, Any]) -> tuple[bool, bool]:
        """Compare a checkpoint with this run, and ``best.pt`` with the checkpoint; called on rank 0 only.

        With ``force`` the run continues despite differences. If ``best.pt`` is not the one that the checkpoint refers
        to, it continues as if there had been no best epoch yet.

        Returns:
            Whether the best epoch is lost, and whether there are other differences.

        Raises:
            RunError, ConfigError: there is a difference, without ``force``.
        """
        record, held = self.folder.record, state.get(binding.KEY)
        run = self._identify(held)
        foreign = binding.foreign(held, run)
        differences = [f"{path}: {foreign}"] if foreign else []
        saved = held if isinstance(held, dict) else {}
        differences += binding.changed_settings(saved, self.binding, bool(record.get("earlier")))
        data = binding.changed_data(saved, self.binding, began_at(record))
        differences += [f"data: the samples are not those with which the run began ({text})" for text in data]
        if differences and not self.force:
            kind = RunError if foreign else ConfigError
            raise kind(f"{differences[0]}; resume.force=true continues all the same")
        for text in differences[:8]:
            log.warning("%s; going on all the same, by resume.force", text)
        self.saved_binding = self.binding.state_dict(run, self.folder.path.name)
        if problem := self._mismatch_of_best(*step_and_best(path, state), run, changed=bool(differences)):
            if not self.force:
                ways = "resume.force=true continues, and takes the best of the epochs to come"
                raise RunError(f"{problem}; {ways}")
            log.warning("%s; the best of the epochs to come is taken", problem)
        return bool(problem), bool(differences)

    def _truncate_lines(self, state: dict[str, Any]) -> None:
        """Truncate metrics and media to the save. Raises RunError if their lines differ from those at the save."""
        assert self.metrics_log is not None  # called on rank 0 only
        self.metrics_log.load_state_dict(state["metrics_log"], state["runner"]["step"], self.force)
        if self.media_log:
            self.media_log.rewind(state["runner"]["step"], state["runner"]["epoch"])

    def _identify(self, held: Any) -> str:
        """This run's id from ``run.json``; if that was lost, the id in its checkpoint."""
        known = self.folder.record.get("id")
        if not isinstance(known, str):
            known = held["run"] if isinstance(held, dict) and isinstance(held.get("run"), str) else new_id()
            self.folder.note(id=known)
        return known

    def _mismatch_of_best(self, step: int, best: dict[str, Any] | None, run: str, changed: bool) -> str:
        """Why ``best.pt`` does not match a state of ``step`` that refers to ``best``; empty if it does.

        After a kill between the two files of a save, it may be of a later epoch, which the run will reach again with
        the same numbers, unless settings or data have ``changed``.
        """
        if best is None:
            return ""
        try:
            content = checkpoint.load(self.folder.best)
        except RunError as error:
            return str(error)
        if text := binding.foreign(content.get(binding.KEY), run):
            return f"{self.folder.best}: {text}"
        saved = content.get("best")
        saved = saved if isinstance(saved, dict) else {}
        if all(saved.get(key) == best.get(key) for key in ("step", "value")):
            return ""
        if type(saved.get("step")) is int and saved["step"] >= step and not changed:
            return ""
        return f"{self.folder.best}: holds step {saved.get('step')}, and the best so far was at step {best.get('step')}"

    def _exempt_not_finite(self, state: dict[str, Any]) -> None:
        """Exempt tensors that contain inf or NaN at the start (e.g. attention masks) from the finiteness check."""
        self.exempt = set(checkpoint.not_finite(state))

    def snapshot_done(self) -> None:
        self.writer.snapshot_done()

    def updated(self, task: Task) -> None:
        """After each update: log, save and stop if due; the only place that waits for the device."""
        runner = task.runner
        step = runner.step_count
        if step % runner.log_every == 0:
            self.log_step(task)
        if runner.save_every and step % runner.save_every == 0:
            self.save(task)
        if self.stop_signal.agreed_at(step):
            self.stop(task)

    def evaluating(self, task: Task) -> None:
        if self.stop_signal.asked_within():
            self.stop(task)

    def log_step(self, task: Task) -> None:
        """Log the means over the updates since the last line."""
        self.writer.check()
        self.stop_signal.saving_took(self.writer.seconds)
        means = task.runner.meter.recent()
        task.runner.progress.show(means)
        if self.metrics_log:
            line = {"event": "step", "epoch": task.epoch, "step": task.runner.step_count}
            self.metrics_log.write(
                line | {f"train/{k}": v for k, v in means.items()} | {"lr": task.runner.last_rate(task)}
            )

    def log_media(self, kind: str, name: str, task: Task, *content: Any, **options: Any) -> None:
        if self.media_log:
            step = task.runner.step_count
            getattr(self.media_log, kind)(name, min(task.epoch, task.max_epoch), *content, step=step, **options)

    def end_epoch(self, task: Task, numbers: dict[str, Any], best: bool) -> None:
        """Log the epoch, keep its weights if they are the best, and save, unless the last save was a moment ago."""
        if self.metrics_log:
            self.metrics_log.write(numbers)
        if task.runner.ledger is not None:
            task.runner.ledger.end_epoch()
        reached = task.runner.best_tracker.best or {}
        self.show(numbers | {"best": best, "monitor": reached.get("monitor")})
        line = "  ".join(f"{key} {value}" for key, value in numbers.items())
        log.debug("%s%s", line, "  best" * best, extra={"only_numbers": True})
        ended = task.runner.epoch >= task.runner.max_epoch or task.runner.stop_reason is not None
        self._record_kept()
        if self.retention.active:
            self._rank(task, numbers)
        keeps = numbers["epoch"] in self.retention.kept_epochs()
        due = any(task.runner.parallel.gather(ended or keeps or time.monotonic() - self.saved_at >= SAVE_INTERVAL))
        if best:
            self._keep_best(task, copy=not due)
        if keeps:
            self._keep_epoch(task, numbers)
        self.record_skipped(task)
        if due:
            self.save(task)
        if self.stop_signal.agreed():
            self.stop(task)

    def _rank(self, task: Task, numbers: dict[str, Any]) -> None:
        """Add an epoch to the ranking that decides which epochs keep their checkpoints."""
        name, sign = task.runner.best_tracker.resolve(numbers, task.directions())
        self.monitored[numbers["epoch"]] = value = numbers.get(name)
        self.retention.add(numbers["epoch"], value, sign, numbers.get("val/loss"))

    def _rank_epochs(self, task: Task) -> None:
        """The same for the epochs before a resume, from the lines of ``metrics.jsonl``."""
        if self.metrics_log and self.retention.active:
            rows = map(row_of, self.folder.metrics.read_bytes().splitlines())
            for row in rows:
                if row is not None and row.get("event") == "epoch":
                    self._rank(task, row)

    def _record_kept(self) -> None:
        """Record in ``run.json`` the checkpoints of epochs that exist."""
        if self.metrics_log and self.retention.active:
            self.writer.wait()
            kept = described(self.folder.checkpoints, self.retention.kept_epochs(), self.monitored)
            if kept != self.folder.record.get("kept"):
                self.folder.note(kept=kept)

    def _keep_epoch(self, task: Task, numbers: dict[str, Any]) -> None:
        """Copy the evaluated weights of an epoch that keeps its own checkpoint, for the next save."""
        weights = task.runner.parallel.gathered(task.task_method.eval_model(task).state_dict())
        copied = checkpoint.like(weights, {key: _cloned(value) for key, value in weights.items()})
        name, _ = task.runner.best_tracker.resolve(numbers, task.directions())
        reached = {"monitor": name, "value": numbers.get(name), "epoch": numbers["epoch"], "step": numbers["step"]}
        self.unsaved_epoch = {"best": reached, "model": copied}

    def record_skipped(self, task: Task) -> None:
        """Write into ``run.json`` which samples were skipped so far; all processes must call it."""
        reading = task.task_data.reading
        if reading.on_error == "skip":
            before = self.folder.record.get("samples_skipped")
            skipped = skipped_samples(task.loaders, reading, before)
            if self.metrics_log and skipped != before:
                self.folder.note(samples_skipped=skipped)

    def save(self, task: Task) -> None:
        """Start to write ``best.pt`` if there is a new best, then ``last.pt``; the old one becomes ``previous.pt``.

        An error of the writing thread is raised by the next call. Raises RunError if the previous save failed.
        """
        if task.runner.ledger is not None:
            task.runner.ledger.write(self.folder.path, task.runner.epoch)
        last = self.snapshot.begin()
        if self.metrics_log:
            if task.runner.step_count and not self.trained:
                self.folder.note(**{TRAINED: True})
                self.trained = True
            self.metrics_log.check()
            files = {"last": last | {"metrics_log": self.metrics_log.state_dict()}}
            if self.unsaved_best:
                files["best"] = self.unsaved_best
            if self.unsaved_epoch:
                files["epoch"] = self.unsaved_epoch
            if self.snapshot.overlaps:
                self.writer.save(files, self.snapshot.complete, self.snapshot.weights)
            else:
                self.writer.save(self.snapshot.complete(files))
        self.unsaved_best = None
        self.unsaved_epoch = None
        self.saved_at = time.monotonic()
        self.stop_signal.saving_took(self.writer.seconds)

    def _write(self, states: dict[str, Any]) -> None:
        """Called in the writing thread. The lines that a checkpoint refers to are flushed to disk before it."""
        for state in states.values():
            if key := next((key for key in checkpoint.not_finite(state) if key not in self.exempt), None):
                raise NotFiniteError(key)
        assert self.metrics_log is not None
        self.metrics_log.sync()
        safefiles.make_folder(self.folder.checkpoints)
        facts = {binding.KEY: self.saved_binding, "data_info": self.data_info}
        if "best" in states:
            checkpoint.save(self.folder.best, states["best"] | facts)
        if "epoch" in states:
            file = file_of(self.folder.checkpoints, states["epoch"]["best"]["epoch"])
            checkpoint.save(file, states["epoch"] | facts)
        if "last" in states:
            last = self.folder.last
            if self.intact_last is not None and checkpoint.stamp(last) == self.intact_last:
                with naming(self.folder.previous):
                    checkpoint.keep_previous(last, self.folder.previous)
            checkpoint.save(last, states["last"] | facts)
            self.intact_last = checkpoint.stamp(last)
            if self.retention.active:  # last, so that a kill may leave one file too many, but never one too few
                for path in others(self.folder.checkpoints, self.retention.kept_epochs()):
                    path.unlink(missing_ok=True)

    def _keep_best(self, task: Task, copy: bool) -> None:
        """Keep the evaluated weights and their metrics for the next save."""
        model = task.task_method.eval_model(task)
        self.unsaved_best = {"best": task.runner.best_tracker.best or {}}
        if not copy and model is task.model:
            return  # the save that follows copies these weights anyway
        weights = task.runner.parallel.gathered(model.state_dict())
        if copy:
            weights = checkpoint.like(weights, {key: _cloned(value) for key, value in weights.items()})
        self.unsaved_best["model"] = weights

    def stop(self, task: Task) -> None:
        """Save and raise Stopped; during the test everything is saved already, and the model has the best weights."""
        if not self.testing:
            self.save(task)
            self.writer.wait()
            self._record_kept()
            self.record_skipped(task)
        raise self.stop_signal.stopped()

    def pause(self, task: Task) -> None:
        """Save between two epochs and raise Stopped, for ``runner.pause_after``."""
        self.save(task)
        self.writer.wait()
        self._record_kept()
        self.record_skipped(task)
        best = task.runner.best_tracker.best
        if self.metrics_log:
            self.folder.note(best=best, last=self.folder.last_line("epoch"))
            self._record_objective(task, best)
        raise Stopped(f"stopped by runner.pause_after, after epoch {task.runner.epoch}", 0)

    def _record_objective(self, task: Task, best: dict[str, Any] | None) -> None:
        """Record the metric, and its direction, by which e.g. a search compares this run with others."""
        if best is not None:
            sign = task.runner.best_tracker.resolve(best["metrics"], task.directions())[1]
            self.folder.note(monitor=best["monitor"], mode="max" if sign > 0 else "min")

    def finish(self, task: Task) -> None:
        """At the end of training: record the digest of the final state, and evaluate the best weights on the test split
        once."""
        if task.runner.stop_reason:
            log.info("stopped early: %s", task.runner.stop_reason)
        if task.runner.best_tracker.best is None:
            if task.runner.best_tracker.name != "auto" and not self.best_is_lost:
                log.warning("runner.monitor: %s was never a number; best.pt is the end", task.runner.best_tracker.name)
            self._keep_best(task, copy=True)
            if self.metrics_log:
                self.writer.save({"best": self.unsaved_best})
        self.writer.wait()
        self._record_kept()
        task.runner.parallel.barrier()
        final = task.state_dict()
        self.testing = True
        tested = self._evaluate_best(task)
        self.record_skipped(task)
        test = {f"test/{name}": value for name, value in tested.numbers.items()}
        if self.metrics_log:
            runner = task.runner
            self.metrics_log.check()
            if tested.cases:
                write_evaluation(self.folder, "test", "best", tested)
            if test:
                self.metrics_log.write({"event": "test", "epoch": runner.epoch, "step": runner.step_count} | test)
            lasting = checkpoint.digest(final | {"history": self.metrics_log.history})
            best = final["runner"]["monitor"]["best"]
            self.folder.finished(best, test, lasting)
            self._record_objective(task, best)

    def _evaluate_best(self, task: Task) -> Evaluation:
        """Evaluate the best weights on the test split, with the collector.

        Without a test split nothing is measured, and the collector gets a pass over ``val`` if that is small.
        """
        val = task.loaders.get("val")
        collects_val = self.collector is not None and isinstance(val, Loader) and val.samples <= MOST_COLLECTED
        if "test" in task.loaders:
            split = "test"
        elif collects_val and not task.task_method.evaluates_itself:
            split = "val"
        else:
            return Evaluation({})
        model = task.task_method.eval_model(task)
        weights = task.runner.parallel.shard_state(model, checkpoint.load(self.folder.best)["model"])
        with checkpoint.weights_of(model, weights):
            measured = EvalEpoch(task, split, collector=self.collector).evaluation()
        if self.collector is not None:
            try:
                self.collector.write(self.folder.path, split, task.loaders[split])
                if self.media_log:
                    at = (task.runner.epoch, task.runner.step_count)
                    log_cases(self.media_log, split, measured.cases, *at)
                    self.collector.log_media(self.media_log, *at)
            except (OSError, RunError) as error:  # only a part of the report is missing; the run is complete
                log.warning("the report lacks its samples: %s", one_line(error))
        return measured if split == "test" else Evaluation({})


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
