"""A run folder from somebody else: links, FIFOs, devices and folders in the place of its files are never followed."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from healsg import TaskTrainer, safefiles
from healsg.cli import main
from healsg.datasets.published import files
from healsg.errors import DataError, RunError
from healsg.loggers.report import write_report
from healsg.loggers.tensorboard import TensorBoard
from healsg.loggers.wandb import Wandb
from healsg.runs.folder import RunFolder, weights_file, write_text

SETTINGS = ["model=mlp", "model.width=8", "runner.steps=4", "runner.save_every=1", "data.batch_size=256", "quiet=true"]
FILES = (
    *(".lock", "config.yaml", "run.json", "metrics.jsonl", "media.jsonl", "train.log", "report.html", "wandb.json"),
    *("trace.jsonl", "swanlab.json"),
    *("eval-test-best.json", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
)
FOLDERS = ("checkpoints", ".hydra", "wandb", "swanlab", "tensorboard", "media", "ledger")
COMMANDS: dict[str, list[str]] = {
    "resume": ["resume", "run", "runner.max_time=null"],
    "eval": ["eval", "run"],
    "diverge": ["diverge", "good", "run"],
    "train": ["train", *SETTINGS, "name=run"],
    "init_from": ["train", *SETTINGS, "name=other", "init_from=run"],
    "teacher": ["train", *SETTINGS, "name=other", "method=kd", "method.teacher=run"],
}


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped twice, so that it has ``last.pt``, ``previous.pt`` and ``best.pt``."""
    place, before = tmp_path_factory.mktemp("stopped"), Path.cwd()
    os.chdir(place)
    try:
        for _ in range(2):
            TaskTrainer.compose(*SETTINGS, "name=run", "runner.max_time=0").train()
    finally:
        os.chdir(before)
    run = place / "runs/run"
    shutil.copy(run / "checkpoints/last.pt", run / "checkpoints/best.pt")
    assert (run / "checkpoints/previous.pt").exists()
    return run


@pytest.fixture
def run(stopped: Path) -> Path:
    """A copy of it, in which every file of a run is there; and ``good``, another one."""
    folder = Path("runs/run")
    for copy in (folder, Path("runs/good")):
        shutil.copytree(stopped, copy)
    for name in FILES:
        if not (folder / name).exists():
            (folder / name).write_text("{}\n")
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    return folder


@pytest.fixture
def home() -> Path:
    """What belongs to the user, outside of all runs."""
    folder = Path("home")
    folder.mkdir()
    (folder / "thesis").write_text("years of work\n" * 100)
    return folder


def content(folder: Path) -> dict[str, Any]:
    """Every entry below a folder, with what it holds; links are not followed."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        kind = safefiles.kind_of(path)
        held: Any = path.read_bytes() if kind == safefiles.FILE else None
        if kind == safefiles.LINK:
            held = path.readlink()
        found[str(path.relative_to(folder))] = kind, held
    return found


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def socket_at(path: Path) -> None:
    """A socket; its address is relative, since one may have no more than some hundred bytes."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "link to a file": ("a symbolic link", lambda path, home: path.symlink_to((home / "thesis").resolve())),
    "link to a folder": ("a symbolic link", lambda path, home: path.symlink_to(home.resolve())),
    "link to nothing": ("a symbolic link", lambda path, home: path.symlink_to((home / "new").resolve())),
    "link to a device": ("a symbolic link", lambda path, home: path.symlink_to("/dev/zero")),
    "FIFO": ("a FIFO", lambda path, home: os.mkfifo(path)),
    "socket": ("a socket", lambda path, home: socket_at(path)),
}


