"""``-m``: the product of all values, each job in a folder of its own, mistakes in time, nothing left behind."""

from __future__ import annotations

import csv
import gc
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from healsg.cli import main
from healsg.commands.sweep.run import job_name
from healsg.config.compose import Composer
from healsg.datasets.digits import Digits
from healsg.errors import ConfigError
from helpers import Program, command, ended, epochs_of, forked, kill, wait_for

TINY = ["model=mlp", "model.width=8", "runner=debug", "quiet=true", "name=sweep"]
SWEEP = Path("runs/sweep")


def jobs() -> dict[str, str]:
    """The status of each job by its folder."""
    records = {path.parent.name: json.loads(path.read_text()) for path in SWEEP.glob("*/run.json")}
    return {name: str(record["status"]) for name, record in records.items()}


def table() -> list[dict[str, str]]:
    with (SWEEP / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_product_of_all_values(program: Program) -> None:
    done = program(command(*TINY, "-m", "method=sgd,adamw", "seed=0,1"))
    assert (done.returncode, done.stderr) == (0, "")
    expected = ["method=sgd,seed=0", "method=sgd,seed=1", "method=adamw,seed=0", "method=adamw,seed=1"]
    assert jobs() == dict.fromkeys(expected, "finished")
    rows = table()
    assert [row["job"] for row in rows] == expected
    assert {row["status"] for row in rows} == {"finished"}
    shown = [line for line in done.stdout.splitlines() if line.startswith("method=") and ",seed=" in line]
    for line, row in zip(shown, sorted(rows, key=lambda row: -float(row["best val/acc"])), strict=True):
        assert line.split() == [row["job"], row["status"], *(f"{float(row[key]):.4f}" for key in list(row)[2:])]
        record = json.loads((SWEEP / row["job"] / "run.json").read_text())
        assert float(row["test/acc"]) == record["test"]["test/acc"]
        assert float(row["best val/acc"]) == record["best"]["value"]


def test_ways_to_name_values() -> None:
    composer = Composer()
    assert composer.sweep(["seed=range(0,3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert composer.sweep(["seed=choice(4,7)", "model=mlp"]) == [["seed=4", "model=mlp"], ["seed=7", "model=mlp"]]
    assert len(composer.sweep(["method/optimizer=glob(*)"])) >= 6
    assert composer.sweep(["data.root='a,b'"]) == [["data.root='a,b'"]]
    with pytest.raises(ConfigError, match="an interval is no list of values"):
        composer.sweep(["runner.clip_norm=interval(0,1)"])


def test_a_group_below_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "-m", "method/optimizer=sgd,adamw"]) == 0
    assert jobs() == {"method_optimizer=sgd": "finished", "method_optimizer=adamw": "finished"}
    config = (SWEEP / "method_optimizer=sgd" / "config.yaml").read_text()
    assert "healsg.optimizers.sgd.SGD" in config


def test_names_of_jobs() -> None:
    assert job_name([]) == "job"
    assert job_name(["data.root=a/b", "seed=0"]) == "data.root=a_b,seed=0"
    assert job_name(["model.sizes=[1, 2]"]) == "model.sizes=[1,2]"
    assert job_name(["a=" + "b" * 118]) == "a=" + "b" * 118
    long = [job_name(["a=" + "b" * 119 + end]) for end in ("", "c")]
    assert [len(name) for name in long] == [120, 120]
    assert long[0] != long[1]
    assert len(job_name(["a=" + "梯" * 119]).encode()) <= 255


@pytest.mark.parametrize("launcher", [[], ["launcher=local"]])
def test_one_wrong_value_is_found_before_the_first_job_starts(
    launcher: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *TINY[:1], *TINY[2:], *launcher, "-m", "model.width=4,0,8", "seed=0,1"]) == 2
    shown = capsys.readouterr()
    line = "model.width=0,seed=0: model.width: 0 is out of range: >= 1 (no job was started)"
    assert (shown.out, shown.err) == ("", f"error: {line}\n")
    assert not Path("runs").exists()


