"""``healsg archive``: one file holds all that makes a run, and an archive of somebody's writes nothing but a run."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from healsg import TaskTrainer
from healsg.cli import main
from helpers import record, train

SMALL = ("data=digits", "model=mlp", "method=sgd", "runner.steps=4", "runner.log_every=2", "quiet=true")


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(*SMALL, "name=a")
    return folder / "runs/a"


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of it under ``runs/``."""
    shutil.copytree(trained_run, tmp_path / "runs/a")
    return tmp_path / "runs/a"


def contents(folder: Path) -> dict[str, bytes]:
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if name != ".lock"}


def test_a_run_comes_out_of_its_archive_as_it_was(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "wandb").mkdir()
    (run / "wandb/log").write_text("of a service")
    whole = {name: content for name, content in contents(run).items() if not name.startswith("wandb")}
    assert main(["archive", "a", "--out", "a.tar.gz"]) == 0
    assert main(["archive", "a", "--out", "b.tgz"]) == 0
    assert Path("a.tar.gz").read_bytes() == Path("b.tgz").read_bytes()
    with tarfile.open("a.tar.gz") as tar:
        assert all(member.isreg() and member.name.startswith("a/") for member in tar)
        sums = tar.extractfile("a/SHA256SUMS").read().decode()  # type: ignore[union-attr]
    assert {line.split("  ")[1]: line.split("  ")[0] for line in sums.splitlines()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in whole.items()
    }
    shutil.rmtree(run)
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    assert main(["archive", "--unpack", "../a.tar.gz", "--to", "runs"]) == 0
    assert contents(other / "runs/a") == whole
    assert [path.name for path in (other / "runs").iterdir()] == ["a"], "nothing else is left there"
    assert main(["rerun", "a"]) == 0
    assert record("a-rerun")["choices"] == record("a")["choices"]
    assert main(["eval", "a", "split=val"]) == 0
    predicted = TaskTrainer.load("a").predictor()(np.zeros((2, 1, 8, 8), dtype=np.uint8))
    assert len(predicted.outputs) == 2
    digest = record("a")["digest"]
    assert main(["resume", "a", "runner.steps=6"]) == 0
    assert record("a")["digest"] != digest


def test_a_secret_that_is_known_now_is_hidden(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "not-known-when-it-was-written-1"
    with (run / "train.log").open("a") as file:
        file.write(f"looking at {secret}\n")
    (run / "run.json").write_text(json.dumps(record("a") | {"description": f"with {secret}"}))
    monkeypatch.setenv("SOME_API_KEY", secret)
    assert main(["archive", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["redacted"] == ["run.json", "train.log"]
    shutil.rmtree(run)
    assert main(["archive", "--unpack", "a.tar.gz"]) == 0
    assert not [name for name, content in contents(run).items() if secret.encode() in content]
    assert record("a")["description"] == "with ***"


def test_a_link_is_not_followed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outside").write_text("a secret")
    (run / "media/link.png").symlink_to(tmp_path / "outside")
    assert main(["archive", "a"]) == 1
    assert "media/link.png: is a symbolic link" in capsys.readouterr().err
    assert not Path("a.tar.gz").exists()


Files = list[tuple[tarfile.TarInfo, bytes]]


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, len(content), link
    return made, content


def good() -> Files:
    files = {"config.yaml": b"{}\n", "run.json": b"{}\n"}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return [*(member(f"x/{name}", content) for name, content in files.items()), member("x/SHA256SUMS", sums.encode())]


BAD: dict[str, Callable[[], Files]] = {
    "a path out of it": lambda: [member("x/../../out.json", b"1"), *good()],
    "an absolute path": lambda: [member("/x/config.yaml", b"1"), *good()],
    "a name with a slash of Windows": lambda: [member("x/media/..\\out", b"1"), *good()],
    "a run named upwards": lambda: [member("../config.yaml", b"1"), *good()],
    "a link": lambda: [member("x/media", kind=tarfile.SYMTYPE, link="/tmp"), member("x/media/a.png", b"1"), *good()],
    "a hard link": lambda: [member("x/media/a.png", kind=tarfile.LNKTYPE, link="/etc/passwd"), *good()],
    "a FIFO": lambda: [member("x/run.json", kind=tarfile.FIFOTYPE), *good()],
    "a device": lambda: [member("x/media/null", kind=tarfile.CHRTYPE), *good()],
    "a program": lambda: [member("x/parts.py", b"1"), *good()],
    "a repository": lambda: [member("x/.git/config", b"1"), *good()],
    "a file that is not listed": lambda: [member("x/media/a.png", b"1"), *good()],
    "a file behind the list": lambda: [*good(), member("x/media/a.png", b"1")],
    "a file twice": lambda: [*good()[:1], *good()],
    "a file in the place of a folder": lambda: [member("x/media/a", b"1"), member("x/media/a/b", b"1"), *good()],
    "two runs": lambda: [*good(), *[(item, content) for item, content in [member("y/config.yaml", b"{}\n")]]],
    "changed content": lambda: [member("x/config.yaml", b"[]\n"), *good()[1:]],
    "no list": lambda: good()[:2],
    "nothing": list,
    "a bomb": lambda: [member("x/media/a", bytes(1 << 27)), *good()],
    "a long name that is a bomb": lambda: [member("x/" + "a" * (1 << 21), b"1"), *good()],
}


def write(path: Path, files: Files) -> None:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, compresslevel=1) as tar:
        for item, content in files:
            tar.addfile(item, io.BytesIO(content))


@pytest.mark.parametrize("case", BAD)
def test_an_archive_of_somebody_s_writes_nothing_else(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "x.tar.gz", BAD[case]())
    assert main(["archive", "--unpack", "x.tar.gz", "--to", "in/there"]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "there", "x.tar.gz"]


def test_a_good_archive_is_unpacked_once_and_a_cut_one_never(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "x.tar.gz", good())
    assert main(["archive", "--unpack", "x.tar.gz", "--to", "in"]) == 0
    assert sorted(path.name for path in (tmp_path / "in/x").iterdir()) == ["config.yaml", "run.json"]
    assert main(["archive", "--unpack", "x.tar.gz", "--to", "in"]) == 1
    assert "in/x: exists" in capsys.readouterr().err
    packed = (tmp_path / "x.tar.gz").read_bytes()
    for end in range(0, len(packed), 9):
        (tmp_path / "cut.tar.gz").write_bytes(packed[:end])
        assert main(["archive", "--unpack", "cut.tar.gz", "--to", "cut"]) == 1
        assert not list((tmp_path / "cut").iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a run, or a file"),
        (["a", "--wrong"], "--wrong: there is no such option"),
        (["--unpack", "none.tar.gz"], "there is no file none.tar.gz"),
        (["a", "--to", "b"], "--to: is of --unpack"),
    ],
)
def test_a_wrong_command_is_answered_in_a_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["archive", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
