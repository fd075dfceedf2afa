"""Every test runs in a folder of its own, on one thread. What tests share beside fixtures lies in ``helpers.py``."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import (
    BESIDE,
    HEADS,
    REPOSITORY,
    WITHOUT_LABELS,
    Program,
    beside,
    command,
    copied,
    fork,
    healsg,
    in_processes,
    killed,
    taken,
)

__all__ = [
    "BESIDE",
    "HEADS",
    "REPOSITORY",
    "WITHOUT_LABELS",
    "Program",
    "beside",
    "command",
    "fork",
    "healsg",
    "in_processes",
    "killed",
    "taken",
]

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell does for what runs in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: several tests wait for a time-out, a signal or a process."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


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


@pytest.fixture
def process(tmp_path: Path) -> Program:
    """Run a command line in a process of its own, in the test's folder."""

    def run(line: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        settings = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300, **options}
        return subprocess.run(line, check=False, **settings)  # type: ignore[call-overload,no-any-return]

    return run


@pytest.fixture
def program(process: Program) -> Program:
    """The same, where it is a command of ours in a copy of this process, which saves the import of torch."""

    def run(line: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if line[:2] != command() and line[:3] != healsg():
            return process(line, **options)
        return copied(line, options.pop("preexec_fn", None), **options)  # type: ignore[arg-type,no-any-return]

    return run
