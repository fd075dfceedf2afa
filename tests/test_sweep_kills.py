"""Sweeps: a bad job is its own affair, and a sweep that is killed or stopped ends where the undisturbed one ends."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from healsg.cli import main
from helpers import HANG, command
from test_signals import SIGNALS, check_stopped, ended, ending, forked, record, wait_for

OPTIONS = ["model=mlp", "data.batch_size=256", "runner.save_every=3", "quiet=true"]
BAD = """
import os, sys
from healsg.models.mlp import MLP

class Moody(MLP):
    def build(self, info):
        if self.width == 13:
            raise RuntimeError("width 13 brings bad luck")
        if self.width == 17:
            sys.exit("enough of this")
        return super().build(info)
"""


def table(name: str) -> list[dict[str, str]]:
    with (Path("runs") / name / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def endings(name: str) -> dict[str, tuple[Any, ...]]:
    """How each job of a sweep ended."""
    return {path.parent.name: ending(path.parent) for path in sorted(Path("runs", name).glob("*/run.json"))}


@pytest.mark.parametrize(("bad", "reason"), [(13, "RuntimeError: width 13 brings"), (17, "SystemExit: enough of this")])
def test_one_bad_of_five_jobs(bad: int, reason: str) -> None:
    Path("moody.py").write_text(BAD)
    line = ["train", *OPTIONS, "runner=debug", "model._target_=moody.Moody", "name=five", "-m"]
    assert ended(forked([*line, f"model.width=4,8,{bad},16,32"])) == 1
    rows = table("five")
    assert [row["status"] for row in rows] == ["finished", "finished", "failed", "finished", "finished"]
    assert rows[2]["job"] == f"model.width={bad}"
    assert rows[2]["reason"].startswith(reason)
    assert record(Path(f"runs/five/model.width={bad}"))["status"] == "failed"
    told = Path("output").read_text()
    assert f"model.width={bad}  failed" in told
    assert told.count("Traceback") == 1
    assert ended(forked([*line, f"model.width=4,8,{bad},16,32"])) == 1, "the same command tries it again, and it alone"
    assert [row["status"] for row in table("five")] == [row["status"] for row in rows]
    assert Path("output").read_text().count("is finished\n") == 4


def killed_until_finished(
    line: list[str], chance: random.Random, kills: int, seconds: float, signals: tuple[signal.Signals, ...]
) -> int:
    """Start the sweep again and again, and kill it at random times, as often as told; then let it end."""
    done = 0
    while done < kills:
        child = forked(line)
        time.sleep(chance.uniform(0.05, seconds))
        number = chance.choice(signals)
        os.kill(child, number)
        status = ended(child)
        done += status == 128 + number
        assert status in (0, 128 + number), Path("output").read_text()
        if status == 0:
            break
    assert ended(forked(line)) == 0
    return done


def check_as_undisturbed(jobs: str, epochs: int, kills: int, seconds: float, *signals: signal.Signals) -> None:
    """The kills are those of as many sweeps as it takes: one that is quick ends before it was killed so often."""
    line = ["train", *OPTIONS, f"runner.epochs={epochs}", "-m", jobs]
    began = time.monotonic()
    assert ended(forked([*line, "name=whole"])) == 0
    seconds = min(seconds, (time.monotonic() - began) * 0.7)
    chance, done = random.Random(18), 0
    while done < kills:
        shutil.rmtree("runs/killed", ignore_errors=True)
        done += killed_until_finished([*line, "name=killed"], chance, kills - done, seconds, signals)
        assert endings("killed") == endings("whole")
        assert table("killed") == table("whole")
        assert {row["status"] for row in table("killed")} == {"finished"}
        assert "Traceback" not in Path("output").read_text()
        assert not list(Path("runs/killed").glob("**/.*.tmp"))
        seconds = max(0.1, 0.8 * seconds)


def test_a_sweep_that_is_killed_ends_as_the_undisturbed_one() -> None:
    check_as_undisturbed("seed=0,1,2", 6, 2, 1.0, signal.SIGKILL)


@pytest.mark.parametrize("between", [False, True])
def test_a_signal_ends_the_job_and_the_sweep(between: bool) -> None:
    """Also one that comes between two jobs."""

    def prepare() -> None:
        from healsg.commands.sweep import run as sweep

        run_job, number = sweep.run_job, os.getpid()

        def job(*arguments: object) -> object:
            if between:
                row = run_job(*arguments)  # type: ignore[arg-type]
                os.kill(number, signal.SIGTERM)
                return row
            os.kill(number, signal.SIGTERM)
            return run_job(*arguments)  # type: ignore[arg-type]

        sweep.run_job = job  # type: ignore[assignment]

    line = ["train", *OPTIONS, "runner.epochs=2", "name=told", "-m", "seed=0,1"]
    child = forked(line, prepare)
    status = ended(child)
    check_stopped(status, signal.SIGTERM, Path("runs/told/seed=0") if not between else Path("nowhere"), "")
    assert status == 143
    assert [row["status"] for row in table("told")] == ["finished" if between else "stopped"]
    assert not Path("runs/told/seed=1").exists()
    assert main(line) == 0
    assert [row["status"] for row in table("told")] == ["finished"] * 2


@pytest.mark.soak
def test_twenty_kills_of_a_sweep(tmp_path: Path) -> None:
    """Real processes: six jobs, SIGKILL at random times of the whole."""
    options = [*OPTIONS, "runner.epochs=300", "-m", "method=sgd,adamw", "seed=0,1,2"]
    whole = command(*options, "name=whole")
    began = time.monotonic()
    assert subprocess.run(whole, cwd=tmp_path, check=False, stdout=subprocess.DEVNULL).returncode == 0
    seconds, chance, kills, sweeps = time.monotonic() - began, random.Random(20), 0, 0
    while kills < 20:
        line, status = command(*options, f"name=killed{sweeps}"), -1
        while status != 0:
            run = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL)
            if kills < 20:
                time.sleep(chance.uniform(1.0, max(8.0, seconds / 2)))
                run.kill()
            status = run.wait()
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
        assert endings(f"killed{sweeps}") == endings("whole")
        assert table(f"killed{sweeps}") == table("whole")
        sweeps += 1
    print(f"{kills} kills of {sweeps} sweeps, each of {seconds:.0f} s undisturbed")


@pytest.mark.soak
def test_signals_at_random_times_of_a_sweep() -> None:
    check_as_undisturbed("method=sgd,adamw", 40, 12, 3.0, *SIGNALS)


@pytest.mark.soak
def test_many_kills_of_forked_sweeps() -> None:
    check_as_undisturbed("seed=range(0,5)", 60, 40, 2.0, signal.SIGKILL)


def test_a_kill_between_the_jobs_files() -> None:
    """A job that has a folder and a lock and nothing else is begun by the next command."""
    line = ["train", *OPTIONS, "runner=debug", "name=told", "-m", "seed=0,1"]

    def prepare() -> None:
        from healsg.runs import acquire

        begin = acquire.start_run

        def stay(*arguments: Any) -> Any:
            if Path("once").exists():
                Path("there").touch()
                time.sleep(2 * HANG)
            Path("once").touch()
            return begin(*arguments)

        acquire.start_run = stay

    child = forked(line, prepare)
    wait_for(Path("there").exists)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == 137
    assert [path.name for path in Path("runs/told/seed=1").iterdir()] == [".lock"]
    assert main(line) == 0
    assert [row["status"] for row in table("told")] == ["finished"] * 2
