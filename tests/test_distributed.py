"""Several processes on CPUs, most started by the real torchrun: the same numbers, one folder, one error, no hang."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from healsg import TaskTrainer, distributed, peers
from healsg.cli import main
from healsg.errors import ConfigError
from healsg.runs import folder
from healsg.runs.checkpoint import load
from healsg.training import interrupt
from healsg.training.device import choose_device
from healsg.training.interrupt import StopSignal
from healsg.training.parallel import Parallel
from helpers import (
    HANG,
    METHODS,
    REPOSITORY,
    UNLABELLED_ACTS,
    Program,
    be_rank,
    beside,
    epochs_of,
    events,
    fork,
    free_port,
    in_processes,
    no_hang,
    record,
    wait_for,
)

LIMIT = 150.0
"""Seconds that any launch may take."""


def torchrun(*arguments: str) -> list[str]:
    """The command line of two processes of ``train.py``."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    return [*launcher, str(REPOSITORY / "train.py"), *arguments]


def descendants(process: int) -> list[int]:
    """A process and all that it started."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = children.read_text().split() if children.exists() else []
    return [process, *(inner for child in found for inner in descendants(int(child)))]


class Launch:
    """A run of two processes that is watched and interrupted; none of its processes outlives it.

    Args:
        arguments: of ``train.py``.
        by_torchrun: whether torchrun starts the processes, or ``runner.processes=2``.
    """

    def __init__(self, *arguments: str, by_torchrun: bool = True) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        own = [sys.executable, str(REPOSITORY / "train.py"), *arguments, "runner.processes=2"]
        line = torchrun(*arguments) if by_torchrun else own
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
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
        self.process.communicate(timeout=HANG)
        wait_for(lambda: not any(Path(f"/proc/{process}/exe").exists() for process in self.processes))


def launch(program: Program, *arguments: str) -> subprocess.CompletedProcess[str]:
    return program(torchrun(*arguments), timeout=LIMIT, env={**os.environ, "OMP_NUM_THREADS": "1"})


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
    assert main(["train", *options, "name=one"]) == 0
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


@pytest.mark.soak
def test_each_term_is_weighed_by_its_own_samples() -> None:
    """In one, two and three processes: 310 labelled samples in batches of 60, of which the last has unlike shares."""
    options = ["model=mlp", "model.width=16", "data.labels=310", "data.batch_size=60", "runner.precision=fp64"]
    options += ["method/optimizer=sgd", "method.optimizer.lr=0.05", "runner.epochs=1", "runner.log_every=4"]

    def train(name: str, methods: Iterable[str] = UNLABELLED_ACTS) -> None:
        for method in methods:
            settings = UNLABELLED_ACTS[method]
            given = [f"method={method}", *settings, "method.unlabelled_ratio=2", *options, "quiet=true"]
            assert TaskTrainer.compose(*given, f"name={name}-{method}").train()["status"] == "finished"

    train("one")
    for count, name, methods in ((2, "two", ["fixmatch", "mixmatch"]), (3, "three", list(UNLABELLED_ACTS))):
        in_processes(count, lambda rank, name=name, methods=methods: train(name, methods))  # type: ignore[misc]
        for method in methods:
            agree(Path(f"runs/one-{method}"), Path(f"runs/{name}-{method}"))
    for method in UNLABELLED_ACTS:
        last = events(Path(f"runs/one-{method}"), "epoch")[-1]
        assert last["train/unlabelled"] > 0, f"{method}: its term acted"


MIXED = {
    "mixup": ["method.mixup=0.5", "method.label_smoothing=0.1"],
    "cutmix": ["method.cutmix=1"],
    "both": ["method.mixup=0.5", "method.cutmix=1", "method.random_erasing=0.5"],
    "weights": ["method.mixup=0.5", "task._target_=test_step.Weighted", "trusted=[test_step]"],
}


@pytest.mark.soak
def test_what_is_drawn_for_a_batch_is_drawn_for_all_processes() -> None:
    """Partners, shares, boxes and noise do not depend on the number of processes."""
    options = ["model=mlp", "model.width=16", "data.labels=310", "data.batch_size=60", "runner.precision=fp64"]
    options += ["method=sgd", "runner.epochs=1", "runner.log_every=4", "quiet=true"]

    def train(name: str, cases: Iterable[str] = MIXED) -> None:
        for case in cases:
            TaskTrainer.compose(*options, *MIXED[case], f"name={name}-{case}").train()

    train("one")
    for count, name, cases in ((2, "two", ["both"]), (4, "four", list(MIXED))):
        in_processes(count, lambda rank, name=name, cases=cases: train(name, cases))  # type: ignore[misc]
        for case in cases:
            agree(Path(f"runs/one-{case}"), Path(f"runs/{name}-{case}"))


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


def test_own_loaders_in_two_processes() -> None:
    """101 samples: the last batch of 25 has one, which one process has and the other repeats without counting it."""
    Path("my_task.py").write_text(OWN)
    options = ["-m", "task._target_=my_task.Mine", "+args.plain=true,false", "runner.precision=fp64", "runner.epochs=3"]
    assert main(["train", *options, "name=one"]) == 0
    statuses, both = two_ranks(lambda rank: train(*options, "name=two"))
    assert statuses == [0, 0], [one.said for one in both]
    jobs = [sorted(path for path in Path("runs", name).iterdir() if path.is_dir()) for name in ("one", "two")]
    assert len(jobs[0]) == len(jobs[1]) == 2
    for one, two in zip(*jobs, strict=True):
        agree(one, two)


def test_a_typo_is_one_line(program: Program) -> None:
    with no_hang():
        done = launch(program, "model.widht=3", "name=typo")
    assert done.returncode != 0
    told = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"(^|\]:)error: ", line)]
    assert len(told) == 1, done.stderr
    assert "model.widht" in told[0]
    assert "width" in told[0]
    assert not Path("runs/typo").exists()


def test_stops_kills_and_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    """Started by ``runner.processes`` with BatchNorm; stopped by SIGTERM, killed, finished: the digest of one go."""
    options = ["model=cnn", "model.width=4", "runner.epochs=9", "runner.log_every=5", "runner.save_every=7"]
    options += ["data.batch_size=63"]
    assert two_ranks(lambda rank: train(*options, "name=whole"))[0] == [0, 0]
    folder = Path("runs/cut")
    with Launch(*options, "name=cut", by_torchrun=False) as run:
        run.until("epoch 2/")
        run.process.send_signal(signal.SIGTERM)
        _, errors = run.process.communicate(timeout=HANG)
        assert (run.process.returncode, errors) == (128 + signal.SIGTERM, "")
    assert record(folder)["status"] == "stopped"
    assert record(folder)["reason"] == "stopped by SIGTERM"
    stopped = load(folder / "checkpoints/last.pt")["runner"]["step"]
    assert stopped >= 2 * 19
    both = ranks(lambda rank: train(*options, "name=cut"))
    begun = epochs_of(folder)
    wait_for(lambda: epochs_of(folder) >= begun + 2)
    for one in both:
        one.kill()
    assert record(folder)["status"] == "running"
    capsys.readouterr()
    assert main(["train", *options, "name=cut"]) == 2
    assert capsys.readouterr().err.startswith("error: processes: runs/cut was started with 2, not 1;")
    statuses, both = two_ranks(lambda rank: train(*options, "name=cut"))
    assert statuses == [0, 0], [one.said for one in both]
    assert record(folder)["digest"] == record(Path("runs/whole"))["digest"]
    assert [row["epoch"] for row in events(folder, "epoch")] == list(range(1, 10))


def test_a_signal_to_one_process_alone_stops_all_of_them() -> None:
    """They save the same step, and go on from it together."""
    task = own_task(
        "if self.epoch == 2 and rank == '1' and not os.path.exists('sent'):\n    open('sent', 'w')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)"
    )
    line = [*SMALL[:3], task, "runner.epochs=400", "runner.log_every=100000", "runner.eval_every=100"]
    statuses, both = two_ranks(lambda rank: train(*line, "name=two"))
    assert statuses == [143, 143], [one.said for one in both]
    told = record("two")
    assert (told["status"], told["reason"]) == ("stopped", "stopped by SIGTERM")
    stopped = load(Path("runs/two/checkpoints/last.pt"))["runner"]
    assert 19 <= stopped["step"] < 400 * 19, "not at the end alone"
    assert two_ranks(lambda rank: train(*line, "runner.max_time=0", "name=two"))[0] == [0, 0], "both go on from it"


def test_a_signal_that_two_send_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches torchrun and its processes alike, and torchrun passes it on."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: killed.append(number))
    for processes, expected in ((Parallel(world=2), []), (Parallel(), [signal.SIGUSR1])):
        with StopSignal(parallel=processes) as stop_signal:
            stop_signal._handle(signal.SIGUSR1, None)
            stop_signal._handle(signal.SIGUSR1, None)
        assert killed == expected
    with StopSignal(parallel=Parallel(world=2)) as stop_signal:
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
    sums = distributed.processes().gather((float(own.sum()), float(own.abs().sum())))
    assert sums[0] == sums[1], (method, sums)
if distributed.processes().rank == 0:
    print("the same weights in both processes:", len(given))
"""


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_in_two_processes(precision: str, tmp_path: Path) -> None:
    """Each takes four updates of two batches, and both processes end with the same weights."""
    given = {}
    for method in METHODS:
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


