"""``runner=fast``: what is measured, what is chosen, and that a run has it as plain values."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from healsg import TaskTrainer
from healsg.cli import main
from healsg.commands.train import tune
from healsg.commands.train.tune import Bench, Row
from healsg.config.compose import Composer
from healsg.config.schema import Composed
from healsg.errors import ConfigError, RunError
from helpers import record

TINY = ["data=digits", "model=cnn", "model.width=4", "runner=fast", "runner.epochs=1", "quiet=true"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Composed]:
    """What was measured; another memory format is the fastest, and bf16 fails."""
    found: list[Composed] = []

    def measured(composed: Composed, budget: float) -> tuple[list[Row], int]:
        found.append(composed)
        return [Row({}, 0.010), Row({"precision": "bf16"}, reason="no"), Row({"channels_last": False}, 0.005)], 100

    monkeypatch.setattr(tune, "measured", measured)
    return found


def runner_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(Path("runs", name, "config.yaml").read_text())["runner"]
    return values


def test_what_is_chosen_stands_in_the_configuration_and_is_not_measured_again(
    asked: list[Composed], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *TINY, "name=run"]) == 0
    told = capsys.readouterr().out
    assert "channels_last=false" in told
    assert "chosen" in told
    assert (runner_of("run")["channels_last"], runner_of("run")["tune"]) == (False, None)
    plain = [setting for setting in TINY if setting != "runner=fast"]
    assert main(["train", *plain, "runner.channels_last=false", "name=plain"]) == 0
    assert record("run")["digest"] == record("plain")["digest"]
    assert main(["train", *TINY, "runner.epochs=2", "name=run"]) == 0, "the same command continues"
    assert main(["resume", "run", "runner.epochs=3"]) == 0
    assert len(asked) == 1


def test_jobs_of_a_sweep_share_one_measurement(asked: list[Composed]) -> None:
    assert main(["train", "-m", *TINY, "seed=0,1", "method.optimizer.lr=0.01,0.1", "name=s"]) == 0
    assert len(asked) == 1
    assert main(["train", "-m", *TINY, "seed=0,2", "method.optimizer.lr=0.01", "model.width=4,6", "name=s"]) == 0
    assert len(asked) == 2, "another network is measured for itself, and what the first call found counts"
    jobs = [path.parent for path in Path("runs/s").glob("*/config.yaml")]
    assert len(jobs) == 8
    assert all(runner_of(str(job.relative_to("runs")))["channels_last"] is False for job in jobs)


def test_a_gain_that_may_be_chance_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "measured", lambda *given: ([Row({}, 0.01), Row({"precision": "bf16"}, 0.0099)], 100))
    found = tune.tuned(Composer().compose(TINY))
    assert (found.values["runner"]["precision"], found.values["runner"]["tune"]) == ("fp32", None)


def test_what_compiling_costs_is_weighed_against_the_length_of_the_run() -> None:
    plain, compiled = Row({}, 0.010), Row({"compile": "regional"}, 0.005, setup=30.0)
    assert min([plain, compiled], key=lambda row: row.total(1000)) is plain
    assert min([plain, compiled], key=lambda row: row.total(10_000)) is compiled


def test_settings_are_tried_on_real_steps_and_those_of_the_user_are_left_alone() -> None:
    composed = tune.with_choice(Composer().compose([*TINY, "runner.threads=1"]), {})
    bench = Bench(composed, time.monotonic() + 0.5)
    rows = list(bench.rows(fixed=["threads"]))
    assert bench.steps == 19
    assert rows[0].choice == {}
    assert rows[0].seconds is not None
    assert [row.choice for row in rows[1:]] == [
        {"precision": "bf16"},
        {"channels_last": False},
        {"precision": "bf16", "channels_last": False},
    ]
    assert list(bench.rows(fixed=[*tune.KEYS]))[1:] == []


def test_a_setting_that_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tune.with_choice(Composer().compose(TINY), {}), time.monotonic() - 1)
    assert bench.row({"precision": "bf16"}).reason == "not tried: the time was over"
    monkeypatch.setattr(tune, "_steps_of", lambda *given: (_ for _ in ()).throw(RuntimeError("no\nkernel")))
    assert bench.row({}).reason == "no kernel"


def test_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "runner.tune=0"]) == 2
    assert capsys.readouterr().err == "error: runner.tune: 0 is out of range: > 0\n"
    with pytest.raises(ConfigError, match=r"^runner\.tune: the command healsg train measures"):
        TaskTrainer.compose(*TINY).train()
    monkeypatch.setattr(tune.distributed, "processes", lambda: tune.distributed.Parallel(0, 2))
    with pytest.raises(ConfigError, match=r"give runner\.processes, not torchrun$"):
        tune.tuned(Composer().compose(TINY))
    assert not Path("runs").exists()


@pytest.mark.soak
def test_a_task_that_cannot_take_a_step_is_told_by_its_own_line() -> None:
    composed = Composer().compose(["data=imagefolder", "data.folder=nowhere", "runner=fast", "runner.tune=1"])
    with pytest.raises(RunError, match=r"^runner\.tune: the task cannot take a step: data\.folder: no such folder"):
        tune.tuned(composed)
