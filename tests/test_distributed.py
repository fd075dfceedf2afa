"""Several processes on CPUs, most started by the real torchrun: the same numbers, one folder, one error, no hang."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import REPOSITORY, Program, beside, command, in_processes
from healsg import TaskTrainer, distributed
from healsg.runs.checkpoint import load
from healsg.training.interrupt import StopSignal

LIMIT = 150.0
"""Seconds that any launch may take."""


def torchrun(*arguments: str) -> list[str]:
    """The command line of two processes of ``train.py``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    return [*launcher, str(REPOSITORY / "train.py"), *arguments]


def descendants(process: int) -> list[int]:
    """A process and all that it started."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = children.read_text().split() if children.exists() else []
    return [process, *(inner for child in found for inner in descendants(int(child)))]


class Launch:
    """A run under torchrun that is watched and interrupted; none of its processes outlives it."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            torchrun(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.processes: list[int] = []

    def __enter__(self) -> Launch:
        return self

    def until(self, line: str) -> None:
        """Wait for a line that begins like this."""
        assert self.process.stdout is not None
        seen = []
        for text in self.process.stdout:
            seen.append(text)
            if text.startswith(line):
                self.processes = descendants(self.process.pid)
                return
        raise AssertionError(f"no line {line!r} in {seen}, {self.process.communicate()[1]}")

    def kill(self) -> None:
        """Kill every process at once."""
        for process in self.processes:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def __exit__(self, *exception: object) -> None:
        self.processes = self.processes or descendants(self.process.pid)
        if self.process.poll() is None:
            self.kill()
        self.process.communicate(timeout=30)
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{process}/exe").exists() for process in self.processes):
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.05)


