"""A run that was killed ends bit for bit where the uninterrupted one ends."""

from __future__ import annotations

import copy
import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from healsg import BasicTask, TaskTrainer
from healsg.cli import main
from healsg.errors import ConfigError, RunError
from healsg.methods.supervised import Supervised
from healsg.metric import Accuracy
from healsg.models.mlp import MLP
from healsg.runs import checkpoint
from healsg.runs.checkpoint import load
from helpers import (
    METHODS,
    beside,
    copies,
    ended,
    epochs_of,
    forked,
    forked_until,
    goes_on_exactly,
    kill,
    killed,
    lines,
    record,
    stopped_at,
    taken,
    train,
)

SHORT = ["model=mlp", "model.width=16", "runner.epochs=3", "runner.log_every=5", "data.batch_size=256"]
MORE = ["runner.accumulate=2", "model.dropout=0.2", "method.label_smoothing=0.1"]
"""What a resume must bring back beside a method's own: stacked on every one."""


def full(method: str) -> list[str]:
    """The settings of a run of 20 updates in four epochs, saved at each, with all that a resume must bring back."""
    options = [*SHORT, "runner.epochs=4", f"method={method}", "runner.save_every=1", "quiet=true"]
    return [*options, *taken(method, *MORE), "data.batch_size=128", "runner.log_every=4", *beside(method)]


@pytest.mark.parametrize("method", METHODS)
def test_resume_at_steps(method: str) -> None:
    """Within the second epoch and, with a method of every kind, at the end of the third, before its evaluation."""
    goes_on_exactly([7, 15] if method in KINDS_OF_STATE else [7], *full(method))


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_resume_at_every_step(method: str) -> None:
    assert goes_on_exactly(None, *full(method)) == list(range(21))


def test_resume_twice_in_a_row() -> None:
    options = [*SHORT, "method=adamw", "runner.save_every=1", "quiet=true", *MORE]
    steps = copies(*options)
    for first, second in ((1, 2), (3, 3), (4, 7)):
        cut = f"cut{first}"
        stopped_at(second, *options, f"name={cut}")
        assert train(*options, f"name={cut}")["digest"] == record("whole")["digest"]
        assert lines(cut) == lines("whole")
    assert len(steps) >= 8