# --- how processes end ------------------------------------------------------------------------------------------------

SMALL = ["model=mlp", "model.width=8", "quiet=true", "name=two"]


class Rank:
    """A process of a launch: a copy of this one, with what torchrun would set. ``said`` is what it printed."""

    def __init__(self, rank: int, port: int, act: Callable[[], int]) -> None:
        self.log = Path(f"rank-{rank}.log").absolute()
        self.log.touch()
        self.process = fork(lambda: self._be(rank, port, act))

    def _be(self, rank: int, port: int, act: Callable[[], int]) -> None:
        be_rank(rank, 2, port)
        log = os.open(self.log, os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest has replaced them
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        status = act()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None where it had to be killed after so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        self.kill()
        return None

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


def ranks(act: Callable[[int], int]) -> list[Rank]:
    """Two processes that do ``act``, given their rank."""
    port = free_port()
    return [Rank(rank, port, lambda rank=rank: act(rank)) for rank in (0, 1)]  # type: ignore[misc]


def two_ranks(act: Callable[[int], int], seconds: float = HANG) -> tuple[list[int | None], list[Rank]]:
    """Two processes that do ``act``, given their rank: their statuses, and they."""
    both = ranks(act)
    return [one.wait(seconds) for one in both], both


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes look after each other five times as often as usual, and wait for each other less long."""
    for name, seconds in (("BEAT", 0.2), ("STALE", 1.5), ("PATIENCE", 1.0), ("GRACE", 3.0)):
        monkeypatch.setattr(peers, name, seconds)


def train(*arguments: str) -> int:
    """The command, with its arguments also in ``sys.argv``, as those of a real one."""
    sys.argv = ["train.py", *arguments]
    return main(["train", *arguments])


def own_task(body: str) -> str:
    """The setting for a task whose ``run_epoch`` begins with ``body``."""
    lines = ["import os, signal, time", "from healsg import BasicTask", "class Own(BasicTask):"]
    lines += ["    def run_epoch(self):", "        rank = os.environ.get('RANK')"]
    lines += [f"        {line}" for line in body.splitlines()] + ["        return super().run_epoch()"]
    Path("own_task.py").write_text("\n".join(lines))
    return "task._target_=own_task.Own"


def test_finished_processes_leave_their_group_and_no_thread() -> None:
    """A thread of gloo's that outlives the interpreter can abort a finished process."""

    def act(rank: int) -> int:
        status = train(*SMALL, "runner.epochs=2")
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        left = [name for name in names if "gloo" in name]
        print(left, torch.distributed.is_initialized())
        return status or int(bool(left) or torch.distributed.is_initialized())

    statuses, both = two_ranks(act)
    assert statuses == [0, 0], [one.said for one in both]
    assert record(Path("runs/two"))["status"] == "finished"


@pytest.mark.usefixtures("soon")
def test_the_first_cause_is_told_and_recorded() -> None:
    task = own_task("if self.epoch == 2 and rank == '1': raise RuntimeError('the scratch disk of this rank is gone')")
    statuses, both = two_ranks(lambda rank: train(*SMALL, task, "runner.epochs=20"))
    assert statuses == [1, 1]
    told = record(Path("runs/two"))
    cause = "RuntimeError: the scratch disk of this rank is gone"
    assert told["status"] == "failed"
    assert re.fullmatch(rf"rank 1, \w+, epoch \d+, step \d+: {cause}", told["reason"])
    lines = both[0].said.splitlines()
    assert lines[-1] == f"error: {told['reason']}"
    assert "gloo" not in both[0].said
    assert "Traceback" in both[1].said
    assert "error: " not in both[1].said, "rank 0 tells it"


def test_a_mistake_that_all_make_is_told_once() -> None:
    statuses, both = two_ranks(lambda rank: train(*SMALL, "runner.device=nowhere"))
    assert statuses == [2, 2], [one.said for one in both]
    assert both[0].said.startswith("error: runner.device: 'nowhere' is no device")
    assert both[0].said.count("\n") == 1
    assert both[1].said == ""
    assert not Path("runs/two/checkpoints").exists()


@pytest.mark.usefixtures("soon")
def test_a_killed_process_is_named() -> None:
    task = own_task("if self.epoch == 2 and rank == '1': os.kill(os.getpid(), signal.SIGKILL)")
    statuses, both = two_ranks(lambda rank: train(*SMALL, task, "runner.epochs=20"))
    assert statuses == [1, -signal.SIGKILL]
    reason = record(Path("runs/two"))["reason"]
    assert re.match(r"rank 1 is gone without a word \(killed, or out of memory\?\), last heard of in: ", reason)
    assert both[0].said.splitlines()[-1] == f"error: {reason}"


@pytest.mark.usefixtures("soon")
def test_a_hang_ends_and_names_the_silent_process() -> None:
    """The main thread of rank 1 hangs, where no exception reaches it; that of rank 0 waits for it in a collective."""
    task = own_task(
        "if self.epoch == 3 and rank == '1': signal.pthread_sigmask(signal.SIG_BLOCK, [15]); time.sleep(999)"
    )
    statuses, both = two_ranks(lambda rank: train(*SMALL, task, "runner.epochs=6", "runner.timeout=8"))
    assert statuses == [1, 1], [one.said for one in both]
    told = record(Path("runs/two"))
    assert told["status"] == "failed"
    assert re.match(r"rank 1 has not answered for 8 s \(runner.timeout\), last heard of in: \w+", told["reason"])
    assert both[0].said.splitlines()[-1] == f"error: {told['reason']}"
    own_task("pass")
    again = two_ranks(lambda rank: train(*SMALL, task, "runner.epochs=6", "runner.timeout=300"))
    assert again[0] == [0, 0], [one.said for one in again[1]]


SLOW = """
import os, time
from healsg.datasets.digits import Digits

class Slow(Digits):
    def stored(self, part):
        time.sleep(8.0 * (os.environ.get("RANK") == "1" and part == "train"))
        return super().stored(part)
"""


@pytest.mark.usefixtures("soon")
def test_data_may_take_one_process_longer_than_the_timeout() -> None:
    Path("slow_data.py").write_text(SLOW)
    line = [*SMALL, "data._target_=slow_data.Slow", "runner.epochs=1", "runner.timeout=6"]
    statuses, both = two_ranks(lambda rank: train(*line))
    assert statuses == [0, 0], [one.said for one in both]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGUSR1, marks=pytest.mark.soak)])
