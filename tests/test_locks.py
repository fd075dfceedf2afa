"""One process trains in a folder at a time: the others are refused at once, and a killed one leaves no lock."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from healsg.cli import main
from healsg.errors import BusyError, RunError
from healsg.runs import acquire
from healsg.runs.folder import RunFolder
from healsg.system import ProcessLock
from helpers import HANG, command, healsg
from test_signals import ended, ending, forked, record, undisturbed, wait_for

OPTIONS = ["model=mlp", "model.width=8", "data.batch_size=512", "runner.epochs=2"]
LINE = [*OPTIONS, "name=run"]
FOLDER = Path("runs/run")


NOTING = """
import os, sys

class Noting:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            open(os.path.join(os.path.dirname(__file__), str(os.getpid())), "w").close()

sys.meta_path.insert(0, Noting)
"""
"""What Python imports as it starts: a process that imports torch leaves a file named by its number."""


def race(lines: list[list[str]], folder: Path) -> list[tuple[int, str, bool]]:
    """Start real processes at the same moment; of each its status, its errors, and whether it imported torch."""
    noting = folder / "noting"
    noting.mkdir(exist_ok=True)
    (noting / "sitecustomize.py").write_text(NOTING)
    path = os.pathsep.join(filter(None, (str(noting), os.environ.get("PYTHONPATH"))))
    runs = []
    for number, line in enumerate(lines):
        with (folder / f"err{number}").open("wb") as file:
            environment = {**os.environ, "PYTHONPATH": path}
            runs.append(subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=file, cwd=folder, env=environment))
    return [
        (run.wait(), (folder / f"err{number}").read_text(), (noting / str(run.pid)).exists())
        for number, run in enumerate(runs)
    ]


def check_race(lines: list[list[str]], folder: Path, refusal: str = "is being trained by ") -> None:
    """Exactly one of them trained, all of it; the others had one line, and did not import torch for it."""
    results = sorted(race(lines, folder))
    assert [status for status, _, _ in results] == [0] + [1] * (len(lines) - 1), results
    assert results[0][1:] == ("", True)
    for _, told, imported in results[1:]:
        assert told.startswith("error: runs/run: " + refusal), told
        assert told.count("\n") == 1
        assert not imported


def test_two_at_the_same_moment(tmp_path: Path) -> None:
    """Three of them, so that more than one loses."""
    check_race([command(*LINE)] * 3, tmp_path)
    assert record(FOLDER)["status"] == "finished"


@pytest.mark.parametrize("more", [[], ["fresh=true"]])
def test_two_children_at_the_same_moment(more: list[str]) -> None:
    def outlast() -> None:  # who trains does not end before the other was told
        from healsg.runner import TaskRunner

        fit = TaskRunner.fit

        def late(self: TaskRunner, *given: object) -> None:
            wait_for(lambda: any(file.stat().st_size for file in Path().glob("output?")))
            fit(self, *given)  # type: ignore[arg-type]

        TaskRunner.fit = late  # type: ignore[method-assign]

    children = [forked(["train", *LINE, "quiet=true", *more], outlast, f"output{i}") for i in range(2)]
    assert sorted(ended(child) for child in children) == [0, 1]
    told = "".join(Path(f"output{i}").read_text() for i in range(2))
    assert told.startswith("error: runs/run: is being trained by process ")
    assert told.count("\n") == 1
    assert ending(FOLDER) == undisturbed(*OPTIONS)


@pytest.fixture
def holder() -> int:
    """A run that stands still in the middle, and is there until it is killed."""

    def stay() -> None:
        from healsg.runner import TaskRunner

        tick = TaskRunner.tick

        def stuck(self: TaskRunner, task: object) -> None:
            tick(self, task)  # type: ignore[arg-type]
            Path("there").touch()
            time.sleep(2 * HANG)

        TaskRunner.tick = stuck  # type: ignore[method-assign]

    child = forked(["train", *LINE], stay)
    wait_for(Path("there").exists)
    return child


def test_every_other_way_in_is_refused_while_one_trains(holder: int, capsys: pytest.CaptureFixture[str]) -> None:
    others = [["train", *LINE], ["resume", "run"], ["train", *LINE, "fresh=true"], ["train", *LINE, "-m", "seed=0,1"]]
    before = sorted(path.name for path in Path("runs").iterdir())
    for other in [*others, ["train", *LINE, "resume.force=true"]]:
        assert main(other) in ({1, 2} if "-m" in other else {1}), other
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert f"is being trained by process {holder};" in told or "is one run; give the sweep another name" in told
    assert sorted(path.name for path in Path("runs").iterdir()) == before
    os.kill(holder, signal.SIGKILL)
    assert ended(holder) == 137
    assert record(FOLDER)["status"] == "running"
    assert main(["resume", "run"]) == 0, "the lock has ended with its process"
    assert ending(FOLDER) == undisturbed(*OPTIONS)


def test_a_sweep_and_a_sweep_of_the_same_name(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", *LINE, "quiet=true", "-m", "seed=0,1"]
    child = forked(line, lambda: _pause_between_jobs())
    wait_for(Path("between").exists)
    assert main(["train", *LINE]) == 1, "no run can take its place"
    assert "holds files that are not of a run" in capsys.readouterr().err
    assert main(line) == 0, "the other command takes the jobs that are left"
    os.kill(child, signal.SIGKILL)
    assert ended(child) == 137
    assert main(line) == 0


def _pause_between_jobs() -> None:
    from healsg.commands.sweep import run as sweep

    run_job = sweep.run_job

    def pausing(*arguments: object) -> object:
        row = run_job(*arguments)  # type: ignore[arg-type]
        Path("between").touch()
        time.sleep(2 * HANG)
        return row

    sweep.run_job = pausing  # type: ignore[assignment]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(["train", *LINE]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: runs/run: cannot be locked on this file system ({os.strerror(number)});")
    assert told.count("\n") == 1


def test_a_file_in_the_place_of_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    FOLDER.touch()
    assert main(["train", *LINE]) == 1
    assert capsys.readouterr().err.startswith("error: runs/run: is no folder;")
    FOLDER.unlink()
    Path("runs").rmdir()
    Path("runs").touch()
    assert main(["train", *LINE]) == 1
    assert capsys.readouterr().err.startswith("error: runs")


def test_a_lock_whose_file_its_last_holder_has_just_removed_is_taken_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on the removed file would keep nobody else away."""
    take, folder = ProcessLock.acquire, RunFolder(FOLDER)
    removed = list[Path]()

    def removed_before(self: ProcessLock, wait: bool = False) -> None:
        if not removed:
            removed.append(FOLDER / ".lock")
            removed[0].unlink()
        take(self, wait)

    monkeypatch.setattr(ProcessLock, "acquire", removed_before)
    folder.lock()
    assert removed[0].exists()
    with pytest.raises(BusyError, match="is being trained by"):
        RunFolder(FOLDER).lock()
    folder.unlock()


