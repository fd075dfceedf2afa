"""Loggers: what arrives there, and that none of them ever holds a run up."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from healsg.build import build_loggers
from healsg.config.compose import Composer
from healsg.errors import ConfigError
from healsg.loggers.background import Background
from healsg.loggers.swanlab import SwanLab
from healsg.loggers.tensorboard import TensorBoard
from healsg.loggers.wandb import Wandb
from healsg.runs.logger import Logger
from healsg.runs.media import MediaLog
from helpers import HANG, no_hang

RECORD = {"name": "trial", "config": {"seed": 3}, "resumed": False, "step": 0}
LINES = [
    {"event": "step", "epoch": 1, "step": 4, "train/loss": 0.5},
    {"event": "epoch", "epoch": 1, "step": 4, "train/loss": 0.6, "val/acc": 0.75},
    {"event": "test", "test/acc": 0.7},
]


class Kept(Logger):
    """A logger that remembers, after as long as it is told to take."""

    patience = grace = HANG

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds, self.error, self.seen = seconds, error, []

    def log(self, line: dict[str, Any]) -> None:
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        self.seen.append(line)

    def finish(self, status: str) -> None:
        self.seen.append(status)


def test_background_delivers_everything_in_order(tmp_path: Path) -> None:
    kept = Kept()
    background = Background(kept, "kept")
    background.start(tmp_path, RECORD)
    for line in LINES:
        background.log(line)
    background.finish("finished")
    assert kept.seen == [*LINES, "finished"]
    assert not background.thread.is_alive()


def test_background_drops_a_broken_mirror_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    background = Background(Kept(error=ValueError("out of\norder")), "kept")
    background.start(tmp_path, RECORD)
    for _ in range(3):
        background.log(LINES[0])
    background.finish("finished")
    background.log(LINES[0])
    told = ["logger kept is left out from here on: ValueError: out of order"]
    assert [record.getMessage() for record in caplog.records] == told


def test_background_waits_a_bounded_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept(seconds=2 * HANG)
    kept.grace = 0.2
    background = Background(kept, "kept", size=5)
    background.start(tmp_path, RECORD)
    with no_hang():
        for _ in range(1000):
            background.log(LINES[0])
        background.finish("finished")
    assert background.calls.qsize() == 5
    assert "still busy" in caplog.text


def test_a_background_that_never_started_can_be_finished() -> None:
    Background(Kept(), "kept").finish("failed")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logger = TensorBoard()
    logger.start(tmp_path, RECORD)
    for line in [*LINES[:2], {"event": "epoch", "epoch": 2, "step": 8, "val/acc": 0.8, "best": True, "note": "x"}]:
        logger.log(line)
    logger.finish("stopped")
    assert scalars(tmp_path) == {"train/loss": [(4, 0.5), (4, 0.6)], "val/acc": [(4, 0.75), (8, 0.8)]}

    time.sleep(1.1)  # the files are named by the second
    resumed = TensorBoard()
    resumed.start(tmp_path, {**RECORD, "resumed": True, "step": 4})
    resumed.log({"event": "epoch", "epoch": 2, "step": 8, "val/acc": 0.9})
    resumed.log({"event": "test", "test/acc": 0.7})
    resumed.finish("finished")
    assert scalars(tmp_path)["val/acc"] == [(4, 0.75), (8, 0.9)]
    assert scalars(tmp_path)["test/acc"] == [(8, 0.7)]
    TensorBoard().finish("failed")


SCRIPT = """
import logging, sys
from pathlib import Path
logging.basicConfig(format="%(message)s")
from healsg.loggers import client
from healsg.loggers.background import Background
from healsg.loggers.wandb import Wandb
Wandb.grace = client.CLOSING = 120.0  # a busy machine may need longer than is usual
folder, mode, timeout = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
wandb = Background(Wandb(mode=mode, timeout=timeout), "wandb")
wandb.start(folder, {"name": "trial", "config": {"seed": 3}, "resumed": False, "step": 0})
wandb.log({"event": "step", "epoch": 1, "step": 4, "train/loss": 0.515625})
wandb.log({"event": "epoch", "epoch": 1, "step": 4, "train/loss": 0.609375, "val/acc": 0.765625})
wandb.log({"event": "test", "test/acc": 0.703125})
wandb.finish("finished")
assert "wandb" not in sys.modules and "torch" not in sys.modules
"""


def train(folder: Path, mode: str, timeout: float, **environment: str) -> str:
    """Run the script, which ends soon; what it complained of."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), mode, str(timeout)],
        env={**kept, "HOME": str(folder), "WANDB_CONFIG_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def check_mirrored(folder: Path) -> None:
    """Every line stands in the file that wandb keeps for its own upload; the step line and the epoch line too."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    kept = path.read_bytes()
    for number in (b"0.515625", b"0.609375", b"0.765625", b"0.703125"):
        assert number in kept


def test_wandb_offline_keeps_every_line(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    complaints = train(tmp_path, "offline", 8, TMPDIR=str(tmp_path / "temporary"))
    assert complaints == ""
    check_mirrored(tmp_path)
    assert not list((tmp_path / "temporary").iterdir()), "what the client keeps for a while goes with it"
    first = (tmp_path / "wandb.json").read_text()
    train(tmp_path, "online", 8, WANDB_MODE="disabled")
    train(tmp_path, "online", 8, WANDB_MODE="offline")
    assert (tmp_path / "wandb.json").read_text() == first
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


@pytest.fixture
def silent_server() -> Any:
    """A server that accepts connections and never says anything."""
    server, taken = socket.create_server(("127.0.0.1", 0)), []

    def accept() -> None:
        while True:
            try:
                taken.append(server.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
    for connection in taken:
        connection.close()


def test_wandb_is_an_option_among_the_loggers_too() -> None:
    composed = Composer(None, "config").compose(
        ["logger=wandb", "use_wandb=true", "wandb.project=lab", "wandb.mode=disabled"]
    )
    logger = build_loggers(composed)["wandb"]
    assert isinstance(logger, Wandb)
    assert (logger.project, logger.mode) == ("lab", "disabled")


def test_wandb_with_a_server_that_hangs_goes_on_offline(tmp_path: Path, silent_server: str) -> None:
    key = "0123456789" * 4
    complaints = train(tmp_path, "online", 3, WANDB_BASE_URL=silent_server, WANDB_API_KEY=key)
    assert complaints.count("\n") == 1
    assert "wandb sync wandb/offline-run-*-" in complaints
    check_mirrored(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


@pytest.mark.parametrize("reached", [True, False])
def test_wandb_without_key_or_network_goes_on_offline(tmp_path: Path, silent_server: str, reached: bool) -> None:
    url = silent_server if reached else "http://127.0.0.1:9"
    complaints = train(tmp_path, "online", 8, WANDB_BASE_URL=url)
    assert ("No API key" in complaints) == reached
    assert "wandb sync" in complaints
    check_mirrored(tmp_path)


def test_wandb_that_cannot_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    logger = Background(Wandb(mode="offline"), "wandb")
    with caplog.at_level(logging.WARNING):
        logger.start(tmp_path, RECORD)
        logger.log(LINES[0])
        logger.finish("failed")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["logger wandb is left out from here on"]


@pytest.fixture
def swanlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, where SwanLab's client is the one of ``fake_swanlab.py``."""
    client = tmp_path / "client"
    client.mkdir()
    shutil.copy(Path(__file__).with_name("fake_swanlab.py"), client / "swanlab.py")
    monkeypatch.syspath_prepend(str(client))
    package = Path(sys.modules["healsg"].__file__ or "").parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{client}{os.pathsep}{package}")
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def calls(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "swanlab/calls.jsonl").read_text().splitlines()]


