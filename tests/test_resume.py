"""A run that was killed ends bit for bit where the uninterrupted one ends."""

from __future__ import annotations

import copy
import functools
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import REPOSITORY, Program, beside, command, healsg, killed, taken
from healsg import TaskTrainer
from healsg.config.compose import Composer
from healsg.config.schema import Composed
from healsg.errors import ConfigError, RunError
from healsg.methods.supervised import Supervised
from healsg.runner import TaskRunner
from healsg.runs import checkpoint
from healsg.runs.checkpoint import load
from healsg.runs.checkpointer import Checkpointer

SHORT = ["model=mlp", "model.width=16", "runner.epochs=3", "runner.log_every=5", "data.batch_size=256"]


def record(name: str) -> dict[str, object]:
    value: dict[str, object] = json.loads((Path("runs") / name / "run.json").read_text())
    return value


def lines(name: str) -> list[dict[str, object]]:
    rows = [json.loads(text) for text in (Path("runs") / name / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def started_until(line: str, options: list[str], folder: Path) -> subprocess.Popen[str]:
    """A run that has just printed a line that begins so."""
    started = subprocess.Popen(command(*options), stdout=subprocess.PIPE, cwd=folder, text=True)
    assert started.stdout is not None
    next(text for text in started.stdout if text.startswith(line))
    return started


METHODS = sorted(path.stem for path in (REPOSITORY / "conf/method").glob("*.yaml"))
MORE = ["runner.accumulate=2", "model.dropout=0.2", "method.label_smoothing=0.1"]
"""What a resume must bring back beside a method's own: stacked on every one."""


@functools.cache
def composed(*options: str) -> Composed:
    return Composer().compose(options)


def train(*options: str) -> dict[str, Any]:
    """Train as ``TaskTrainer.compose`` would; what differs in the name alone is composed once."""
    own = [option for option in options if not option.startswith("name=")]
    made = copy.deepcopy(composed(*own))
    made.values["name"] = next((option[5:] for option in options if option.startswith("name=")), None)
    return TaskTrainer(made).train()


def copies_of_every_step(monkeypatch: pytest.MonkeyPatch, *options: str) -> list[int]:
    """Train ``runs/whole`` and keep what a kill right after each save would leave as ``runs/cut<step>``."""
    whole, steps = Checkpointer.save, list[int]()

    def save(self: Checkpointer, task: Any) -> None:
        whole(self, task)
        self.writer.wait()
        copy = Path(f"runs/cut{task.runner.step_count}")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder.path, copy)
        steps.append(task.runner.step_count)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save)
        assert train(*options, "name=whole")["status"] == "finished"
    return sorted(set(steps))


