"""What is given to a run that exists: a logger for the rest of it, a file for its predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from healsg.cli import main
from healsg.commands.terminal.parts import with_parts
from healsg.runs import acquire
from healsg.runs.folder import find
from helpers import train

RUN = [
    "data=digits",
    "model=mlp",
    "method=adamw",
    "runner=debug",
    "runner.pause_after=1",
    "runner.epochs=2",
    "quiet=true",
]


def test_a_logger_may_be_chosen_as_a_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    train(*RUN, "name=on")
    folder = find("on")
    composed = with_parts(folder, ["logger=tensorboard"], ("logger",))
    assert set(composed.values["logger"]) == {"tensorboard"}
    acquire.acquire_folder(composed, folder.path).abandon()  # it is none of the settings that may not change
    assert main(["resume", "on", "logger=nosuch"]) == 2
    assert "logger=nosuch: no such option; logger is one of" in capsys.readouterr().err


def test_predictions_that_cannot_be_written_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    train(*RUN[:4], "name=on", "quiet=true")
    np.save("samples.npy", np.zeros((2, 8, 8), np.uint8))
    Path("folder.csv").mkdir()
    for out, words in (("folder.csv", "is a folder"), ("/proc/x.csv", "/proc/x.csv cannot be written")):
        assert main(["predict", "on", "samples.npy", "--out", out]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
