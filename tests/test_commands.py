"""The commands as a user types them: what they print, where, and how they end."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from healsg.cli import main
from helpers import Program, WithoutTorch, command, ended, forked, healsg


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithoutTorch]:
    """``python train.py ...`` where importing torch fails."""
    process = WithoutTorch(tmp_path_factory.mktemp("without_torch"))
    yield process
    process.close()


def refused(done: subprocess.CompletedProcess[str], *words: str, status: int = 2) -> None:
    """One line on stderr with all ``words``, nothing on stdout, no traceback, no folder."""
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr
    if status == 2:
        assert not any(path.is_dir() for path in Path("runs").glob("*"))


def test_the_package_is_the_program_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m healsg``."""
    for arguments, status in ((["list", "search"], 0), (["lst"], 2)):
        monkeypatch.setattr("sys.argv", ["/somewhere/healsg/__main__.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("healsg", run_name="__main__")
        assert ended.value.code == status
        assert sys.argv == ["healsg", *arguments], "as it is recorded"
    out, err = capsys.readouterr()
    assert "\n    tpe " in out
    assert err.startswith("error: healsg lst: no such command")


# --- questions that need no torch ----------------------------------------------------------------------------------

QUESTIONS = [
    (["--help"], "model=cnn "),
    (["--help", "model=mlp"], "model.width=128 "),
    (["--help-all"], "runner.find_unused_parameters=false "),
    (["--hydra-help"], "--multirun"),
    (["--cfg", "job"], "_target_: healsg.models.cnn.CNN"),
    (["--cfg", "job", "--resolve"], "batch_size: 64"),
    (["--cfg", "job", "model=mlp", "seed=7"], "seed: 7"),
    (["--cfg", "hydra"], "hydra:"),
    (["--cfg", "job", "logger=null", "method/scheduler=null"], "logger: {}"),
    (["--info", "defaults"], "runner/default"),
    (["--info", "defaults-tree"], "method: adamw"),
    (["--shell-completion", "install=bash"], "COMP_WORDBREAKS"),
]


@pytest.mark.parametrize(("arguments", "told"), QUESTIONS, ids=lambda value: " ".join(value)[:30])
def test_questions(arguments: list[str], told: str, answer: WithoutTorch) -> None:
    done = answer(*arguments)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("rec", "recipe="), ("model=re", "model=resnet"), ("runner.prec", "runner.precision="), ("data.s", "data.shift=")],
)
def test_bash_asks_for_a_completion(typed: str, offered: str, answer: WithoutTorch) -> None:
    line = f"train.py {typed}"
    done = answer("--shell-completion", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)), COMP_TYPE="9")
    assert done.returncode == 0, done.stderr
    assert offered in done.stdout.split()


def test_the_console_script(process: Program, capsys: pytest.CaptureFixture[str]) -> None:
    done = process(healsg("--version"))
    assert (done.returncode, done.stdout.startswith("healsg 0.")) == (0, True), done.stderr
    for arguments, told in (([], "usage: healsg COMMAND"), (["--help"], "resume")):
        assert main(arguments) == 0
        assert told in capsys.readouterr().out
    assert main(["evaluate"]) == 2
    assert "healsg evaluate: no such command" in capsys.readouterr().err


