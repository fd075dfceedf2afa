"""Long counts of how several processes end: every fault in every phase, and many short runs that exit cleanly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from healsg import peers
from healsg.cli import main
from healsg.runner import TaskRunner
from healsg.runs.checkpointer import Checkpointer
from healsg.runs.folder import RunFolder
from helpers import be_rank, ended, fork, free_port, record, trainer

LINE = ["train", "model=mlp", "model.width=8", "data.batch_size=256", "quiet=true", "runner.epochs=8"]
LINE += ["runner.save_every=2", "name=run"]
LIMIT = 60.0
"""Seconds in which every process has to be gone."""


def fail() -> None:
    raise RuntimeError("the scratch disk of this rank is gone")


def exhaust() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def hang() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    time.sleep(99)


KINDS: dict[str, tuple[Callable[[], object], str]] = {
    "raise": (fail, r"rank {rank}, \w+, epoch \d+, step \d+: RuntimeError: the scratch disk of this rank is gone"),
    "memory": (exhaust, r"rank {rank}, .*(out of memory|can't allocate memory)"),
    "exit": (lambda: os._exit(0), r"rank {rank} is gone without a word"),
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), r"rank {rank} is gone without a word"),
    "term": (lambda: os.kill(os.getpid(), signal.SIGTERM), r"SIGTERM"),
    "hang": (hang, r"rank {rank} has not answered for 3 s"),
}
"""What happens to a process, and what ``run.json`` says of it."""

PHASES: dict[str, tuple[type, str]] = {
    "train": (TaskRunner, "step"),
    "evaluate": (TaskRunner, "pause"),
    "save": (Checkpointer, "save"),
}
"""Where it happens: within such a call, in the third epoch."""


def epoch_of(owner: Any, given: tuple[Any, ...]) -> int:
    """The epochs that are complete as a patched method is called."""
    runner = owner if isinstance(owner, TaskRunner) else given[0].runner
    return int(runner.epoch)


@pytest.mark.soak
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_one_process_ends_all_and_is_named(
    kind: str, phase: str, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("BEAT", 0.2), ("STALE", 1.5), ("PATIENCE", 1.0), ("GRACE", 3.0)):
        monkeypatch.setattr(peers, name, seconds)
    act, said = KINDS[kind]
    owner, method = PHASES[phase]
    usual = getattr(owner, method)
    rank = world - 1

    def faulty(self: Any, *given: Any) -> Any:
        if os.environ.get("RANK") == str(rank) and epoch_of(self, given) == 3 - (phase != "save"):
            act()
        return usual(self, *given)

    monkeypatch.setattr(owner, method, faulty)
    port = free_port()
    line = [*LINE, "runner.timeout=3"]
    trainer(*line[1:])  # composed once

    def one(number: int) -> None:
        be_rank(number, world, port)
        log = os.open(f"rank-{number}.log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - pytest has replaced them
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["train.py", *line[1:]]
        status = main(line)
        sys.stderr.flush()
        os._exit(status)

    began = time.monotonic()
    children = [fork(lambda number=number: one(number)) for number in range(world)]  # type: ignore[misc]
    statuses = [ended(child, max(1.0, LIMIT - (time.monotonic() - began))) for child in children]
    told = record("run")
    logs = [Path(f"rank-{number}.log").read_text() for number in range(world)]
    assert statuses[0] == (143 if kind == "term" else 1), (statuses, logs)
    assert told["status"] == ("stopped" if kind == "term" else "failed")
    assert re.search(said.format(rank=rank), told["reason"]), told["reason"]
    _, state = RunFolder(Path("runs/run")).last_checkpoint()
    assert state is not None
    assert state["runner"]["step"] >= 8, "two epochs of six updates, of which every second is saved"


ZYGOTE = """\
import os, sys, time
sys.path[:0] = {path!r}
from helpers import be_rank, free_port, trainer
import healsg.trainer, healsg.datasets.digits, torch._dynamo, torch.distributed.nn.functional
from importlib import import_module
import_module("torch.nn.parallel.distributed")
from healsg.cli import main
line = {line!r}
trainer(*line[1:])
sys.argv = ["train.py", *line[1:]]

def launch(number):
    world, port = 2 + number % 3, free_port()
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            be_rank(rank, world, port)
            os.makedirs(f"launch{{number}}", exist_ok=True)
            os.chdir(f"launch{{number}}")
            log = os.open(f"{{rank}}.log", os.O_CREAT | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.exit(main(line))  # through the end of the interpreter, as a process of its own
        children.append(child)
    return children

began = time.monotonic()
running = {{}}
for number in range({first}, {last}):
    while len(running) >= 2:  # two launches at once, four to eight processes on two cores
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        done = [key for key, each in running.items() if all(os.waitid(os.P_PID, child, look) for child in each)]
        for key in done:
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in running.pop(key)]
            print(f"launch {{key}}: {{codes}}", flush=True)
        time.sleep(0.05)
    running[number] = launch(number)
for key, children in running.items():
    print(f"launch {{key}}: {{[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]}}", flush=True)
print(f"{{time.monotonic() - began:.0f}} s", flush=True)
"""


@pytest.mark.soak
@pytest.mark.parametrize("piece", range(5))
def test_short_runs_on_two_to_four_processes_exit_cleanly(piece: int, tmp_path: Path) -> None:
    """Forty launches of a piece, two at once, so that the cores are overrun; each process ends with its interpreter."""
    small = ["train", "model=mlp", "model.width=4", "data.batch_size=256", "quiet=true", "runner.steps=3", "name=run"]
    first = 40 * piece
    program = ZYGOTE.format(path=[str(Path(__file__).parent)], line=small, first=first, last=first + 40)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=1500, check=False)
    print(done.stdout, done.stderr)
    codes = re.findall(r"^launch (\d+): \[(.*)\]$", done.stdout, re.MULTILINE)
    assert len(codes) == 40
    assert [(number, found) for number, found in codes if set(found.split(", ")) != {"0"}] == []
