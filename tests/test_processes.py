"""``runner.processes``: what one command starts by itself. Long ones are of the soak; see also test_distributed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from healsg.cli import main
from healsg.commands.launch import processes
from healsg.config.compose import Composer
from healsg.errors import ConfigError
from healsg.runs.folder import RunFolder
from helpers import HANG, REPOSITORY, record, wait_for

OPTIONS = ["data=digits", "model.width=4", "runner.epochs=2", "quiet=true"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "train.py"), *arguments]


def finished(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == status, done.stderr
    return done


def test_a_launcher_and_the_setting_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = Composer().compose(["data=digits", "runner.processes=3"])
    assert processes.process_count(composed) == 3
    monkeypatch.setattr(processes.distributed, "processes", lambda: processes.distributed.Parallel(0, 2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"^runner\.processes: is 3, but a launcher such as torchrun has started 2$"):
        processes.process_count(composed)
    assert processes.process_count(Composer().compose(["data=digits", "runner.processes=2"])) == 1
    assert processes.process_count(Composer().compose(["data=digits"])) == 1


@pytest.mark.parametrize("recorded", [2, None])
def test_a_run_goes_on_with_the_number_that_it_had(recorded: int | None, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.note(processes=recorded)
    asked = processes.process_count(Composer().compose(["data=digits"]), folder)
    assert asked == (recorded or 1)
    assert processes.process_count(Composer().compose(["data=digits", "runner.processes=1"]), folder) == 1


def test_mistakes_start_no_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "become_agent", lambda *given: pytest.fail("an agent was started"))
    assert main(["train", "data=digits", "runner.processes=0"]) == 2
    assert main(["train", "data=digits", "runner.processes=2", "model.widht=3"]) == 2
    lines = ["-m", "data=digits", "seed=0,1", "runner.processes=2", "launcher=local", "launcher.devices=[0]"]
    assert main(["train", *lines]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "error: runner.processes: 0 is out of range: >= 1"
    assert told[1].startswith("error: model.widht: ")
    assert told[2].startswith("error: launcher.devices: ")
    assert not Path("runs").exists()


@pytest.mark.soak
def test_every_command_starts_them(capsys: pytest.CaptureFixture[str]) -> None:
    """A run, a sweep one by one and in a pool: the same digests. ``verify`` with kills of all processes."""
    finished(*OPTIONS, "runner.processes=2", "name=alone")
    jobs = [*OPTIONS, "runner.processes=2", "seed=0,1", "-m"]
    finished(*jobs, "name=serial")
    finished(*jobs, "name=pool", "launcher=local")
    digest = record("alone")["digest"]
    assert record("alone")["processes"] == 2
    assert [record(f"{name}/seed=0")["digest"] for name in ("serial", "pool")] == [digest, digest]
    assert record("serial/seed=1")["digest"] == record("pool/seed=1")["digest"] != digest
    assert main(["verify", *OPTIONS, "runner.processes=2", "runs=2", "kills=3"]) == 0
    assert "exact: 4 runs agree; 6 kills" in capsys.readouterr().out


@pytest.mark.soak
def test_one_that_is_killed_is_named_and_none_is_left() -> None:
    line = command(*OPTIONS, "runner.processes=2", "runner.epochs=500", "name=k")
    run = subprocess.Popen(line, stderr=subprocess.PIPE)
    wait_for(lambda: Path("runs/k/metrics.jsonl").exists() and Path("runs/k/metrics.jsonl").stat().st_size > 0)
    ranks = [int(word) for word in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    os.kill(ranks[1], signal.SIGKILL)
    _, errors = run.communicate(timeout=HANG)
    assert run.returncode == 1
    assert errors.decode().startswith("error: rank 1 is gone")
    assert errors.count(b"\n") == 1
    assert record("k")["status"] == "failed"
    assert not any(Path(f"/proc/{one}/exe").exists() for one in ranks)


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_sweep_saves_the_job_and_the_same_command_goes_on(number: int) -> None:
    line = [*OPTIONS, "runner.epochs=20", "runner.processes=2", "seed=0,1", "-m"]
    finished(*line, "name=whole")
    run = subprocess.Popen(command(*line, "name=cut"), stderr=subprocess.PIPE)
    wait_for(lambda: any(path.stat().st_size for path in Path("runs").glob("cut/*/metrics.jsonl")))
    run.send_signal(number)
    run.communicate(timeout=HANG)
    assert run.returncode == 128 + number
    assert record("cut/seed=0")["status"] == "stopped"
    finished(*line, "name=cut")
    for seed in (0, 1):
        assert record(f"cut/seed={seed}")["digest"] == record(f"whole/seed={seed}")["digest"]
