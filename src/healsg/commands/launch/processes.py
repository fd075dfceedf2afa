"""``runner.processes``: a run on several processes of this machine, started by torch's elastic agent as by torchrun.

A process that is to start others becomes the *agent*: it hands each of them, its *ranks*, the checked configuration,
passes signals on, and ends with their status. ``train`` and ``resume`` become the agent themselves; a sweep and
``healsg verify`` start one for each run (``InProcesses``), since they have more to do afterwards.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from healsg import distributed, system
from healsg.cli import finish
from healsg.commands.terminal.imports import collections_deferred
from healsg.config.schema import Composed
from healsg.errors import BusyError, ConfigError
from healsg.runs.folder import RunFolder
from healsg.training.interrupt import StopSignal

JOB = "HEALSG_JOB"
"""The environment variable with a rank's job, as YAML. It may hold secrets: other users of this machine can read a
process's arguments, but neither its environment nor its standard input."""

_WATCH = 1.0
"""Seconds between two checks that the agent's parent process is alive."""
_SAVING = 600
"""Seconds that the ranks have to save after a signal, before they are killed."""


def process_count(composed: Composed, folder: RunFolder | None = None) -> int:
    """The number of processes to start for a run; 1 to train in this process.

    Args:
        composed: the checked configuration.
        folder: of a run to resume: without ``runner.processes`` it uses as many processes as before.

    Raises:
        ConfigError: a launcher such as torchrun has started another number already.
    """
    runner = composed.values["runner"]
    given = runner.get("processes") if isinstance(runner, dict) else None
    world = distributed.processes().world
    if "WORLD_SIZE" in os.environ:
        if given not in (None, world):
            raise ConfigError(f"runner.processes: is {given}, but a launcher such as torchrun has started {world}")
        return 1
    if given is None and folder is not None:
        return int(folder.record.get("processes") or 1)
    return given or 1


def job_of(composed: Composed, path: Path | None, began: float, traced: Mapping[str, Any] | None = None) -> str:
    """The job of a rank.

    Args:
        composed: the checked configuration.
        path: the run's folder; None for the folder given by its name.
        began: when the command began, by ``time.monotonic``.
        traced: the plan of ``trace.Tracer`` for a traced run; its ranks are those of ``trace.rank``.
    """
    job = {"composed": composed.as_plain(), "folder": None if path is None else str(path), "command": sys.argv}
    text: str = yaml.safe_dump(job | {"began": began, "traced": None if traced is None else dict(traced)})
    return text


def check_no_json(as_json: bool) -> None:
    """Refuse ``--json`` of several processes, which share the standard output. Raises ConfigError."""
    if as_json:
        raise ConfigError("--json: is of one process; of several read run.json: healsg show RUN --json")


def become_agent(count: int, job: str, ranks: str = __name__) -> int:
    """Start ``count`` processes of the module ``ranks``, wait for them, and return the exit status of the run.

    It is the status of the rank that failed first, 1 if that rank was killed, and 128 + signal if this process received
    a signal, which it forwards to the ranks.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # this process does nothing else, and the ranks report their own errors
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; the number decides the last bits
    os.environ[JOB] = job
    heard = [number for number in system.STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    longer: dict[str, Any] = {}
    if "shutdown_timeout" in LaunchConfig.__dataclass_fields__:  # newer than the oldest torch that is supported
        longer["shutdown_timeout"] = _SAVING
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=f"healsg-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            signals_to_handle=",".join(signal.Signals(number).name for number in heard),
            **longer,
        )
        python, *arguments = system.program(ranks, "rank")
        try:
            elastic_launch(config, python)(*arguments)
        except ChildFailedError as error:
            return max(1, error.get_first_failure()[1].exitcode)
        except SignalException as error:
            return 128 + int(error.sigval)
    return 0


@dataclass(frozen=True)
class Job:
    """The job that a rank has received, see ``job_of``."""

    composed: Composed
    folder: RunFolder | None
    began: float
    traced: dict[str, Any] | None


def own_job() -> Job:
    """The job of this rank; its secrets are redacted from now on."""
    job = yaml.safe_load(os.environ.pop(JOB))
    system.take_command_line(job["command"])
    folder = None if job["folder"] is None else RunFolder(Path(job["folder"]))
    return Job(Composed.of_plain(job["composed"]), folder, job["began"], job["traced"])


def rank() -> int:
    """One process of a run that an agent has started; returns its exit status."""
    job = own_job()

    def work() -> int:
        with StopSignal() as stop_signal:
            stop_signal.restart_clock(job.began)
            with collections_deferred():  # imported late, so that signals are handled from the start
                from healsg.trainer import TaskTrainer

            return int(TaskTrainer(job.composed, folder=job.folder).train()["exit"])

    return finish(work, job.composed.values["debug"])


def agent() -> int:
    """The agent of one run, in its own process; it reads its job from standard input."""
    request = yaml.safe_load(sys.stdin.buffer)
    threading.Thread(target=_end_with, args=(request["parent"],), daemon=True).start()
    return become_agent(request["count"], request["job"], request["ranks"])


def _end_with(parent: int) -> None:
    """End as after SIGTERM once the parent process has ended; the ranks save."""
    while os.getppid() == parent:
        time.sleep(_WATCH)
    os.kill(os.getpid(), signal.SIGTERM)


def run_agent(count: int, job: str, ranks: str = __name__, quiet: bool = False) -> tuple[int, list[str]]:
    """Start an agent and wait for it, forwarding stop signals.

    Args:
        count: of its ranks.
        job: see ``job_of``.
        ranks: the module whose ``rank`` they call.
        quiet: whether to discard its output, except errors.

    Returns:
        Its exit status (negative if it was killed by a signal), and the lines that were written as errors.
    """
    request = yaml.safe_dump({"count": count, "job": job, "ranks": ranks, "parent": os.getpid()}).encode()
    output = subprocess.DEVNULL if quiet else None
    with tempfile.TemporaryFile() as errors, StopSignal() as stop_signal:
        # a new session: Ctrl-C reaches only this process, which forwards it once
        line = system.program(__name__, "agent")
        child = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=output, stderr=errors, start_new_session=True)
        assert child.stdin is not None
        with child.stdin as orders:
            orders.write(request)
        passed_on = False
        try:
            while child.poll() is None:
                if stop_signal.received is not None and not passed_on:
                    child.send_signal(signal.Signals(stop_signal.received))
                    passed_on = True
                time.sleep(0.05)
        finally:
            system.kill_family(child)
            child.wait()
        errors.seek(0)
        return child.returncode, errors.read().decode(errors="replace").strip().splitlines()


def refuse_if_locked(folder: RunFolder) -> None:
    """Raise BusyError where another command trains in a folder, before processes are started for it."""
    if folder.is_locked():
        raise BusyError(f"{folder.shown}: another process trains there")
