"""``healsg rerun``: a run is trained once more from its files, with its own code and settings, or refused in a line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from healsg.cli import main
from helpers import record, train

SMALL = ("data=digits", "model=mlp", "method=sgd", "runner.steps=4", "runner.log_every=2", "quiet=true")


def edit(run: str, **facts: Any) -> None:
    file = Path("runs", run, "run.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def test_a_run_is_trained_again_to_the_same_state(capsys: pytest.CaptureFixture[str]) -> None:
    train(*SMALL, "name=a")
    assert main(["rerun", "a"]) == 0
    assert "the same: runs/a-rerun ended in the state of runs/a" in capsys.readouterr().out
    assert record("a-rerun")["digest"] == record("a")["digest"]
    edit("a", digest="0" * 64, versions=record("a")["versions"] | {"torch": "1.0"})
    assert main(["rerun", "a", "--name", "again"]) == 1
    printed = capsys.readouterr().out
    assert "versions.torch: was 1.0" in printed
    assert "different: 000000000000 | " in printed
    assert "healsg diverge runs/a runs/again" in printed
    assert main(["rerun", "a", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["rerun"].endswith("runs/a-rerun-2")
    assert (told["finished"], told["same"]) == (True, False)
    assert told["differences"]["environment"]["versions.torch"][0] == "1.0"


def git(*words: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *own, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def fake_run() -> str:
    """The commit of a repository with the folder of a run that was made in it, as far as the checks go."""
    git("init", "-q")
    Path(".gitignore").write_text("runs\n")
    Path("own.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    import yaml

    from healsg.config.compose import Composer

    folder = Path("runs/a")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(Composer().compose([*SMALL, "name=a"]).values))
    commit = git("rev-parse", "HEAD")
    (folder / "run.json").write_text(
        json.dumps({"status": "finished", "digest": "0" * 64, "commit": commit, "dirty": False})
    )
    return commit


def test_other_code_is_refused_in_a_line(fake_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["rerun", "a", *arguments]) in (1, 2)
        assert not Path("runs/a-rerun").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    Path("own.py").write_text("a = 2\n")
    assert "files differ here; git stash" in refused()
    git("commit", "-q", "-a", "-m", "second")
    assert f"git checkout {fake_run}" in refused()
    git("checkout", "-q", fake_run)
    edit("a", dirty=True)
    assert "that were not kept (record_patch=true does)" in refused()
    Path("own.py").write_text("a = 3\n")
    patch = git("diff") + "\n"
    git("checkout", "-q", "own.py")
    edit("a", patch=patch)
    assert "are not made here" in refused()
    assert main(["rerun", "a", "--patch", "changes.diff"]) == 0
    git("apply", "changes.diff")
    assert Path("own.py").read_text() == "a = 3\n"
    capsys.readouterr()
    edit("a", status="stopped")
    assert "is not finished" in refused()
    edit("a", status="finished")
    assert "seed: a rerun keeps the settings" in refused("seed=1")
    assert "--name: " in refused("--name", "a")
    edit("a", commit="$(id)")
    assert "is no commit" in refused()
    assert "--wrong: there is no such option" in refused("--wrong")


def test_the_code_of_the_run_and_any_code_are_taken(fake_run: str) -> None:
    from healsg.commands.rerun import code_notes
    from healsg.runs.folder import RunFolder

    first, second = RunFolder(Path("runs/a")), RunFolder(Path("runs/b"))
    assert code_notes(first, second, any_commit=False) == []
    Path("own.py").write_text("a = 3\n")
    from healsg.runs.provenance import code_state

    edit("a", **code_state(second.path, Path("runs").absolute(), Path.cwd(), patch=True))
    assert code_notes(first, second, any_commit=False) == []
    edit("a", commit="1" * 40)
    (note,) = code_notes(first, second, any_commit=True)
    assert "was made at commit 111111111111" in note


def test_what_a_saved_run_trusts_does_not_count(fake_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path("runs/a/config.yaml")
    text = config.read_text().replace("trusted: []", "trusted: [subprocess]")
    config.write_text(text.replace("healsg.models.mlp.MLP", "subprocess.Popen"))
    assert main(["rerun", "a"]) == 2
    assert "subprocess.Popen is not a part" in capsys.readouterr().err
