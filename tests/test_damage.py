"""What lies beside a run's checkpoints is damaged or lost: noticed at the start, said in a line, and gone on from."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from healsg import TaskTrainer
from healsg.errors import RunError
from healsg.runs import checkpoint
from healsg.runs.folder import RunFolder
from healsg.runs.metrics_log import MetricsLog, recovered
from healsg.runs.restoring import resumable
from helpers import at_saves, copies, lines, record, train

OPTIONS = ["model=mlp", "model.width=16", "runner.epochs=3", "data.batch_size=256", "method=adamw"]
OPTIONS += ["runner.save_every=2", "runner.log_every=2", "quiet=true"]
FIRST_IS_BEST = ["runner.monitor=val/loss", "runner.mode=max"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs that every test has copies of."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        copies(*OPTIONS, *FIRST_IS_BEST, at=[10, 15])
    return folder / "runs"


@pytest.fixture
def cut(made: Path) -> Path:
    """A run that was killed after its best epoch; ``runs/whole`` is the undisturbed one."""
    shutil.copytree(made, "runs")
    return Path("runs/cut10")


def resumed(run: Path, *options: str) -> dict[str, Any]:
    return TaskTrainer.load(str(run), *options).train()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # else its other name, of the same file, would be damaged too
    path.write_bytes(content)


# --- metrics.jsonl ---------------------------------------------------------------------------------------------------

LOST: dict[str, Callable[[bytes], bytes]] = {
    "one letter": lambda content: content.replace(b'{"event"', b'x"event"', 1),
    "a number": lambda content: content.replace(b'"step": 2', b'"step": 1', 1),
    "the seconds": lambda content: content.replace(b'"seconds": ', b'"seconds": 1', 1),
    "zeroed": lambda content: bytes(len(content)),
    "half zeroed": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "emptied": lambda content: b"",
    "shortened": lambda content: content[:100],
    "no text": lambda content: b"\xff\xfe" + content[2:],
    "deep": lambda content: b"[" * 100_000 + content,
}
MENDED: dict[str, Callable[[bytes], bytes]] = {
    "the ends of lines": lambda content: content.replace(b"\n", b"\r\n"),
    "doubled lines": lambda content: b"".join(line * 2 for line in content.splitlines(keepends=True)),
    "doubled whole": lambda content: content * 2,
    "empty lines": lambda content: content.replace(b"\n", b"\n\n"),
    "another line": lambda content: content.replace(b"\n", b'\n{"event": "epoch", "step": "no number"}\n', 1),
    "something between": lambda content: content.replace(b"\n", b"\n# a note\n", 1),
}


@pytest.mark.parametrize("damage", LOST)
def test_lines_that_were_changed_are_noticed_and_kept_aside(cut: Path, damage: str) -> None:
    path = cut / "metrics.jsonl"
    content = LOST[damage](path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(
        RunError, match=r"metrics\.jsonl: lines (were changed|are missing).*; resume\.force=true"
    ) as told:
        resumed(cut)
    assert "\n" not in str(told.value)
    assert resumed(cut, "resume.force=true")["digest"] == record("whole")["digest"]
    found, whole = lines(cut.name), lines("whole")
    if damage != "a number":  # a line that is whole in itself stays
        assert [row for row in whole if row in found] == found, "the lines that are whole, in their order"
    assert found[-2:] == whole[-2:]
    kept = cut / "metrics.jsonl.damaged"
    assert (kept.read_bytes() if kept.exists() else b"") == content


@pytest.mark.parametrize("damage", MENDED)
def test_lines_that_can_be_restored_are(cut: Path, damage: str) -> None:
    path = cut / "metrics.jsonl"
    path.write_bytes(MENDED[damage](path.read_bytes()))
    assert resumed(cut)["digest"] == record("whole")["digest"]
    assert lines(cut.name) == lines("whole")


def test_lines_that_are_lost_altogether(cut: Path) -> None:
    (cut / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"metrics\.jsonl: lines are missing, 0 of \d+ bytes are left"):
        resumed(cut)
    assert resumed(cut, "resume.force=true")["digest"] == record("whole")["digest"]
    after = [row for row in lines("whole") if row["step"] > 10 or (row["step"], row["event"]) == (10, "epoch")]
    assert lines(cut.name) == after
    assert not (cut / "metrics.jsonl.damaged").exists()


def test_each_damaged_file_is_kept(cut: Path) -> None:
    for number in ("", "1"):
        (cut / "metrics.jsonl").write_text("damaged")
        resumed(cut, "resume.force=true", "runner.max_time=0")
        assert (cut / f"metrics.jsonl.damaged{number}").read_text() == "damaged"


def test_only_whole_lines_up_to_the_save_are_recovered() -> None:
    rows = [json.dumps({"event": "step", "step": step}).encode() + b"\n" for step in range(5)]
    whole = b"".join(rows)
    assert recovered(whole, 4, 1000) == whole
    assert recovered(whole, 2, 1000) == b"".join(rows[:3])
    assert recovered(whole, 4, 2 * len(rows[0])) == b"".join(rows[:2])
    assert recovered(whole.replace(b'"step": 3', b'"step": true'), 4, 1000) == b"".join([*rows[:3], rows[4]])


@pytest.mark.parametrize("way", ["removed", "replaced", "renamed"])
def test_lines_that_are_taken_away_in_mid_run_are_written_again(cut: Path, way: str) -> None:
    def disturb(folder: Any, step: int) -> None:
        path = Path("runs/run/metrics.jsonl")
        if step == 6 and way == "renamed":
            path.rename(path.with_name("moved"))
        elif step == 6:
            path.unlink()
            if way == "replaced":
                path.write_text("something else")

    with at_saves(disturb, before=True):
        assert train(*OPTIONS, *FIRST_IS_BEST, "name=run")["status"] == "finished"
    assert lines("run") == lines("whole")
    assert "removed or replaced during the run" in Path("runs/run/train.log").read_text()


def test_lines_that_were_written_again_are_those_of_this_run_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics_log = MetricsLog(path)
    metrics_log.write({"event": "step", "step": 1})
    path.unlink()
    metrics_log.check()
    assert "removed or replaced" in caplog.text
    caplog.clear()
    file = path.stat().st_ino
    metrics_log.write({"event": "step", "step": 2})
    metrics_log.check()
    assert not caplog.text
    assert path.stat().st_ino == file
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [1, 2]
    metrics_log.close("stopped")


@pytest.mark.parametrize("change", ["emptied", "appended"])
def test_lines_that_are_changed_in_mid_run_end_it_in_a_line(change: str) -> None:
    def disturb(folder: Any, step: int) -> None:
        if step == 6:
            with Path("runs/run/metrics.jsonl").open("a") as file:
                file.truncate(0) if change == "emptied" else file.write("a note\n")

    changed = r"metrics\.jsonl: was changed during the run \(\d+ bytes where \d+"
    with at_saves(disturb, before=True), pytest.raises(RunError, match=changed):
        train(*OPTIONS, "name=run")
    assert train(*OPTIONS, "name=run", "resume.force=true")["status"] == "finished"
    assert all(json.loads(text) for text in Path("runs/run/metrics.jsonl").read_text().splitlines())


def test_a_journal_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    metrics_log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(3):
        metrics_log.write({"event": "step", "step": step})
    state = metrics_log.state_dict()
    metrics_log.write({"event": "step", "step": 3})
    metrics_log.close("stopped")
    other = MetricsLog(tmp_path / "metrics.jsonl")
    other.load_state_dict(state)
    assert other.state_dict() == state
    other.write({"event": "step", "step": 3})
    assert other.state_dict() == metrics_log.state_dict()
    other.close("finished")


# --- best.pt ---------------------------------------------------------------------------------------------------------

SPOILT: dict[str, Callable[[Path], object]] = {
    "damaged": flip,
    "lost": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "older": lambda path: shutil.copy("runs/early/checkpoints/best.pt", path),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_best_is_noticed_at_the_start(cut: Path, spoil: str) -> None:
    """With force the run goes on, and takes the best of the epochs that are left."""
    best = cut / "checkpoints/best.pt"
    if spoil == "older":
        early = Path(shutil.copytree(cut, "runs/early")) / "checkpoints/best.pt"
        state = checkpoint.load(early)
        state.pop("format")
        checkpoint.save(early, state | {"best": state["best"] | {"step": 1}})
    SPOILT[spoil](best)
    with pytest.raises(RunError, match=r"best\.pt: .*; resume\.force=true continues, and takes the best of the epochs"):
        resumed(cut)
    assert resumed(cut, "resume.force=true")["status"] == "finished"
    kept = checkpoint.load(best)
    assert kept["best"] == record(cut.name)["best"]
    assert kept["best"]["step"] >= 10
    assert record("whole")["best"]["step"] < 10  # type: ignore[index]


def test_a_best_that_is_lost_at_the_very_end_is_the_end(cut: Path) -> None:
    run = cut.with_name("cut15")
    flip(run / "checkpoints/best.pt")
    with pytest.raises(RunError, match=r"best\.pt: is damaged"):
        resumed(run)
    assert resumed(run, "resume.force=true")["status"] == "finished"
    assert checkpoint.load(run / "checkpoints/best.pt")["model"]


def test_a_kill_between_best_and_last_is_no_damage() -> None:
    """``best.pt`` is of an epoch that the run comes to again."""
    options = [*OPTIONS, "runner.monitor=lr", "runner.mode=min"]
    copies(*options, at=[10, 12, 15])
    for later in ("cut12", "cut15", "whole"):
        run = Path(shutil.copytree("runs/cut10", f"runs/torn-{later}"))
        shutil.copy(f"runs/{later}/checkpoints/best.pt", run / "checkpoints/best.pt")
        assert resumed(run)["digest"] == record("whole")["digest"]
        assert checkpoint.load(run / "checkpoints/best.pt")["best"] == record("whole")["best"]
    run = Path(shutil.copytree("runs/cut10", "runs/changed"))
    shutil.copy("runs/cut15/checkpoints/best.pt", run / "checkpoints/best.pt")
    resumed(run, "method.label_smoothing=0.1", "resume.force=true")
    told = "with other settings the run comes to no such epoch again"
    assert "the best of the epochs to come is taken" in (run / "train.log").read_text(), told


# --- last.pt and previous.pt -----------------------------------------------------------------------------------------


def broken_writes(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let every write after so many of a checkpoint's fail, as on a full disk."""
    put, done = checkpoint._Hashed._put, [0]

    def full(self: Any, content: bytes | memoryview) -> None:
        done[0] += 1
        if done[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, content)

    monkeypatch.setattr(checkpoint._Hashed, "_put", full)


