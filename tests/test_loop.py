"""The loop over epochs: lengths, lines, evaluations, what is watched, when it stops, and what is refused."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from healsg import TaskTrainer
from healsg.errors import ConfigError
from healsg.evaluation.evaluator import EvalEpoch, Evaluation
from healsg.runs.checkpoint import load
from healsg.training.meter import Meter
from healsg.training.plan import Plan, Position
from helpers import at_saves, cut_at, events, record

SHORT = ["model=mlp", "model.width=16", "data.batch_size=128", "quiet=true"]
"""1,167 samples to train with: 10 updates an epoch."""


def train(*options: str, name: str = "run") -> dict[str, Any]:
    return TaskTrainer.compose(*SHORT, *options, f"name={name}").train()


def state(name: str) -> dict[str, Any]:
    return load(Path("runs") / name / "checkpoints/last.pt")


def cut_after(step: int, *options: str, name: str) -> None:
    """Run until ``step`` is saved, and be killed there."""
    cut_at(step, *SHORT, *options, "runner.save_every=1", f"name={name}")


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_steps_in_the_place_of_epochs() -> None:
    """25 updates of 10 an epoch: the third ends in its middle, also after a kill there, and may be made longer."""
    whole = train("runner.steps=25")
    assert [row["step"] for row in events("run", "epoch")] == [10, 20, 25]
    assert [row["lr"] for row in events("run", "epoch")][-1] == pytest.approx(0.0, abs=1e-4)
    for step in (22, 25):
        cut_after(step, "runner.steps=25", name=f"cut{step}")
        assert train("runner.steps=25", "runner.save_every=1", name=f"cut{step}")["digest"] == whole["digest"]
    train("runner.steps=40")
    assert [row["step"] for row in events("run", "epoch")] == [10, 20, 25, 35, 40]


@pytest.mark.parametrize(("length", "accumulate"), [(5, 1), (5, 2), (6, 3)])
@pytest.mark.parametrize("epochs", [1.0, 1.5, 3.0])
def test_the_number_of_epochs_is_the_same_within_a_step_and_after_a_resume(
    length: int, accumulate: int, epochs: float
) -> None:
    per_epoch = -(-length // accumulate)
    plan = Plan(length=length, accumulate=accumulate, total_steps=round(epochs * per_epoch))
    at, seen, resumed = Position(), list[int](), list[int]()
    while at.step < plan.total_steps:
        for _ in range(at.batch, plan.last_batch(at)):
            at.take_batch()
            seen.append(plan.max_epoch(at))
            if plan.closes(at.batch):
                at.count_update()
                seen.append(plan.max_epoch(at))
                again = Position()
                again.load_state_dict(at.state_dict(), accumulate)
                resumed.append(plan.max_epoch(again))
        at.end_epoch()
        seen.append(plan.max_epoch(at))
    assert {*seen, *resumed} == {at.epoch} == {math.ceil(epochs)}
    longer = replace(plan, total_steps=plan.total_steps + per_epoch + 1)
    assert longer.max_epoch(at) == at.epoch + 2, "the epoch that ended early is not gone on with"


def test_limit_batches_and_eval_every() -> None:
    train("runner.limit_batches=3", "runner.epochs=5", "runner.eval_every=2", "runner.accumulate=2")
    rows = events("run", "epoch")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    assert ["val/acc" in row for row in rows] == [False, True, False, True, True]
    assert len(events("run", "test")) == 1


@pytest.mark.parametrize("interval", ["update", "epoch"])
def test_the_schedule_moves_with_its_interval(interval: str) -> None:
    schedule = ["method/scheduler=step", "method.scheduler.every=0.25", f"method.scheduler.interval={interval}"]
    train("runner.epochs=2", "runner.log_every=1", "method.optimizer.lr=1", *schedule)
    rates = [row["lr"] for row in events("run", "step")]
    if interval == "update":
        assert rates == pytest.approx([1.0] * 5 + [0.1] * 5 + [0.01] * 5 + [0.001] * 5)
    else:
        assert rates == pytest.approx([1.0] * 10 + [0.01] * 10)


def test_threads_are_set_and_recorded() -> None:
    before = torch.get_num_threads()
    try:
        train("runner.steps=1", "runner.threads=2")
        assert (torch.get_num_threads(), record("run")["threads"]) == (2, 2)
        torch.set_num_threads(1)
        train("runner.steps=2", "runner.threads=2")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- lines -----------------------------------------------------------------------------------------------------------


def test_lines_show_the_means_of_the_updates_between_them() -> None:
    options = ["runner.epochs=3", "data.batch_size=100"]  # 12 updates an epoch, the last of 67 samples
    train(*options, "runner.log_every=1", name="each")
    train(*options, "runner.log_every=7", name="some")
    each = [row["train/loss"] for row in events("each", "step")]
    counts = [67 if step % 12 == 11 else 100 for step in range(36)]
    lines = events("some", "step")
    assert [row["step"] for row in lines] == [7, 14, 21, 28, 35]
    assert [row["epoch"] for row in lines] == [1, 2, 2, 3, 3]

    def mean(start: int, stop: int) -> float:
        total = sum(loss * count for loss, count in zip(each[start:stop], counts[start:stop], strict=True))
        return total / sum(counts[start:stop])

    assert [row["train/loss"] for row in lines] == pytest.approx([mean(step - 7, step) for step in range(7, 36, 7)])
    epochs = [row["train/loss"] for row in events("some", "epoch")]
    assert epochs == pytest.approx([mean(0, 12), mean(12, 24), mean(24, 36)])
    for step in (5, 13, 24):
        cut_after(step, *options, "runner.log_every=7", name=f"cut{step}")
        train(*options, "runner.log_every=7", "runner.save_every=1", name=f"cut{step}")
        assert events(f"cut{step}", "step") == lines
        assert [row["train/loss"] for row in events(f"cut{step}", "epoch")] == epochs


def test_the_meter_weighs_by_count() -> None:
    meter = Meter()
    for loss, count in ((1.0, 30), (4.0, 10), (float("nan"), 0)):
        meter.add({"loss": torch.tensor(loss), "hits": torch.tensor(2 * loss), "count": torch.tensor(count)})
    assert meter.recent() == {"loss": 1.75, "hits": 3.5}
    meter.add({"loss": torch.tensor(3.0), "hits": torch.tensor(0.0), "count": 40})
    assert meter.finish() == {"loss": 2.375, "hits": 1.75}
    meter.clear()
    assert meter.finish() == {}
    assert meter.recent() == {"loss": 3.0, "hits": 0.0}


def test_lines_and_saves_fall_where_they_should_once_an_update_of_several_batches() -> None:
    saved: list[int] = []
    with at_saves(lambda folder, step: saved.append(step)):
        train("runner.steps=15", "runner.save_every=4", "runner.log_every=5", "runner.accumulate=2")
    assert saved[0] == 0
    assert [saved.count(step) for step in (4, 8, 12)] == [1, 1, 1]
    assert saved[-1] == 15
    assert [row["step"] for row in events("run", "step")] == [5, 10, 15]


# --- what is watched -------------------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, **series: list[float]) -> None:
    """Let each evaluation on val give the next of these numbers."""

    def by_case(self: EvalEpoch) -> Evaluation:
        if self.split == "test":
            return Evaluation({"acc": 0.5})
        return Evaluation({name: values[self.task.runner.epoch] for name, values in series.items()})

    monkeypatch.setattr(EvalEpoch, "by_case", by_case)


@pytest.mark.parametrize(
    ("watched", "mode", "epoch"),
    [("auto", "auto", 2), ("val/loss", "auto", 4), ("val/loss", "max", 1), ("val/error", "min", 3), ("lr", "max", 1)],
)
def test_the_monitor_decides_what_is_best(watched: str, mode: str, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, loss=[9, 8, 7, 6], acc=[0.1, 0.9, 0.2, 0.3], error=[5, 4, 1, 2])
    monkeypatch.setattr("healsg.training.best.BestTracker.check", lambda *given: None)
    result = train("runner.epochs=4", f"runner.monitor={watched}", f"runner.mode={mode}")
    assert result["best"]["epoch"] == epoch
    assert load(Path("runs/run/checkpoints/best.pt"))["best"] == result["best"]


@pytest.mark.parametrize("name", ["val/accuracy", "acc", "test/acc", "validation/acc"])
def test_a_wrong_monitor_is_refused_before_data_are_read(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^runner.monitor: {name} is not measured; there is .*val/acc$"):
        train(f"runner.monitor={name}")
    assert not Path("runs").exists()


def test_a_number_that_is_none_is_never_best(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    scripted(monkeypatch, acc=[nan, 0.2, nan], loss=[nan, nan, nan])
    assert train("runner.epochs=3")["best"]["epoch"] == 2
    scripted(monkeypatch, acc=[nan, nan, nan])
    result = train("runner.epochs=3", "runner.monitor=val/acc", name="never")
    assert result["best"] is None
    assert "val/acc was never a number" in Path("runs/never/train.log").read_text()
    assert Path("runs/never/checkpoints/best.pt").exists()


STOPPING = ["runner.epochs=9", "runner/callbacks=early_stopping", "runner.callbacks.early_stopping.patience=3"]


def test_early_stopping_goes_on_counting_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, acc=[0.1, 0.5, 0.5, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    whole = train(*STOPPING)
    assert len(events("run", "epoch")) == 5
    assert "val/acc has not got better for 3 evaluations" in Path("runs/run/train.log").read_text()
    for step in (40, 50):
        cut_after(step, *STOPPING, name=f"cut{step}")
        assert train(*STOPPING, "runner.save_every=1", name=f"cut{step}")["digest"] == whole["digest"]
    delta = train(*STOPPING, "runner.callbacks.early_stopping.min_delta=0.45", name="delta")
    assert delta["status"] == "finished"
    assert len(events("delta", "epoch")) == 4
    scripted(monkeypatch, acc=[0.1] * 12)
    train(*STOPPING, "runner.epochs=12")
    assert len(events("run", "epoch")) == 6, "a longer run goes on, and asks its watchers again"


@pytest.mark.parametrize("watched", ["val/acc", "val/loss"])
def test_plateau_follows_the_monitor(watched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, acc=[0.1, 0.2, 0.3, 0.4, 0.4, 0.4], loss=[9, 8, 7, 7, 7, 7])
    options = ["method/scheduler=plateau", "method.scheduler.patience=1", f"runner.monitor={watched}"]
    options += ["runner.epochs=6", "method.optimizer.lr=1"]
    train(*options)
    rates = [row["lr"] for row in events("run", "epoch")]
    falls = {"val/acc": 5, "val/loss": 4}[watched]  # the epoch, from 0, whose line still shows the rate before
    assert rates == pytest.approx([1.0] * (falls + 1) + [0.1] * (5 - falls))


def test_a_stop_while_testing_keeps_the_last_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with the best weights; what is saved then must not be those."""
    whole = train("runner.epochs=3", name="whole")
    by_case = EvalEpoch.by_case

    def interrupted(self: EvalEpoch) -> Evaluation:
        if self.split == "test":
            self.task.runner.checkpointer.stop_signal.received = signal.SIGTERM  # type: ignore[union-attr]
        return by_case(self)

    with monkeypatch.context() as patch:
        patch.setattr(EvalEpoch, "by_case", interrupted)
        assert train("runner.epochs=3")["exit"] == 128 + signal.SIGTERM
    assert train("runner.epochs=3")["digest"] == whole["digest"]
