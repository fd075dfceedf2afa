"""A run that was killed ends bit for bit where the uninterrupted one ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import Program, command, healsg
from healsg import TaskTrainer, checkpoint
from healsg.checkpoint import load
from healsg.errors import ConfigError, RunError
from healsg.keeper import Keeper
from healsg.task import BasicTask

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


class Cut(BaseException):
    """Stands for a kill at a step boundary."""


def cut_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Kill the next run right after ``step``, when it has saved."""
    whole = Keeper.save

    def save(self: Keeper, task: object) -> None:
        whole(self, task)  # type: ignore[arg-type]
        if task.runner.step_count >= step:  # type: ignore[attr-defined]
            raise Cut

    monkeypatch.setattr(Keeper, "save", save)


MORE = ["runner.accumulate=2", "model.dropout=0.2", "method.label_smoothing=0.1"]


@pytest.mark.parametrize(("method", "extra"), [("sgd", MORE), ("adamw", []), ("muon", [])])
def test_resume_at_every_step(method: str, extra: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*SHORT, f"method={method}", "runner.save_every=1", "quiet=true", *extra]
    whole = TaskTrainer.compose(*options, "name=whole").train()
    steps = load(Path("runs/whole/checkpoints/last.pt"))["runner"]["step"]
    assert steps >= 9
    for step in range(0, steps + 1):
        with monkeypatch.context() as patch:
            cut_after(patch, step)
            with pytest.raises(Cut):
                TaskTrainer.compose(*options, f"name=cut{step}").train()
        TaskTrainer.compose(*options, f"name=cut{step}").train()
        assert record(f"cut{step}")["digest"] == whole["digest"], f"killed after step {step}"
        assert lines(f"cut{step}") == lines("whole")


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "model", "meter", "position", "monitor", "journal"])
def test_the_proof_can_fail(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one item of state left out the digest or the lines differ: the test above is no empty one."""
    options = [*SHORT, "method=sgd", "runner.save_every=1", "quiet=true"]
    if part == "monitor":
        options += ["runner.monitor=lr", "runner.mode=max"]
    whole = TaskTrainer.compose(*options, "name=whole").train()
    with monkeypatch.context() as patch:
        cut_after(patch, 8)
        with pytest.raises(Cut):
            TaskTrainer.compose(*options, "name=cut").train()
    true_load, true_restore = checkpoint.load, BasicTask.load_state_dict
    nothing = {
        "meter": {"sums": {}, "window": {}, "count": 0.0, "recent": 0.0},
        "position": 0,
        "monitor": {"best": None},
    }

    def forgetful(path: Path) -> dict[str, Any]:
        state = true_load(path)
        if part in nothing and "runner" in state:
            state["runner"][part] = nothing[part]
        if part == "journal" and "journal" in state:
            state["journal"]["history"] = ""
        return state

    def partial(self: BasicTask, state: dict[str, Any]) -> None:
        own = {part: self.state_dict()[part]} if part in ("optimizer", "scheduler", "model") else {}
        true_restore(self, state | own)

    monkeypatch.setattr(checkpoint, "load", forgetful)
    monkeypatch.setattr(BasicTask, "load_state_dict", partial)
    TaskTrainer.compose(*options, "name=cut").train()
    assert record("cut")["digest"] != whole["digest"]


def test_sigkill_at_random_times(tmp_path: Path, program: Program) -> None:
    options = [*SHORT, "method=adamw", "runner.save_every=2", "runner.epochs=60"]
    assert program(command(*options, "name=whole")).returncode == 0
    chance, kills = random.Random(7), 0
    for _ in range(6):
        started = subprocess.Popen(command(*options, "name=killed"), stdout=subprocess.DEVNULL, cwd=tmp_path)
        time.sleep(chance.uniform(2.5, 4.5))
        kills += started.poll() is None
        started.send_signal(signal.SIGKILL)
        if started.wait() == 0:
            break
    else:
        assert program(command(*options, "name=killed")).returncode == 0
    assert kills
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


def test_damaged_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*SHORT, "runner.save_every=1", "quiet=true"]
    whole = TaskTrainer.compose(*options, "name=whole").train()
    with monkeypatch.context() as patch:
        cut_after(patch, 6)
        with pytest.raises(Cut):
            TaskTrainer.compose(*options, "name=run").train()
    last, previous = (Path("runs/run/checkpoints") / name for name in ("last.pt", "previous.pt"))
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    last.write_bytes(damaged)
    assert TaskTrainer.compose(*options, "name=run").train()["digest"] == whole["digest"]
    with monkeypatch.context() as patch:
        cut_after(patch, 6)
        with pytest.raises(Cut):
            TaskTrainer.compose(*options, "name=lost").train()
    for path in (last, previous):
        lost = Path("runs/lost/checkpoints") / path.name
        os.truncate(lost, lost.stat().st_size - 40)
    with pytest.raises(RunError, match="no good checkpoint is left"):
        TaskTrainer.compose(*options, "name=lost").train()
