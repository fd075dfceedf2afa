"""TaskTrainer: one task as a unit, and the Python door. The commands are thin layers on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from healsg import claim, distributed
from healsg.compose import Composer
from healsg.config import Composed, build_mirrors, build_task
from healsg.epoch import EvalEpoch
from healsg.errors import ConfigError, RunError
from healsg.folder import RunFolder, find
from healsg.halt import Halt
from healsg.keeper import Keeper, restore_weights
from healsg.loader import Loader
from healsg.paths import returning
from healsg.saved import load_saved
from healsg.session import Session
from healsg.task import BasicTask


class TaskTrainer:
    """One task: its configuration, and what can be done with it.

    Example:
        >>> trainer = TaskTrainer.compose("data=digits", "method=adamw", "runner.epochs=2")
        >>> result = trainer.train()
        >>> result["test"]["test/acc"]

    Args:
        composed: the checked configuration.
        description: a sentence of the user's own, kept in ``run.json``.
    """

    keeper_type: type[Keeper] = Keeper
    """What keeps a run; ``healsg verify`` puts in its place one that also watches every step."""

    def __init__(self, composed: Composed, description: str = "") -> None:
        self.composed, self.config, self.description = composed, composed.values, description
        self.name: str | None = composed.values["name"]
        self.task: BasicTask | None = None
        self.folder: RunFolder | None = None

    @classmethod
    def compose(cls, *overrides: str, config_dir: str | None = None, config_name: str = "config") -> TaskTrainer:
        """Compose a task as the command line does: ``compose("data=cifar", "seed=1")``. Raises ConfigError."""
        return cls(Composer(config_dir, config_name).compose(overrides))

    @classmethod
    def load(cls, run: str, *overrides: str) -> TaskTrainer:
        """The task of a run, given as a folder or a name under ``runs/``. Raises RunError, ConfigError."""
        folder = find(run)
        trainer = cls(load_saved(folder, overrides))
        trainer.folder = folder
        return trainer

    def train(self, folder: RunFolder | None = None) -> dict[str, Any]:
        """Train, or go on with, a run.

        Args:
            folder: as ``claim.enter`` gave it; it is claimed here where it is None.

        Returns:
            ``name``, ``folder``, ``status`` (``finished`` or ``stopped``), ``best``, ``test``, ``digest``, and
            ``exit``, the exit status.

        Raises:
            HealsgError: something the user can mend. Whatever else is raised in the run is raised here.
        """
        with returning():
            task, self.folder = self._begin(folder)
            runner = task.runner
            session = Session(self.composed, self.folder, runner.progress, self.mirrors)
            with Halt(runner.max_time) as halt, session:
                facts = self.build(task, self.folder)
                with self.keeper_type(self.folder, session.journal, halt, session.screen.epoch) as keeper:
                    keeper.begin(task)
                    session.begin(facts, runner.step_count)
                    runner.fit(task, keeper)
        return session.result

    def build(self, task: BasicTask, folder: RunFolder) -> dict[str, Any]:
        """Build a task for the run in ``folder``, and give what ``run.json`` says of it.

        Raises ConfigError where a run that goes on would not have the samples with which it began.
        """
        going_on = folder.last.exists() or folder.previous.exists()
        task.build(threads=folder.record.get("threads"), fresh_weights=not going_on)
        facts = task.facts() | {"threads": torch.get_num_threads(), "description": self.description}
        was, now = folder.record.get("samples"), facts.get("samples")
        if going_on and was and now and was != now and not self.config["resume"]["force"]:
            counts = f"{was.get('labelled')} with labels, {now.get('labelled')} now, or others of as many"
            way = "resume.force=true goes on with these"
            raise ConfigError(f"data: the samples are not those with which the run began ({counts}); {way}")
        return facts

    def _begin(self, folder: RunFolder | None) -> tuple[BasicTask, RunFolder]:
        """Claim the folder, make the parts, and only then write; rank 0 does so for all."""
        distributed.connect()
        path = self.folder.path if self.folder else None
        claimed: list[RunFolder] = [folder] if folder else []
        if not claimed:
            distributed.share(lambda: claimed.append(claim.enter(self.composed, path)))
        try:
            task = self.task = build_task(self.composed)
            self.mirrors = build_mirrors(self.composed)
            where = distributed.share(lambda: self._write(claimed))
        except BaseException:
            if claimed:
                claimed[0].abandon()
            raise
        return task, claimed[0] if claimed else RunFolder(Path(where))

    def _write(self, claimed: list[RunFolder]) -> str:
        claimed[0] = claim.begin(claimed[0], self.composed)
        return str(claimed[0].path)

    def evaluate(self, split: str = "test", which: str = "best", folder: RunFolder | None = None) -> dict[str, float]:
        """Evaluate the ``best`` or ``last`` weights of the trained run on a split.

        Raises:
            RunError: there is no run yet, or its weights do not fit.
            ConfigError: there is no such split.
        """
        distributed.connect()
        folder = folder or self.folder
        if folder is None:
            raise RunError("evaluate: this task has no run yet; train it, or use TaskTrainer.load(run)")
        with returning():
            return self._evaluate(folder, split, which)

    def _evaluate(self, folder: RunFolder, split: str, which: str) -> dict[str, float]:
        task = build_task(self.composed)
        task.build(fresh_weights=False, training=False)
        if split not in task.loaders:
            raise ConfigError(f"split: {split} is not one of {', '.join(task.loaders)}")
        try:
            restore_weights(task, folder, which)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise RunError(f"{folder.shown}: its weights do not fit this model: {reason}") from error
        loader = task.loaders[split]
        task.loaders[split] = loader.still() if isinstance(loader, Loader) else loader
        return EvalEpoch(task, split).run()
