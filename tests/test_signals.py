"""Signals and time: whenever a run is told to stop it saves, ends with 128 + n, and goes on to the same end."""

from __future__ import annotations

import errno
import functools
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from healsg import TaskTrainer
from healsg.metric import Metric
from healsg.training.interrupt import StopSignal
from helpers import HANG, REPOSITORY, command, ended, ending, forked, record, wait_for

OPTIONS = ["model=mlp", "model.width=8", "data.batch_size=128", "runner.epochs=4", "runner.log_every=5"]
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ENDS = ("stopped", "finished", None)
MARK = Path("now")


# --- runs in other processes, which other tests use too --------------------------------------------------------------


@functools.cache
def undisturbed(*options: str) -> tuple[Any, ...]:
    """How a run ends that nobody disturbs."""
    assert ended(forked(["train", *options, "name=undisturbed", "fresh=true"])) == 0, Path("output").read_text()
    return ending(Path("runs/undisturbed"))


PHASES = {
    "data": ("healsg.task", "BasicTask", "build"),
    "first save": ("healsg.runs.checkpoint", "", "save"),
    "step": ("healsg.runner", "TaskRunner", "tick"),
    "evaluation": ("healsg.evaluation.evaluator", "EvalEpoch", "run"),
    "test": ("healsg.runs.checkpointer", "Checkpointer", "finish"),
    "last save": ("healsg.runs.checkpoint", "", "save"),
    "closing": ("healsg.runs.session", "Session", "__exit__"),
}


def slow(phase: str, seconds: float = 0.4) -> None:
    """In this process, from here on: that phase of a run leaves a mark and takes long, before and after its work."""
    module, owner, name = PHASES[phase]
    place = getattr(import_module(module), owner) if owner else import_module(module)
    whole, last = getattr(place, name), phase == "last save"

    @functools.wraps(whole)
    def slowed(*arguments: Any, **named: Any) -> Any:
        if MARK.exists() or (last and not _at_the_end(arguments[1])):
            return whole(*arguments, **named)
        MARK.touch()
        time.sleep(seconds)
        result = whole(*arguments, **named)
        time.sleep(seconds)
        return result

    setattr(place, name, slowed)


def _at_the_end(state: dict[str, Any]) -> bool:
    return "runner" in state and state["runner"]["step"] >= state["runner"]["total_steps"]


def check_stopped(status: int, number: signal.Signals, folder: Path, told: str) -> None:
    """It ended as a signal asks for, or was done already; in silence, or with a line.

    A signal that comes after the record was closed finds the process on its way out, which it may end at once.
    """
    assert "Traceback" not in told, told
    assert "KeyboardInterrupt" not in told, told
    state = record(folder)["status"] if (folder / "run.json").exists() else None
    assert (status, state) in {(128 + number, end) for end in ENDS} | {(0, "finished")}, told


# --- quick -----------------------------------------------------------------------------------------------------------


def test_the_handler_only_sets_a_flag() -> None:
    """It may come between any two instructions: while the lock of the log, of a file or of memory is held."""
    with StopSignal() as stop_signal:
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        before = dict(vars(stop_signal))
        called = list[str]()
        sys.setprofile(lambda frame, event, argument: called.append(event) if "call" in event else None)
        try:
            handler(signal.SIGTERM, None)
        finally:
            sys.setprofile(None)
        changed = {key for key, value in vars(stop_signal).items() if value != before[key]}
    assert changed == {"received", "received_at"}
    assert called.count("call") == 1, "no function of Python's but itself"
    assert called.count("c_call") <= 2, "the clock, and the end of this watch"


@pytest.mark.parametrize(
    ("phase", "number"),
    [("data", signal.SIGINT), ("evaluation", signal.SIGUSR1), ("test", signal.SIGTERM), ("last save", signal.SIGINT)],
)
def test_a_signal_in_each_phase(phase: str, number: signal.Signals) -> None:
    folder, line = Path("runs/told"), ["train", *OPTIONS, "name=told"]
    child = forked(line, lambda: slow(phase, 0.1))
    wait_for(MARK.exists)
    os.kill(child, number)
    check_stopped(ended(child), number, folder, Path("output").read_text())
    if record(folder)["status"] == "stopped":
        assert "stopped by " + number.name in record(folder)["reason"]
        assert ended(forked(line)) == 0
    assert ending(folder) == undisturbed(*OPTIONS)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGKILL])