def every_step(method: str, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    options = [
        *SHORT,
        "runner.epochs=6",
        f"method={method}",
        "runner.save_every=1",
        "quiet=true",
        *taken(method, *MORE),
    ]
    options += ["data.batch_size=128", "runner.log_every=4", *beside(method)]
    steps = copies_of_every_step(monkeypatch, *options)
    assert steps == list(range(31))
    for step in {*steps[::every], 30}:
        train(*options, f"name=cut{step}")
        assert record(f"cut{step}")["digest"] == record("whole")["digest"], f"killed after step {step}"
        assert lines(f"cut{step}") == lines("whole")


@pytest.mark.parametrize("method", METHODS)
def test_resume_at_steps(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ninth step of 30 and the last: in an epoch, at its end, before and after the evaluation."""
    every_step(method, monkeypatch, 9)


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_resume_at_every_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every_step(method, monkeypatch, 1)


def test_resume_twice_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*SHORT, "method=adamw", "runner.save_every=1", "quiet=true", *MORE]
    steps = copies_of_every_step(monkeypatch, *options)
    for first, second in ((1, 2), (3, 3), (4, 7)):
        cut = f"cut{first}"
        with monkeypatch.context() as patch:
            stop_after(patch, second)
            assert train(*options, f"name={cut}")["status"] == "stopped"
        assert train(*options, f"name={cut}")["digest"] == record("whole")["digest"]
        assert lines(cut) == lines("whole")
    assert len(steps) >= 8


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the next run stop, saved, at the first step boundary from ``step`` on."""
    tick = TaskRunner.tick

    def watched(self: TaskRunner, task: Any) -> None:
        tick(self, task)
        if self.step_count >= step:
            self.checkpointer.stop(task)

    monkeypatch.setattr(TaskRunner, "tick", watched)


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
    copies_of_every_step(monkeypatch, *options)
    cut = 25 if item == "runner.stop_reason" else 13 if item == "runner.callbacks" else 8
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


def kill_and_resume(method: str, number: int, kills: int) -> int:
    """A run that is killed up to ``kills`` times at random and then ends; returns how often it was killed."""
    chance = random.Random(f"{method} {number}")
    options = [*SHORT, f"method={method}", "runner.save_every=3", "runner.epochs=10", "quiet=true"]
    options += [*taken(method, *MORE), *beside(method)]
    if not Path("runs/whole").exists():
        for name in ("warm", "whole"):
            began = time.monotonic()
            train(*options, f"name={name}")
        record_seconds.append(time.monotonic() - began)
    name, hit = f"killed{number}", 0
    for _ in range(kills):
        hit += killed(lambda: train(*options, f"name={name}"), chance.uniform(0.0, 0.8 * record_seconds[-1]))
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


record_seconds: list[float] = []


@pytest.mark.parametrize("method", METHODS)
def test_sigkill_at_random_times(method: str) -> None:
    assert sum(kill_and_resume(method, number, 1 + number % 3) for number in range(5)) > 0


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_sigkill_at_random_times_50_runs(method: str) -> None:
    assert sum(kill_and_resume(method, number, 3) for number in range(50)) > 50


def test_ten_kills_in_one_run() -> None:
    """Every line of metrics.jsonl exactly once, in order."""
    options = [*SHORT, "method=adamw", "runner.save_every=1", "runner.epochs=60", "runner.log_every=1", "quiet=true"]
    train(*options, "name=whole")
    chance, hit = random.Random(10), 0
    for _ in range(40):
        hit += killed(lambda: train(*options, "name=killed"), chance.uniform(0.05, 0.4))
        if hit == 10 or record("killed").get("status") == "finished":
            break
    if record("killed").get("status") != "finished":
        train(*options, "name=killed")
    assert hit >= 5
    assert lines("killed") == lines("whole")
    steps = [line["step"] for line in lines("killed") if line["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert record("killed")["digest"] == record("whole")["digest"]


def test_sigkill_through_the_command_line(tmp_path: Path, program: Program) -> None:
    """The whole program in a process of its own, killed in its epochs and as it starts."""
    options = [*SHORT, "method=adamw", "runner.save_every=2", "runner.epochs=60"]
    assert program(command(*options, "name=whole")).returncode == 0
    for line in ("epoch 3/", "epoch 20/"):
        started = started_until(line, [*options, "name=killed"], tmp_path)
        started.kill()
        started.communicate()
    assert program(command(*options, "name=killed")).returncode == 0
    assert record("killed")["digest"] == record("whole")["digest"]
    assert lines("killed") == lines("whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_signals_save_and_stop(number: signal.Signals, status: int, tmp_path: Path, program: Program) -> None:
    options = [*SHORT, "runner.epochs=400", "name=run"]
    started = started_until("epoch 2/", options, tmp_path)
    started.send_signal(number)
    rest = started.communicate(timeout=60)[0]
    assert started.returncode == status
    assert "healsg resume" in rest
    kept = record("run")
    assert kept["status"] == "stopped"
    assert signal.Signals(number).name in str(kept["reason"])
    state = load(tmp_path / "runs/run/checkpoints/last.pt")
    assert state["runner"]["step"] > 0


def test_max_time_stops_with_status_0_and_resume_finishes(program: Program) -> None:
    options = [*SHORT, "runner.epochs=120", "quiet=true"]
    whole = TaskTrainer.compose(*options, "name=whole").train()
    result = TaskTrainer.compose(*options, "name=timed", "runner.max_time=0.2").train()
    assert (result["status"], result["exit"]) == ("stopped", 0)
    done = program(healsg("resume", "timed", "runner.max_time=null"))
    assert done.returncode == 0, done.stderr
    assert record("timed")["digest"] == whole["digest"]


def test_refusals_name_the_key() -> None:
    options = [*SHORT, "runner.epochs=1", "quiet=true", "name=run"]
    TaskTrainer.compose(*options).train()
    with pytest.raises(RunError, match="is finished"):
        TaskTrainer.compose(*options).train()
    with pytest.raises(ConfigError, match=r"seed: .* was started with 0, not 1; .*fresh=true"):
        TaskTrainer.compose(*options, "seed=1", "runner.epochs=2").train()
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


def test_two_processes_on_one_folder(tmp_path: Path, program: Program) -> None:
    options = [*SHORT, "runner.epochs=5000", "name=run"]
    first = started_until("epoch 1/", options, tmp_path)
    second = program(command(*options))
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert "is being trained by process" in second.stderr
    assert program(command(*options, "runner.max_time=0.1")).returncode == 0


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
