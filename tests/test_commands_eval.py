"""``healsg eval`` and ``healsg resume``: a run that exists is evaluated and continued from its folder alone."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from healsg import TaskTrainer
from healsg.cli import main
from healsg.commands.terminal import effect
from healsg.errors import HealsgError
from healsg.runs import checkpoint
from helpers import Program, command, healsg

TINY = ["model=mlp", "model.width=8", "runner.epochs=2", "data.batch_size=256", "quiet=true"]
EVIL = 'from pathlib import Path\nPath("harm").touch()\nclass Bad:\n    pass\n'


def trained(program: Program, *overrides: str, name: str = "run") -> Path:
    done = program(command(*TINY, f"name={name}", *overrides))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return Path("runs") / name


Here = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    """The console script in this process, which saves the import of torch."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        status = main(arguments)
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


def refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_eval_prints_json_and_keeps_it(program: Program, here: Here) -> None:
    folder = trained(program)
    seen = {}
    for split in ("train", "val", "test"):
        for which in ("best", "last"):
            done = here("eval", "run", f"split={split}", f"checkpoint={which}")
            assert (done.returncode, done.stderr) == (0, "")
            result = json.loads(done.stdout)
            assert json.loads((folder / f"eval-{split}-{which}.json").read_text()) == result
            assert set(result["metrics"]) == {"loss", "acc"}
            assert 0 <= result["metrics"]["acc"] <= 1
            seen[split, which] = result["metrics"]
    done = program(healsg("eval", "run"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["metrics"] == seen["test", "best"]
    record = json.loads((folder / "run.json").read_text())
    assert {f"test/{key}": value for key, value in seen["test", "best"].items()} == record["test"]
    assert seen["val", "last"]["acc"] == record["last"]["val/acc"]
    assert seen["train", "best"] != seen["test", "best"]


def test_eval_with_other_settings(program: Program, here: Here) -> None:
    trained(program)
    usual = json.loads(here("eval", "runs/run").stdout)["metrics"]
    changes = [
        "data.batch_size=7",
        "method.scheduler=null",
        "method.optimizer._target_=torch.optim.AdamW",
        "data.root='a b'",
        "runner.callbacks={}",
        "+args.x=1e-3",
    ]
    done = here("eval", "run", *changes)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"] == pytest.approx(usual, rel=1e-5)


MISTAKES = [
    ("split=nowhere", 2, "split: nowhere is not one of train, val, test"),
    ("checkpoint=first", 2, "checkpoint: first is not one of best, last"),
    ("model.width=16", 1, "its weights do not fit this model: size mismatch for head.weight"),
    ("data.batch_size=1.5", 2, "data.batch_size: 1.5 is not a whole number"),
    ("data.batch_size=0", 2, "data.batch_size: 0 is out of range"),
    ("data.batch_sise=8", 2, "did you mean data.batch_size=8?"),
    ("model.width=[1", 2, "model.width=[1: is not of the form key=value"),
    ("model.width=8,16", 2, "model.width=8,16: several values"),
    ("model=cnn", 2, "a run that exists keeps its model"),
    ("method/optimizer=sgd", 2, "a run that exists keeps its parts"),
    ("~model.width", 2, "a run that exists keeps its parts"),
    ("data.root=${nowhere}", 2, "data.root: "),
    ("runner.device=nowhere", 2, "runner.device: 'nowhere' is no device"),
    ("+nowhere=1", 2, "nowhere: no such key"),
    ("+model.wdth=1", 2, "MLP takes no wdth; did you mean width?"),
    ("model._target_=os.system", 2, "os.system is not a part"),
]


def test_eval_mistakes_are_one_line(program: Program, here: Here) -> None:
    refused(here("eval"), 2, "the following arguments are required: RUN")
    refused(here("resume", "seed=1"), 2, "name a run")
    trained(program)
    refused(here("eval", "nowhere"), 1, "nowhere: is no run", "(run)")
    refused(here("resume", "nowhere"), 1, "nowhere: is no run", "(run)")
    refused(here("resume", "sweep/seed=2"), 1, "sweep/seed=2: is no run", "(run)")
    for typed, status, told in MISTAKES:
        refused(here("eval", "run", typed), status, told)
    assert not list(Path("runs/run").glob("eval-*"))
    shutil.rmtree("runs/run/checkpoints")
    refused(here("eval", "run"), 1, "runs/run/checkpoints/best.pt: cannot be read")
    refused(here("eval", "run", "checkpoint=last"), 1, "runs/run: has no checkpoint yet")


def test_resume(program: Program, here: Here) -> None:
    whole = json.loads((trained(program, name="whole") / "run.json").read_text())
    folder = trained(program, "runner.max_time=0")
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    refused(here("resume", "run", "seed=3"), 2, "seed: runs/run was started with 0, not 3")
    refused(here("resume", "run", "runner.epochs=3"), 2, "runner.epochs: runs/run was started with 2, not 3")
    done = here("resume", "run", "runner.max_time=null", "runner.save_every=5", "quiet=false")
    assert done.returncode == 0, done.stderr
    assert "finished: runs/run" in done.stdout
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["digest"]) == ("finished", whole["digest"])
    refused(here("resume", "run"), 1, "runs/run: is finished; more runner.epochs train on")
    refused(here("resume", "run", "seed=3", "runner.epochs=3"), 2, "seed: runs/run was started with 0")
    done = program(healsg("resume", "run", "runner.epochs=3"))
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run.json").read_text())["last"]["epoch"] == 3


HOSTILE = [
    ("healsg.models.mlp.MLP", "os.system", 2, "os.system is not a part"),
    ("healsg.models.mlp.MLP", "evil.Bad", 2, "evil.Bad is not a part"),
    ("healsg.optimizers.adam.AdamW", "torch.nn.utils.stateless.functional_call", 2, "is not a part"),
    ("seed: 0", "seed: ${oc.env:HOME}", 1, "holds an interpolation"),
    ("seed: 0", "seed: !!python/object/apply:os.system [exit]", 1, "cannot be read"),
    ("seed: 0", "seed: zero", 2, "seed: 'zero' is not a whole number"),
    ("seed: 0", "sede: 0", 2, "sede: no such key"),
]


def test_a_saved_configuration_is_data(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained(program)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path / "hooks")
    true = (folder / "config.yaml").read_text().replace("trusted: []", "trusted: [evil, os, posix]")
    for old, new, status, told in HOSTILE:
        assert old in true
        (folder / "config.yaml").write_text(true.replace(old, new, 1))
        for line in (["eval", "run"], ["resume", "run", "runner.epochs=9"]):
            refused(program(healsg(*line)), status, told)
        for door in (lambda: TaskTrainer.load("run"), lambda: TaskTrainer.load("run").predictor()):
            with pytest.raises(HealsgError):
                door()
    assert not Path("harm").exists()
    (folder / "config.yaml").write_text(true)
    assert program(healsg("eval", "run")).returncode == 0


# --- settings without an effect --------------------------------------------------------------------------------------

LEFT_OUT = ["method.optimizer.lr=3", "method.optimizer={lr: 3}", "+method.scheduler.warmup=0.1", "method.ema=0.9"]
LEFT_OUT += ["method.mixup=0.2", "runner.epochs=9", "runner.compile=true", "runner.processes=2", "name=other"]
LEFT_OUT += ["init_from=other", "fresh=true"]


def test_settings_that_have_no_effect_without_training_are_refused(program: Program, here: Here) -> None:
    trained(program)
    commands = {
        "eval": ["eval", "run"],
        "predict": ["predict", "run", "nothing.csv"],
        "export": ["export", "run", "--out", "exported"],
        "serve": ["serve", "run"],
    }
    for setting in LEFT_OUT:
        key = "method.optimizer.lr" if "lr" in setting else setting.partition("=")[0].lstrip("+")
        for command_name, line in commands.items():
            way = f"error: {key}: has no effect in healsg {command_name}, which trains nothing"
            refused(here(*line, setting), 2, way, "; leave it out")
    refused(here("eval", "run", "runner.epochs=9"), 2, "of runner, device, precision,")
    assert here("eval", "run", "runner.limit_batches=1").returncode == 0
    refused(here(*commands["predict"], "runner.limit_batches=1"), 2, "runner.limit_batches: has no effect in healsg")


def test_settings_that_have_an_effect_without_training_are_taken(program: Program, here: Here) -> None:
    trained(program, "method=simclr", "runner.limit_batches=2")
    few = here("eval", "run", "method.neighbours=1")
    many = here("eval", "run", "method.neighbours=500", "runner.precision=fp64", "runner.threads=1")
    assert (few.returncode, many.returncode) == (0, 0), few.stderr + many.stderr
    assert few.stdout != many.stdout


def test_the_settings_that_have_an_effect_are_arguments_of_the_runner() -> None:
    assert {*effect.RUNNER, *effect.PASS, *effect.BUILT} <= effect.arguments("healsg.runner.TaskRunner")


# --- disks ---------------------------------------------------------------------------------------------------------


def limited(size: int) -> Callable[[], None]:
    """Let no file of a process become larger than ``size`` bytes, as on a disk that fills up."""

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_checkpoint_that_does_not_fit_on_the_disk(program: Program) -> None:
    trained(program, "runner.max_time=0", "model.width=128")
    last = Path("runs/run/checkpoints/last.pt")
    before = checkpoint.load(last)
    room = last.stat().st_size // 2
    options: dict[str, Any] = {"preexec_fn": limited(room)}
    done = program(healsg("resume", "run", "runner.max_time=null"), **options)
    refused(done, 1, "cannot be written (File too large)")
    assert checkpoint.load(last)["runner"]["step"] == before["runner"]["step"]
    assert not list(last.parent.glob(".*.tmp"))
    done = program(healsg("resume", "run", "runner.max_time=null"))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 256 KiB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        sys.platform == "linux"
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(small_disk: Path, program: Program) -> None:
    line = command(*TINY, "model.width=200", "runner.epochs=5", "name=run")
    refused(program(line, cwd=small_disk), 1, "last.pt: cannot be written (No space left on device)")
    folder = small_disk / "runs" / "run"
    assert checkpoint.load(folder / "checkpoints" / "last.pt")["model"]
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    with (small_disk / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024)):
            pass
    refused(program(line, cwd=small_disk), 1, "runs/run", "cannot be written (No space left on device)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path, program: Program) -> None:
    (tmp_path / "shut").mkdir(mode=0o555)
    refused(program(command(*TINY), cwd=tmp_path / "shut"), 1, "runs", "cannot be written (Permission denied)")