def launch(program: Program, *arguments: str) -> subprocess.CompletedProcess[str]:
    return program(torchrun(*arguments), timeout=LIMIT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def events(folder: Path, event: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


def record(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return value


def agree(first: Path, second: Path) -> None:
    """Two runs have the same weights to 1e-10, and metrics that are equal, or equal to rounding."""
    states = [load(folder / "checkpoints/last.pt") for folder in (first, second)]
    assert states[0]["runner"]["step"] == states[1]["runner"]["step"]
    for key, value in states[0]["model"].items():
        assert value.dtype == torch.float64
        assert (value - states[1]["model"][key]).abs().max() < 1e-10, key
    for event in ("step", "epoch", "test"):
        rows = [events(folder, event) for folder in (first, second)]
        assert len(rows[0]) == len(rows[1])
        for one, two in zip(*rows, strict=True):
            assert list(one) == list(two)
            assert [one[key] for key in one if key.endswith("/acc")] == [
                two[key] for key in two if key.endswith("/acc")
            ]
            losses = [[row[key] for key in row if key.endswith("/loss")] for row in (one, two)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_one_and_two_processes_agree(program: Program) -> None:
    """A sweep over accumulation, 20 steps of batches of 100 out of 1,167, so that tails are uneven and odd."""
    options = ["-m", "runner.accumulate=1,2", "model=mlp", "model.width=16", "method=sgd", "runner.precision=fp64"]
    options += ["data.batch_size=100", "runner.steps=20", "runner.log_every=5", "runner.clip_norm=1"]
    alone = program(command(*options, "name=one"))
    assert alone.returncode == 0, alone.stderr
    together = launch(program, *options, "name=two")
    assert together.returncode == 0, together.stderr
    assert sorted(path.name for path in Path("runs").iterdir()) == ["one", "two"]
    jobs = sorted(path.name for path in Path("runs/two").iterdir())
    assert jobs == ["runner.accumulate=1", "runner.accumulate=2", "sweep.csv"]
    assert together.stdout.count("job 1 of 2") == 1
    for job in jobs[:2]:
        agree(Path("runs/one") / job, Path("runs/two") / job)
        assert record(Path("runs/two") / job)["status"] == "finished"
        assert record(Path("runs/two") / job)["processes"] == 2


SEMI = {
    "fixmatch": ["method.threshold=0.1"],
    "uda": ["method.threshold=0.1"],
    "flexmatch": ["method.threshold=0.12"],
    "softmatch": ["method.momentum=0.5"],
    "freematch": ["method.momentum=0.5"],
    "pseudo_label": ["method.ramp_start=0", "method.ramp_end=0.1"],
    "mean_teacher": ["method.ramp=0.1"],
}
"""By semi-supervised method, settings with which its unlabelled term acts from the beginning."""


def test_each_term_is_weighed_by_its_own_samples() -> None:
    """In one, two and three processes: 310 labelled samples in batches of 60, of which the last has unlike shares."""
    options = ["model=mlp", "model.width=16", "data.labels=310", "data.batch_size=60", "runner.precision=fp64"]
    options += ["method/optimizer=sgd", "method.optimizer.lr=0.05", "runner.epochs=2", "runner.log_every=4"]

    def train(name: str) -> None:
        for method, settings in SEMI.items():
            given = [f"method={method}", *settings, "method.unlabelled_ratio=2", *options, "quiet=true"]
            assert TaskTrainer.compose(*given, f"name={name}-{method}").train()["status"] == "finished"

    train("one")
    for count, name in ((2, "two"), (3, "three")):
        in_processes(count, lambda rank, name=name: train(name))  # type: ignore[misc]
        for method in SEMI:
            agree(Path(f"runs/one-{method}"), Path(f"runs/{name}-{method}"))
    for method in SEMI:
        last = events(Path(f"runs/one-{method}"), "epoch")[-1]
        assert last["train/unlabelled"] > 0, f"{method}: its term acted"


OWN = """
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from healsg import BasicTask


class Mine(BasicTask):
    def build_dataloader(self):
        input = torch.randn(101, 8, generator=torch.Generator().manual_seed(1))
        data = TensorDataset(input, (input.sum(dim=1) > 0).long())
        order = {"shuffle": True} if self.args.plain else {"sampler": SubsetRandomSampler(range(101))}
        return DataLoader(data, batch_size=25, **order), DataLoader(data, batch_size=7)

    def build_model(self):
        return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
"""


def test_own_loaders_under_torchrun(program: Program) -> None:
    """101 samples: the last batch of 25 has one, which one process has and the other repeats without counting it."""
    Path("my_task.py").write_text(OWN)
    options = ["-m", "task._target_=my_task.Mine", "+args.plain=true,false", "runner.precision=fp64", "runner.epochs=3"]
    assert program(command(*options, "name=one")).returncode == 0
    together = launch(program, *options, "name=two")
    assert together.returncode == 0, together.stderr
    jobs = [sorted(path for path in Path("runs", name).iterdir() if path.is_dir()) for name in ("one", "two")]
    assert len(jobs[0]) == len(jobs[1]) == 2
    for one, two in zip(*jobs, strict=True):
        agree(one, two)


def test_a_typo_is_one_line(program: Program) -> None:
    began = time.monotonic()
    done = launch(program, "model.widht=3", "name=typo")
    assert done.returncode != 0
    assert time.monotonic() - began < 60
    told = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"(^|\]:)error: ", line)]
    assert len(told) == 1, done.stderr
    assert "model.widht" in told[0]
    assert "width" in told[0]
    assert not Path("runs/typo").exists()


def test_stops_kills_and_resumes(program: Program) -> None:
    """The default network, with BatchNorm: stopped by SIGTERM, killed, finished; the same digest as in one go."""
    options = ["runner.epochs=12", "runner.log_every=5", "runner.save_every=7", "data.batch_size=63"]
    whole = launch(program, *options, "name=whole")
    assert whole.returncode == 0, whole.stderr
    assert record(Path("runs/whole"))["test"]["test/acc"] > 0.9
    folder = Path("runs/cut")
    with Launch(*options, "name=cut") as run:
        run.until("epoch 2/")
        run.process.send_signal(signal.SIGTERM)
        run.process.communicate(timeout=60)
        assert run.process.returncode != 0
    assert record(folder)["status"] == "stopped"
    assert record(folder)["reason"] == "stopped by SIGTERM"
    stopped = load(folder / "checkpoints/last.pt")["runner"]["step"]
    assert stopped >= 2 * 19
    with Launch(*options, "name=cut") as run:
        run.until("epoch 6/")
        run.kill()
    assert record(folder)["status"] == "running"
    refused = program(command(*options, "name=cut"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: processes: runs/cut was started with 2, not 1;")
    finished = launch(program, *options, "name=cut")
    assert finished.returncode == 0, finished.stderr
    assert record(folder)["digest"] == record(Path("runs/whole"))["digest"]
    assert [row["epoch"] for row in events(folder, "epoch")] == list(range(1, 13))


def test_a_signal_that_two_send_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches torchrun and its processes alike, and torchrun passes it on."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: killed.append(number))
    for launched, expected in ((True, []), (False, [signal.SIGUSR1])):
        monkeypatch.setattr(distributed, "launched", lambda launched=launched: launched)
        with StopSignal() as stop_signal:
            stop_signal._handle(signal.SIGUSR1, None)
            stop_signal._handle(signal.SIGUSR1, None)
        assert killed == expected
    monkeypatch.setattr(distributed, "launched", lambda: True)
    with StopSignal() as stop_signal:
        stop_signal._handle(signal.SIGUSR1, None)
        stop_signal.received_at -= 5
        stop_signal._handle(signal.SIGUSR1, None)
    assert len(killed) == 2


EVERY_METHOD = """
import json, sys
from pathlib import Path
import torch
from healsg import TaskTrainer, distributed

given = json.loads(Path("methods.json").read_text())
for method, options in given.items():
    trainer = TaskTrainer.compose(f"method={method}", *options, f"name={method}")
    assert trainer.train()["status"] == "finished", method
    own = torch.cat([value.detach().double().flatten() for value in trainer.task.model.parameters()])
    sums = distributed.gather((float(own.sum()), float(own.abs().sum())))
    assert sums[0] == sums[1], (method, sums)
if distributed.rank() == 0:
    print("the same weights in both processes:", len(given))
"""


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_in_two_processes(precision: str, tmp_path: Path) -> None:
    """Each takes four updates of two batches, and both processes end with the same weights."""
    given = {}
    for method in sorted(path.stem for path in (REPOSITORY / "conf/method").glob("*.yaml")):
        small = beside(method)
        if not any(option.startswith("model=") for option in small):
            small = ["model=cnn", "model.width=4", *small]
        usual = ["data.batch_size=64", "runner.steps=4", "runner.accumulate=2", "quiet=true"]
        given[method] = [*small, *usual, f"runner.precision={precision}"]
    Path("methods.json").write_text(json.dumps(given))
    Path("every_method.py").write_text(EVERY_METHOD)
    launcher = torchrun()[:-1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, "every_method.py"], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"the same weights in both processes: {len(given)}" in done.stdout
