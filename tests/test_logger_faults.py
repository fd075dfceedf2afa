"""Loggers that fail in every way: the same digest, whole local metrics, one warning line, and a bounded delay."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_wandb import KEY, FakeWandb
from healsg.loggers import client
from healsg.loggers.wandb import Wandb
from healsg.task import BasicTask
from helpers import HANG
from test_signals import ended, ending, forked, undisturbed, wait_for

OPTIONS = ["model=mlp", "model.width=8", "data.batch_size=512", "runner.epochs=3", "runner.log_every=2"]
LINE = ["train", *OPTIONS, "name=run"]
FOLDER = Path("runs/run")
MIRROR = """
import sys, time
from healsg import Logger

class Faulty(Logger):
    def __init__(self, verb: str, fault: str) -> None:
        self.verb, self.fault = verb, fault
        self.patience = self.grace = 0.3 if fault == "hang" else 120.0

    def _do(self, verb):
        if verb == self.verb:
            if self.fault == "hang":
                time.sleep(1000)
            if self.fault == "exit":
                sys.exit("enough")
            raise ValueError("no\\nmore")

    def start(self, folder, record): self._do("start")
    def log(self, line): self._do("log")
    def finish(self, status): self._do("finish")

class Patient(Faulty):
    def __init__(self, verb: str, fault: str) -> None:
        super().__init__(verb, fault)
        self.patience, self.grace = 1.0, 5.0