def test_processes_end_with_their_launcher(number: int) -> None:
    """torchrun dies of both at once. Its processes save, and end."""
    with Launch("model=mlp", "model.width=8", "runner.epochs=100000", "name=two") as run:
        run.until("epoch 3/")
        run.process.send_signal(number)
        run.process.wait(HANG)
        ranks = [process for process in run.processes if process != run.process.pid]
        wait_for(lambda: not any(Path(f"/proc/{process}/exe").exists() for process in ranks))
    told = record(Path("runs/two"))
    assert told["status"] == "stopped"
    assert "torchrun" in told["reason"]
    saved = load(Path("runs/two/checkpoints/last.pt"))["runner"]["step"]
    assert saved >= events(Path("runs/two"), "epoch")[-1]["step"], "it was saved when it was stopped"


def test_other_arguments_on_another_node_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And rank 0, whose process is the store of the launch, stays until the slower rank 1 has asked the last time."""
    leave = peers.Peers.leave

    def leave_late(self: peers.Peers) -> None:
        time.sleep(2.5)
        self.first_error()
        leave(self)

    def act(rank: int) -> int:
        if rank == 1:
            monkeypatch.setattr(peers.Peers, "leave", leave_late)
        return train(*SMALL, f"runner.epochs={2 + rank}")

    statuses, both = two_ranks(act)
    assert statuses == [2, 2], [one.said for one in both]
    assert both[0].said.count("\n") == 1
    assert re.match(
        r"error: arguments: rank 1 on \S+ has runner.epochs=3, rank 0 on \S+ has runner.epochs=2;", both[0].said
    )
    assert both[1].said == ""
    assert not Path("runs").exists()


def test_other_settings_in_a_program_are_refused() -> None:
    from healsg import TaskTrainer

    def act(rank: int) -> int:
        with pytest.raises(ConfigError, match=r"^seed: is 0 on rank 0 and 1 on rank 1;"):
            TaskTrainer.compose(*SMALL, f"seed={rank}").train()
        return 0

    assert two_ranks(act)[0] == [0, 0]
    assert not Path("runs").exists()


def test_nodes_without_a_shared_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other node has a folder of the same name, on a disk of its own."""
    monkeypatch.setattr(folder, "VISIBLE", 0.2)

    def act(rank: int) -> int:
        if rank == 1:
            monkeypatch.setattr(folder.RunFolder, "has_token", lambda self, token: False)
        return train(*SMALL, "runner.epochs=2")

    statuses, both = two_ranks(act)
    assert statuses == [1, 1], [one.said for one in both]
    assert both[0].said.count("\n") == 1
    assert re.match(r"error: \S*runs/two: rank 1 on \S+ does not see what rank 0 on \S+ writes there;", both[0].said)
    assert both[1].said == ""
    assert not Path("runs").exists()