# --- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("runner.epoch=3", "runner.epoch: ", "did you mean runner.epochs=3?"),
    ("method.lrr=1", "method.lrr: no such key; did you mean method.optimizer.lr=1?"),
    ("rnner.epochs=3", "did you mean runner.epochs=3?"),
    ("epochs=3", "epochs: no such key; did you mean runner.epochs=3?"),
    ("data=imagefolder data.folder=X lr=0.1", "error: lr: no such key; did you mean method.optimizer.lr=0.1?"),
    ("data=csv data.file=t.csv runner.epoch=10", "error: runner.epoch: ", "did you mean runner.epochs=10?"),
    ("data=hf data.name=x modle.width=3", "error: modle.width: ", "did you mean model.width=3?"),
    ("optimizer=sgd", "optimizer: no such key; did you mean method/optimizer=sgd?"),
    ("model.lr=0.1", "did you mean method.optimizer.lr=0.1?"),
    ("cifar", "cifar: is not of the form key=value; did you mean data=cifar?"),
    ("--epochs 10", "--epochs: there is no such option", "did you mean runner.epochs=10?"),
    ("--lr=0.1 data=cifar", "--lr=0.1: there is no such option", "did you mean method.optimizer.lr=0.1?"),
    ("--model mlp", "did you mean model=mlp?"),
    ("--debug", "did you mean debug=true?"),
    ("--config-dir nowhere --epochs 3", "--epochs: there is no such option; --help"),
    ("data.root=[a", "data.root=[a: is not of the form key=value", """a text is quoted: 'data.root="[a"'"""),
    ("init_from=runs/s/method.optimizer.lr=0.1", "init_from: runs/s/method.optimizer.lr=0.1: is no run"),
    ("runner.epochs=3;", "runner.epochs: '3;' is not a whole number"),
    ("data.root=a,b", "add -m", "'data.root=[a,b]'", """'data.root="a,b"'"""),
    ("-m data.root=a;b,c", """'data.root="a;b,c"'""", """'data.root="a;b","c"'"""),
    ("model=mpl", "model=mpl: no such option; did you mean mlp?"),
    ("method/optimiser=sgd", "method/optimiser: no such group; did you mean method/optimizer?"),
    ("method/optimizer=sdg", "did you mean sgd?"),
    ("seed=x", "seed: 'x' is not a whole number"),
    ("seed=-1", "seed: -1 is out of range: >= 0"),
    ("seed=1.5", "seed: 1.5 is not a whole number"),
    ("quiet=maybe", "quiet: ", "true or false"),
    ("runner.epochs=0", "runner.epochs: 0 is out of range: >= 1"),
    ("runner.epochs=null", "runner.epochs: null is not"),
    ("runner.precision=fp8", "runner.precision: 'fp8'", "fp32"),
    ("runner.clip_norm=0", "runner.clip_norm: 0 is out of range: > 0"),
    ("method.optimizer.lr=-1", "method.optimizer.lr: -1 is out of range"),
    ("method.optimizer.lr=nan", "method.optimizer.lr: nan"),
    ("method.optimizer.lr=fast", "method.optimizer.lr: 'fast' is not a number"),
    ("method.optimizer=sgd", "did you mean method/optimizer=sgd?"),
    ("model.width=[8]", "model.width: [8] is not a whole number"),
    ("data.val_fraction=1", "data.val_fraction: 1 is out of range: >= 0 and < 1"),
    ("data=imagefolder", "data.folder: is missing; set data.folder=..."),
    ("model=null", "model: is missing; set model=..."),
    ("+epochs=3", "epochs: nothing reads it; did you mean runner.epochs? ", "+args.epochs="),
    ("+runner.epoch=3", "runner.epoch: TaskRunner takes no epoch; did you mean epochs?"),
    ("+data.folder=x", "data.folder: Digits takes no folder"),
    ("~model.wdth", "model.wdth"),
    ("model._target_=os.system", "model._target_: os.system is not a part"),
    ("model._target_=builtins.eval", "model._target_: builtins.eval is not a part"),
    ("model._target_=healsg.models.mlp.MPL", "healsg.models.mlp has no MPL; did you mean MLP?"),
    ("model._target_=healsg.models.nothere.Net", "model._target_: "),
    ("model._target_=no_such_module.Net", "model._target_: no_such_module.Net is not a part"),
    ("model._target_=7", "model._target_: 7 is not a dotted path"),
    ("trusted=[no_such_module] model._target_=no_such_module.Net", "there is no module no_such_module"),
    ("data.root=${nowhere}", "data.root: "),
    ("hydra.run.dir=elsewhere", "hydra.run.dir: is not read here", "name="),
    ("runner.epochs", "runner.epochs: is not of the form key=value"),
    ("seed=1,2", "seed=1,2"),
    ("name=a/b", "name: 'a/b' is no name of a folder"),
    ("name=..", "name: '..' is no name of a folder"),
    ("name=.hidden", "name: '.hidden' is no name of a folder"),
    ("name=' a'", "name: ' a' is no name of a folder"),
    (f"name={'n' * 201}", "is no name of a folder: up to 200 bytes"),
    ("init_from=nowhere", "init_from: nowhere: is no run"),
    ("--config-dir nowhere", "--config-dir: there is no folder nowhere"),
    ("--config-name nowhere", "nowhere"),
    ("--no-such-option", "--no-such-option: there is no such option"),
    ("--info everything", "--info"),
    ("--config-path nowhere", "--config-dir"),
    ("--experimental-rerun x", "healsg resume RUN"),
    ("--multirun --cfg job", "only one of"),
    ("--cfg job model=mpl", "did you mean mlp?"),
    ("--help model=mpl", "did you mean mlp?"),
    ("--help-all modle.width=3", "modle.width: no such key"),
    ("--shell-completion query=nowhere", "--shell-completion: No completion plugin"),
]


