"""What is best: metrics say whether more of them is better, and nothing is guessed from a name."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from healsg import BasicTask, TaskTrainer, metrics
from healsg.errors import ConfigError
from healsg.evaluation.evaluator import collect
from healsg.metric import Accuracy, Metric, counted
from healsg.metrics.classification import Confusion
from healsg.metrics.gathered import Gathered
from healsg.metrics.torchmetrics import TorchMetric
from healsg.models.mlp import MLP
from healsg.training.best import BestTracker

HERE = __name__


class Misses(Metric):
    """The share of misses. It does not say that less is better."""

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        return counted((output.argmax(1) != target).sum(), target.numel())


class DeclaredMisses(Misses):
    higher_is_better: ClassVar[bool | None] = False


class ByClass(Accuracy):
    """Several named numbers, and one of the metric's own name."""

    def value(self, state: Any) -> dict[str, float]:
        share = super().value(state)
        return {"": share, "half": share / 2}


class BrokenInTheSecondEpoch(MLP):
    epoch: ClassVar[int] = 0

    def predict(self, network: nn.Module, batch: Mapping[str, Any]) -> Any:
        output = super().predict(network, batch)
        return output * torch.nan if BrokenInTheSecondEpoch.epoch == 2 else output


class Counting(BasicTask):
    def run_epoch(self) -> Mapping[str, Mapping[str, float]]:
        BrokenInTheSecondEpoch.epoch = self.epoch
        return super().run_epoch()


class OwnNumbers(BasicTask):
    def run_epoch(self) -> Mapping[str, Mapping[str, float]]:
        return {"train": self.train_epoch.run(), "val": {"dice": 0.1 * self.epoch, "hd95": 9.0 - self.epoch}}


class OwnLoaders(BasicTask):
    """No data that say anything before they are read."""

    made = False

    def build_dataloader(self) -> Any:
        OwnLoaders.made = True
        data = TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
        return DataLoader(data, batch_size=4), DataLoader(data, batch_size=4)


def train(*options: str, name: str = "run") -> dict[str, Any]:
    small = ["model=mlp", "model.width=8", "runner.epochs=3", "quiet=true", f"name={name}", "fresh=true"]
    return TaskTrainer.compose(*small, *options).train()


def epochs(name: str = "run") -> list[dict[str, Any]]:
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "epoch"]


def test_each_metric_that_is_one_number_says_whether_more_is_better() -> None:
    found = {
        kind
        for module in pkgutil.iter_modules(metrics.__path__, "healsg.metrics.")
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
        if issubclass(kind, Metric) and kind.__module__.startswith("healsg.")
    }
    silent = {kind for kind in found if kind.higher_is_better is None}
    assert silent == {Metric, Gathered, Confusion, TorchMetric}, "TorchMetric says it where its name is known"
    less = {kind.__name__ for kind in found if kind.higher_is_better is False}
    distances = {"HD95", "ASSD", "Volume", "Cases"}
    assert less == {"CalibrationError", "MeanAbsoluteError", "RootMeanSquaredError", *distances}


@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        ("MulticlassAccuracy", {"num_classes": 3}, True),
        ("MulticlassCalibrationError", {"num_classes": 3}, False),
        ("MultilabelRankingLoss", {"num_labels": 3}, False),
        ("MeanSquaredError", {}, False),
        ("MulticlassConfusionMatrix", {"num_classes": 3}, None),
    ],
)
def test_torchmetrics_says_it_of_its_own(name: str, options: dict[str, Any], more: bool | None) -> None:
    assert TorchMetric(name, options).higher_is_better is more


@pytest.mark.parametrize("name", ["error", "brier", "hd95", "score_loss"])
def test_a_metric_that_does_not_say_it_is_asked_before_data_are_read(name: str) -> None:
    chosen = [f"+model.metrics.{name}._target_={HERE}.Misses", f"runner.monitor=val/{name}", f"trusted=[{HERE}]"]
    own = [f"task._target_={HERE}.OwnLoaders"]
    OwnLoaders.made = False
    for task in ([], own):
        with pytest.raises(
            ConfigError, match=rf"^runner.monitor: val/{name} .*runner.mode=max.*higher_is_better"
        ) as caught:
            train(*chosen, *task)
        assert "\n" not in str(caught.value)
    assert not Path("runs").exists()
    assert not OwnLoaders.made


