"""``launcher=local``: the jobs of a sweep in several processes, with the folders, locks and digests of a serial one."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest

from healsg.cli import main
from healsg.launchers.local import LocalPool
from helpers import ended, forked, record, wait_for

TINY = ["train", "model=mlp", "model.width=8", "data.batch_size=256", "quiet=true"]
POOL = ["launcher=local", "launcher.workers=2"]


def rows(name: str) -> list[dict[str, str]]:
    with Path("runs", name, "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def digests(name: str) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["digest"] for path in Path("runs", name).glob("*/run.json")}


def test_two_workers_give_the_digests_and_the_table_of_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = ["runner.steps=20", "-m", "seed=0,1", "method.optimizer.lr=0.01,0.001"]
    assert main([*TINY, "name=one", *jobs]) == 0
    assert main([*TINY, "name=two", *POOL, *jobs]) == 0
    assert digests("two") == digests("one")
    assert len(set(digests("two").values())) == 4
    assert rows("two") == rows("one")
    assert len({record(path)["process"] for path in Path("runs/two").iterdir() if path.is_dir()}) == 2
    assert "launcher" not in json.dumps(record("two/seed=0,method.optimizer.lr=0.01")["choices"])


@pytest.mark.soak
def test_sixteen_jobs_on_two_workers_have_the_digests_of_a_serial_sweep() -> None:
    jobs = ["runner.steps=20", "-m", "seed=range(16)"]
    assert main([*TINY, "name=one", *jobs]) == 0
    assert main([*TINY, "name=two", *POOL, *jobs]) == 0
    assert digests("two") == digests("one")
    assert len(set(digests("two").values())) == 16


def test_a_worker_that_is_killed_costs_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    child = forked([*TINY, *POOL, "name=lost", "runner.steps=20000", "-m", "seed=5,6"])
    wait_for(lambda: Path("runs/lost/seed=5/metrics.jsonl").exists())
    os.kill(record("lost/seed=5")["process"], signal.SIGKILL)
    wait_for(lambda: "seed=5: lost: its process was ended by SIGKILL" in Path("output").read_text())
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 143
    assert {row["job"]: row["status"] for row in rows("lost")} == {
        "seed=5": "lost",
        "seed=6": "stopped",
    }


def test_workers_save_and_end_with_the_command_that_started_them() -> None:
    child = forked([*TINY, *POOL, "name=orphan", "runner.steps=20000", "-m", "seed=5,6"])
    wait_for(lambda: all(Path(f"runs/orphan/seed={seed}/metrics.jsonl").exists() for seed in (5, 6)))
    os.kill(child, signal.SIGKILL)
    assert ended(child) == 137
    wait_for(lambda: all(record(f"orphan/seed={seed}")["status"] == "stopped" for seed in (5, 6)))


def test_two_commands_on_one_sweep_take_different_jobs() -> None:
    line = [*TINY, "name=shared", "runner.steps=60", "-m", "seed=0,1,2,3"]

    def slowly() -> None:
        from healsg.runner import TaskRunner

        tick = TaskRunner.tick

        def late(self: TaskRunner, *given: object) -> None:
            Path(f"at-work-{os.getpid()}").touch()
            wait_for(lambda: len(list(Path().glob("at-work-*"))) == 2)
            tick(self, *given)  # type: ignore[arg-type]

        TaskRunner.tick = late  # type: ignore[method-assign]

    children = [forked(line, slowly, f"output{i}") for i in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    trained = [record(f"shared/seed={seed}") for seed in range(4)]
    assert {run["process"] for run in trained} == set(children)
    assert not any(run.get("continued") for run in trained), "no job was trained twice"
    assert [row["status"] for row in rows("shared")] == ["finished"] * 4


def test_workers_share_the_devices() -> None:
    pool = LocalPool(workers=3, devices=[4, 7])
    assert [pool._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "7", "4"]


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (["hydra/launcher=joblib", "-m", "seed=0,1"], "hydra/launcher: Hydra's own are not used here; write launcher="),
        (["hydra/sweeper=optuna", "-m", "seed=0,1"], "hydra/sweeper: Hydra's own are not used here; write search=tpe"),
        ([*POOL, "launcher.workers=0", "-m", "seed=0,1"], "launcher.workers: 0 is out of range: >= 1"),
        ([*POOL, "seed=0"], "launcher: runs the jobs of a sweep; add -m"),
    ],
)
def test_a_mistake_is_one_line(given: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *given]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {answer}")
    assert told.count("\n") == 1
    assert not Path("runs").exists()