@pytest.mark.parametrize("trained", [True, False])
def test_a_run_that_has_trained_goes_on_from_its_first_state_if_no_later_one_is_left(
    tmp_path: Path, trained: bool
) -> None:
    """It is then still bound to its settings and data; one that has made no update begins anew."""
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    folder.note(trained=trained)
    first = {"model": {}, "runner": {"step": 0, "monitor": {"best": None}}}
    checkpoint.save(folder.previous, first)
    folder.last.write_bytes(b"damaged")
    path, state = resumable(folder)
    assert path == folder.previous
    assert (state is not None) is trained


@pytest.mark.parametrize("after", [0, 3, 10**6])
def test_the_last_good_state_outlives_a_damaged_one_and_a_full_disk(
    cut: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cut / "checkpoints"
    flip(store / "last.pt")
    good = (store / "previous.pt").read_bytes()
    with monkeypatch.context() as patch:
        broken_writes(patch, after)
        if after < 10**6:
            with pytest.raises(RunError, match="cannot be written"):
                resumed(cut)
            assert (store / "previous.pt").read_bytes() == good
        else:
            assert resumed(cut, "runner.max_time=0")["status"] == "stopped"
            assert (
                checkpoint.load(store / "last.pt")["runner"]["step"]
                > checkpoint.load(store / "previous.pt")["runner"]["step"]
            )
    assert resumed(cut, "runner.max_time=null")["digest"] == record("whole")["digest"]


def test_a_last_that_somebody_exchanged_in_mid_run_does_not_become_previous() -> None:
    last, previous = (Path(f"runs/run/checkpoints/{name}.pt") for name in ("last", "previous"))

    def exchange(folder: Any, step: int) -> None:
        if step:
            assert checkpoint.load(last)["runner"]["step"] == step
        if step > 2:
            assert checkpoint.load(previous)["runner"]["step"] < step
        if step == 4:
            last.unlink()
            last.write_bytes(b"something else")

    with at_saves(exchange):
        assert train(*OPTIONS, "name=run")["status"] == "finished"


def test_a_file_reaches_the_disk_before_its_name_and_the_name_before_the_save_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The literal order of calls: write and fsync the file, rename it, fsync the folder."""
    calls = list[str]()
    sync, replace = os.fsync, Path.replace

    def watched_sync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        calls.append(f"fsync {name.split(f'.{os.getpid()}')[0]}")
        sync(descriptor)

    def watched_replace(self: Path, target: Path) -> Path:
        calls.append(f"rename to {Path(target).name}")
        return replace(self, target)

    folder = Path("checkpoints")
    folder.mkdir()
    last, previous = folder / "last.pt", folder / "previous.pt"
    checkpoint.save(last, {"model": {}})
    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    checkpoint.keep_previous(last, previous)
    checkpoint.save(last, {"model": {}, "step": 2})
    order = ["rename to previous.pt", "fsync .last.pt", "rename to last.pt", "fsync checkpoints"]
    assert calls == order
    calls.clear()
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no hard links")))
    checkpoint.keep_previous(last, previous)
    assert calls == ["fsync .previous.pt", "rename to previous.pt"]
    assert previous.read_bytes() == last.read_bytes()


def test_a_run_brings_its_lines_and_its_checkpoints_to_the_disk_in_this_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each save, literally: the lines, then best.pt and last.pt, each written, renamed and its folder synced."""
    calls = list[str]()
    sync, replace = os.fsync, Path.replace

    def watched_sync(descriptor: int) -> None:
        calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name.split(f'.{os.getpid()}')[0]}")
        sync(descriptor)

    def watched_replace(self: Path, target: Path) -> Path:
        calls.append(f"rename to {Path(target).name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    saves = list[list[str]]()

    def saved(folder: Any, step: int) -> None:
        saves.append([call for call in calls if "pt" in call or call.split()[1] in ("metrics.jsonl", "checkpoints")])
        calls.clear()

    with at_saves(saved):
        train(*OPTIONS, "name=run")
    best = ["fsync .best.pt", "rename to best.pt", "fsync checkpoints"]
    last = ["rename to previous.pt", "fsync .last.pt", "rename to last.pt", "fsync checkpoints"]
    assert saves[0] == ["fsync metrics.jsonl", *last[1:]], "of step 0, before which there is none"
    for save in saves[1:]:
        assert save == ["fsync metrics.jsonl", *(best if "rename to best.pt" in save else []), *last]
    assert sum("rename to best.pt" in save for save in saves) >= 1
    assert len(saves) >= 8


def test_a_kill_between_two_files_of_a_save_leaves_no_name_too_many(tmp_path: Path) -> None:
    """``previous.pt`` is ``last.pt`` already, and the renaming of one name of a file to another does nothing."""
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    checkpoint.save(last, {"model": {}})
    for _ in range(2):
        checkpoint.keep_previous(last, previous)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