def place(path: Path, kind: str, home: Path) -> str:
    """Put something odd under a name; what it is, in words."""
    clear(path)
    if kind == "folder":
        path.mkdir()
        return "a folder"
    if kind == "file":
        path.write_text("x")
        return "a regular file"
    KINDS[kind][1](path, home)
    return KINDS[kind][0]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_what_is_no_file_of_a_run_is_refused_by_name_before_anything_is_read_or_written(
    name: str, command: str, run: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [*KINDS, "file" if name in FOLDERS else "folder"]
    for kind in kinds if command in ("resume", "eval") else kinds[::4]:  # the others compose a configuration each time
        told = place(run / name, kind, home)
        before = content(Path())
        assert main(COMMANDS[command]) in (1, 2), kind
        line = capsys.readouterr().err
        wanted = safefiles.FOLDER if name in FOLDERS else safefiles.FILE
        assert f"{run / name}: is {told}, and not {wanted}" in line, kind
        assert line.count("\n") == 1, line
        assert content(Path()) == before, kind


@pytest.mark.parametrize("command", ["resume", "train"])
@pytest.mark.parametrize("name", safefiles.WRITTEN_IN_PLACE)
def test_a_hard_link_is_not_written_through(
    name: str, command: str, run: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clear(run / name)
    os.link(home / "thesis", run / name)
    before = content(Path())
    assert main(COMMANDS[command]) == 1
    assert f"{run / name}: has another name elsewhere (a hard link)" in capsys.readouterr().err
    assert content(Path()) == before


def test_hard_links_of_what_is_replaced_whole_keep_their_content(run: Path) -> None:
    """As in a copy made by ``cp -al``: files that are written in place are copied, all others may stay linked."""
    kept = Path("kept")
    kept.mkdir()
    for path in [run / "config.yaml", run / "run.json", run / "report.html", *(run / "checkpoints").iterdir()]:
        os.link(path, kept / path.name)
    before = content(kept)
    assert main(COMMANDS["resume"]) == 0
    assert content(kept) == before
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_a_run_folder_may_itself_be_reached_through_a_link(run: Path) -> None:
    Path("scratch").mkdir()
    run.rename("scratch/run")
    run.symlink_to(Path("scratch/run").resolve())
    assert main(COMMANDS["resume"]) == 0


def test_links_among_the_events_of_loggers_are_refused(run: Path, home: Path) -> None:
    for name in ("tensorboard/events", "wandb/run-1"):
        (run / name).symlink_to(home.resolve())
        with pytest.raises(RunError, match=name):
            safefiles.check_run_folder(run)
        (run / name).unlink()
    (run / "wandb/run-2").mkdir()
    (run / "wandb/latest-run").symlink_to("run-2")  # wandb's own
    safefiles.check_run_folder(run)


def test_loggers_write_into_no_linked_folder(run: Path, home: Path) -> None:
    for name, logger in (("tensorboard", TensorBoard.__new__(TensorBoard)), ("wandb", Wandb(mode="offline"))):
        place(run / name, "link to a folder", home)
        logger.flush_seconds = 10.0  # type: ignore[attr-defined]
        with pytest.raises(RunError, match=f"{name}: is a symbolic link"):
            logger.start(run, {})
    assert list(home.iterdir()) == [home / "thesis"]


def test_an_odd_id_of_wandb_reaches_no_command_that_is_shown(run: Path) -> None:
    from healsg.loggers.client import _known_id

    for odd in ('{"id": "; touch x #"}', '{"id": 5}', "[]", "{}", "", "[" * 10000):
        (run / "wandb.json").write_text(odd)
        assert _known_id(run / "wandb.json") is None
    (run / "wandb.json").write_text('{"id": "ab12-_"}')
    assert _known_id(run / "wandb.json") == "ab12-_"


def test_a_report_replaces_a_link_and_follows_none(run: Path, home: Path) -> None:
    before = content(home)
    for name in ("report.html", "metrics.jsonl", "run.json", "config.yaml"):
        place(run / name, "link to a file", home)
    page = write_report(run).read_text()
    assert content(home) == before
    assert "years of work" not in page
    assert safefiles.kind_of(run / "report.html") == safefiles.FILE


def test_a_planted_temporary_file_is_not_written_through(run: Path, home: Path) -> None:
    for name in ("run.json", "config.yaml", "checkpoints/last.pt", "checkpoints/previous.pt"):
        temporary = (run / name).with_name(f".{Path(name).name}.{os.getpid()}.tmp")
        temporary.symlink_to((home / "thesis").resolve())
    before = content(home)
    assert main(COMMANDS["resume"]) == 0
    assert content(home) == before


def test_a_job_of_a_sweep_is_no_link(run: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/all").mkdir()
    Path("runs/all/seed=1").symlink_to(home.resolve())
    before = content(home)
    assert main(["train", "-m", *SETTINGS, "seed=choice(1)", "name=all"]) == 1
    assert "runs/all/seed=1: is a symbolic link, and not a folder" in capsys.readouterr().err
    assert content(home) == before


def test_a_name_with_control_characters_is_shown_nowhere(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a\ntouch x\n#", "a\x1b[2Jb"):
        shutil.copytree(stopped, Path("runs") / name)
        assert main(["resume", f"runs/{name}"]) == 1
        line = capsys.readouterr().err
        assert "the name of this folder holds control characters" in line
        assert line.count("\n") == 1
        assert "\x1b" not in line


def test_a_run_with_a_name_of_the_shell_is_shown_quoted(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(stopped, Path("runs/a;touch X;#"))
    assert main(["resume", "runs/a;touch X;#", "quiet=false", "runner.max_time=null"]) == 0
    assert "healsg eval 'runs/a;touch X;#'" in capsys.readouterr().out


def test_nothing_is_replaced_in_a_folder_that_has_become_a_link(home: Path) -> None:
    """While a run goes on, after its folder was looked at."""
    folder = Path("runs/run")
    folder.mkdir(parents=True)
    for name in FOLDERS:
        (folder / name).symlink_to(home.resolve())
        with pytest.raises(RunError, match=rf"{name}: is a symbolic link, and not a folder"):
            write_text(folder / name / "new", "x")
    assert [path.name for path in home.iterdir()] == ["thesis"]


# --- checkpoints -----------------------------------------------------------------------------------------------------


def sparse(path: Path, home: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 << 30)


def sparse_with_an_end(path: Path, home: Path) -> None:
    """200 GB whose end looks like that of a checkpoint."""
    end = Path("runs/good/checkpoints/last.pt").read_bytes()[-64:]
    with path.open("wb") as file:
        file.seek(200 << 30)
        file.write(end)


ODD: dict[str, Callable[[Path, Path], object]] = {
    **{kind: make for kind, (_, make) in KINDS.items()},
    "folder": lambda path, home: path.mkdir(),
    "folder with a file": lambda path, home: (path.mkdir(), (path / "x").write_text("x")),
    "sparse file": sparse,
    "sparse file with an end": sparse_with_an_end,
    "empty file": lambda path, home: path.touch(),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_last_checkpoint_is_passed_over(kind: str, run: Path, home: Path) -> None:
    last = run / "checkpoints/last.pt"
    last.unlink()
    ODD[kind](last, home)
    before = content(home)
    whole = TaskTrainer.compose(*SETTINGS, "name=whole").train()["digest"]
    assert TaskTrainer.compose(*SETTINGS, "name=run").train()["digest"] == whole
    text = (run / "train.log").read_text()
    assert text.count("going on from previous.pt") == 1
    assert content(home) == before
    assert safefiles.kind_of(last) == safefiles.FILE
    assert RunFolder(run).last_state()
    for path in (run / "checkpoints").iterdir():
        assert path.stat().st_size < 1 << 20


def test_without_a_good_one_the_line_names_both(run: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("last", "previous"):
        place(run / f"checkpoints/{name}.pt", "FIFO", home)
    assert main(["resume", "run"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "last.pt: is a FIFO" in line
    assert "previous.pt: is a FIFO" in line


@pytest.mark.parametrize("kind", ODD)
def test_odd_best_weights_are_one_line(kind: str, run: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = run / "checkpoints/best.pt"
    best.unlink()
    ODD[kind](best, home)
    for command in ("eval", "init_from", "teacher"):
        before = content(home)
        assert main(COMMANDS[command]) in (1, 2)
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert str(best) in errors[0]
        assert content(home) == before


@pytest.mark.parametrize("kind", ["FIFO", "link to a device", "socket"])
def test_what_init_from_names_is_a_regular_file(kind: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(Path("weights.pt"), kind, home)
    assert main(["train", *SETTINGS, "init_from=weights.pt"]) == 2
    assert "init_from: weights.pt: is neither a regular file nor" in capsys.readouterr().err


def test_a_link_that_the_user_names_is_followed(run: Path) -> None:
    Path("mine.pt").symlink_to((run / "checkpoints/best.pt").resolve())
    assert weights_file("mine.pt") == (run / "checkpoints/best.pt").resolve()
    assert main(["train", *SETTINGS, "init_from=mine.pt", "name=other"]) == 0


# --- other places ----------------------------------------------------------------------------------------------------


def test_a_download_is_not_written_through_a_link(home: Path) -> None:
    before = content(home)
    for kind in ("link to a file", "FIFO"):
        data = Path("data", kind)
        data.mkdir(parents=True)
        place(data / ".download.lock", kind, home)
        with pytest.raises(DataError, match=r"\.download\.lock: is a"), files.exclusive(data):
            pass
    assert content(home) == before


def test_a_cache_is_read_and_written_through_no_link(home: Path) -> None:
    from healsg.data.cache import _mapped, _write

    rows = {"input": torch.zeros(1, 4), "target": torch.zeros(1, dtype=torch.int64)}
    Path("cache").mkdir()
    Path("cache/input").symlink_to((home / "thesis").resolve())
    with pytest.raises(RunError, match="cache/input: is a symbolic link"):
        _mapped(Path("cache/input"), rows["input"], 10, shared=False)
    before = content(home)
    Path(f"cache/.made.{os.getpid()}.tmp").symlink_to(home.resolve())

    class Ten:
        def __len__(self) -> int:
            return 10

    _write(Path("cache/made"), rows, Ten(), lambda tensors: None)  # type: ignore[arg-type]
    assert _mapped(Path("cache/made/input"), rows["input"], 10, shared=False).shape == (10, 4)
    assert content(home) == before


def test_a_file_that_was_planted_under_a_temporary_name_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Path("planted.tmp")
    planted.write_text("of somebody else")
    monkeypatch.setattr(safefiles, "temporary_name", lambda path: planted)
    with pytest.raises(FileExistsError), safefiles.replacing(Path("record.json")) as file:
        file.write(b"ours")
    assert not Path("record.json").exists()
