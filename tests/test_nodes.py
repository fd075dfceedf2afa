"""Several machines, as two agents of torchrun on loopback addresses, and the script for Slurm with a signal of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import REPOSITORY, free_port, record, wait_for

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
LINE = ["data=digits", "model=mlp", "model.width=8", "runner.precision=fp64", "quiet=true", "runner.epochs=3"]
LIMIT = 150.0
"""Seconds that any launch may take."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def agent(rank: int, port: int, *arguments: str) -> subprocess.Popen[str]:
    """The agent of one of two machines, at a loopback address of its own, with one process."""
    place = [f"--node-rank={rank}", f"--local-addr=127.0.0.{1 + rank}", "--master-addr=127.0.0.1"]
    line = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", *place, f"--master-port={port}"]
    line += [str(REPOSITORY / "train.py"), *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.soak
def test_two_agents_train_as_one_with_two_processes() -> None:
    port = free_port()
    agents = [agent(rank, port, *LINE, "name=nodes") for rank in (0, 1)]
    said = [one.communicate(timeout=LIMIT) for one in agents]
    assert [one.returncode for one in agents] == [0, 0], said
    single = [sys.executable, str(REPOSITORY / "train.py"), *LINE, "runner.processes=2", "name=single"]
    subprocess.run(single, check=True, env={**os.environ, **ENVIRONMENT}, timeout=LIMIT)
    assert record("nodes")["processes"] == 2
    assert record("nodes")["digest"] == record("single")["digest"]


@pytest.mark.soak
def test_a_machine_that_is_lost_ends_the_run_of_the_other() -> None:
    """Its agent and its process are killed at once; the other one names the rank, and the same command continues."""
    port = free_port()
    line = [*LINE, "runner.epochs=300", "name=lost"]
    agents = [agent(rank, port, *line) for rank in (0, 1)]
    metrics = Path("runs/lost/metrics.jsonl")
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, LIMIT)
    children = Path(f"/proc/{agents[1].pid}/task/{agents[1].pid}/children").read_text().split()
    for process in (agents[1].pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    said = [one.communicate(timeout=LIMIT) for one in agents]
    assert agents[0].returncode == 1, said
    told = record("lost")
    assert told["status"] == "failed"
    assert told["reason"].startswith("rank 1 is gone without a word"), told["reason"]
    port = free_port()
    agents = [agent(rank, port, *line, "runner.epochs=300", "runner.max_time=0") for rank in (0, 1)]
    said = [one.communicate(timeout=LIMIT) for one in agents]
    assert [one.returncode for one in agents] == [0, 0], said


PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> scontrol.log; fi\n',
    # as on two machines, each of which runs the command once
    "srun": '"$@" & first=$!\n"$@" & second=$!\necho $first $second > agents\n'
    "wait $first; one=$?\nwait $second; two=$?\nexit $(( one > two ? one : two ))\n",
    "torchrun": f'exec {" ".join(TORCHRUN)} "$@"\n',
}
"""What stands for Slurm, and for its two machines."""


@pytest.mark.soak
@pytest.mark.parametrize("all_processes", [False, True])
def test_a_signal_of_slurm_reaches_the_processes_and_the_job_is_queued_again(
    all_processes: bool, tmp_path: Path
) -> None:
    """Slurm sends it to torchrun alone or, as its cgroup plugin does, to all that torchrun has started too."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "train.py").write_text((REPOSITORY / "train.py").read_text())
    script = (REPOSITORY / "docs/slurm.sh").read_text().replace("29500", str(free_port()))
    (tmp_path / "slurm.sh").write_text(script)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "PATH": path}
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPOSITORY / "src"), **slurm}
    command = ["bash", "slurm.sh", "job", *LINE, "runner.epochs=40"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    job = start()
    metrics = Path("runs/job/metrics.jsonl")
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, LIMIT)
    agents = list(map(int, Path("agents").read_text().split()))
    children = [Path(f"/proc/{one}/task/{one}/children").read_text().split() for one in agents]
    for process in [*agents, *(int(child) for one in children for child in one if all_processes)]:
        os.kill(process, signal.SIGUSR1)
    said = job.communicate(timeout=LIMIT)
    told = record("job")
    assert (told["status"], told["reason"]) == ("stopped", "stopped by SIGUSR1"), said
    assert job.returncode != 0
    assert Path("scontrol.log").read_text() == "requeue 7\n"
    job = start()
    said = job.communicate(timeout=LIMIT)
    assert job.returncode == 0, said
    assert Path("scontrol.log").read_text() == "requeue 7\n", "a finished job is not queued again"
    single = [sys.executable, str(REPOSITORY / "train.py"), *LINE, "runner.epochs=40", "runner.processes=2"]
    subprocess.run([*single, "name=single"], check=True, env=environment, timeout=LIMIT)
    assert record("job")["digest"] == record("single")["digest"]
