"""Every test runs in a folder of its own, on one thread."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parents[1]
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
