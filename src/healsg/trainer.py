"""TaskTrainer: one task as a unit, and the Python door. The commands are thin layers on it."""

from __future__ import annotations

import logging
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from healsg import distributed
from healsg.build import build_loggers, build_task, leaf
from healsg.config.check import show
from healsg.config.compose import Composer
from healsg.config.schema import Composed
from healsg.config.values import flat
from healsg.data.info import DataInfo, saved_info
from healsg.data.loader import Loader
from healsg.errors import ConfigError, RunError
from healsg.evaluation.evaluator import EvalEpoch, Evaluation
from healsg.evaluation.predictor import Predictor, best_of, network_of_run
from healsg.paths import returning
from healsg.runs import acquire, binding, redact
from healsg.runs.checkpointer import Checkpointer
from healsg.runs.folder import RunFolder, find
from healsg.runs.forecast import forecast
from healsg.runs.logger import Logger
from healsg.runs.restoring import restore_weights, resumable, weights_state
from healsg.runs.saved_config import load_saved, read_saved
from healsg.runs.session import Session
from healsg.runs.snapshot import Snapshot
from healsg.runs.usage import Usage
from healsg.task import BasicTask
from healsg.training.interrupt import StopSignal

log = logging.getLogger("healsg")


class TaskTrainer:
    """One task: its configuration, and training, evaluation and prediction with it.

    Example:
        >>> trainer = TaskTrainer.compose("data=digits", "method=adamw", "runner.epochs=2")
        >>> result = trainer.train()
        >>> result["test"]["test/acc"]

    Args:
        composed: the checked configuration.
        description: a free text of the user's, saved in ``run.json``.
        folder: the run's folder if there is one; otherwise ``train`` acquires it.
    """

    def __init__(self, composed: Composed, description: str = "", folder: RunFolder | None = None) -> None:
        self.composed = composed
        self.config = composed.values
        self.description = description
        self.folder = folder
        self.name: str | None = composed.values["name"]
        self.task: BasicTask | None = None

    @classmethod
    def compose(cls, *overrides: str, config_dir: str | None = None, config_name: str = "config") -> TaskTrainer:
        """Compose a task as the command line does: ``compose("data=cifar", "seed=1")``. Raises ConfigError."""
        return cls(Composer(config_dir, config_name).compose(overrides))

    @classmethod
    def load(cls, run: str, *overrides: str) -> TaskTrainer:
        """The task of a run, given as a folder or a name under ``runs/``. Raises RunError, ConfigError."""
        folder = find(run)
        return cls(load_saved(folder, overrides), folder=folder)

    def train(self, folder: RunFolder | None = None) -> dict[str, Any]:
        """Train a run, or continue it.

        Args:
            folder: the result of ``acquire.acquire_folder``; None acquires it here.

        Returns:
            ``name``, ``folder``, ``status`` (``finished`` or ``stopped``), ``best``, ``test``, ``digest``, and
            ``exit``, the exit status.

        Raises:
            HealsgError: an error that the user can fix. Any other exception in the run is raised unchanged.
        """
        if self.config["runner"].get("tune") is not None:
            raise ConfigError("runner.tune: the command healsg train measures; from Python, give plain settings")
        with returning():
            forecast_facts = self._forecast()
            usage = Usage()
            task, loggers, self.folder = self._begin(folder)
            runner = task.runner
            session = Session(self.composed, self.folder, runner.progress, loggers, usage)
            first_cause = distributed.first_cause(runner.progress, session.lost)
            with StopSignal(runner.max_time) as stop_signal, session, first_cause:
                began = time.monotonic()
                path, state = resumable(self.folder)
                stop_signal.expect_saving(2 * (time.monotonic() - began))  # an estimate, until a save is measured
                facts = self.build(task, self.folder, state)
                bound = binding.of_run(self.config, task.data_fingerprint(), task.split_digest)
                force = self.config["resume"]["force"]
                info = None if task.data_info is None else task.data_info.state_dict()
                with self.make_checkpointer(
                    folder=self.folder,
                    metrics_log=session.metrics_log,
                    media_log=session.media_log,
                    show=session.screen.epoch,
                    stop_signal=stop_signal,
                    binding=bound,
                    snapshot=Snapshot(task),
                    data_info=info,
                    force=force,
                    collector=leaf("samples.SampleCollector")(task.data_info),
                ) as checkpointer:
                    checkpointer.begin(task, path, state)
                    session.begin(facts | forecast_facts | {"data_digest": bound.data_digest}, runner.step_count)
                    runner.fit(task, checkpointer)
        return session.result

    def build(self, task: BasicTask, folder: RunFolder, state: dict[str, Any] | None) -> dict[str, Any]:
        """Build a task for the run in ``folder``; returns the facts about it for ``run.json``.

        Args:
            task: the configured parts.
            folder: the run's folder.
            state: the checkpoint that the run continues from; None for a new run.
        """
        info = None if state is None else saved_info(state)
        task.build(threads=folder.record.get("threads"), fresh_weights=state is None, data_info=info)
        task.log_facts()
        return task.facts() | {"threads": torch.get_num_threads(), "description": self.description}

    def _forecast(self) -> dict[str, Any]:
        """The forecast of a new run for ``run.json``, with ``runner.forecast``; otherwise empty."""
        begun = self.folder is not None and self.folder.has_checkpoint
        if not self.config["runner"].get("forecast") or begun or distributed.processes().several:
            return {}
        return {"forecast": forecast(self.composed)}

    def make_task(self) -> BasicTask:
        """Instantiate the task and its parts. Raises ConfigError."""
        return build_task(self.composed)

    def make_checkpointer(self, **arguments: Any) -> Checkpointer:
        """The ``Checkpointer`` of the run; ``healsg verify`` overrides this with one that also observes each step."""
        return Checkpointer(**arguments)

    def _begin(self, folder: RunFolder | None) -> tuple[BasicTask, dict[str, Logger], RunFolder]:
        """Acquire the folder, instantiate the parts, and only then write into the folder, on rank 0 for all ranks."""
        distributed.connect(self._timeout())
        path = self.folder.path if self.folder else None
        acquired: list[RunFolder] = [folder] if folder else []  # of the processes only rank 0 acquires the folder
        if not acquired:
            _same_everywhere(self.composed)
            distributed.processes().run_on_rank_zero(
                lambda: acquired.append(acquire.acquire_folder(self.composed, path))
            )
        try:
            _check_shared(acquired)
            task = self.task = self.make_task()
            loggers = build_loggers(self.composed)
            where = distributed.processes().run_on_rank_zero(lambda: self._write(acquired))
        except BaseException:
            if acquired:
                acquired[0].abandon()
            raise
        return task, loggers, acquired[0] if acquired else RunFolder(Path(where))

    def _timeout(self) -> float | None:
        """``runner.timeout``; None in configurations saved before this key existed."""
        timeout = self.config["runner"].get("timeout")
        return None if timeout is None else float(timeout)

    def _write(self, acquired: list[RunFolder]) -> str:
        acquired[0] = acquire.start_run(acquired[0], self.composed)
        return str(acquired[0].path)

    def evaluate(self, split: str = "test", which: str = "best", folder: RunFolder | None = None) -> dict[str, float]:
        """``evaluation``, of which only the numbers are returned."""
        return self.evaluation(split, which, folder).numbers

    def evaluation(
        self, split: str = "test", which: str = "best", folder: RunFolder | None = None, samples: bool = False
    ) -> Evaluation:
        """Evaluate the ``best`` or ``last`` weights of the trained run on a split; with ``samples`` also collect single
        samples, the worst first, with their images.

        Raises:
            RunError: there is no run yet, or its weights do not fit.
            ConfigError: there is no such split.
        """
        distributed.connect(self._timeout())
        folder = folder or self.folder
        if folder is None:
            raise RunError("evaluate: this task has no run yet; train it, or use TaskTrainer.load(run)")
        with returning():
            epoch = self._evaluate(folder, split, which)
            if not samples:
                return epoch.evaluation()
            task = epoch.task
            collector = leaf("samples.SampleCollector")(task.data_info)
            evaluation = EvalEpoch(task, split, epoch.network, collector).evaluation()
            collector.finish(split, task.loaders[split])
            return replace(evaluation, samples=collector.found)

    def _evaluate(self, folder: RunFolder, split: str, which: str) -> EvalEpoch:
        """The evaluation of the run's weights on a split, ready to run."""
        state = weights_state(folder, which)
        info = saved_info(state)
        if info is not None:
            _require_trained_classes(self.composed.values["data"], read_saved(folder.config).get("data"), info)
        if info is not None and (epoch := self._evaluation_of_network(info, state, split)) is not None:
            return epoch
        task = build_task(self.composed)
        task.build(fresh_weights=False, training=False, data_info=info)
        if split not in task.loaders:
            raise ConfigError(f"split: {split} is not one of {', '.join(task.loaders)}")
        try:
            restore_weights(task, state, which)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise RunError(f"{folder.shown}: its weights do not fit this model: {reason}") from error
        loader = task.loaders[split]
        task.loaders[split] = loader.evaluation_view() if isinstance(loader, Loader) else loader
        return EvalEpoch(task, split)

    def _evaluation_of_network(self, info: DataInfo, state: dict[str, Any], split: str) -> EvalEpoch | None:
        """The evaluation of a checkpoint's weights on one split, without the training data and without a teacher.

        None if it needs more than the network, as for a method that overrides ``evaluate``.
        """
        try:
            task, network = network_of_run(self.composed, info, state, samples=True)
        except RunError:  # a user's method changes the network in setup; the whole task has to be built for it
            return None
        if task.task_method.evaluates_itself:
            return None
        return task.build_evaluation(network, split, info)

    def predictor(self, which: str = "best") -> Predictor:
        """The network of the trained run for new samples.

        Args:
            which: ``best``, which needs only the run's own files, or ``last``, for which the whole task is built, so
                that the training data must be available.

        Raises:
            RunError: there is no run yet, or its checkpoint does not describe its data.
            DataError: the training data are not available for the ``last`` weights.
        """
        if self.folder is None:
            raise RunError("predictor: this task has no run yet; train it, or use TaskTrainer.load(run)")
        if which == "best":
            info, state = best_of(self.folder)
        else:
            state = weights_state(self.folder, which)
            info = saved_info(state)
        if info is None:
            raise RunError(
                f"{self.folder.shown}: its task builds its own loaders, and no preprocessing of inputs is known"
            )
        if which == "best":
            task, network = network_of_run(self.composed, info, state)
            task.runner.prepare()
            return Predictor(network, task.task_model, task.runner.device_setup, info)
        task = build_task(self.composed)
        with returning():
            task.build(fresh_weights=False, training=False, data_info=info)
        restore_weights(task, state, which)
        network = task.task_method.eval_model(task).eval().requires_grad_(False)
        return Predictor(network, task.task_model, task.runner.device_setup, info)


