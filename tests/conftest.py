"""Every test runs in a folder of its own, on one thread."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell does for what runs in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parents[1]
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A gigabyte beside what this process has already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def command(*arguments: str) -> list[str]:
    """The command line of ``python train.py ...``."""
    return [sys.executable, str(REPOSITORY / "train.py"), *arguments]


def healsg(*arguments: str) -> list[str]:
    """The command line of the console script."""
    return [sys.executable, "-c", "import sys; from healsg.cli import main; sys.exit(main())", *arguments]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Run a real command in a real process, in the test's folder."""

    def run(line: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        settings = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300, **options}
        return subprocess.run(line, check=False, **settings)  # type: ignore[call-overload,no-any-return]

    return run


def fork(act: Callable[[], object]) -> int:
    """A process of its own that does ``act`` and ends, 0 where nothing was raised: its id.

    It is a copy of this one, so that it starts without the seconds that importing torch takes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads of this process do not go along
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


def in_processes(count: int, act: Callable[[int], object]) -> None:
    """Do ``act(rank)`` in processes that know each other, as torchrun would start them."""
    from healsg import distributed

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def one(rank: int) -> None:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        for known in (distributed.world, distributed.launched, distributed.rank, distributed.local_rank):
            known.cache_clear()
        distributed.connect()
        act(rank)
        distributed.close(0)

    children = [fork(lambda rank=rank: one(rank)) for rank in range(count)]  # type: ignore[misc]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count


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
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


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
    from healsg import TaskTrainer

    network = [setting for setting in BESIDE[method] if setting.startswith("model")] or ["model=mlp", "model.width=8"]
    name = f"teacher-{network[0].removeprefix('model=')}"
    if not Path("runs", name).exists():
        TaskTrainer.compose(*network, "runner=debug", "quiet=true", *data, f"name={name}").train()
    return [f"method.teacher=runs/{name}", *BESIDE[method]]
