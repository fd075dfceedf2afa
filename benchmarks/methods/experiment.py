"""An experiment: a method against a baseline, both tuned with equal effort on one half of the digits and measured on
the other half."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Stages = tuple[tuple[str, ...], ...]
Grid = tuple[tuple[str, ...], ...]
Side = Literal["baseline", "method"]

CHOOSING = range(3)
"""Seeds, and so folds of the choosing half, over which the settings of a grid are compared."""

REPORTING = range(100, 105)
"""Seeds, and so all five folds of the reporting half."""

DATA = (
    *("data=digits", "data._target_=benchmarks.methods.halves.HalfDigits", "trusted=[benchmarks]"),
    *("data.val_fraction=0", "runner.eval_every=1000000", "quiet=true"),
)
"""The test part is looked at once, at the end of a run."""

COMMON = (*DATA, "model=cnn", "model.width=16")


def grid(rates: tuple[str, ...] = ("3e-3", "1e-2"), **settings: tuple[Any, ...]) -> Grid:
    """Every learning rate with every value of the settings, where ``__`` stands for a dot: ``runner__steps=(100,)``."""
    combined: Grid = tuple((f"method.optimizer.lr={rate}",) for rate in rates)
    for key, values in settings.items():
        dotted = key.replace("__", ".")
        combined = tuple((*chosen, f"{dotted}={value}") for chosen in combined for value in values)
    return combined


@dataclass(frozen=True)
class Experiment:
    """A method against a baseline.

    Args:
        name: of the row, alone in all families.
        setting: the data and the budget, for the reader.
        baseline, method: stages, each the overrides of one ``healsg train``; ``{0}``, ``{1}``, ... stand for the name
            of an earlier stage's run. The seed, the half and the fold come before them.
        baseline_grid, method_grid: settings that are tried on the choosing half, each added to the last stage; as many
            for the baseline as for the method.
        measure: a number of the last stage: of its test, else of its last epoch, as in ``metrics.jsonl``; or
            ``recall:0,1,2``, the mean recall of these classes on the test part.
        note: what the reader must know beside it.
    """

    name: str
    setting: str
    baseline: Stages
    method: Stages
    baseline_grid: Grid
    method_grid: Grid
    measure: str = "test/acc"
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.baseline_grid) != len(self.method_grid):
            raise ValueError(f"{self.name}: {len(self.baseline_grid)} settings against {len(self.method_grid)}")

    def stages(self, side: Side, chosen: tuple[str, ...]) -> Stages:
        """The stages of a side with a setting of its grid."""
        stages: Stages = getattr(self, side)
        return (*stages[:-1], (*stages[-1], *chosen))


@dataclass
class Finished:
    """One run: its numbers and its CPU seconds, or why it failed."""

    name: str
    numbers: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str = ""


class FailedRunError(Exception):
    """A run of an experiment that did not finish, in one line."""


class Bench:
    """Runs stages in the current folder; the same overrides are run once."""

    def __init__(self) -> None:
        self.done: dict[tuple[str, ...], Finished] = {}

    def run(self, overrides: tuple[str, ...]) -> Finished:
        """One ``healsg train``; what it raises is in the result."""
        if overrides not in self.done:
            name = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:16]
            self.done[overrides] = train(f"run-{name}", overrides)
        return self.done[overrides]

    def stages(self, stages: Stages, seed: int, half: str, measure: str) -> tuple[float, float]:
        """The measure of the last stage in points, and the CPU seconds of all. Raises FailedRunError."""
        names: list[str] = []
        seconds = 0.0
        for number, stage in enumerate(stages):
            overrides = [f"seed={seed}", f"data.split_seed={seed}", f"+data.half={half}", *stage]
            for place, name in enumerate(names):
                overrides = [override.replace(f"{{{place}}}", name) for override in overrides]
            finished = self.run(tuple(overrides))
            if finished.failed:
                raise FailedRunError(f"seed {seed}, stage {number}: {finished.failed}")
            names.append(finished.name)
            seconds += finished.seconds
        try:
            return 100 * measured(finished, measure), seconds
        except Exception as error:
            raise FailedRunError(f"seed {seed}: {measure}: {error!r}") from error

    def choose(self, experiment: Experiment, side: Side) -> dict[str, Any]:
        """The setting of a grid with the best mean over the choosing half's folds, with the means of all."""
        settings: Grid = getattr(experiment, f"{side}_grid")
        means = []
        for setting in settings:
            stages = experiment.stages(side, setting)
            values = [self.stages(stages, seed, "choose", experiment.measure)[0] for seed in CHOOSING]
            means.append(round(statistics.mean(values), 3))
        return {"tried": [list(setting) for setting in settings], "means": means, "best": means.index(max(means))}

    def report(self, experiment: Experiment, side: Side, chosen: dict[str, Any]) -> dict[str, Any]:
        """The values and seconds of the chosen setting on every fold of the reporting half."""
        stages = experiment.stages(side, tuple(chosen["tried"][chosen["best"]]))
        pairs = [self.stages(stages, seed, "report", experiment.measure) for seed in REPORTING]
        return {"values": [value for value, _ in pairs], "seconds": [round(seconds, 2) for _, seconds in pairs]}


def train(name: str, overrides: tuple[str, ...]) -> Finished:
    """Train in this process, in ``runs/<name>``."""
    from healsg.trainer import TaskTrainer

    began = time.process_time()
    try:
        result = TaskTrainer.compose(*overrides, "runner.threads=1", f"name={name}").train()
    except Exception as error:  # a broken method is a row of the table, not the end of it
        return Finished(name, failed=f"{type(error).__name__}: {error}".splitlines()[0])
    if result["status"] != "finished":
        raise SystemExit(f"the run was {result['status']}; --missing goes on with the rows that are missing")
    seconds = time.process_time() - began
    rows = [json.loads(line) for line in (Path("runs") / name / "metrics.jsonl").read_text().splitlines()]
    numbers: dict[str, float] = {}
    for row in rows:
        if row["event"] in ("epoch", "test"):
            numbers |= {key: value for key, value in row.items() if isinstance(value, int | float)}
    return Finished(name, numbers, seconds)


def measured(finished: Finished, measure: str) -> float:
    """A number of a run. Raises KeyError where it has none of that name."""
    if not measure.startswith("recall:"):
        return finished.numbers[measure]
    found = recalls(finished.name)
    return statistics.mean(found[int(label)] for label in measure.removeprefix("recall:").split(","))


def recalls(name: str) -> list[float]:
    """The share of each class of the test part that the best weights of a run recognise."""
    import torch

    from healsg.build import build_task
    from healsg.data.info import saved_info
    from healsg.evaluation.evaluator import evaluating
    from healsg.runs.folder import find
    from healsg.runs.restoring import restore_weights, weights_state
    from healsg.trainer import TaskTrainer

    task = build_task(TaskTrainer.load(name, "trusted=[benchmarks]").composed)
    state = weights_state(find(name), "best")
    task.build(fresh_weights=False, training=False, data_info=saved_info(state))
    restore_weights(task, state, "best")
    model, found, wanted = task.task_method.eval_model(task), [], []
    with evaluating(model), torch.no_grad():
        for batch, _ in task.loaders["test"].batches(0):
            found.append(task.task_model.predict(model, batch).argmax(dim=1))
            wanted.append(batch["target"])
    right, target = torch.cat(found) == torch.cat(wanted), torch.cat(wanted)
    return [float(right[target == label].double().mean()) for label in range(int(target.max()) + 1)]
