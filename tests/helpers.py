"""What tests share: runs are started, cut, watched and read here.

A test says what a user would do and see. Where it has to reach into the frame, to cut a run at a given update or to
copy its folder after a save, it does so through this file alone, so that a change inside the frame is followed here.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
METHODS = sorted(path.stem for path in (REPOSITORY / "conf/method").glob("*.yaml"))
Program = Callable[..., "subprocess.CompletedProcess[str]"]
HANG = 120.0
"""Seconds after which a test takes what it waits for to hang. A test waits for an event, never for a time in which a
busy machine might not get there."""


# --- command lines ---------------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    """The command line of ``python train.py ...``."""
    return [sys.executable, str(REPOSITORY / "train.py"), *arguments]


def healsg(*arguments: str) -> list[str]:
    """The command line of the console script."""
    return [sys.executable, "-c", "import sys; from healsg.cli import main; sys.exit(main())", *arguments]


# --- running in this process -----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def _composed(project: Path, *options: str) -> Any:
    from healsg.config.compose import Composer

    return Composer().compose(options)


def trainer(*options: str) -> Any:
    """``TaskTrainer.compose(*options)``; what differs in the name alone is composed once, which costs most of it."""
    from healsg import TaskTrainer

    own = [option for option in options if not option.startswith("name=")]
    made = copy.deepcopy(_composed(Path.cwd(), *own))
    made.values["name"] = next((option[5:] for option in options if option.startswith("name=")), None)
    return TaskTrainer(made)


def train(*options: str) -> dict[str, Any]:
    """Train with these options; gives what ``TaskTrainer.train`` returns."""
    result: dict[str, Any] = trainer(*options).train()
    return result


def trained(*options: str) -> Any:
    """The task of a run with these options that has finished."""
    run = trainer(*options)
    assert run.train()["status"] == "finished"
    assert run.task is not None
    return run.task


# --- reading ---------------------------------------------------------------------------------------------------------


def run_folder(run: str | Path) -> Path:
    """``runs/<name>`` for a name; a path is one already."""
    return run if isinstance(run, Path) else Path("runs") / run


def record(run: str | Path) -> dict[str, Any]:
    """What ``run.json`` holds."""
    value: dict[str, Any] = json.loads((run_folder(run) / "run.json").read_text())
    return value


def lines(run: str | Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, without times."""
    rows = [json.loads(text) for text in (run_folder(run) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def events(run: str | Path, event: str) -> list[dict[str, Any]]:
    """The lines of one kind: ``step``, ``epoch`` or ``test``."""
    return [row for row in lines(run) if row["event"] == event]


def epochs_of(run: str | Path) -> int:
    """Epochs that ``metrics.jsonl`` holds, of a run that is still writing it or has not begun to."""
    path = run_folder(run) / "metrics.jsonl"
    return path.read_text().count('"event": "epoch"') if path.exists() else 0


def state(run: str | Path, which: str = "last") -> dict[str, Any]:
    """What a checkpoint holds."""
    from healsg.runs.checkpoint import load

    return load(run_folder(run) / f"checkpoints/{which}.pt")


def ending(run: str | Path) -> tuple[Any, ...]:
    """What two runs that went the same way have in common."""
    return record(run)["status"], record(run)["digest"], lines(run)


# --- cutting and watching --------------------------------------------------------------------------------------------


class Cut(BaseException):
    """Stands for a kill: nothing of the run catches it."""


@contextlib.contextmanager
def at_saves(act: Callable[[Any, int], object], before: bool = False) -> Iterator[None]:
    """Do ``act(folder, step)`` after each save is on the disk, or before it begins; ``folder`` is the run's."""
    from healsg.runs.checkpointer import Checkpointer

    whole = Checkpointer.save

    def save(self: Checkpointer, task: Any) -> None:
        if before:
            act(self.folder, task.runner.step_count)
        whole(self, task)
        if not before:
            self.writer.wait()
            act(self.folder, task.runner.step_count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "save", save)
        yield


@contextlib.contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """A run within is stopped and saved, as by a signal, after its first update from ``step`` on."""
    from healsg.runner import TaskRunner

    tick = TaskRunner.tick

    def watched(self: TaskRunner, task: Any) -> None:
        tick(self, task)
        if self.step_count >= step and hasattr(self.checkpointer, "stop"):
            self.checkpointer.stop(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskRunner, "tick", watched)
        yield


def stopped_at(step: int, *options: str) -> None:
    """Train until ``step``, where the run is stopped and saved."""
    with stopping_at(step):
        assert train(*options)["status"] == "stopped"


def cut_at(step: int, *options: str) -> None:
    """Train until the first save from ``step`` on, and be killed there."""

    def kill(folder: Any, at: int) -> None:
        if at >= step:
            raise Cut

    with at_saves(kill), pytest.raises(Cut):
        train(*options)


def copies(*options: str, at: Collection[int] | None = None) -> list[int]:
    """Train ``runs/whole``; ``runs/cut<step>`` is what a kill right after the save of that step would leave.

    Args:
        at: the steps to keep copies of; None for each one that is saved.

    Returns:
        The steps at which it was saved.
    """
    steps = list[int]()

    def copied(folder: Any, step: int) -> None:
        steps.append(step)
        if at is None or step in at:
            shutil.rmtree(f"runs/cut{step}", ignore_errors=True)
            shutil.copytree(folder.path, f"runs/cut{step}")

    with at_saves(copied):
        assert train(*options, "name=whole")["status"] == "finished"
    return sorted(set(steps))


def goes_on_exactly(at: Collection[int] | None, *options: str) -> list[int]:
    """A kill right after the save of each of these steps is gone on from to the end of the undisturbed run.

    Args:
        at: the steps; None for each one that is saved.

    Returns:
        The steps at which the undisturbed run was saved.
    """
    steps = copies(*options, at=at)
    assert set(at or ()) <= set(steps)
    for step in steps if at is None else at:
        train(*options, f"name=cut{step}")
        assert record(f"cut{step}")["digest"] == record("whole")["digest"], f"killed after step {step}"
        assert lines(f"cut{step}") == lines("whole")
    return steps


# --- processes that are copies of this one ---------------------------------------------------------------------------


IMPORTED = ["healsg.trainer", "healsg.datasets.digits", "hydra.main", "sklearn.datasets", "torch._dynamo"]
IMPORTED += ["torch._inductor", "torch.distributed.nn.functional", "torch.nn.parallel.distributed"]
"""What a run imports as it goes: here once, and not in each copy of this process."""


def fork(act: Callable[[], object]) -> int:
    """A process of its own that does ``act`` and ends, 0 where nothing was raised: its id.

    It is a copy of this one, so that it starts without the seconds that importing torch takes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that threads of this process do not go along
        for module in IMPORTED:
            import_module(module)
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        act()
        code = 0
    finally:
        os._exit(code)


def forked(arguments: Sequence[str], prepare: Callable[[], None] | None = None, output: str = "output") -> int:
    """Start ``healsg`` in a child that has its imports already; what it prints is added to a file. The child's id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in IMPORTED:
            import_module(module)
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        file = os.open(output, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        for number in (1, 2):
            os.dup2(file, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["train.py", *arguments[1:]]
        from healsg.cli import main

        if prepare:
            prepare()
        status = main(list(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(status)


def copied(line: Sequence[str], prepare: Callable[[], object] | None = None, **options: Any) -> Any:
    """What a line of ``command`` or ``healsg`` does, in a copy of this process, as ``subprocess.run`` would give it."""
    arguments = ["train", *line[2:]] if list(line[:2]) == command() else list(line[3:])
    folder, environment = options.get("cwd", Path.cwd()), options.get("env", {})
    files = [Path(f"{name}.{os.getpid()}").absolute() for name in (".stdout", ".stderr")]

    def begin() -> None:
        os.chdir(folder)
        os.environ.update(environment)
        error = os.open(files[1], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(error, 2)
        if prepare:
            prepare()

    status = ended(forked(arguments, begin, str(files[0])), 300)
    texts = [file.read_text() for file in files]
    for file in files:
        file.unlink()
    return subprocess.CompletedProcess(line, status, *texts)


def forked_until(line: str, arguments: Sequence[str], output: str = "output") -> int:
    """A run in a copy of this process that has just printed a line that begins so: its id."""
    Path(output).write_text("")
    child = forked(arguments, lambda: sys.stdout.reconfigure(line_buffering=True), output)  # type: ignore[union-attr]
    wait_for(lambda: any(text.startswith(line) for text in Path(output).read_text().splitlines()))
    return child


def ended(child: int, seconds: float = HANG) -> int:
    """The exit status of a child, as a shell tells it."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"still there after {seconds} s")


def kill(child: int) -> bool:
    """SIGKILL a child: whether that was its end."""
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def wait_for(ready: Callable[[], bool], seconds: float = HANG) -> None:
    """Wait until ``ready`` is true, for as long as a hang would take."""
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit, f"it has not come to pass within {seconds} s"
        time.sleep(0.002)


@contextlib.contextmanager
def no_hang(seconds: float = HANG) -> Iterator[None]:
    """What is done here ends, though no limit of the program's own would end it so soon."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def killed(act: Callable[[], object], after: float) -> bool:
    """Do ``act`` in a process of its own, SIGKILL it after so many seconds: whether it was killed before its end.

    Raises AssertionError where it ended by itself with an error.
    """
    child, deadline = fork(act), time.monotonic() + after
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return False
        time.sleep(0.001)
    return kill(child)


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def be_rank(rank: int, count: int, port: int) -> None:
    """Let this process, which was forked, be one of several, with what torchrun would set."""
    from healsg import distributed

    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"})
    os.environ.update({"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": str(port)})
    for known in vars(distributed).values():  # what was looked up before the fork was for one process
        if callable(clear := getattr(known, "cache_clear", None)):
            clear()


def in_processes(count: int, act: Callable[[int], object]) -> None:
    """Do ``act(rank)`` in processes that know each other, as torchrun would start them."""
    from healsg import distributed

    port = free_port()

    def one(rank: int) -> None:
        be_rank(rank, count, port)
        distributed.connect()
        act(rank)
        distributed.close(0)

    children = [fork(lambda rank=rank: one(rank)) for rank in range(count)]  # type: ignore[misc]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count


# --- small settings by method ----------------------------------------------------------------------------------------

BESIDE: dict[str, list[str]] = {
    "kd": [],
    "dkd": [],
    "fitnet": [],
    "attention_transfer": ["model=cnn", "model.width=4"],
    "crd": ["method.negatives=8", "method.dim=4"],
}
"""By method that needs a teacher, what else it needs in a small test."""


HEADS = ["method.hidden=16", "method.size=8"]
WITHOUT_LABELS: dict[str, list[str]] = {
    "simclr": HEADS,
    "moco": [*HEADS, "method.queue=600"],
    "byol": HEADS,
    "simsiam": [*HEADS, "method.bottleneck=4"],
    "vicreg": HEADS,
    "barlow_twins": HEADS,
    "dino": ["method.hidden=16", "method.bottleneck=8", "method.prototypes=24"],
    "mae": [
        *("model=vit", "model.patch=4", "model.width=12", "model.heads=2", "model.depth=1"),
        *("method.width=8", "method.depth=1", "method.heads=2"),
    ],
}
"""By method that learns without labels, what makes it small, and the model that it wants."""


def taken(method: str, *settings: str) -> list[str]:
    """Those of the settings that a method has: where there are no labels, none of them is smoothed."""
    without = ["method.label_smoothing"] if method in WITHOUT_LABELS else []
    return [setting for setting in settings if setting.split("=")[0] not in without]


def beside(method: str, *data: str) -> list[str]:
    """The settings that a method cannot do without. Its teacher is a run of two steps beside the test's own.

    Args:
        data: settings that say on which data, where it is not the digits.
    """
    if method not in BESIDE:
        return WITHOUT_LABELS.get(method, [])
    network = [setting for setting in BESIDE[method] if setting.startswith("model")] or ["model=mlp", "model.width=8"]
    name = f"teacher-{network[0].removeprefix('model=')}"
    if not Path("runs", name).exists():
        train(*network, "runner=debug", "quiet=true", *data, f"name={name}")
    return [f"method.teacher=runs/{name}", *BESIDE[method]]


# --- commands without torch ------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import json, os, runpy, sys

class Guard:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise RuntimeError("torch was imported")

sys.meta_path.insert(0, Guard)
from healsg.commands.train import command as train
from healsg.config.compose import Composer
from hydra.core.global_hydra import GlobalHydra

program = sys.argv[1]
Composer().compose([])  # imports what a command needs
GlobalHydra.instance().clear()
for text in sys.stdin:
    asked = json.loads(text)
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 70
        try:
            os.chdir(asked["folder"])
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(asked[name], os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            os.environ.update(asked["variables"])
            sys.argv = [program, *asked["line"]]
            try:
                runpy.run_path(program, run_name="__main__")
                status = 0
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
                status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class WithoutTorch:
    """Answers ``python train.py ...`` in copies of one process in which importing torch fails."""

    def __init__(self, folder: Path) -> None:
        line = [sys.executable, "-c", WITHOUT_TORCH, str(REPOSITORY / "train.py")]
        self.process = subprocess.Popen(line, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder = folder

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """What the command answers in the current folder, with these environment variables beside the usual ones."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        files = {name: str(self.folder / name) for name in ("stdout", "stderr")}
        asked = {"folder": str(Path.cwd()), "line": arguments, "variables": variables, **files}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, *(Path(file).read_text() for file in files.values()))

    def close(self) -> None:
        self.process.communicate(timeout=HANG)


UNLABELLED_ACTS: dict[str, list[str]] = {
    "fixmatch": ["method.threshold=0.1"],
    "uda": ["method.threshold=0.1"],
    "flexmatch": ["method.threshold=0.12"],
    "softmatch": ["method.momentum=0.5"],
    "freematch": ["method.momentum=0.5"],
    "pseudo_label": ["method.ramp_start=0", "method.ramp_end=0.1"],
    "mean_teacher": ["method.ramp=0.1"],
    "cps": [],
    "mixmatch": ["method.ramp=0.1"],
}
"""By semi-supervised method, settings with which its unlabelled term acts from the beginning."""
