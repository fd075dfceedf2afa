"""Corners in which a run was once lost, wrong, or not exact."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from healsg import TaskTrainer
from healsg.cli import main
from healsg.errors import ConfigError, RunError
from healsg.losses.classification import smooth
from healsg.methods.supervised import Supervised
from healsg.runs import acquire
from healsg.runs.folder import RunFolder
from healsg.runs.saved_config import load_saved
from helpers import HANG, Program, command, healsg, record, stopping_at

SHORT = ["model=mlp", "model.width=16", "runner.epochs=2", "data.batch_size=128", "quiet=true"]


def test_a_run_folder_is_no_package(tmp_path: Path, program: Program) -> None:
    TaskTrainer.compose(*SHORT, "name=evil").train()
    payload = (
        "import pathlib; pathlib.Path('canary').touch()\nfrom healsg import BasicTask\nclass Task(BasicTask): pass\n"
    )
    for init in (False, True):
        (tmp_path / "runs/evil/payload.py").write_text(payload)
        if init:
            (tmp_path / "runs/__init__.py").touch()
            (tmp_path / "runs/evil/__init__.py").touch()
        config = tmp_path / "runs/evil/config.yaml"
        config.write_text(config.read_text().replace("healsg.task.BasicTask", "runs.evil.payload.Task"))
        for line in (healsg("eval", "evil"), healsg("resume", "evil", "runner.epochs=9")):
            done = program(line)
            assert done.returncode == 2
            assert "is not a part" in done.stderr
            assert not (tmp_path / "canary").exists()
    folder = tmp_path / "given"
    (tmp_path / "runs/evil").rename(folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("runs.evil.payload.Task", "given.payload.Task"))
    with pytest.raises(ConfigError, match="own folder"):
        load_saved(RunFolder(folder), [])


def test_resume_does_not_repeat_fresh_and_force() -> None:
    TaskTrainer.compose(*SHORT, "name=run", "fresh=true", "resume.force=true", "runner.max_time=0").train()
    composed = load_saved(RunFolder(Path("runs/run")), ["runner.max_time=null"])
    assert not composed.values["fresh"]
    assert composed.values["resume"] == {"force": False}
    TaskTrainer(composed).train()
    assert not Path("runs/run~1").exists()


def test_a_torn_last_line_and_lines_without_a_checkpoint() -> None:
    whole = TaskTrainer.compose(*SHORT, "name=whole").train()
    TaskTrainer.compose(*SHORT, "name=run", "runner.max_time=0").train()
    with Path("runs/run/metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "epoch": 1, "st')
    assert TaskTrainer.compose(*SHORT, "name=run").train()["digest"] == whole["digest"]
    TaskTrainer.compose(*SHORT, "name=bare", "runner.max_time=0").train()
    for path in Path("runs/bare/checkpoints").iterdir():
        path.unlink()
    with Path("runs/bare/metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "epoch": 1, "step": 7}\n')
    assert TaskTrainer.compose(*SHORT, "name=bare").train()["digest"] == whole["digest"]
    assert len(Path("runs/bare/metrics.jsonl").read_text().splitlines()) == 3


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes", range(5))
@pytest.mark.parametrize("extend", [False, True])
def test_a_kill_as_a_run_begins(writes: int, extend: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two files that the beginning writes; the same command continues."""
    from healsg.runs import folder

    whole, options = folder.write_text, [*SHORT, "name=run"]
    if extend:
        TaskTrainer.compose(*options).train()
        options.append("runner.epochs=3")
    done = 0

    def write_text(path: Path, text: str) -> None:
        nonlocal done
        if done == writes:
            raise Killed
        done += 1
        whole(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_text", write_text)
        patch.setattr(acquire, "write_text", write_text)
        with pytest.raises(Killed):
            TaskTrainer.compose(*options).train()
    assert TaskTrainer.compose(*options).train()["status"] == "finished"


class Teacher(Supervised):
    """Keeps a copy of the network, which is what is evaluated, and learns from it too."""

    def setup(self, task: Any) -> None:
        import copy

        self.teacher = copy.deepcopy(task.model).requires_grad_(False)

    def train_step(self, task: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        logs = super().train_step(task, batch)
        gap = (task.net(batch["input"]) - self.teacher(batch["input"])).square().mean()
        return {"loss": logs["loss"] + gap, "gap": gap}

    def after_update(self, task: Any) -> None:
        for mine, other in zip(self.teacher.parameters(), task.model.parameters(), strict=True):
            mine.lerp_(other, 0.1)

    def eval_model(self, task: Any) -> torch.nn.Module:
        return self.teacher


def test_a_teacher_keeps_its_mode() -> None:
    options = ["trusted=[test_corners]", "method._target_=test_corners.Teacher", "data.batch_size=256", "quiet=true"]
    options += ["model.width=4", "runner.epochs=3"]
    whole = TaskTrainer.compose(*options, "name=whole").train()
    with stopping_at(7):
        assert TaskTrainer.compose(*options, "name=cut").train()["status"] == "stopped"
    assert TaskTrainer.compose(*options, "name=cut").train()["digest"] == whole["digest"]


def test_an_extended_run_may_be_stopped_again() -> None:
    options = [*SHORT, "runner.log_every=1000"]
    for name in ("whole", "cut"):
        TaskTrainer.compose(*options, "runner.steps=4", f"name={name}").train()
    whole = TaskTrainer.compose(*options, "runner.steps=23", "name=whole").train()
    with stopping_at(12):
        TaskTrainer.compose(*options, "runner.steps=23", "name=cut").train()
    assert TaskTrainer.compose(*options, "runner.steps=23", "name=cut").train()["digest"] == whole["digest"]
    with pytest.raises(ConfigError, match=r"runner.steps"):
        TaskTrainer.compose(*options, "runner.steps=10", "name=cut").train()


class Silent(Supervised):
    """Nothing counts in the first update."""

    def train_step(self, task: Any, batch: dict[str, Any]) -> dict[str, Any]:
        logs: dict[str, Any] = super().train_step(task, batch)
        rows = torch.tensor(float(len(batch["target"])))
        return {**logs, "count": rows * (task.runner.step_count > 0)}


def test_an_update_in_which_nothing_counts() -> None:
    options = [*SHORT, "trusted=[test_corners]", "method._target_=test_corners.Silent", "runner.accumulate=2"]
    trainer = TaskTrainer.compose(*options)
    trainer.train()
    assert trainer.task is not None
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trainer.task.model.parameters())


def test_smoothed_targets_are_not_rounded() -> None:
    output = torch.zeros(4, 1000, dtype=torch.bfloat16)
    target = smooth(torch.tensor([1, 2, 3, 999]), output, 0.1)
    assert target.dtype == torch.float32
    assert torch.allclose(target.sum(dim=1), torch.ones(4), atol=1e-5)
    assert torch.allclose(target[0, 1], torch.tensor(0.9001), atol=1e-6)


def test_a_job_leaves_the_threads_of_the_next_alone() -> None:
    before = torch.get_num_threads()
    try:
        TaskTrainer.compose(*SHORT, "name=two", "runner.threads=2").train()
        TaskTrainer.compose(*SHORT, "name=own").train()
        assert (record("two")["threads"], record("own")["threads"]) == (2, before)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("resume.force=no_way", "resume"),
        ("+wandb.entity=me", "wandb.entity"),
        ("wandb.mode=onlin", "wandb.mode"),
        ("+args.pattern='\\${x}'", "args.pattern"),
        ("+runner.callbacks.x._target_=torch.nn.ReLU", "runner.callbacks.x"),
        ("+logger.x._target_=torch.nn.ReLU", "logger.x"),
    ],
)
def test_wrong_at_once(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TaskTrainer.compose(*SHORT, override).train()
    assert not Path("runs").exists()


def test_hidden_values_are_asked_for_again(program: Program) -> None:
    key = "hunter2secret"
    TaskTrainer.compose(*SHORT, f"+args.api_key={key}", "+args.secret_dim=64", "name=run", "runner.max_time=0").train()
    with pytest.raises(ConfigError, match=r"args.api_key: is hidden"):
        load_saved(RunFolder(Path("runs/run")), [])
    assert load_saved(RunFolder(Path("runs/run")), [f"args.api_key={key}"]).values["args"]["secret_dim"] == 64
    with pytest.raises(ConfigError, match=r"secret_dim"):
        TaskTrainer.compose(*SHORT, f"+args.api_key={key}", "+args.secret_dim=128", "name=run").train()
    done = program(command("-m", *SHORT, f"+args.api_key={key}1,{key}2", "name=sweep", "runner=debug"))
    assert done.returncode == 0, done.stderr
    assert len([path for path in Path("runs/sweep").iterdir() if path.is_dir()]) == 2
    everything = done.stdout + done.stderr + "".join(str(path) for path in Path("runs").rglob("*"))
    assert key not in everything
    assert program(command("-m", *SHORT, "seed=0,1", "name=run")).returncode == 2, "a run is no sweep"


def test_evaluating_the_training_part_sees_each_sample_once_as_it_is() -> None:
    trainer = TaskTrainer.compose(*SHORT, "data.drop_last=true", "data.batch_size=100", "name=run")
    trainer.train()
    first, again = trainer.evaluate("train"), trainer.evaluate("train")
    assert first == again
    assert first["acc"] * 1167 == pytest.approx(round(first["acc"] * 1167), abs=1e-6)


def test_what_no_longer_fits_is_one_line() -> None:
    TaskTrainer.compose(*SHORT, "name=run", "runner.max_time=0").train()
    with pytest.raises(RunError, match="does not fit this task"):
        TaskTrainer.compose(*SHORT, "name=run", "model.width=8", "resume.force=true").train()


def test_the_lock_is_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    first, second = RunFolder(path), RunFolder(path)
    first.lock()
    with pytest.raises(RunError, match="is being trained"):
        second.lock()
    first.abandon()
    assert not path.exists()
    path.mkdir(parents=True)
    second.lock()
    third = RunFolder(path)
    with pytest.raises(RunError):
        third.lock()
    second.unlock()


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.note(test={"test/loss": float("nan")}, best={"value": float("inf")})
    assert record_of(folder) == {"test": {"test/loss": None}, "best": {"value": None}}


def record_of(folder: RunFolder) -> Any:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return json.loads(folder.record_file.read_text(), parse_constant=refuse)


def test_a_loader_worker_does_not_hold_the_lock(tmp_path: Path) -> None:
    import multiprocessing

    path = tmp_path / "run"
    path.mkdir()
    first, second = RunFolder(path), RunFolder(path)
    first.lock()
    context = multiprocessing.get_context("fork")
    begun = context.Event()

    def work() -> None:
        begun.set()
        time.sleep(2 * HANG)

    worker = context.Process(target=work)
    worker.start()
    try:
        assert begun.wait(HANG)
        assert first._lock is not None
        first._lock.let_go()  # what the death of this process would do
        second.lock()
        second.unlock()
    finally:
        worker.kill()
        worker.join()
        worker.close()


def test_a_job_of_a_sweep_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", *SHORT, "runner=debug", "seed=0,1", "name=sweep"]) == 0
    capsys.readouterr()
    for name in ("runs/sweep/seed=0", "sweep/seed=1"):
        assert main(["eval", name, "split=val"]) == 0
        assert json.loads(capsys.readouterr().out)["split"] == "val"
    assert main(["resume", "sweep/seed=0"]) == 1
    assert "is finished" in capsys.readouterr().err
    assert main(["eval", "sweep/seed=0", "spilt=val"]) == 2
    assert "did you mean split?" in capsys.readouterr().err