def test_a_child_that_a_killed_run_had_just_begun_is_waited_for() -> None:
    """It holds the lock until it is a program of its own."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    FOLDER.mkdir(parents=True)
    with (FOLDER / ".lock").open("w") as left:
        fcntl.flock(left, fcntl.LOCK_EX)
        left.write(f"process {gone.pid}")
        left.flush()
        with pytest.raises(RunError, match=f"is being trained by process {gone.pid}"):
            RunFolder(FOLDER).lock(patience=0.1)
        threading.Timer(0.1, lambda: fcntl.flock(left, fcntl.LOCK_UN)).start()
        folder = RunFolder(FOLDER)
        folder.lock(patience=HANG)
        with pytest.raises(RunError, match=f"is being trained by process {os.getpid()}"):
            RunFolder(FOLDER).lock(patience=1e9)
        folder.unlock()


def test_many_threads_take_turns() -> None:
    """Locks, unlocks and folders that are taken away in between: one holder at a time, and never an error."""
    inside, most, refused, failures = [0], [0], [0], list[BaseException]()

    def take() -> None:
        for turn in range(150):
            folder = RunFolder(FOLDER)
            try:
                folder.lock()
            except RunError:
                refused[0] += 1
                continue
            except BaseException as error:
                failures.append(error)
                return
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1
            if turn % 3:
                folder.abandon()
            else:
                folder.unlock()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert most[0] == 1
    assert refused[0] < 600


def test_who_loses_a_fresh_start_leaves_the_winner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the old folder's being set aside and the new one's lock somebody else may take the name."""
    assert main(["train", *LINE, "quiet=true", "runner.max_time=0"]) == 0
    winner = RunFolder(FOLDER)
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if self == winner.path:
            winner.lock()
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renamed)
        assert main(["train", *LINE, "fresh=true"]) == 1
    assert (FOLDER / ".lock").exists()
    with pytest.raises(RunError, match="is being trained by"):
        RunFolder(FOLDER).lock()
    winner.unlock()
    old = RunFolder(Path("runs/run~1"))
    old.lock()
    old.unlock()
    assert acquire.changed(old, {})


# --- long counts -----------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_fifty_races(tmp_path: Path) -> None:
    """The same command twice; and, in every fifth, resume against train and two fresh starts."""
    assert subprocess.run(command(*LINE, "runner.max_time=0"), cwd=tmp_path, check=False).returncode == 0
    for number in range(50):
        lines = [command(*LINE, "fresh=true")] * 2
        if number % 5 == 3:
            begin = command(*LINE, "fresh=true", "runner.max_time=0")
            assert subprocess.run(begin, cwd=tmp_path, check=False).returncode == 0
            lines = [healsg("resume", "run", "runner.max_time=null"), command(*LINE)]
        results = sorted(race(lines, tmp_path))
        assert [status for status, _, _ in results] == [0, 1], (number, results)
        assert results[1][1].startswith("error: runs/run: is "), results
        assert results[1][1].count("\n") == 1
        assert not results[1][2], "it was refused before it imported torch"
        assert record(FOLDER)["status"] == "finished"