@pytest.mark.parametrize("launcher", [[], ["launcher=local"]])
def test_settings_that_do_not_go_together_are_found_before_the_first_job_starts(
    launcher: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    swept = ["method/optimizer=sgd", "method.optimizer.momentum=0.9,0", "seed=0,1"]
    assert main(["train", *TINY, *launcher, "-m", *swept]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: method.optimizer.momentum=0,seed=0: method.optimizer.nesterov: true needs ")
    assert shown.err.endswith(" (no job was started)\n")
    assert not Path("runs").exists()


def test_a_job_may_start_from_the_weights_of_the_one_before_it() -> None:
    sources = 'init_from=null,"runs/sweep/init_from=null/checkpoints/best.pt"'
    assert main(["train", *TINY, "-m", sources]) == 0
    assert [row["status"] for row in table()] == ["finished", "finished"]


def test_a_continued_sweep_does_not_ask_for_what_its_finished_jobs_started_from() -> None:
    assert main(["train", *TINY[:-1], "name=before"]) == 0
    line = ["train", *TINY, "-m", "seed=0,1", "init_from=null,before"]
    assert main(line) == 0
    shutil.rmtree("runs/before")
    shutil.rmtree("runs/sweep/seed=0,init_from=null")
    assert main(line) == 0
    assert [row["status"] for row in table()] == ["finished"] * 4


def test_a_failing_job_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "-m", "runner.device=nowhere,cpu"]) == 1
    assert [row["status"] for row in table()] == ["failed", "finished"]
    assert "Traceback" not in capsys.readouterr().err


WRONG = [
    (["modle.width=4,8"], "modle.width: no such key; did you mean model.width=4?"),
    (["model=mlp,cn"], "model=cn: no such option"),
    (["model.width=0,-1"], "model.width: 0 is out of range"),
    (["seed=0,1", "runner.epochs=x"], "runner.epochs: 'x' is not a whole number"),
    (["seed=interval(0,1)"], "an interval is no list of values"),
    (["seed=0,1", "name=a/b"], "is no name of a folder"),
    (["name=a,b"], "name: applies to the entire sweep"),
    (["seed=0,1", "hydra.sweep.dir=x"], "hydra.sweep.dir: is not read here"),
]


@pytest.mark.parametrize(("given", "told"), WRONG, ids=[" ".join(given) for given, _ in WRONG])
def test_a_wrong_command_starts_nothing(given: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY[:1], *TINY[2:], "-m", *given]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert told in shown.err
    assert not Path("runs").exists()


