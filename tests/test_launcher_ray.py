"""``launcher=ray``: jobs as tasks of a cluster, with the digests of a serial sweep."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from healsg.cli import main
from healsg.launchers import ray as launcher
from healsg.launchers.ray import RayLauncher
from healsg.sweeps.launcher import LOST
from helpers import command, record, wait_for

TINY = ["train", "model=mlp", "model.width=8", "data.batch_size=256", "quiet=true", "runner.steps=20"]
ORDERS = [{"name": "s", "job": f"seed={seed}"} for seed in range(5)]


class Cluster:
    """What the launcher uses of Ray, without processes. A task ends at the second look at it.

    Args:
        failure: what a task raises; nothing where it is empty.
    """

    def __init__(self, failure: str = "") -> None:
        self.failure = failure
        self.cancelled: list[object] = []
        self.looks: dict[object, int] = {}
        self.orders: dict[object, Any] = {}
        self.most = 0

    def remote(self, **options: Any) -> Any:
        assert options == {"max_retries": 0, "num_gpus": 1}
        return lambda function: SimpleNamespace(remote=self.begin)

    def begin(self, order: Any, folder: str) -> object:
        assert folder == str(Path.cwd())
        reference = object()
        self.orders[reference] = order
        return reference

    def wait(self, references: list[object], **options: Any) -> tuple[list[object], list[object]]:
        self.most = max(self.most, len(references))
        for reference in references:
            self.looks[reference] = self.looks.get(reference, 0) + 1
        ready = [reference for reference in references if self.looks[reference] > 1][:1]
        return ready, []

    def get(self, reference: object) -> Any:
        if self.failure or reference in self.cancelled:
            raise RuntimeError(f"Traceback\n  {self.failure}")
        return {"status": "finished", "exit": 0, "job": self.orders[reference]["job"]}

    def init(self, *given: Any, **options: Any) -> None:
        assert given == (None,)
        assert options["num_cpus"] == 2

    def cancel(self, reference: object, force: bool) -> None:
        self.cancelled.append(reference)

    def shutdown(self) -> None:
        self.looks.clear()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(launcher, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "ray", made)  # type: ignore[arg-type]
    return made


def test_tasks_give_their_answers_and_no_more_run_at_once_than_asked(cluster: Cluster) -> None:
    pool = RayLauncher(workers=2, options={"num_gpus": 1})
    found = dict(pool.results(ORDERS, lambda: None))
    assert {place: answer["job"] for place, answer in found.items()} == {n: f"seed={n}" for n in range(5)}
    assert cluster.most == 2
    cluster.failure = "node died"
    answer = dict(pool.results(ORDERS[:1], lambda: None))[0]
    assert (answer["status"], answer["reason"]) == (LOST, "node died; the same command continues it")
    pool.close()


def test_a_stop_reaches_the_tasks_and_begins_no_other(cluster: Cluster) -> None:
    signals = iter([None, signal.SIGINT])
    pool = RayLauncher(workers=2, options={"num_gpus": 1})
    found = dict(pool.results(ORDERS, lambda: next(signals)))
    assert found == {place: {"status": "stopped", "exit": 130} for place in (0, 1)}


def test_without_ray_the_install_line_is_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    assert main([*TINY, "launcher=ray", "-m", "seed=0,1"]) == 2
    assert capsys.readouterr().err == "error: launcher: needs ray; pip install 'healsg[ray]'\n"


@pytest.mark.soak
def test_jobs_of_a_local_cluster_have_the_digests_of_one_process() -> None:
    pytest.importorskip("ray")
    assert main([*TINY, "name=one", "-m", "seed=0,1,2"]) == 0
    assert main([*TINY, "name=jobs", "launcher=ray", "-m", "seed=0,1,2"]) == 0
    for seed in range(3):
        assert record(f"jobs/seed={seed}")["digest"] == record(f"one/seed={seed}")["digest"]


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_stopped_or_killed_goes_on_with_its_jobs(number: int) -> None:
    pytest.importorskip("ray")
    line = [*TINY, "runner.steps=12000", "-m", "seed=5,6"]
    assert main([*line, "name=whole"]) == 0
    child = subprocess.Popen([*command(), *line[1:], "launcher=ray", "name=cut"])  # Ray does not survive a fork
    metrics = Path("runs/cut/seed=5/metrics.jsonl")
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, 240)
    child.send_signal(number)
    child.wait(120)
    trains = Path(f"/proc/{record('cut/seed=5')['process']}/exe")
    wait_for(lambda: not trains.exists(), 120)
    assert record("cut/seed=5")["status"] == ("running" if number == signal.SIGKILL else "stopped")
    assert main([*line, "launcher=ray", "name=cut"]) == 0
    assert record("cut/seed=5")["digest"] == record("whole/seed=5")["digest"]
