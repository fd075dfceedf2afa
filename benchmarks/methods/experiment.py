"""An experiment: a method against the fair baseline, over seeds that set the split, the weights and the order."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

Stages = tuple[tuple[str, ...], ...]

COMMON = (
    *("data=digits", "data.val_fraction=0", "model=cnn", "model.width=16", "method.optimizer.lr=3e-3"),
    *("runner.eval_every=1000000", "quiet=true"),
)
"""The test part is looked at once, at the end of a run, and chooses nothing."""


@dataclass(frozen=True)
class Experiment:
    """A method against a baseline.

    Args:
        name: of the row, alone in all families.
        setting: the data and the budget, for the reader.
        baseline, method: stages, each the overrides of one ``healsg train``; ``{0}``, ``{1}``, ... stand for the name
            of an earlier stage's run. ``seed=S data.split_seed=S`` come before them. ``baseline`` may be empty where
            ``least`` alone is asked for.
        gain: what the mean paired gain must reach, in points (100 times ``measure``).
        least: what the method's mean must reach, in points.
        measure: a number of the last stage: of its test, else of its last epoch, as in ``metrics.jsonl``; or
            ``recall:0,1,2``, the mean recall of these classes on the test part.
        note: what the reader must know beside it.
    """

    name: str
    setting: str
    baseline: Stages
    method: Stages
    gain: float | None = None
    least: float | None = None
    measure: str = "test/acc"
    note: str = ""


@dataclass
class Finished:
    """One run: its numbers and its CPU seconds, or why it failed."""

    name: str
    numbers: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str = ""


class Bench:
    """Runs stages in the current folder; the same overrides are run once."""

    def __init__(self) -> None:
        self.done: dict[tuple[str, ...], Finished] = {}

    def run(self, overrides: tuple[str, ...]) -> Finished:
        """One ``healsg train``; what it raises is told, not raised."""
        if overrides not in self.done:
            name = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:16]
            self.done[overrides] = train(f"run-{name}", overrides)
        return self.done[overrides]

    def stages(self, stages: Stages, seed: int, measure: str) -> tuple[float | None, float, str]:
        """The measure of the last stage in points, the CPU seconds of all, and why it failed."""
        names: list[str] = []
        seconds = 0.0
        for number, stage in enumerate(stages):
            overrides = [f"seed={seed}", f"data.split_seed={seed}", *stage]
            for place, name in enumerate(names):
                overrides = [override.replace(f"{{{place}}}", name) for override in overrides]
            finished = self.run(tuple(overrides))
            if finished.failed:
                return None, seconds, f"seed {seed}, stage {number}: {finished.failed}"
            names.append(finished.name)
            seconds += finished.seconds
        try:
            return 100 * measured(finished, measure), seconds, ""
        except Exception as error:
            return None, seconds, f"seed {seed}: {measure}: {error!r}"


def train(name: str, overrides: tuple[str, ...]) -> Finished:
    """Train in this process, in ``runs/<name>``."""
    from healsg.trainer import TaskTrainer

    began = time.process_time()
    try:
        result = TaskTrainer.compose(*overrides, "runner.threads=1", f"name={name}").train()
    except Exception as error:  # a broken method is a row of the table, not the end of it
        return Finished(name, failed=f"{type(error).__name__}: {error}".splitlines()[0])
    if result["status"] != "finished":
        return Finished(name, failed=f"status {result['status']}")
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
    from healsg.runs.checkpointer import restore_weights, weights_state
    from healsg.runs.folder import find
    from healsg.trainer import TaskTrainer

    task = build_task(TaskTrainer.load(name).composed)
    state = weights_state(find(name), "best")
    task.build(fresh_weights=False, training=False, data_info=saved_info(state))
    restore_weights(task, state, "best")
    model, found, wanted = task.task_method.eval_model(task), [], []
    with evaluating(model), torch.no_grad():
        for batch, _ in task.loaders["test"].batches(0):
            found.append(task.task_model.predict(model, batch["input"]).argmax(dim=1))
            wanted.append(batch["target"])
    right, target = torch.cat(found) == torch.cat(wanted), torch.cat(wanted)
    return [float(right[target == label].double().mean()) for label in range(int(target.max()) + 1)]