"""


def faulty(faults: list[str], name: str = "Faulty") -> list[str]:
    """A logger for each fault in each verb, on the command line."""
    Path("loggers.py").write_text(MIRROR)
    nodes = []
    for fault in faults:
        for verb in ("start", "log", "finish"):
            key = f"+logger.{fault}_{verb}"
            nodes += [f"{key}._target_=loggers.{name}", f"{key}.verb={verb}", f"{key}.fault={fault}"]
    return nodes


def trained(more: list[str], prepare: Callable[[], None] | None = None) -> tuple[list[str], float]:
    """Train with these loggers. The warnings it showed, and the seconds that it took longer than without."""
    environment = {**os.environ, "HOME": str(Path.cwd()), "WANDB_CONFIG_DIR": str(Path.cwd())}

    def prepared() -> None:
        os.environ.update(environment)
        if prepare:
            prepare()

    times = {}
    for name, given, ready in (("plain", [], None), ("run", more, prepared)):
        began = time.monotonic()
        assert ended(forked(["train", *OPTIONS, f"name={name}", *given], ready, f"told_{name}")) == 0
        times[name] = time.monotonic() - began
    assert ending(FOLDER) == ending(Path("runs/plain"))
    told = Path("told_run").read_text()
    assert "Traceback" not in told, told
    assert "Exception ignored" not in told, told
    return [line for line in told.splitlines() if line.startswith("warning: ")], times["run"] - times["plain"]


# --- quick -----------------------------------------------------------------------------------------------------------


def test_a_mirror_that_raises_or_hangs_is_left_out_with_a_line() -> None:
    warnings, seconds = trained(faulty(["raise", "exit", "hang"]))
    left_out = [f"warning: logger raise_{verb} is left out from here on: ValueError: no more" for verb in VERBS]
    left_out += [f"warning: logger exit_{verb} is left out from here on: SystemExit: enough" for verb in VERBS]
    busy = [f"warning: hang_{verb} is still busy; what it lacks is in metrics.jsonl" for verb in VERBS]
    assert sorted(warnings) == sorted(left_out + busy)
    assert seconds < 60


VERBS = ("start", "log", "finish")


def no_space(*arguments: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_tensorboard() -> None:
    from tensorboard.compat.tensorflow_stub.io import gfile

    gfile.GFile.write = gfile.GFile.flush = no_space


def full_for_the_report() -> None:
    from healsg.loggers import report

    report.write_report = no_space  # type: ignore[assignment]


def full_for_wandb() -> None:
    client.write_text = no_space


@pytest.mark.parametrize(
    ("more", "prepare", "name"),
    [
        (["logger=tensorboard"], full_for_tensorboard, "tensorboard"),
        ([], full_for_the_report, "report"),
        (["use_wandb=true"], full_for_wandb, "wandb"),
    ],
)
def test_a_full_disk_for_what_a_mirror_writes(more: list[str], prepare: Callable[[], None], name: str) -> None:
    warnings, seconds = trained(more, prepare)
    (line,) = warnings
    assert line.startswith(f"warning: logger {name} is left out from here on: ")
    assert "No space left on device" in line
    assert seconds < 60


def test_a_folder_in_the_place_of_the_report() -> None:
    (FOLDER / "report.html").mkdir(parents=True)
    (FOLDER / "run.json").touch()  # what a killed run leaves as it begins
    (FOLDER / "report.html").rename("held")
    warnings, _ = trained([], lambda: _occupy(FOLDER / "report.html"))
    assert warnings[0].startswith("warning: logger report is left out from here on: IsADirectoryError")


def _occupy(path: Path) -> None:
    from healsg.runs.session import Session

    begin = Session.begin

    def begun(self: Session, *arguments: object) -> None:
        path.mkdir()
        begin(self, *arguments)  # type: ignore[arg-type]

    Session.begin = begun  # type: ignore[assignment, method-assign]


def slowed(seconds: float) -> None:
    """Epochs take longer from here on, so that there is a middle of the run."""
    from healsg.runs.checkpointer import Checkpointer

    end = Checkpointer.end_epoch

    def ending_late(self: Checkpointer, task: BasicTask, *more: Any) -> None:
        end(self, task, *more)
        Path(f"epoch{task.runner.epoch}").touch()
        time.sleep(seconds)

    Checkpointer.end_epoch = ending_late  # type: ignore[method-assign]


def test_wandb_goes_on_with_the_same_run_after_a_kill() -> None:
    """What the server saw: one id, opened twice, and the lines of both processes."""
    with FakeWandb() as server:

        def prepare() -> None:
            server.forget()
            os.environ.update(server.environment, HOME=str(Path.cwd()), WANDB_CONFIG_DIR=str(Path.cwd()))
            Wandb.grace = client.CLOSING = HANG
            slowed(0.5)

        line = [*LINE, "use_wandb=true", f"+wandb.timeout={HANG}", "runner.save_every=1"]
        child = forked(line, prepare)
        wait_for(Path("epoch2").exists)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == 137
        key = json.loads((FOLDER / "wandb.json").read_text())["id"]
        assert list(server.runs) == [key]
        assert ended(forked(line, prepare)) == 0
        wait_for(lambda: "test/acc" in json.dumps(server.rows(key)))
        assert json.loads((FOLDER / "wandb.json").read_text()) == {"id": key}
        assert list(server.runs) == [key]
        assert server.runs[key]["opened"] == 2
        rows = server.rows(key)
    assert Path("output").read_text().count(f"/runs/{key}") == 2
    assert "warning" not in Path("output").read_text()
    assert [row["epoch"] for row in rows if "val/acc" in row] == [1, 2, 3], "none twice"
    assert ending(FOLDER) == undisturbed(*OPTIONS)
    assert not [path for path in Path().rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def faulty_server(mode: str, later: str = "") -> tuple[list[str], float]:
    """Train with wandb and a server that answers like this, and ``later`` like that."""
    with FakeWandb(mode) as server:

        def prepare() -> None:
            server.forget()
            os.environ.update(server.environment)
            if later:
                slowed(0.7)

        if mode == "dead":
            server.die()
        if later:

            def change() -> None:
                wait_for(Path("epoch1").exists)
                server.mode = later

            threading.Thread(target=change).start()
        return trained(["use_wandb=true", "+wandb.timeout=2"], prepare)


def check_offline(warnings: list[str]) -> None:
    (line,) = warnings
    assert line.startswith("warning: wandb continues offline (")
    assert "wandb sync runs/run/wandb/offline-run-*-" in line
    (path,) = FOLDER.glob("wandb/offline-run-*/*.wandb")
    assert b"val/acc" in path.read_bytes()


def test_wandb_with_a_server_that_answers_500() -> None:
    warnings, seconds = faulty_server("500")
    check_offline(warnings)
    assert seconds < 60


def test_wandb_is_not_installed() -> None:
    Path("hidden").mkdir()
    Path("hidden/wandb.py").write_text("raise ImportError(\"No module named 'wandb'\")\n")
    warnings, seconds = trained(["use_wandb=true"], lambda: os.environ.update(PYTHONPATH="hidden", WANDB_API_KEY=KEY))
    assert warnings == ["warning: logger wandb is left out from here on: RuntimeError: No module named 'wandb'"]
    assert seconds < 60


# --- long ------------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["dead", "hang", "500"])
def test_wandb_with_a_server_that_is_of_no_use(mode: str) -> None:
    warnings, seconds = faulty_server(mode)
    check_offline(warnings)
    print(f"{mode}: {seconds:.1f} s later")
    assert seconds < 30


@pytest.mark.soak
@pytest.mark.parametrize("later", ["dead", "hang", "500"])
def test_wandb_with_a_server_that_fails_in_mid_run(later: str) -> None:
    warnings, seconds = faulty_server("ok", later)
    print(f"{later} in mid-run: {seconds:.1f} s later")
    (line,) = warnings
    assert line.startswith("warning: wandb is still uploading; if curves are missing there: wandb sync runs/run/wandb")
    assert seconds < 30


@pytest.mark.soak
def test_the_client_of_wandb_dies_in_mid_run() -> None:
    """Its process is killed after the first epoch."""

    def prepare() -> None:
        log = Wandb.log

        def logged(self: Wandb, line: dict[str, object]) -> None:
            if line["event"] == "epoch" and self.process:
                self.process.kill()
                self.process.wait()
            log(self, line)

        Wandb.log = logged  # type: ignore[method-assign]

    warnings, seconds = trained(["use_wandb=true", "wandb.mode=offline"], prepare)
    (line,) = warnings
    assert line == "warning: logger wandb is left out from here on: RuntimeError: its process ended with status -9"
    assert seconds < 30


@pytest.mark.soak
def test_a_disk_that_fills_up_under_the_client_of_wandb() -> None:
    """No file of its own may grow beyond 4 KiB."""
    limited = Path("limited").resolve()
    limited.write_text(f'#!/bin/sh\nulimit -f 8\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    warnings, seconds = trained(
        ["use_wandb=true", "wandb.mode=offline"], lambda: setattr(sys, "executable", str(limited))
    )
    print(warnings, f"{seconds:.1f} s later")
    assert len(warnings) <= 1
    assert seconds < 30


@pytest.mark.soak
def test_every_hang_at_once_with_the_times_that_are_usual() -> None:
    with FakeWandb("hang") as server:

        def prepare() -> None:
            server.forget()
            os.environ.update(server.environment)

        warnings, seconds = trained(["use_wandb=true", *faulty(["hang"], "Patient")[:3]], prepare)
    print(warnings, f"{seconds:.1f} s later")
    assert len(warnings) == 2
    assert seconds < 30