@pytest.mark.parametrize(("typed", "told"), [(first, rest) for first, *rest in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_line(typed: str, told: list[str], answer: WithoutTorch) -> None:
    arguments = [typed] if "' " in typed or "=' " in typed else typed.split(" ")
    refused(answer(*arguments), *told)


def test_a_mistake_in_a_process_of_its_own_is_the_same_line(process: Program, answer: WithoutTorch) -> None:
    done = process(command("runner.epoch=3"))
    refused(done, "did you mean runner.epochs=3?")
    assert done.stderr == answer("runner.epoch=3").stderr


def test_tracebacks_where_they_are_asked_for(answer: WithoutTorch) -> None:
    for extra, variables in ((["debug=true"], {}), ([], {"HYDRA_FULL_ERROR": "1"})):
        done = answer("seed=x", *extra, **variables)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: seed: 'x'")


# --- a folder of one's own -----------------------------------------------------------------------------------------

MINE = """
import torch
from healsg import DataInfo, TaskData, TensorSource
from healsg.types import Count

class Mine(TaskData):
    def __init__(self, rows: Count = 64, batch_size: Count = 16):
        super().__init__(batch_size=batch_size)
        self.rows = rows

    @property
    def info(self):
        return DataInfo((1, 8, 8), 3)

    def read(self, part):
        seeded = torch.Generator().manual_seed(len(part))
        return TensorSource(torch.randn(self.rows, 1, 8, 8, generator=seeded), torch.arange(self.rows) % 3)
"""
RECIPE = """# @package _global_
defaults:
  - override /data: mine
  - override /model: mlp
runner:
  epochs: 2
"""


@pytest.fixture
def own_conf(tmp_path: Path) -> Path:
    conf = tmp_path / "project" / "conf"
    for group in ("data", "recipe"):
        (conf / group).mkdir(parents=True)
    (conf / "data" / "mine.yaml").write_text("_target_: my_data.Mine\nrows: 64\n")
    (conf / "recipe" / "quick.yaml").write_text(RECIPE)
    (tmp_path / "project" / "my_data.py").write_text(MINE)
    return conf


def test_config_dir_gives_options_and_recipes(own_conf: Path, program: Program, answer: WithoutTorch) -> None:
    line = ["--config-dir", str(own_conf), "recipe=quick", "name=own"]
    assert ended(forked(["train", *line])) == 0, Path("output").read_text()
    record = json.loads(Path("runs/own/run.json").read_text())
    assert (record["status"], record["last"]["epoch"]) == ("finished", 2)
    asked = answer(*line, "runner.epochs=1", "--cfg", "job")
    assert "my_data.Mine" in asked.stdout
    assert "epochs: 1" in asked.stdout
    done = program(healsg("eval", str(Path("runs/own").resolve()), "split=val"), cwd=own_conf.parent)
    assert json.loads(done.stdout)["split"] == "val"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("_target_: my_data.Mine\nrows: many\n", "data.rows: 'many' is not a whole number"),
        ("_target_: my_data.Mine\nrwos: 64\n", "data.rwos: Mine takes no rwos; did you mean rows?"),
        ("_target_: my_data.Mien\n", "my_data has no Mien; did you mean Mine?"),
        ("_target_: my_data.Mine\nrows: [1\n", "mine.yaml"),
        ("_target_: shutil.rmtree\n", "data._target_: shutil.rmtree is not a part"),
        ("defaults:\n  - nowhere\n", "nowhere"),
    ],
)
def test_mistakes_in_ones_own_yaml(text: str, told: str, own_conf: Path, answer: WithoutTorch) -> None:
    (own_conf / "data" / "mine.yaml").write_text(text)
    refused(answer("--config-dir", str(own_conf), "data=mine"), told)


def test_config_name_takes_a_primary_config_of_ones_own(own_conf: Path) -> None:
    (own_conf / "small.yaml").write_text("defaults:\n  - config\n  - _self_\nseed: 5\nrunner:\n  epochs: 1\n")
    line = ["train", "--config-dir", str(own_conf), "--config-name", "small", "name=own", "model=mlp"]
    assert ended(forked(line)) == 0, Path("output").read_text()
    assert json.loads(Path("runs/own/run.json").read_text())["seed"] == 5
