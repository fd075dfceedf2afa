"""What a script needs: a run whose output nobody reads finishes, and one whose directory changes keeps its files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from healsg.cli import main
from healsg.console import LastingStream, lasting_streams
from healsg.trainer import TaskTrainer
from helpers import HANG, command
from test_signals import ended, forked, record, started, wait_for

TINY = ["model=mlp", "model.width=8", "data.batch_size=512", "runner.epochs=2"]

# --- output ----------------------------------------------------------------------------------------------------------


def without_reader() -> None:
    """Standard output and standard error are a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    for number in (1, 2):
        os.dup2(writer, number)


def full() -> None:
    """They are a disk that is full."""
    disk = os.open("/dev/full", os.O_WRONLY)
    for number in (1, 2):
        os.dup2(disk, number)


def closed() -> None:
    """They are closed, as by ``>&- 2>&-``; Python has None for them then."""
    for number in (1, 2):
        os.close(number)
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


def revoked() -> None:
    """Their descriptors are closed under the streams, as by a library."""
    for number in (1, 2):
        os.close(number)


OUTPUTS = [without_reader, full, closed, revoked]

PARTS = """
from healsg import BasicTask

class Talkative(BasicTask):
    def run_epoch(self):
        print("printed by the task", flush=True)
        return super().run_epoch()
"""


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_run_whose_output_is_lost_finishes(output: Callable[[], None]) -> None:
    Path("parts.py").write_text(PARTS)
    assert ended(forked(["train", *TINY, "name=run", "task._target_=parts.Talkative"], output)) == 0
    made = record(Path("runs/run"))
    assert (made["status"], made["reason"]) == ("finished", None)
    assert not list(Path("runs/run/checkpoints").glob(".*"))
    assert b"epoch" not in Path("runs/run/.lock").read_bytes(), "no file has taken the place of the output"


@pytest.mark.parametrize("output", [without_reader, closed])
def test_a_sweep_whose_output_is_lost_trains_all_jobs(output: Callable[[], None]) -> None:
    assert ended(forked(["train", *TINY, "runner=debug", "-m", "seed=0,1,2", "name=sweep"], output)) == 0
    assert [record(Path(f"runs/sweep/seed={seed}"))["status"] for seed in range(3)] == ["finished"] * 3
    assert Path("runs/sweep/sweep.csv").is_file()


def test_a_failure_whose_output_is_lost_is_a_failure_still() -> None:
    assert ended(forked(["train", *TINY, "seed=x"], without_reader)) == 2


def test_an_answer_that_cannot_be_written_is_told() -> None:
    """A reader that has gone has seen enough; a full disk lacks what was asked for."""
    assert ended(forked(["train", *TINY, "name=run"])) == 0
    assert ended(forked(["eval", "run"], without_reader)) == 0
    assert ended(forked(["eval", "run"], closed)) == 0

    def full_disk() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    assert ended(forked(["eval", "run"], full_disk)) == 1
    last = Path("output").read_text().splitlines()[-1]
    assert last == "error: standard output: cannot be written (No space left on device)"