def test_swanlab_gets_numbers_and_media_once_also_where_a_run_goes_on(
    swanlab: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for start in (0, 1):  # the second time the lines before it are there, and the run writes the last one again
        logger = SwanLab(project="trials", timeout=HANG)
        logger.start(swanlab, {**RECORD, "resumed": bool(start), "step": 4 * start})
        kept = MediaLog(swanlab, partial(logger.media, swanlab))
        lines = [{"event": "epoch", "epoch": n, "step": 4 * n, "val/acc": n / 10} for n in (1, 2)]
        with (swanlab / "metrics.jsonl").open("a") as file:
            for line in lines[start:]:
                file.write(json.dumps(line) + "\n")
                logger.log(line)
        kept.image("overlay", 1, np.zeros((4, 4, 3), np.uint8), "worst", step=4)
        kept.table("confusion", 1, ["class", "cat"], [["cat|s", 3]], step=4)
        kept.plot("recall", 1, {"cat": [(0, 1), (1, 0.5)]}, step=4)
        logger.finish("failed" if not start else "finished")
    seen = calls(swanlab)
    opened = [call for call in seen if call["call"] == "init"]
    assert [call["mode"] for call in opened] == ["offline", "offline"], "there is no key"
    assert caplog.text.count("continues offline (no API key was provided)") == 2
    assert {call["id"] for call in opened} == {json.loads((swanlab / "swanlab.json").read_text())["id"]}
    logged = [(list(call["data"]), call["step"]) for call in seen if call["call"] == "log"]
    media = [(["overlay"], 4), (["confusion_table"], 4), (["recall"], 4)]
    assert logged == [(["val/acc"], 4), (["val/acc"], 8), *media]
    held = {name: value for call in seen if call["call"] == "log" for name, value in call["data"].items()}
    assert held["confusion_table"]["content"] == "| class | cat |\n| --- | --- |\n| cat\\|s | 3 |"
    assert held["overlay"]["caption"] == "worst"
    assert held["recall"]["source"] == "levels (400, 640, 3)"
    assert [call["state"] for call in seen if call["call"] == "finish"] == ["crashed", "success"]


def test_swanlab_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("healsg.loggers.swanlab.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install healsg\[swanlab\]"):
        SwanLab()
