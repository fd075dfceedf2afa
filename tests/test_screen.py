"""The terminal: what is shown where, and that no terminal hurts a run."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from healsg.loggers.screen import (
    Display,
    Live,
    Pace,
    Plain,
    Quiet,
    best_of,
    clock,
    columns,
    fitting,
    live_line,
    make_display,
)
from healsg.training.progress import Progress
from helpers import HANG, wait_for

LINE = {
    "event": "epoch",
    "epoch": 3,
    "step": 69,
    "lr": 0.05,
    "val/loss": 0.5,
    "val/acc": 0.912,
    "train/loss": 0.25,
    "train/acc": 0.9,
    "seconds": 4.25,
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


def visible(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())


def run(display: Display) -> None:
    with display:
        display.begin("train digits")
        display.epoch({**LINE, "best": True})
        display.message("a note")
        display.message("take [bold]care", logging.WARNING)
        display.end(["finished", "runs/exp1"])


def test_the_display_suits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_display(Progress(), stream=io.StringIO())) is Plain
    assert type(make_display(Progress(), stream=Terminal())) is Live
    assert type(make_display(Progress(), quiet=True, stream=Terminal())) is Quiet
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_display(Progress(), stream=Terminal())) is Plain


def test_plain_is_one_line_an_epoch() -> None:
    stream = io.StringIO()
    run(Plain(Progress(max_epoch=30), stream))
    assert stream.getvalue().splitlines() == [
        "train digits",
        "epoch 3/30  train/loss 0.2500  val/loss 0.5000  val/acc 0.9120  train/acc 0.9000  lr 0.05  seconds 4.2  *",
        "a note",
        "warning: take [bold]care",
        "finished",
        "runs/exp1",
    ]


def test_quiet_shows_warnings_alone() -> None:
    stream = io.StringIO()
    run(Quiet(Progress(), stream))
    assert stream.getvalue() == "warning: take [bold]care\n"


def test_live_keeps_the_table_and_gives_the_cursor_back() -> None:
    stream = Terminal()
    run(Live(Progress(phase="val", epoch=3, max_epoch=30), stream))
    shown = visible(stream)
    header = next(line for line in shown.splitlines() if "train/loss" in line)
    row = next(line for line in shown.splitlines() if "0.9120" in line)
    for name, cell in (("train/loss", "0.2500"), ("val/acc", "0.9120"), ("seconds", "4.2")):
        assert header.index(name) + len(name) == row.index(cell) + len(cell)
    assert row.endswith("*")
    assert "val 3/30" in shown
    assert "warning: take [bold]care" in shown
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def interrupted(display: Display) -> None:
    with display:
        display.begin("train")
        raise KeyboardInterrupt


def test_live_survives_errors_and_leaves_no_threads() -> None:
    before, out = threading.active_count(), sys.stdout
    for _ in range(30):
        stream = Terminal()
        with pytest.raises(KeyboardInterrupt):
            interrupted(make_display(Progress(), stream=stream))
        assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")
    wait_for(lambda: threading.active_count() == before)
    assert sys.stdout is out


def test_no_color_and_no_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    class Ascii(Terminal):
        encoding = "ascii"

    stream = Ascii()
    run(Live(Progress(phase="train", length=4, position=2), stream))
    stream.getvalue().encode("ascii")
    assert "##" in visible(stream)
    assert "\x1b[32m" not in stream.getvalue()


def test_what_is_logged_shows_in_the_display() -> None:
    stream = io.StringIO()
    logger = logging.Logger("trial")
    logger.addHandler(Plain(Progress(), stream).handler())
    logger.info("resumed at step %d", 5)
    logger.error("lost")
    assert stream.getvalue() == "resumed at step 5\nerror: lost\n"


@pytest.mark.parametrize("width", [5, 20, 30, 60, 100, 200])
def test_the_live_line_fits(width: int) -> None:
    progress = Progress("train", 3, 30, 7, 10, 900, 69, 690, {"loss": 0.31, "val/acc": 0.912})
    head, done, rest, tail = live_line(progress, (12345.6, 185.0), width, "-#")
    assert len(head) + 2 + len(done + rest) + 2 + len(tail) <= max(width, len(head) + 4)
    if width >= 60:
        assert "3:05 left" in tail
        assert len(done) == round(0.7 * len(done + rest))
    if width == 100:
        assert tail == "3:05 left  loss 0.3100  val/acc 0.9120  12,346/s"


def test_the_live_line_names_the_best_epoch_and_the_memory_where_there_is_room() -> None:
    line = {"epoch": 7, "val/acc": 0.9312, "val/loss": 0.2, "best": True, "monitor": "val/acc"}
    best = best_of(line)
    assert best == "best val/acc 0.9312 (epoch 7)"
    assert live_line(Progress(), (None, None), 80, "-#", best, 3 << 30)[3] == f"{best}  3.0 GiB"
    assert live_line(Progress(), (None, None), 30, "-#", best, 3 << 30)[3] == "3.0 GiB"
    assert best_of({"epoch": 1, "val/loss": 0.2, "monitor": None}) == ""


def test_the_live_line_of_a_run_that_is_being_prepared() -> None:
    assert live_line(Progress(), (None, None), 80, "-#") == ["preparing", "", "", ""]


def test_narrow_tables_keep_what_matters() -> None:
    cells = {"epoch": "3/30", **columns(LINE)}
    assert fitting(cells, 200) == ["epoch", "train/loss", "val/loss", "val/acc", "train/acc", "lr", "seconds"]
    assert fitting(cells, 30) == ["epoch", "train/loss", "val/acc"]
    assert fitting(cells, 8) == ["epoch"]


def test_pace() -> None:
    pace, progress = Pace(), Progress(phase="train", total_steps=100)
    assert pace.look(progress, 0.0) == (None, None)
    progress.step, progress.samples = 10, 640
    pace.look(progress, 1.0)
    progress.step, progress.samples = 20, 1280
    assert pace.look(progress, 2.0) == (640.0, 8.0)
    progress.phase = "val"
    assert pace.look(progress, 3.0)[0] is None


def test_clock() -> None:
    assert [clock(s) for s in (6.6, 750, 11100, 187200)] == ["0:07", "12:30", "3:05:00", "2d 04:00"]


def test_letters_that_the_stream_cannot_show_are_replaced() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Plain(Progress(), stream).message("accuracy é")
    stream.seek(0)
    assert stream.read() == "accuracy ?\n"


def test_a_reader_that_goes_away_hurts_nobody(tmp_path: Path) -> None:
    script = """
import sys
from healsg.loggers.screen import make_display
from healsg.training.progress import Progress
with make_display(Progress()) as display:
    for _ in range(2000):
        display.message("x" * 100)
    assert "rich" not in sys.modules and "torch" not in sys.modules
"""
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    os.read(read, 10)
    os.close(read)
    _, complaints = process.communicate(timeout=HANG)
    assert (process.returncode, complaints) == (0, "")