def test_a_sweep_goes_on_after_a_mistake_of_all() -> None:
    line = ["model=mlp", "model.width=8", "quiet=true", "name=two", "runner.steps=2", "-m", "runner.device=nowhere,cpu"]
    statuses, both = two_ranks(lambda rank: train(*line))
    assert statuses == [1, 1]
    assert both[0].said.count("error: runner.device: 'nowhere'") == 1
    assert both[1].said == ""
    assert record(Path("runs/two/runner.device=cpu"))["status"] == "finished"


@pytest.mark.usefixtures("soon")
def test_a_sweep_ends_with_a_process_that_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has left the others within a collective, and only its end brings them out of it."""
    monkeypatch.setattr(distributed, "TOGETHER", 1.0)
    task = own_task("if rank == '1' and self.config.seed == 0: raise RuntimeError('a bad disk')")
    line = ["model=mlp", "model.width=8", "quiet=true", "name=two", "runner.epochs=2", task, "-m", "seed=0,1"]
    statuses, both = two_ranks(lambda rank: train(*line))
    assert statuses == [1, 1]
    assert "RuntimeError: a bad disk" in record(Path("runs/two/seed=0"))["reason"]
    said = both[0].said  # where the collective does not end in time, the process is ended, with the cause as last line
    assert "the same command continues the jobs that are left" in said or said.endswith("RuntimeError: a bad disk\n")
    assert not Path("runs/two/seed=1/checkpoints").exists()
    own_task("pass")
    statuses, both = two_ranks(lambda rank: train(*line))
    assert statuses == [0, 0], [one.said for one in both]
    assert record(Path("runs/two/seed=1"))["status"] == "finished"


def test_one_device_for_all_processes_is_refused() -> None:
    two = Parallel(world=2, local_world=2)
    for wanted in ("cuda:0", 0, "0"):
        with pytest.raises(ConfigError, match="puts all processes of this machine on one device; give cuda"):
            choose_device(wanted, two)
    assert choose_device("cpu", two).type == "cpu"


def test_processes_ask_at_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow and a fast process exchange whether they stop about once a second, whatever an update takes."""
    clock, asked = [0.0], []
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: clock[0])
    two = Parallel(world=2)
    monkeypatch.setattr(two, "gather", lambda own: [own, (False, 2 * own[1])])
    one = StopSignal(parallel=two)
    for step in range(1, 1001):
        clock[0] += 0.01 if step <= 500 else 0.1
        before = one._next_step
        assert not one.agreed_at(step)
        if one._next_step != before:
            asked.append(step)
    early = [step for step in asked if 50 <= step <= 500]
    late = [step for step in asked if step > 600]
    assert {second - first for first, second in pairwise(early)} <= {49, 50}
    assert max(second - first for first, second in pairwise(late)) <= 5
    monkeypatch.setattr(two, "gather", lambda own: [own, (True, own[1])])
    assert any(one.agreed_at(step) for step in range(1001, 1010))
