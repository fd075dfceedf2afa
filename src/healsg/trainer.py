"""TaskTrainer: one task as a unit, and the Python door. The commands are thin layers on it."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from healsg import claim, distributed, redact
from healsg.compose import Composer
from healsg.config import Composed, build_task, load_saved, make
from healsg.epoch import EvalEpoch
from healsg.errors import ConfigError, HealsgError, RunError, Stopped
from healsg.folder import ROOT, RunFolder, find
from healsg.halt import Halt
from healsg.journal import Journal
from healsg.keeper import Keeper, restore_weights
from healsg.mirror import Mirror
from healsg.task import BasicTask

log = logging.getLogger("healsg")


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

    def train(self, path: Path | None = None) -> dict[str, Any]:
        """Train, or go on with, the run in ``path`` (default: ``runs/<name>``).

        Returns:
            ``name``, ``folder``, ``status`` (``finished`` or ``stopped``), ``best``, ``test``, ``digest``, and
            ``exit``, the exit status.

        Raises:
            HealsgError: something the user can mend. Whatever else is raised in the run is raised here.
        """
        distributed.connect()
        task = self.task = build_task(self.composed)
        folder = self.folder = self._claim(path or (self.folder.path if self.folder else None))
        try:
            with contextlib.ExitStack() as stack:
                quiet = self.config["quiet"] or distributed.rank() > 0
                display = stack.enter_context(_leaf("screen.make_display")(task.runner.progress, quiet=quiet))
                stack.enter_context(_logging(folder, display))
                return self._guarded(task, folder, display)
        finally:
            folder.unlock()

    def evaluate(self, split: str = "test", which: str = "best", path: Path | None = None) -> dict[str, float]:
        """Evaluate the ``best`` or ``last`` weights of the trained run on a split.

        Raises:
            RunError: there is no run yet, or its weights do not fit.
            ConfigError: there is no such split.
        """
        distributed.connect()
        folder = RunFolder(path) if path else self.folder
        if folder is None:
            raise RunError("evaluate: this task has no run yet; train it, or use TaskTrainer.load(run)")
        self.composed.values["init_from"] = None
        task = build_task(self.composed)
        task.build()
        if split not in task.loaders:
            raise ConfigError(f"split: {split} is not one of {', '.join(task.loaders)}")
        try:
            restore_weights(task, folder, which)
        except RuntimeError as error:
            raise RunError(
                f"{folder.path}: its weights do not fit this model: {str(error).splitlines()[-1].strip()}"
            ) from error
        return EvalEpoch(task, split).run()

    # --- one run ---------------------------------------------------------------------------------------------------

    def _claim(self, path: Path | None) -> RunFolder:
        """Rank 0 claims the folder and writes how the run begins; the others read there."""

        def claimed() -> str:
            values = self.config
            name = self.name or claim.new_name(values, self.composed.choices)
            claim.check_name(name)
            folder = claim.claim(path or ROOT / name, values, fresh=values["fresh"], force=values["resume"]["force"])
            claim.write_beginning(folder, values, self.composed.hydra, self.composed.overrides)
            self.folder = folder
            return str(folder.path)

        where = Path(distributed.share(claimed))
        return self.folder if self.folder is not None and distributed.rank() == 0 else RunFolder(where)

    def _guarded(self, task: BasicTask, folder: RunFolder, display: Any) -> dict[str, Any]:
        """Run, and record how it ended, whatever happens."""
        status, reason, code, failure = "finished", None, 0, None
        journal = self._journal(folder)
        try:
            self._run(task, folder, journal, display)
        except (Stopped, KeyboardInterrupt) as stop:
            status, reason, code = "stopped", str(stop) or "stopped by SIGINT", getattr(stop, "status", 130)
        except BaseException as error:
            status, reason, failure = "failed", redact.text(f"{type(error).__name__}: {error}"), error
            if not isinstance(error, HealsgError):
                log.debug("%s", redact.text(traceback.format_exc()))
        if journal:
            folder.ended(status, reason)
            journal.close(status)
        if failure is not None:
            raise failure
        record = folder.record if journal else {}
        display.end(_farewell(folder, record, status, reason))
        results = {key: record.get(key) for key in ("best", "test", "digest")}
        return {"name": folder.path.name, "folder": str(folder.path), "status": status, "exit": code, **results}

    def _run(self, task: BasicTask, folder: RunFolder, journal: Journal | None, display: Any) -> None:
        runner, record = task.runner, folder.record
        display.begin(folder.path.name)
        runner.progress.phase = "reading data"
        task.build(threads=record.get("threads"))
        task.build_training()
        if journal:
            facts = task.facts()
            folder.note(**facts, threads=torch.get_num_threads(), description=self.description)
            told = {"name": folder.path.name, "config": redact.config(self.config), "resumed": folder.last.exists()}
            journal.start(told | {"step": (folder.last_line("epoch") or {}).get("step", 0)})
        with Halt(runner.max_time) as halt:
            runner.fit(task, Keeper(folder, journal, halt, display.epoch))

    def _journal(self, folder: RunFolder) -> Journal | None:
        if distributed.rank() > 0:
            return None
        nodes = self.config["logger"] or {}
        mirrors: dict[str, Mirror] = {
            name: make(node, f"logger.{name}", self.composed) for name, node in nodes.items() if node is not None
        }
        if self.config["use_wandb"]:
            mirrors["wandb"] = _leaf("wandb.Wandb")(**self.config["wandb"])
        return Journal(folder.metrics, mirrors | {"report": _leaf("report.Report")()})


def _leaf(path: str) -> Any:
    """A class or function of ``healsg.loggers`` by its address, as a ``_target_`` would name it."""
    module, _, name = path.partition(".")
    return getattr(import_module(f"healsg.loggers.{module}"), name)


@contextlib.contextmanager
def _logging(folder: RunFolder, display: Any) -> Iterator[None]:
    """Let what is logged reach the screen and, on rank 0, ``train.log``."""
    handlers: list[logging.Handler] = [display.handler()]
    handlers[0].setLevel(logging.INFO if distributed.rank() == 0 else logging.ERROR)
    if distributed.rank() == 0:
        file = logging.FileHandler(folder.path / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    level, propagate = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(level)
        log.propagate = propagate


def _farewell(folder: RunFolder, record: dict[str, Any], status: str, reason: str | None) -> list[str]:
    """What stands at the end: the results, where the run lies, how to go on."""
    numbers = {**(record.get("test") or {})}
    if best := record.get("best"):
        numbers = {f"best {best['monitor']}": best["value"], **numbers}
    lines = ["  ".join(f"{name} {value:.4f}" for name, value in numbers.items())] if status == "finished" else []
    lines.append(f"{reason or status}: {folder.path}")
    go_on = f"healsg eval {folder.path} split=val" if status == "finished" else f"healsg resume {folder.path}"
    return [*(line for line in lines if line), f"go on with: {go_on}"]