class Teacher(Supervised):
    """Learns from a moving average of itself too, and is evaluated by it."""

    def setup(self, task: Any) -> None:
        self.teacher = copy.deepcopy(task.model).requires_grad_(False)
        self.register_buffer("updates", torch.zeros(()))

    def train_step(self, task: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        logs = super().train_step(task, batch)
        gap = (task.net(batch["input"]) - self.teacher(batch["input"])).square().mean()
        return {"loss": logs["loss"] + gap / (1 + self.updates), "gap": gap}

    def after_update(self, task: Any) -> None:
        self.updates += 1
        for mine, other in zip(self.teacher.parameters(), task.model.parameters(), strict=True):
            mine.lerp_(other, 0.1)

    def eval_model(self, task: Any) -> torch.nn.Module:
        return self.teacher


class NumpyMixup(Supervised):
    """Mixup with random numbers of NumPy and Python, as it is often written."""

    def train_step(self, task: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        share = float(np.random.beta(0.4, 0.4)) * random.random()
        mixed = share * batch["input"] + (1 - share) * batch["input"].flip(0)
        return {"loss": task.criterion(task.net(mixed), batch["target"])}


class NoisyPrediction(MLP):
    """Predicts with random numbers of all three generators."""

    def predict(self, network: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        output: torch.Tensor = super().predict(network, batch)
        noise = torch.from_numpy(np.random.rand(*output.shape)).float()
        return output + torch.rand(()) + noise * random.random()


class NoisyMetric(Accuracy):
    """Measures a part of the samples that NumPy draws."""

    def measure(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
        chosen = torch.from_numpy(np.random.rand(len(target))) < 0.5
        return super().measure(output[chosen], target[chosen])


DRAWN: list[tuple[list[int], float, float]] = []


class DrawingEpoch(BasicTask):
    """Draws before each training pass."""

    def run_epoch(self) -> Any:
        DRAWN.append((torch.randperm(12).tolist(), float(np.random.rand()), random.random()))
        return super().run_epoch()


def test_a_metric_that_draws_is_the_same_in_a_resumed_run() -> None:
    metric = "+model.metrics.part={_target_: test_resume.NoisyMetric}"
    options = [*SHORT, "trusted=[test_resume]", metric, "runner.save_every=1", "quiet=true"]
    goes_on_exactly([7], *options)


def test_what_an_epoch_of_ones_own_draws_differs_by_epoch_and_is_the_same_in_another_run() -> None:
    DRAWN.clear()
    options = [*SHORT, "trusted=[test_resume]", "task._target_=test_resume.DrawingEpoch", "quiet=true"]
    train(*options, "name=one")
    train(*options, "name=two")
    first, second = DRAWN[:3], DRAWN[3:]
    assert first == second
    assert len({number for _, number, _ in first}) == len({number for _, _, number in first}) == 3
    assert len({tuple(order) for order, _, _ in first}) == 3


def test_steps_that_draw_from_numpy_and_python_resume_exactly() -> None:
    drawing = ["trusted=[test_resume]", "method._target_=test_resume.NumpyMixup"]
    goes_on_exactly([2, 4], *SHORT, *drawing, "data.augment=none", "runner.save_every=1", "quiet=true")


def test_evaluations_that_draw_give_the_same_numbers_in_a_resumed_run_and_in_eval() -> None:
    drawing = ["trusted=[test_resume]", "model._target_=test_resume.NoisyPrediction"]
    options = [*SHORT, *drawing, "data.augment=none", "runner.save_every=1", "quiet=true"]
    goes_on_exactly([2, 7], *options)
    measured = [line for line in lines("whole") if line["event"] == "epoch"]
    assert len({line["val/loss"] for line in measured}) == len(measured) == 3
    evaluated = TaskTrainer.load("whole", "trusted=[test_resume]").evaluate("test", "best")
    assert {f"test/{name}": value for name, value in evaluated.items()} == record("whole")["test"]


TEACHER = ["trusted=[test_resume]", "method._target_=test_resume.Teacher"]
STOPPING = ["runner/callbacks=early_stopping", "runner.callbacks.early_stopping.patience=4"]
STOPPING += ["runner.callbacks.early_stopping.min_delta=0.9", "runner.epochs=12"]
LAST_IS_LESS = ["runner.monitor=lr", "runner.mode=max"]
ITEMS: dict[str, list[str]] = {
    "model": [],
    "optimizer": [],
    "optimizer.state": [],
    "scheduler": [],
    "method": TEACHER,
    "method.updates": TEACHER,
    "runner.epoch": [],
    "runner.step": [],
    "runner.position": [],
    "runner.pieces": ["runner.auto_accumulate=true"],
    "runner.meter": [],
    "runner.meter.sums": [],
    "runner.meter.window": [],
    "runner.monitor": LAST_IS_LESS,
    "runner.scaler": ["runner.precision=fp16"],
    "runner.callbacks": STOPPING,
    "runner.stop_reason": STOPPING,
    "metrics_log.history": [],
    "metrics_log.offset": [],
}


def replaced(state: dict[str, Any], path: str, other: dict[str, Any]) -> dict[str, Any]:
    """``state`` with the item at ``path`` as it stands in ``other``."""
    first, _, rest = path.partition(".")
    return state | {first: replaced(state[first], rest, other[first]) if rest else other[first]}


@pytest.mark.parametrize("item", ITEMS)
def test_the_proof_can_fail(item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one item of state left as it was at step 0 the digest or the lines differ, or the run is refused."""
    options = [*SHORT, "method=sgd", "runner.save_every=1", "quiet=true", "runner.log_every=3", *ITEMS[item]]
    if item == "runner.pieces":
        out_of_memory_above(130, monkeypatch, from_step=2)
    cut = 25 if item == "runner.stop_reason" else 13 if item == "runner.callbacks" else 8
    copies(*options, at=[0, cut])
    whole = record("whole")
    first = load(Path("runs/cut0/checkpoints/last.pt"))
    for name in ("last.pt", "previous.pt"):
        path = Path(f"runs/cut{cut}/checkpoints/{name}")
        state = load(path)
        state.pop("format")
        checkpoint.save(path, replaced(state, item, first))
    if item == "runner.pieces":
        monkeypatch.setattr(Supervised, "train_step", TRAIN_STEP)  # memory is back, so that only the state remembers
    try:
        train(*options, f"name=cut{cut}")
    except (RunError, IndexError):
        return
    assert (record(f"cut{cut}")["digest"], lines(f"cut{cut}")) != (whole["digest"], lines("whole"))


TRAIN_STEP = Supervised.train_step


def out_of_memory_above(rows: int, monkeypatch: pytest.MonkeyPatch, from_step: int) -> None:
    """Let a training step with more than ``rows`` samples fail for want of memory."""

    def train_step(self: Supervised, task: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        if task.runner.step_count >= from_step and len(batch["input"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return TRAIN_STEP(self, task, batch)

    monkeypatch.setattr(Supervised, "train_step", train_step)


def kill_and_resume(method: str, runs: int, kills: int) -> int:
    """Runs that are killed up to ``kills`` times at random and then end; returns how often they were killed.

    More of them, killed earlier, where all ended before they were killed, as they do once another load has gone.
    """
    options = [*SHORT, f"method={method}", "runner.save_every=3", "runner.epochs=10", "quiet=true"]
    options += [*taken(method, *MORE), *beside(method)]
    for name in ("warm", "whole"):
        began = time.monotonic()
        train(*options, f"name={name}")
    whole, hit = time.monotonic() - began, 0
    for number in itertools.count():
        if number >= runs:
            if hit:
                break
            whole *= 0.7
        chance, name = random.Random(f"{method} {number}"), f"killed{number}"
        for _ in range(min(kills, 1 + number % 3)):
            hit += killed(lambda name=name: train(*options, f"name={name}"), chance.uniform(0.0, 0.8 * whole))  # type: ignore[misc]
            if Path(f"runs/{name}/run.json").exists() and record(name).get("status") == "finished":
                break
        else:
            train(*options, f"name={name}")
        assert record(name)["digest"] == record("whole")["digest"]
        assert lines(name) == lines("whole")
        assert sorted(path.name for path in Path(f"runs/{name}").iterdir()) == sorted(
            path.name for path in Path("runs/whole").iterdir()
        )
    return hit


KINDS_OF_STATE = ["adamw", "fixmatch", "mean_teacher", "moco", "sam"]
"""Methods that between them have a stream, a copy of the network, a queue, and a step of two passes."""


@pytest.mark.parametrize("method", KINDS_OF_STATE)
def test_sigkill_at_random_times(method: str) -> None:
    assert kill_and_resume(method, 3, 3) > 0


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_sigkill_at_random_times_50_runs(method: str) -> None:
    assert kill_and_resume(method, 50, 3) > 50


def test_ten_kills_in_one_run() -> None:
    """Every line of metrics.jsonl exactly once, in order."""
    options = [*SHORT, "method=adamw", "runner.save_every=1", "runner.epochs=60", "runner.log_every=1", "quiet=true"]
    train(*options, "name=whole")
    chance, hit = random.Random(10), 0
    for _ in range(40):
        hit += killed(lambda: train(*options, "name=killed"), chance.uniform(0.05, 0.4))
        if hit == 10 or (Path("runs/killed/run.json").exists() and record("killed").get("status") == "finished"):
            break
    if record("killed").get("status") != "finished":
        train(*options, "name=killed")
    assert hit >= 5
    assert lines("killed") == lines("whole")
    steps = [line["step"] for line in lines("killed") if line["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert record("killed")["digest"] == record("whole")["digest"]


def test_sigkill_through_the_command_line() -> None:
    """The whole program, killed in its epochs and as it starts again."""
    options = [*SHORT, "method=adamw", "runner.save_every=2", "runner.epochs=60"]
    train(*options, "quiet=true", "name=whole")
    for line in ("epoch 3/", "epoch 20/"):
        child = forked_until(line, ["train", *options, "name=killed"])
        assert kill(child)
    assert ended(forked(["train", *options, "name=killed"])) == 0
    assert record("killed")["digest"] == record("whole")["digest"]
    assert lines("killed") == lines("whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_signals_save_and_stop(number: signal.Signals, status: int) -> None:
    child = forked_until("epoch 2/", ["train", *SHORT, "runner.epochs=4000", "name=run"])
    os.kill(child, number)
    assert ended(child) == status
    assert "healsg resume" in Path("output").read_text()
    kept = record("run")
    assert kept["status"] == "stopped"
    assert signal.Signals(number).name in str(kept["reason"])
    assert load(Path("runs/run/checkpoints/last.pt"))["runner"]["step"] > 0


def test_max_time_stops_with_status_0_and_resume_finishes() -> None:
    options = [*SHORT, "runner.epochs=120", "quiet=true"]
    whole = train(*options, "name=whole")
    result = train(*options, "name=timed", "runner.max_time=0.2")
    assert (result["status"], result["exit"]) == ("stopped", 0)
    assert main(["resume", "timed", "runner.max_time=null"]) == 0
    assert record("timed")["digest"] == whole["digest"]


def test_a_paused_run_goes_on_exactly() -> None:
    """Its schedule is that of the whole length, and the saved configuration does not pause it again."""
    options = [*SHORT, "runner.epochs=4", "method/scheduler=cosine", "quiet=true"]
    whole = train(*options, "name=whole")
    for pause in (1, 1, 3):
        result = train(*options, "name=paused", f"runner.pause_after={pause}")
        assert (result["status"], result["exit"]) == ("stopped", 0)
        assert epochs_of("paused") == pause
        assert record("paused")["best"]["monitor"] == record("paused")["monitor"]
    assert main(["resume", "paused"]) == 0
    assert record("paused")["digest"] == whole["digest"]


def test_refusals_name_the_key() -> None:
    options = [*SHORT, "runner.epochs=1", "quiet=true", "name=run"]
    TaskTrainer.compose(*options).train()
    with pytest.raises(RunError, match="is finished"):
        TaskTrainer.compose(*options).train()
    with pytest.raises(ConfigError, match=r"seed: .* was started with 0, not 1; .*fresh=true"):
        TaskTrainer.compose(*options, "seed=1", "runner.epochs=2").train()
    longer = [option for option in options if option != "runner.epochs=1"]
    train(*longer, "runner.epochs=2")
    with pytest.raises(ConfigError, match=r"runner\.epochs: .* was started with 2, not 1"):
        train(*longer, "runner.epochs=1")
    assert TaskTrainer.compose(*options, "fresh=true", "seed=1").train()["status"] == "finished"
    assert record("run~1")["seed"] == 0
    assert record("run")["seed"] == 1


def test_what_cannot_alter_the_result_may_change(tmp_path: Path) -> None:
    options = [*SHORT, "runner.epochs=2", "quiet=true"]
    whole = TaskTrainer.compose(*options, "name=whole").train()
    TaskTrainer.compose(*options, "name=run", "runner.max_time=0").train()
    free = [
        "runner.save_every=3",
        "data.workers=1",
        "data.root=elsewhere",
        "logger=tensorboard",
        "runner.max_time=null",
    ]
    assert TaskTrainer.compose(*options, "name=run", *free).train()["digest"] == whole["digest"]


def test_two_processes_on_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["train", *SHORT, "runner.epochs=5000", "name=run"]
    first = forked_until("epoch 1/", options)
    assert main(options) == 1
    assert f"is being trained by process {first}" in capsys.readouterr().err
    assert kill(first)
    assert main([*options, "runner.max_time=0.1"]) == 0


REFUSED = {
    "method.optimizer.lr": "0.5",
    "model.width": "8",
    "seed": "1",
    "data.batch_size": "64",
    "data.shift": "0",
    "runner.precision": "bf16",
    "runner.accumulate": "3",
    "method.label_smoothing": "0.1",
    "runner.threads": "2",
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_changed_setting_is_refused_by_its_key(key: str) -> None:
    options = [*SHORT, "method=adamw", "quiet=true", "name=run"]
    train(*options, "runner.max_time=0")
    with pytest.raises(ConfigError, match=rf"^{key}: .*runs/run was started with .*, not .*resume\.force=true"):
        train(*options, f"{key}={REFUSED[key]}")
    if key in ("method.optimizer.lr", "data.batch_size", "runner.precision"):
        assert train(*options, f"{key}={REFUSED[key]}", "resume.force=true")["status"] == "finished"


def test_a_run_goes_on_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a move to another machine's disk."""
    options = [*SHORT, "method=adamw", "quiet=true"]
    train(*options, "name=whole")
    train(*options, "name=run", "runner.max_time=0")
    elsewhere = tmp_path / "another/disk"
    shutil.copytree("runs/run", elsewhere / "runs/run")
    digest = record("whole")["digest"]
    monkeypatch.chdir(elsewhere)
    assert train(*options, "name=run", "data.root=/nowhere")["digest"] == digest
