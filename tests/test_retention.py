"""Checkpoints of epochs: every n-th and the k best ones, the same after a kill, named in ``run.json``."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest

from healsg import TaskTrainer
from healsg.errors import RunError
from healsg.runs import checkpoint
from healsg.runs.retention import Retention
from helpers import events, record, stopped_at, train

OPTIONS = ["model=mlp", "model.width=8", "runner.epochs=5", "data.batch_size=512", "quiet=true"]


def kept(run: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("runs", run, "checkpoints").glob("epoch_*.pt"))}


def test_the_best_are_ranked_by_value_then_loss_then_the_earlier_epoch() -> None:
    retention = Retention(None, 2)
    for epoch, (value, loss) in enumerate([(0.5, 1.0), (0.9, 0.3), (0.9, 0.2), (math.nan, 0.1), (0.9, 0.3)], 1):
        retention.add(epoch, value, 1, loss)
    assert retention.kept_epochs() == [2, 3]
    assert Retention(2, None).kept_epochs() == []


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_of_equal_epochs_one_without_a_loss_comes_last(loss: float | None) -> None:
    retention = Retention(None, 1)
    retention.add(1, 0.9, 1, loss)
    retention.add(2, 0.9, 1, 5.0)
    assert retention.kept_epochs() == [2]


def test_an_epoch_without_a_number_is_never_among_the_best() -> None:
    retention = Retention(None, 5)
    for epoch, value in enumerate([0.5, math.nan, 0.9, None, math.inf], 1):
        retention.add(epoch, value, -1, 1.0)
    assert retention.kept_epochs() == [1, 3]


def test_every_second_epoch_and_the_best_two_are_kept_and_named() -> None:
    result = train(*OPTIONS, "runner.keep_every=2", "runner.keep_best=2", "name=kept")
    values = {line["epoch"]: line for line in events("kept", "epoch")}
    order = sorted(values, key=lambda epoch: (-values[epoch]["val/acc"], values[epoch]["val/loss"], epoch))
    epochs = sorted({2, 4, *order[:2]})
    assert [one["epoch"] for one in record("kept")["kept"]] == epochs
    assert list(kept("kept")) == [f"epoch_{epoch:04}.pt" for epoch in epochs]
    held = checkpoint.load(Path("runs/kept/checkpoints/epoch_0002.pt"))
    assert held["best"]["epoch"] == 2
    assert result["digest"] == train(*OPTIONS, "name=plain")["digest"]  # keeping changes nothing
    assert "kept" not in record("plain")


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.soak), 7])
def test_a_run_that_was_stopped_keeps_the_same_files(step: int) -> None:
    options = [*OPTIONS, "runner.keep_every=3", "runner.keep_best=1", "runner.save_every=1"]
    train(*options, "name=whole")
    stopped_at(step, *options, "name=cut")
    train(*options, "name=cut")
    assert list(kept("cut")) == list(kept("whole"))
    for name in kept("whole"):
        one, two = (checkpoint.load(Path("runs", run, "checkpoints", name)) for run in ("whole", "cut"))
        assert checkpoint.digest(one["model"]) == checkpoint.digest(two["model"])
    assert record("cut")["kept"] == record("whole")["kept"]


def test_a_kill_between_the_file_of_an_epoch_and_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch's file is on the disk and ``last.pt`` is not: the run comes to the epoch again."""
    options = [*OPTIONS, "runner.keep_best=1"]
    train(*options, "name=whole")
    real, written = checkpoint.save, []

    def save(path: Path, state: dict[str, Any]) -> None:
        if any(name.startswith("epoch_0002") for name in written) and path.name == "last.pt":
            raise KeyboardInterrupt("killed")
        written.append(path.name)
        real(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with contextlib.suppress(KeyboardInterrupt):  # which ends a run as a stop does
            train(*options, "runner.keep_every=1", "name=cut")
    assert record("cut")["status"] != "finished"
    assert "epoch_0002.pt" in kept("cut")
    train(*options, "runner.keep_every=1", "name=cut")
    assert len(kept("cut")) == 5
    assert record("cut")["digest"] == record("whole")["digest"]


def test_a_finished_run_may_leave_its_best_weights_alone() -> None:
    options = [*OPTIONS, "runner.epochs=2", "runner.keep_last=false", "name=one"]
    stopped_at(3, *options)
    assert {path.name for path in Path("runs/one/checkpoints").iterdir()} >= {"last.pt"}
    train(*options)
    assert [path.name for path in Path("runs/one/checkpoints").iterdir()] == ["best.pt"]
    assert TaskTrainer.load("one").evaluate("val")
    with pytest.raises(RunError, match="kept its best weights alone"):
        TaskTrainer.load("one").evaluate("val", "last")
    with pytest.raises(RunError, match="init_from=runs/one starts another"):
        train(*options, "runner.epochs=3")
    assert train(*OPTIONS, "runner.epochs=1", "init_from=runs/one", "name=two")["status"] == "finished"