def test_a_real_process_without_output_ends_with_its_status() -> None:
    """To the interpreter's own end, which flushes what is left."""
    line = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", *command(*TINY, "runner=debug", "name=closed")]
    assert subprocess.run(line, check=False, timeout=120).returncode == 0
    assert record(Path("runs/closed"))["status"] == "finished"
    with subprocess.Popen(command(*TINY, "runner=debug", "name=piped"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(120) == 0
    assert record(Path("runs/piped"))["status"] == "finished"


def test_characters_that_the_output_lacks_end_no_run(tmp_path: Path) -> None:
    with (tmp_path / "told").open("w", encoding="ascii") as file:
        stream = LastingStream(file)
        assert stream.write("größe: 图\n") == 9
        stream.flush()
    assert (tmp_path / "told").read_text() == "gr??e: ?\n"


def test_streams_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with lasting_streams() as output:
        print("shown")
        output.check()
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "shown\n"


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_run_in_the_background_of_a_script_ignores_ctrl_c(tmp_path: Path) -> None:
    """A shell without job control starts ``command &`` with SIGINT ignored; SIGTERM stops it, saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = started(tmp_path, "name=run", "runner.epochs=100000", "quiet=true")
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    lines = tmp_path / "runs/run/metrics.jsonl"
    wait_for(lambda: lines.exists() and lines.read_text().count("\n") > 2)
    seen = lines.read_text().count("\n")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
    wait_for(lambda: lines.read_text().count("\n") > seen + 2)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=HANG)[0]
    assert process.returncode == 143, told
    assert record(tmp_path / "runs/run")["reason"] == "stopped by SIGTERM"


# --- the current directory -------------------------------------------------------------------------------------------

WANDERING = """
import os, shutil, tempfile
from healsg import BasicTask, TaskData

def wander():
    place = tempfile.mkdtemp(dir=os.environ["WANDER"])
    os.chdir(place)
    if os.environ.get("REMOVED"):
        os.rmdir(place)

class Wandering(BasicTask):
    def __init__(self, **parts):
        super().__init__(**parts)
        if self.args.where == "the constructor":
            wander()

    def build_dataloader(self):
        if self.args.where == "the loaders":
            wander()
        return super().build_dataloader()

    def run_epoch(self):
        if self.args.where == "an epoch":
            wander()
        return super().run_epoch()
"""
WHERE = ["the constructor", "the loaders", "an epoch"]


def wandering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, removed: bool) -> Path:
    """A project whose task changes the current directory; where to."""
    Path("wandering.py").write_text(WANDERING)
    rows = "".join(f"{i % 7},{i % 3},{'ab'[i % 2]}\n" for i in range(60))
    Path("table.csv").write_text("x,y,label\n" + rows)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "wandering", raising=False)
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.setenv("WANDER", str(away))
    monkeypatch.setenv("REMOVED", "yes" if removed else "")
    return away


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("where", WHERE)
def test_a_task_may_change_the_current_directory(
    where: str, removed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    away = wandering(monkeypatch, tmp_path, removed)
    own = ["data=csv", "data.file=table.csv", "data.target=label", "model=mlp", "model.width=4", "runner.epochs=2"]
    first = TaskTrainer.compose(*own, "quiet=true", "name=first").train()
    more = ["task._target_=wandering.Wandering", f"+args.where='{where}'", "init_from=first", "logger=tensorboard"]
    trainer = TaskTrainer.compose(*own, *more, "quiet=true", "name=second")
    result = trainer.train()
    assert (result["status"], Path(result["folder"])) == ("finished", tmp_path / "runs/second")
    assert Path.cwd() == tmp_path, "the code after the run finds itself where it was"
    assert {"tensorboard", "train.log", "report.html", "metrics.jsonl"} <= {
        path.name for path in Path("runs/second").iterdir()
    }
    assert trainer.evaluate("val")["acc"] == pytest.approx(result["best"]["value"])
    assert first["digest"] != result["digest"]
    assert not [path for path in away.rglob("*") if not path.is_dir()]


def test_each_job_of_a_sweep_begins_where_the_sweep_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    away = wandering(monkeypatch, tmp_path, removed=False)
    own = ["data=csv", "data.file=table.csv", "data.target=label", "model=mlp", "model.width=4", "runner.epochs=2"]
    own += ["task._target_=wandering.Wandering", "+args.where='the loaders'", "name=sweep"]
    assert main(["train", *own, "-m", "seed=0,1"]) == 0
    assert [record(Path(f"runs/sweep/seed={seed}"))["status"] for seed in (0, 1)] == ["finished"] * 2
    assert Path("runs/sweep/sweep.csv").is_file()
    assert not [path for path in away.rglob("*") if not path.is_dir()]


def test_a_teacher_is_found_from_where_the_run_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandering(monkeypatch, tmp_path, removed=True)
    own = ["model=mlp", "model.width=8", "runner=debug", "quiet=true"]
    TaskTrainer.compose(*own, "name=teacher").train()
    task = ["task._target_=wandering.Wandering", "+args.where='the loaders'"]
    result = TaskTrainer.compose(*own, *task, "method=kd", "method.teacher=teacher", "name=student").train()
    assert result["status"] == "finished"


def removed_folder(tmp_path: Path) -> Callable[[], None]:
    def prepare() -> None:
        place = tmp_path / "to be removed"
        place.mkdir()
        os.chdir(place)
        os.environ["PWD"] = str(place)
        shutil.rmtree(place)

    return prepare


def test_a_run_goes_on_from_a_directory_that_was_removed(tmp_path: Path) -> None:
    assert ended(forked(["train", *TINY, "name=run"])) == 0
    run, gone = str(tmp_path / "runs/run"), removed_folder(tmp_path)
    assert ended(forked(["resume", run, "runner.epochs=3"], gone)) == 0, Path("output").read_text()
    assert record(Path("runs/run"))["status"] == "finished"
    assert ended(forked(["eval", run], gone, "evaluated")) == 0
    assert "acc" in json.loads(Path("evaluated").read_text())["metrics"]
    assert not (tmp_path / "to be removed").exists()


def test_a_run_from_a_directory_that_was_removed_is_refused(tmp_path: Path) -> None:
    assert ended(forked(["train", *TINY], removed_folder(tmp_path))) == 2
    assert Path("output").read_text() == "error: the current directory has been removed; change to one that exists\n"
    assert not (tmp_path / "to be removed").exists()


def test_a_start_that_is_refused_removes_no_folder_of_ours(tmp_path: Path) -> None:
    """What it made itself, ``runs/`` included, goes; the empty directory in which it was started stays."""
    assert main(["train", *TINY, "task._target_=healsg.model.TaskModel", "name=run"]) == 2
    assert list(tmp_path.iterdir()) == []