def test_the_same_command_finishes_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", *TINY, "runner.max_time=0", "-m", "seed=0,1,2"]
    assert main(line) == 0
    assert set(jobs().values()) == {"stopped"}
    line[line.index("runner.max_time=0")] = "runner.max_time=null"
    assert main([*line[:-1], "seed=1"]) == 0
    assert main([*line[:-1], "seed=1,2"]) == 0
    assert jobs() == {"seed=0": "stopped", "seed=1": "finished", "seed=2": "finished", "job": "finished"}
    before = (SWEEP / "seed=1" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(line) == 0
    assert f"{SWEEP}/seed=1: is finished" in capsys.readouterr().out
    assert set(jobs().values()) == {"finished"}
    assert (SWEEP / "seed=1" / "metrics.jsonl").read_bytes() == before
    assert [row["job"] for row in table()] == ["seed=0", "seed=1", "seed=2", "job"], "those of all calls"
    before_refusal = table()
    capsys.readouterr()
    assert main([*line, "data.batch_size=32"]) == 1
    assert "seed=0  failed" in capsys.readouterr().out
    after = table()
    assert "data.batch_size: runs/sweep/seed=0 was started with 64, not 32" in after[0].pop("reason")
    assert after[0] == before_refusal[0], "what lies in the folder is as it was"
    assert (SWEEP / "seed=1" / "metrics.jsonl").read_bytes() == before


def test_jobs_that_a_kill_met_while_they_waited_or_started_are_run() -> None:
    left: dict[str, tuple[str, ...]] = {
        "seed=0": (),
        "seed=1": (".lock",),
        "seed=2": (".lock", "run.json", ".hydra/config.yaml", ".run.json.1.tmp"),
    }
    for job, names in left.items():
        for name in names:
            (SWEEP / job / name).parent.mkdir(parents=True, exist_ok=True)
            (SWEEP / job / name).write_text('{"status": "running"}' if name == "run.json" else "")
        (SWEEP / job).mkdir(parents=True, exist_ok=True)
    assert main(["train", *TINY, "-m", "seed=0,1,2"]) == 0
    assert jobs() == dict.fromkeys(left, "finished")
    assert not list(SWEEP.glob("*/*.tmp"))


def test_the_table_is_of_all_jobs_in_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a later call trains, adds, refuses or measures: no row and no number of an earlier one is lost."""
    assert main(["train", *TINY, "-m", "runner.device=nowhere,cpu"]) == 1
    first = table()
    assert [(row["job"], row["status"]) for row in first] == [
        ("runner.device=nowhere", "failed"),
        ("runner.device=cpu", "finished"),
    ]
    assert main(["train", *TINY, "runner.monitor=train/loss", "-m", "seed=3,4"]) == 0
    second = table()
    assert [row["job"] for row in second] == ["runner.device=nowhere", "runner.device=cpu", "seed=3", "seed=4"]
    for before, after in zip(first, second, strict=False):
        assert {key: value for key, value in after.items() if value} == {k: v for k, v in before.items() if v}
    assert all(float(row["best train/loss"]) > 0 for row in second[2:])
    assert main(["train", *TINY, "-m", "method.optimizer.lr=1e37,1e38"]) == 1
    third = table()
    assert third[:4] == second
    assert [row["status"] for row in third[4:]] == ["failed", "failed"]
    assert main(["train", *TINY, "fresh=true", "runner.monitor=train/loss", "-m", "seed=3"]) == 0
    assert [row["job"] for row in table()] == [*(row["job"] for row in third), "job"]
    assert (SWEEP / "job").is_dir()
    assert main(["train", *TINY, "fresh=true", "-m", "seed=3,4"]) == 0
    assert (SWEEP / "seed=3~1").is_dir()
    assert len(table()) == len(third) + 1, "a run that fresh=true has set aside is no job"
    (SWEEP / "sweep.csv").unlink()
    capsys.readouterr()
    assert main(["train", *TINY, "-m", "seed=5,6"]) == 0
    assert {row["job"] for row in table()} >= {"runner.device=cpu", "seed=3", "seed=4"}, "their records are read again"
    assert "jobs of earlier calls" in capsys.readouterr().out


def test_a_repeated_value_is_one_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "-m", "method.optimizer.lr=1e-3,0.001,1e-2", "seed=1,1"]) == 0
    names = ["method.optimizer.lr=0.001,seed=1", "method.optimizer.lr=0.01,seed=1"]
    assert [row["job"] for row in table()] == names
    shown = capsys.readouterr().out
    assert "6 jobs were given; 4 repeat the values of others, and 2 are trained\n" in shown
    assert "job 2 of 2" in shown
    assert main(["train", *TINY, "-m", "method.optimizer.lr=10e-4,1", "seed=1.0"]) == 2
    assert main(["train", *TINY, "-m", "method.optimizer.lr=10e-4,1,1.0", "seed=1"]) == 0
    assert [row["job"] for row in table()][-1] == "method.optimizer.lr=1", "named after the first of them"
    assert "3 jobs were given; 1 repeat" in capsys.readouterr().out


LONG = ["train", "model=mlp", "model.width=8", "name=sweep", "runner.epochs=60", "-m", "seed=0,1,2"]


@pytest.fixture
def in_second_job() -> int:
    """The process of a sweep that has finished its first job and is in the middle of its second."""
    child = forked(LONG)
    wait_for(lambda: epochs_of(SWEEP / "seed=1") > 2)
    return child


def test_control_c_ends_the_sweep(in_second_job: int) -> None:
    os.kill(in_second_job, signal.SIGINT)
    assert ended(in_second_job) == 130
    assert jobs() == {"seed=0": "finished", "seed=1": "stopped"}
    assert [row["status"] for row in table()] == ["finished", "stopped"]
    assert "table: runs/sweep/sweep.csv" in Path("output").read_text()


def test_a_killed_sweep_goes_on(in_second_job: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert kill(in_second_job)
    assert jobs() == {"seed=0": "finished", "seed=1": "running"}
    assert main(LONG) == 0
    told = capsys.readouterr().out
    assert "runs/sweep/seed=0: is finished" in told
    assert "going on at step" in told
    assert jobs() == dict.fromkeys(["seed=0", "seed=1", "seed=2"], "finished")


def resident() -> float:
    """MB of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_many_jobs_leave_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "model=mlp", "runner.epochs=1", "runner.limit_batches=2", "quiet=true"]
    line += ["runner/callbacks=early_stopping"]
    assert main([*line, "name=warm", "-m", "seed=range(0,4)"]) == 0
    before = resident(), threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    assert main([*line, "name=many", "-m", "seed=range(0,15)"]) == 0
    after = resident(), threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    assert after[0] < before[0] * 1.1 + 5
    assert after[1:] == before[1:]


# --- what jobs share -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def test_data_are_read_once_for_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    read, parts = Digits.read, list[str]()

    def counted(self: Digits, part: str) -> Any:
        parts.append(part)
        return read(self, part)

    monkeypatch.setattr(Digits, "read", counted)
    assert main(["train", *TINY, "-m", "seed=0,1"]) == 0
    assert sorted(parts) == ["test", "train", "val"]
    assert gc.get_freeze_count() == 0