def test_a_second_signal_ends_a_save_at_once(second: signal.Signals) -> None:
    folder, line = Path("runs/told"), ["train", *OPTIONS, "name=told"]

    def stuck() -> None:
        slow("step", 0.0)
        sync = os.fsync

        def long(file: int) -> None:
            if MARK.exists():
                Path("saving").touch()
                time.sleep(2 * HANG)
            sync(file)

        os.fsync = long

    child = forked(line, stuck)
    wait_for(MARK.exists)
    os.kill(child, signal.SIGINT)
    wait_for(Path("saving").exists)
    os.kill(child, second)
    assert ended(child) == 128 + second, "it did not wait for the disk"
    assert "Traceback" not in Path("output").read_text()
    assert ended(forked(line)) == 0
    assert "going on at step" in Path("output").read_text()
    assert "previous.pt" not in Path("output").read_text(), "the last save is whole"
    assert ending(folder) == undisturbed(*OPTIONS)


def test_a_full_disk_at_a_signal_leaves_the_save_before_it() -> None:
    """What cannot be written is told in one line; with room again the same command continues to the same end."""
    line = ["train", *OPTIONS, "quiet=true", "runner.save_every=3", "name=told"]

    def filling() -> None:
        slow("step", 0.0)
        sync = os.fsync

        def full(file: int) -> None:
            if MARK.exists() and Path("full").exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(file)

        os.fsync = full

    child = forked(line, filling)
    wait_for(MARK.exists)
    Path("full").touch()
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 1
    told = Path("output").read_text()
    assert told.count("\n") == 1, told
    assert "cannot be written (No space left on device)" in told
    assert record(Path("runs/told"))["status"] == "failed"
    Path("output").unlink()
    assert ended(forked(line)) == 0, Path("output").read_text()
    assert ending(Path("runs/told")) == undisturbed(*OPTIONS, "quiet=true", "runner.save_every=3")


def test_a_signal_before_anything_began(tmp_path: Path) -> None:
    """While torch is imported: nothing is left but what the same command can begin with."""
    process = started(tmp_path, "name=told")
    wait_for(lambda: (tmp_path / "runs/told/.lock").exists())
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=HANG)[0]
    assert (process.returncode, told) == (143, "")
    assert not Path("runs").exists()


def test_a_loader_worker_leaves_signals_to_its_run() -> None:
    """A scheduler sends SIGTERM to all processes; a pool's own end still ends its workers."""
    with StopSignal(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
        if not child:
            time.sleep(2 * HANG)
            os._exit(0)
        subprocess.run([sys.executable, "-c", f"import os; os.kill({child}, 15); os.kill({child}, 15)"], check=True)
        time.sleep(0.2)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGTERM)
        assert ended(child) == 143


def test_a_halt_within_a_halt() -> None:
    with StopSignal() as outer:
        os.kill(os.getpid(), signal.SIGUSR1)
        with StopSignal(max_time=1e6) as inner:
            assert inner.asked()
            assert inner.began == outer.began
            assert str(inner.stopped()) == "stopped by SIGUSR1"
    with StopSignal() as outer:
        with StopSignal() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (outer.received, inner.received) == (None, signal.SIGTERM)
        assert outer.asked()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("ignored", [*SIGNALS, None])
