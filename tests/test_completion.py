"""TAB: what a shell offers for a word of a command line."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from healsg.cli import COMMANDS, main
from healsg.commands.terminal.completion import COMPOSED, GROUPS, OF_RUNS, SCRIPTS


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("exp1", "exp2", "s/method=sgd,seed=0", "odd\x1b[31m"):
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        best = {"monitor": "val/acc", "value": 0.5, "metrics": {"val/acc": 0.5}}
        (path / "run.json").write_text(json.dumps({"status": "finished", "best": best}))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["comp"], ["compare"]),
        (["resume", "exp"], ["exp1", "exp2"]),
        (["compare", "exp1", "s"], ["s", "s/method=sgd,seed=0"]),
        (["compare", "runs/s/"], ["runs/s/method=sgd,seed=0"]),
        (["show", "odd"], []),
        (["runs", "--sort", "val"], ["val/acc"]),
        (["compare", "--pa"], ["--page"]),
        (["train", "model=unet"], ["model=unet"]),
        (["check", "runner.prec"], ["runner.precision="]),
        (["train", "no_such=", "model=cn"], ["model=cnn"]),
        (["list", "mo"], ["model"]),
        (["--completion", "b"], ["bash"]),
        (["nothing", ""], []),
    ],
    ids=" ".join,
)
def test_what_is_offered(typed: list[str], offered: list[str], runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--complete", *typed]) == 0
    found = capsys.readouterr()
    assert (found.out.split(), found.err) == (offered, "")


def test_every_command_that_is_completed_exists() -> None:
    assert {*COMPOSED, *OF_RUNS, *GROUPS} <= set(COMMANDS)


@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_the_scripts_are_understood_by_their_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    assert "healsg --complete " in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_bash_replaces_what_follows_the_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "bash"]) == 0
    asked = (
        'healsg() { printf "%s\\n" "model=resnet" "model=resnet 2"; echo "$*" > words; }\n'
        + capsys.readouterr().out
        + 'COMP_LINE="healsg train model=re" COMP_POINT=21; _healsg; printf "[%s]" "${COMPREPLY[@]}"; cat words'
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[resnet][resnet\\ 2]--complete train model=re\n", "")


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "error: --completion: tcsh is given; there is bash, zsh, fish\n"
