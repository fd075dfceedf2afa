"""``launcher=submitit``: jobs that a scheduler runs, with the digests of a serial sweep."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from healsg.cli import main
from healsg.launchers import submitit as launcher
from healsg.launchers.submitit import SubmititLauncher, Submitted
from healsg.sweeps.launcher import LOST
from helpers import ended, forked, record, wait_for

TINY = ["train", "model=mlp", "model.width=8", "data.batch_size=256", "quiet=true", "runner.steps=20"]
LOCAL = ["launcher=submitit", "launcher.executor=local", "launcher.workers=2"]


class Job:
    """A job that ends after some looks at it."""

    job_id = "7"

    def __init__(self, submitted: Submitted, looks: int, failure: str) -> None:
        self.submitted = submitted
        self.looks = looks
        self.failure = failure

    def done(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def result(self) -> dict[str, Any]:
        if self.failure:
            raise RuntimeError(f"Traceback\n{self.failure}")
        return {"status": "finished", "exit": 0, "job": self.submitted.order["job"]}


class Executor:
    """Counts how many of its jobs were running at once."""

    def __init__(self, failure: str = "") -> None:
        self.jobs: list[Job] = []
        self.most = 0
        self.failure = failure

    def submit(self, submitted: Submitted) -> Job:
        self.jobs.append(Job(submitted, 1 + len(self.jobs) % 2, self.failure))
        self.most = max(self.most, sum(job.looks >= 0 for job in self.jobs))
        return self.jobs[-1]


Make = Callable[..., tuple[SubmititLauncher, Executor]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """A launcher with an executor that only counts."""
    monkeypatch.setattr(launcher, "find_spec", lambda name: object())
    monkeypatch.setattr(launcher, "_POLL", 0.0)

    def made(failure: str = "", **given: Any) -> tuple[SubmititLauncher, Executor]:
        executor = Executor(failure)
        monkeypatch.setattr(SubmititLauncher, "_executor", lambda self, sweep: executor)
        return SubmititLauncher("local", **given), executor

    return made


ORDERS = [{"name": "s", "job": f"seed={seed}"} for seed in range(5)]


def test_no_more_jobs_are_submitted_at_once_than_there_are_workers(make: Make) -> None:
    pool, executor = make(workers=2)
    found = dict(pool.results(ORDERS, lambda: None))
    assert {place: answer["job"] for place, answer in found.items()} == {n: f"seed={n}" for n in range(5)}
    assert executor.most == 2


def test_a_lost_job_is_a_row_with_its_reason(make: Make) -> None:
    pool, _ = make("node failed")
    answer = dict(pool.results(ORDERS[:1], lambda: None))[0]
    assert (answer["status"], answer["reason"]) == (LOST, "job 7: node failed; the same command continues it")


def test_a_command_that_is_left_leaves_the_jobs(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    pool, executor = make(workers=3)
    signals = iter([None, signal.SIGINT])
    assert list(pool.results(ORDERS, lambda: next(signals))) == []
    assert len(executor.jobs) == 3
    assert capsys.readouterr().out == "3 jobs continue without this command; the same command collects them\n"


def test_without_submitit_the_install_line_is_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    assert main([*TINY, *LOCAL, "-m", "seed=0,1"]) == 2
    assert capsys.readouterr().err == "error: launcher: needs submitit; pip install 'healsg[submitit]'\n"


@pytest.mark.soak
def test_jobs_of_submitit_have_the_digests_of_one_process() -> None:
    pytest.importorskip("submitit")
    jobs = ["-m", "seed=0,1,2"]
    assert main([*TINY, "name=one", *jobs]) == 0
    assert main([*TINY, "name=jobs", *LOCAL, *jobs]) == 0
    for seed in range(3):
        assert record(f"jobs/seed={seed}")["digest"] == record(f"one/seed={seed}")["digest"]


@pytest.mark.soak
def test_a_job_whose_machine_is_taken_away_saves_and_goes_on_when_it_is_queued_again() -> None:
    """submitit's own signal, as Slurm sends it before a job is preempted; its local executor does not queue again, so
    that the same command does."""
    pytest.importorskip("submitit")
    line = [*TINY, "runner.steps=4000", "-m", "seed=5,6"]
    assert main([*line, "name=whole"]) == 0
    child = forked([*line, *LOCAL, "name=cut"])
    metrics = Path("runs/cut/seed=5/metrics.jsonl")
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0)
    worker = record("cut/seed=5")["process"]
    submitted = int(Path(f"/proc/{worker}/stat").read_text().split()[3])
    os.kill(submitted, signal.SIGUSR2)
    wait_for(lambda: record("cut/seed=5")["status"] == "stopped")
    ended(child)
    assert main([*line, *LOCAL, "name=cut"]) == 0
    assert record("cut/seed=5")["digest"] == record("whole/seed=5")["digest"]
    assert json.loads(Path("runs/cut/seed=5/run.json").read_text())["continued"]