def test_what_is_ignored_stays_ignored(ignored: signal.Signals | None) -> None:
    """In nested ones too, whose time and stop are one's own all the same; None is all three."""
    numbers = [ignored] if ignored else list(SIGNALS)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        with StopSignal() as outer:
            with StopSignal(max_time=1e6) as inner:
                assert inner.began == outer.began
                for number in numbers:
                    os.kill(os.getpid(), number)
                assert inner.received is None
                for number in [number for number in SIGNALS if number not in numbers][:1]:
                    os.kill(os.getpid(), number)
                    assert inner.received == number
            assert outer.received == inner.received
            assert all(signal.getsignal(number) == signal.SIG_IGN for number in numbers)
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in numbers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Slow(Metric):
    """A scheduler asks the run to end as it is computed, in steps."""

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        return output.new_ones(2)

    def compute(self, states: Sequence[Any]) -> Generator[None, None, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(3):
            yield
        raise AssertionError("the metric went on")


def test_a_signal_is_answered_while_a_metric_is_computed() -> None:
    parts = ["+model.metrics.slow._target_=test_signals.Slow", "trusted=[test_signals]"]
    result = TaskTrainer.compose("model=mlp", "runner.epochs=1", "quiet=true", "name=run", *parts).train()
    assert (result["status"], result["exit"]) == ("stopped", 128 + signal.SIGTERM)


def test_the_limit_keeps_time_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """For two saves, a step as long as the last one, and the exit; an evaluation alone does not stop a run."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopSignal() as command_stop_signal:
        now[0] = 110.0
        with StopSignal(max_time=60) as stop_signal:
            stop_signal.expect_saving(5.0)
            assert not stop_signal.asked_within()
            for now[0], asked in [(120.0, False), (130.0, False), (136.0, False), (137.0, False), (146.0, True)]:
                assert stop_signal.asked() == asked, now[0]
            now[0] = 145.9
            assert not stop_signal.asked_within()
            now[0] = 146.0
            assert stop_signal.asked_within()
        assert not command_stop_signal.asked()


def test_time_is_kept_in_hand_for_the_longest_save_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopSignal(max_time=60) as stop_signal:
        for seconds in (1.0, 5.0, 2.0):
            stop_signal.saving_took(seconds)
        now[0] = 145.0
        assert not stop_signal.asked()
        now[0] = 146.0
        assert stop_signal.asked_within()


# --- long counts: real processes -------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import healsg.cli
if {phase!r}:
    from test_signals import slow
    slow({phase!r})
print("up", flush=True)
sys.exit(healsg.cli.main(["train", *sys.argv[1:]]))
"""


def started(folder: Path, *more: str, phase: str = "") -> subprocess.Popen[str]:
    """A real process, from the moment at which its own code runs."""
    program = PROGRAM.format(tests=str(REPOSITORY / "tests"), phase=phase)
    line = [sys.executable, "-c", program, *OPTIONS, *more]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.soak
def test_signals_at_random_points(tmp_path: Path) -> None:
    """50 in all: 29 at random times from the program's first line on, three in each of seven phases."""
    chance, began = random.Random(12), time.monotonic()
    assert "finished" in started(tmp_path, "name=warm").communicate()[0]
    seconds = time.monotonic() - began
    expected, seen = ending(tmp_path / "runs/warm"), dict.fromkeys(["began nothing", "stopped", "finished"], 0)
    points = [("", chance.uniform(0, seconds)) for _ in range(29)]
    points += [(phase, chance.uniform(0, 0.8)) for phase in PHASES for _ in SIGNALS]
    for count, (phase, moment) in enumerate(points):
        number, folder = SIGNALS[count % 3], tmp_path / f"runs/told{count}"
        MARK.unlink(missing_ok=True)
        process = started(tmp_path, f"name=told{count}", phase=phase)
        if phase:
            wait_for(lambda process=process: MARK.exists() or process.poll() is not None)
        time.sleep(moment)
        process.send_signal(number)
        told = process.communicate(timeout=HANG)[0]
        status = 128 - process.returncode if process.returncode < 0 else process.returncode
        check_stopped(status, number, folder, told)
        state = record(folder)["status"] if (folder / "run.json").exists() else "began nothing"
        seen[state] += 1
        if state != "finished":
            again = started(tmp_path, f"name=told{count}")
            assert (again.communicate(timeout=HANG)[0], again.returncode)[1] == 0
        assert ending(folder) == expected, (phase, moment, number)
    print(f"{len(points)} signals: {seen}")
    assert all(seen.values())


@pytest.mark.soak
def test_max_time_is_kept_and_a_chain_ends_the_same(tmp_path: Path) -> None:
    """Measured from the start of the process to its end, start-up and all."""
    options, quiet = ["runner.epochs=600", "quiet=true", "name=chain"], {"cwd": tmp_path, "check": False}
    whole = subprocess.run(command(*OPTIONS, *options[:2], "name=whole"), **quiet)  # type: ignore[call-overload]
    assert whole.returncode == 0
    spent = []
    for _ in range(40):
        began = time.monotonic()
        done = subprocess.run(command(*OPTIONS, *options, "runner.max_time=12"), **quiet)  # type: ignore[call-overload]
        spent.append(time.monotonic() - began)
        assert done.returncode == 0
        if record(tmp_path / "runs/chain")["status"] == "finished":
            break
        assert record(tmp_path / "runs/chain")["reason"] == "stopped by runner.max_time"
    print("seconds:", " ".join(f"{seconds:.2f}" for seconds in spent))
    assert len(spent) > 2
    assert max(spent) < 12
    assert ending(tmp_path / "runs/chain") == ending(tmp_path / "runs/whole")
