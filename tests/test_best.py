"""What a run keeps as its best, how it ends early, and that what follows an update learns nothing."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from healsg import TaskTrainer
from healsg.callbacks import EarlyStopping
from healsg.methods.supervised import Supervised
from healsg.metric import Metric, counted
from healsg.models.mlp import MLP
from healsg.training.best import BestTracker
from helpers import Cut, copies, events, lines, record, state, train

SHORT = ["model=mlp", "model.width=16", "runner.epochs=5", "data.batch_size=256", "method=sgd", "quiet=true"]
FIRST_IS_BEST = ["runner.monitor=val/loss", "runner.mode=max"]


# --- the best checkpoint ---------------------------------------------------------------------------------------------

KINDS = {
    "plain": [],
    "saved within epochs": ["runner.save_every=2"],
    "average": ["method.ema=0.9"],
    "schedule-free": ["method=schedule_free"],
    "statistics": ["model=cnn", "model.width=4"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_checkpoint_evaluated_again_gives_its_value(kind: str) -> None:
    """Where the best epoch is not the last one, whose weights are others."""
    best = train(*SHORT, *KINDS[kind], *FIRST_IS_BEST, "name=run")["best"]
    assert best["epoch"] < 5
    assert best["value"] == max(row["val/loss"] for row in events("run", "epoch"))
    again = TaskTrainer.load("run").evaluate("val", "best")
    assert again["loss"] == best["value"]
    assert again["acc"] == best["metrics"]["val/acc"]
    assert TaskTrainer.load("run").evaluate("val", "last")["loss"] == events("run", "epoch")[-1]["val/loss"]
    assert record("run")["test"]["test/loss"] == TaskTrainer.load("run").evaluate("test", "best")["loss"]


class Shadow(Supervised):
    """Is evaluated by a copy of the network that follows it, which is a part of the method."""

    def setup(self, task: Any) -> None:
        super().setup(task)
        self.shadow = copy.deepcopy(task.model).requires_grad_(False)

    def after_update(self, task: Any) -> None:
        for mine, other in zip(self.shadow.parameters(), task.model.parameters(), strict=True):
            mine.lerp_(other, 0.2)

    def eval_model(self, task: Any) -> torch.nn.Module:
        return self.shadow


def test_the_last_weights_of_a_network_that_the_method_holds_are_evaluated() -> None:
    train(*SHORT, "method._target_=test_best.Shadow", "trusted=[test_best]", "runner.epochs=2", "name=run")
    trainer = TaskTrainer.load("run", "trusted=[test_best]")
    assert trainer.evaluate("val", "last")["loss"] == events("run", "epoch")[-1]["val/loss"]


def test_the_best_checkpoint_of_a_resumed_run_is_that_of_its_epoch() -> None:
    """Killed after the best epoch, and before the next one could be."""
    options = [*SHORT, *FIRST_IS_BEST, "runner.save_every=1"]
    copies(*options, at=[8])
    best = train(*options, "name=cut8")["best"]
    assert best == record("whole")["best"]
    assert TaskTrainer.load("cut8").evaluate("val", "best")["loss"] == best["value"]


def test_of_equal_numbers_the_one_with_the_lower_loss_is_best_and_else_the_first() -> None:
    known = {"loss": False, "acc": True}

    def epochs(*pairs: tuple[float, float]) -> list[bool]:
        monitor = BestTracker("auto", "auto")
        rows = [
            {"val/acc": acc, "val/loss": loss, "epoch": place, "step": place} for place, (acc, loss) in enumerate(pairs)
        ]
        return [monitor.update(row, known) for row in rows]

    assert epochs((0.5, 1.0), (0.5, 1.0), (0.5, 1.1), (0.5, 0.9), (0.4, 0.1), (0.6, 9.0)) == [
        *(True, False, False, True, False, True)
    ]
    assert epochs((0.5, float("nan")), (0.5, 2.0), (0.5, float("nan"))) == [True, True, False]


# --- an early stop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "min_delta", "ends"),
    [
        ([0.5, 0.5, 0.5], 0.0, 3),
        ([0.5, 0.6, 0.6, 0.6], 0.0, 4),
        ([0.5, 0.75, 0.75], 0.25, 3),
        ([0.5, 0.4, 0.6, math.nan, 0.1], 0.0, 5),
        ([0.5, 0.6, 0.7, 0.8], 0.0, None),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_early_stop_counts_evaluations_without_a_gain_of_more_than_min_delta(
    values: list[float], min_delta: float, ends: int | None, sign: int
) -> None:
    stopping = EarlyStopping(2, min_delta)
    reasons = [stopping.on_epoch_end({"val/a": sign * value}, "val/a", sign) for value in values]
    assert next((number for number, reason in enumerate(reasons, 1) if reason), None) == ends


class Killed(Metric):
    """As SIGKILL would, in the test phase."""

    kinds: ClassVar[tuple[str, ...]] = ("multiclass",)
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        if Path("kill").exists():
            raise Cut
        return counted(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))


def test_an_early_stop_outlives_a_kill_in_the_test_phase() -> None:
    """The run that goes on trains no more: it is tested, and ends as the undisturbed one."""
    options = [
        *SHORT,
        "runner.epochs=12",
        "runner/callbacks=early_stopping",
        "+model.metrics.it._target_=test_best.Killed",
    ]
    options += ["runner.callbacks.early_stopping.patience=2", "runner.callbacks.early_stopping.min_delta=0.9"]
    options += ["trusted=[test_best]"]
    assert train(*options, "name=whole")["status"] == "finished"
    ended = len(events("whole", "epoch"))
    assert ended < 12, "it was stopped early"
    Path("kill").touch()
    with pytest.raises(Cut):
        train(*options, "name=cut")
    assert not events("cut", "test")
    Path("kill").unlink()
    train(*options, "name=cut")
    assert len(events("cut", "epoch")) == ended
    assert (record("cut")["digest"], lines("cut")) == (record("whole")["digest"], lines("whole"))


# --- no gradients ----------------------------------------------------------------------------------------------------


class Watching(Supervised):
    """Notes whether what it does after an update, and the first thing of a step, could be learned from."""

    learns: ClassVar[dict[str, set[bool]]] = {}

    def train_step(self, task: Any, batch: dict[str, Any]) -> dict[str, Any]:
        self.learns.setdefault("step", set()).add(torch.is_grad_enabled())
        return super().train_step(task, batch)

    def after_update(self, task: Any) -> None:
        self.learns.setdefault("after", set()).add(torch.is_grad_enabled())
        assert all(weight.grad is None or not weight.grad.any() for weight in task.model.parameters())


class WatchedNetwork(MLP):
    """Notes whether a prediction could be learned from, and whether its network is in evaluation mode."""

    learns: ClassVar[set[tuple[bool, bool]]] = set()

    def predict(self, model: torch.nn.Module, input: Tensor) -> Tensor:
        output = super().predict(model, input)
        self.learns.add((output.requires_grad, model.training))
        return output


def test_neither_what_follows_an_update_nor_an_evaluation_has_gradients() -> None:
    parts = ["method._target_=test_best.Watching", "model._target_=test_best.WatchedNetwork", "trusted=[test_best]"]
    Watching.learns.clear()
    WatchedNetwork.learns.clear()
    train(*SHORT, *parts, "runner.epochs=2", "runner.accumulate=2", "name=run")
    assert Watching.learns == {"step": {True}, "after": {False}}
    assert WatchedNetwork.learns == {(False, False)}
    WatchedNetwork.learns.clear()
    loaded = TaskTrainer.load("run", "trusted=[test_best]")
    loaded.evaluate("test")
    assert WatchedNetwork.learns == {(False, False)}


# --- an average that ends within an epoch ----------------------------------------------------------------------------


def test_a_plain_average_of_a_run_that_ends_within_an_epoch_has_its_last_weights() -> None:
    """12 updates at 5 an epoch, averaged over the second half: of the end of the second epoch and of the run."""
    options = ["model=mlp", "model.width=8", "method=sgd", "method.swa=0.5", "runner.precision=fp64", "quiet=true"]
    options += ["data.batch_size=256", "runner.steps=12", "runner.save_every=1"]
    steps = copies(*options, at=[10])
    assert steps[-1] == 12
    ends = [state(name)["model"] for name in ("cut10", "whole")]
    averaged = TaskTrainer.load("whole")
    found = averaged.evaluate("val", "last")
    assert found["loss"] == events("whole", "epoch")[-1]["val/loss"]
    kept = state("whole")["method"]
    for name, value in ends[1].items():
        (own,) = (other for key, other in kept.items() if key.endswith(name) and other.shape == value.shape)
        torch.testing.assert_close(own, (ends[0][name] + value) / 2, rtol=1e-12, atol=1e-12)