def test_a_metric_in_which_less_is_better_is_lowest_where_it_is_best() -> None:
    for place, (kind, mode) in enumerate([("DeclaredMisses", "auto"), ("Misses", "min")]):
        chosen = [f"+model.metrics.score._target_={HERE}.{kind}", "runner.monitor=val/score", f"runner.mode={mode}"]
        result = train(*chosen, f"trusted=[{HERE}]", name=f"run{place}")
        values = [row["val/score"] for row in epochs(f"run{place}")]
        assert len(set(values)) > 1
        assert result["best"]["value"] == min(values)


@pytest.mark.parametrize("name", ["lr", "train/distillation"])
def test_of_other_numbers_the_mode_is_asked(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^runner.monitor: {name} does not say"):
        train(f"runner.monitor={name}")


@pytest.mark.parametrize(
    ("measured", "watched"),
    [
        (("acc", "dice", "iou", "loss"), ("val/dice", 1)),
        (("acc", "loss"), ("val/acc", 1)),
        (("loss", "iou", "dice"), ("val/dice", 1)),
        (("loss", "iou"), ("val/iou", 1)),
        (("loss", "hd95"), ("val/loss", -1)),
        ((), ("", 1)),
    ],
)
def test_auto_prefers_dice_then_iou_then_accuracy(measured: tuple[str, ...], watched: tuple[str, int]) -> None:
    numbers = {f"val/{name}": 0.5 for name in measured}
    assert BestTracker("auto", "auto").resolve(numbers, {"loss": False}) == watched


def test_auto_goes_with_what_a_metric_says_not_with_its_name() -> None:
    assert BestTracker("auto", "auto").resolve({"val/dice": 0.5}, {"dice": False}) == ("val/dice", -1)
    with pytest.raises(ConfigError, match="val/dice does not say"):
        BestTracker("auto", "auto").resolve({"val/dice": 0.5}, {"dice": None})


def test_numbers_of_a_task_of_its_own() -> None:
    task = f"task._target_={HERE}.OwnNumbers", f"trusted=[{HERE}]"
    assert train(*task)["best"] | {"metrics": None} == {
        "monitor": "val/dice",
        "value": pytest.approx(0.3),
        "epoch": 3,
        "step": train(*task)["best"]["step"],
        "metrics": None,
    }
    with pytest.raises(ConfigError, match=r"runner.monitor: val/hd95 does not say"):
        train(*task, "runner.monitor=val/hd95")
    assert train(*task, "runner.monitor=val/hd95", "runner.mode=min")["best"]["value"] == 6.0


def test_several_named_numbers_of_a_metric() -> None:
    metric = ByClass()
    metric.update(torch.eye(4), torch.tensor([0, 1, 0, 0]))
    assert collect({"it": metric}) == {"it": 0.5, "it.half": 0.25}
    chosen = [f"+model.metrics.it._target_={HERE}.ByClass", f"trusted=[{HERE}]"]
    result = train(*chosen, "runner.monitor=val/it.half")
    assert result["best"]["value"] == max(row["val/it.half"] for row in epochs())
    assert result["best"]["value"] == result["best"]["metrics"]["val/acc"] / 2
    with pytest.raises(ConfigError, match=r"val/it.third is not measured; there is .*val/it, val/it.half"):
        train(*chosen, "runner.monitor=val/it.third")


def test_an_epoch_without_numbers_is_not_the_best() -> None:
    parts = [f"task._target_={HERE}.Counting", f"model._target_={HERE}.BrokenInTheSecondEpoch", f"trusted=[{HERE}]"]
    for watched in ("auto", "val/auroc", "val/ece", "val/loss"):
        result = train(*parts, "model/metrics=classification", f"runner.monitor={watched}")
        names = ("loss", "acc", "balanced_acc", "f1", "auroc", "ece")
        assert [epochs()[1][f"val/{name}"] for name in names] == [None] * 6
        assert result["best"]["epoch"] in (1, 3), watched


def test_between_equals_one_without_a_loss_is_not_better() -> None:
    monitor, known = BestTracker("val/acc", "auto"), {"acc": True}
    lines = [(0.5, 2.0), (0.5, float("nan")), (0.5, 2.0), (0.5, 1.0), (float("inf"), 1.0)]
    better = [
        monitor.update({"val/acc": acc, "val/loss": loss, "epoch": place, "step": place}, known)
        for place, (acc, loss) in enumerate(lines)
    ]
    assert better == [True, False, False, True, False]


def test_a_list_of_numbers_cannot_be_watched() -> None:
    with pytest.raises(ConfigError, match="is a list of numbers"):
        BestTracker("val/each", "max").resolve({"val/each": [0.1, 0.2]}, {})