def _same_everywhere(composed: Composed) -> None:
    """Raise ConfigError, which names the key, if the processes have different configurations.

    This happens if nodes are started with different commands.
    """
    settings = distributed.processes().gather(dict(flat(redact.config(composed.values))))
    for rank, other in enumerate(settings):
        for key in settings[0] | other:
            one, two = settings[0].get(key), other.get(key)
            if one != two:
                differs = f"{key}: is {show(one)} on rank 0 and {show(two)} on rank {rank}"
                raise ConfigError(f"{differs}; start all processes with the same settings")


def _check_shared(acquired: list[RunFolder]) -> None:
    """Check that all nodes see the run's folder: otherwise they would find neither its checkpoints nor best weights.

    Args:
        acquired: the folder on rank 0, empty on other ranks.

    Raises:
        RunError: another node does not see what rank 0 wrote into the folder.
    """
    parallel = distributed.processes()
    if not parallel.several:
        return
    folder, token = parallel.run_on_rank_zero(lambda: (str(acquired[0].path), acquired[0].leave_token()))
    seen = parallel.gather((RunFolder(Path(folder)).has_token(token), platform.node()))
    if acquired:
        acquired[0].take_token()
    if other := next((rank for rank, (visible, _) in enumerate(seen) if not visible), None):
        raise RunError(
            f"{folder}: rank {other} on {seen[other][1]} does not see what rank 0 on {seen[0][1]} writes there; "
            "start all nodes in the same folder of a file system that they share"
        )


def _require_trained_classes(data: Any, saved: Any, info: DataInfo) -> None:
    """Raise ConfigError if an evaluation is given other ``data.classes`` than those of the weights, which decide what
    each output means; warn of another order.

    Args:
        data: the settings of the data.
        saved: those with which the run was trained.
        info: what the weights were trained on.
    """
    given = data.get("classes") if isinstance(data, dict) else None
    if not isinstance(given, list) or (isinstance(saved, dict) and saved.get("classes") == given) or info.regions:
        return
    named, known = [str(name) for name in given], list(info.class_names)
    trained = f"data.classes: the weights were trained with {', '.join(known)}"
    if sorted(named) != sorted(known):
        raise ConfigError(f"{trained}, which an evaluation cannot change; leave it out")
    if named != known:
        log.warning("%s; the outputs are in this order", trained)
