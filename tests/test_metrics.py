"""Metrics against scikit-learn and torchmetrics, in float64, dealt in batches and over processes; and their choice."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional as theirs
from sklearn import metrics as sk
from torch import Tensor

from healsg import TaskTrainer, distributed
from healsg.data import DataInfo
from healsg.epoch import collect
from healsg.errors import ConfigError
from healsg.losses.usual import LabelsLoss, RegressionLoss
from healsg.metric import Accuracy, Metric
from healsg.metrics.classification import F1, BalancedAccuracy, CalibrationError, Confusion, TopK
from healsg.metrics.multilabel import LabelAccuracy
from healsg.metrics.ranking import AUROC, area
from healsg.metrics.regression import R2, MeanAbsoluteError, RootMeanSquaredError
from healsg.metrics.torchmetrics import TorchMetric
from healsg.metrics.usual import with_chosen
from healsg.models.mlp import MLP

Made = Callable[[], Metric]
Pair = tuple[Tensor, Tensor]


def classes(rows: int = 203, count: int = 7, seed: int = 0, tied: bool = True) -> Pair:
    """Scores and classes of which the last never occurs and some are rare; many scores are equal if ``tied``."""
    random = torch.Generator().manual_seed(seed)
    output = torch.randn(rows, count, generator=random, dtype=torch.float64)
    target = (torch.rand(rows, generator=random) ** 2 * (count - (count > 2))).long()
    output[torch.arange(rows), target] += 1
    return (output * 4).round() / 4 if tied else output, target


def labels(rows: int = 203, count: int = 5) -> Pair:
    random = torch.Generator().manual_seed(1)
    output = (torch.randn(rows, count, generator=random, dtype=torch.float64) * 4).round() / 4
    return output, (torch.rand(rows, count, generator=random) < torch.sigmoid(output)).to(torch.uint8)


def values(*shape: int) -> Pair:
    random = torch.Generator().manual_seed(2)
    target = 100 + 3 * torch.randn(*shape, generator=random, dtype=torch.float64)
    return target + torch.randn(*shape, generator=random, dtype=torch.float64), target


def measured(make: Made, output: Tensor, target: Tensor, size: int | None = None) -> Any:
    """The value of a metric that sees the samples in batches of ``size``."""
    metric = make()
    for piece in zip(output.split(size or len(output)), target.split(size or len(target)), strict=True):
        metric.update(*piece)
    return collect({"it": metric})["it"]


def calibration(output: Tensor, target: Tensor) -> float:
    """Guo et al. 2017, equation 3, written plainly."""
    confidence, taken = output.softmax(dim=1).max(dim=1)
    total = 0.0
    for low in range(15):
        within = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if within.any():
            gap = (taken == target)[within].double().mean() - confidence[within].mean()
            total += float(within.sum()) / len(target) * abs(float(gap))
    return total


def against_the_rest(output: Tensor, target: Tensor) -> float:
    """The mean over the classes that occur."""
    chances = output.softmax(dim=1).numpy()
    present = sorted(set(target.tolist()))
    return float(np.mean([sk.roc_auc_score(target.numpy() == label, chances[:, label]) for label in present]))


def balanced(output: Tensor, target: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class is predicted which does not occur
        return float(sk.balanced_accuracy_score(target, output.argmax(1)))


def top(k: int) -> Callable[[Tensor, Tensor], float]:
    return lambda output, target: sk.top_k_accuracy_score(target, output, k=k, labels=range(7))


CASES: dict[str, tuple[Made, Pair, Callable[[Tensor, Tensor], float]]] = {
    "acc": (Accuracy, classes(), lambda o, t: sk.accuracy_score(t, o.argmax(1))),
    "balanced": (BalancedAccuracy, classes(), balanced),
    "f1": (F1, classes(), lambda o, t: sk.f1_score(t, o.argmax(1), average="macro")),
    "f1 of labels": (F1, labels(), lambda o, t: sk.f1_score(t, o > 0, average="macro")),
    "auroc": (AUROC, classes(), against_the_rest),
    "auroc of two": (AUROC, classes(count=2), lambda o, t: sk.roc_auc_score(t, o[:, 1] - o[:, 0])),
    "auroc of labels": (AUROC, labels(), lambda o, t: sk.roc_auc_score(t, o, average="macro")),
    "calibration": (CalibrationError, classes(), calibration),
    "top 5": (TopK, classes(tied=False), top(5)),
    "top 2": (lambda: TopK(2), classes(tied=False), top(2)),
    "label acc": (LabelAccuracy, labels(), lambda o, t: 1 - sk.hamming_loss(t, o > 0)),
    "mae": (MeanAbsoluteError, values(203), lambda o, t: sk.mean_absolute_error(t, o)),
    "mae of three": (MeanAbsoluteError, values(203, 3), lambda o, t: sk.mean_absolute_error(t, o)),
    "rmse": (RootMeanSquaredError, values(203), lambda o, t: sk.root_mean_squared_error(t, o)),
    "rmse of three": (RootMeanSquaredError, values(203, 3), lambda o, t: math.sqrt(sk.mean_squared_error(t, o))),
    "r2": (R2, values(203), lambda o, t: sk.r2_score(t, o)),
    "r2 of three": (R2, values(203, 3), lambda o, t: sk.r2_score(t, o)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_that_of_sklearn(name: str) -> None:
    make, (output, target), wanted = CASES[name]
    assert measured(make, output, target) == pytest.approx(wanted(output, target), abs=1e-12)


def test_the_value_is_that_of_torchmetrics() -> None:
    output, target = classes(tied=False)
    output, target = output[:, :6], target  # all of which occur: torchmetrics counts an absent class otherwise
    settings: dict[str, Any] = {"num_classes": 6}
    ours = {name: measured(CASES[name][0], output, target) for name in ("balanced", "f1", "auroc", "calibration")}
    assert ours["balanced"] == pytest.approx(
        float(theirs.classification.multiclass_accuracy(output, target, average="macro", **settings)), abs=1e-6
    )
    assert ours["f1"] == pytest.approx(
        float(theirs.classification.multiclass_f1_score(output, target, average="macro", **settings)), abs=1e-6
    )
    assert ours["auroc"] == pytest.approx(
        float(theirs.classification.multiclass_auroc(output, target, average="macro", **settings)), abs=1e-6
    )
    assert ours["calibration"] == pytest.approx(
        float(theirs.classification.multiclass_calibration_error(output, target, n_bins=15, **settings)), abs=1e-6
    )
    told = theirs.classification.multiclass_confusion_matrix(output, target, **settings)
    assert measured(Confusion, output, target) == told.tolist()


@pytest.mark.parametrize("name", CASES)
def test_batches_and_processes_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, of which one has no samples at all."""
    make, (output, target), _ = CASES[name]
    whole = measured(make, output, target)
    assert measured(make, output, target, size=17) == pytest.approx(whole, abs=1e-12)
    cut, parts = 90, []
    for piece in (slice(None, cut), slice(cut, None)):
        metric = make()
        for batch in zip(output[piece].split(32), target[piece].split(32), strict=True):
            metric.update(*batch)
        parts.append({"it": metric.packed()})
    monkeypatch.setattr(distributed, "gather", lambda own: [parts[0], own, parts[1]])
    assert collect({"it": make()})["it"] == pytest.approx(whole, abs=1e-12)


def test_confusion_is_rows_of_true_classes() -> None:
    output = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.0, 5.0, 1.0]])
    assert measured(Confusion, output, torch.tensor([0, 1, 2, 2])) == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_pixels_are_samples_and_unknown_ones_are_left_out() -> None:
    torch.manual_seed(0)
    output, target = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5))
    rows, flat = output.movedim(1, -1).reshape(-1, 3), target.flatten()
    known, marked = flat < 2, torch.where(target < 2, target, 255)
    for make in (BalancedAccuracy, F1, CalibrationError, Confusion, AUROC):
        assert np.ravel(measured(make, output, target)) == pytest.approx(np.ravel(measured(make, rows, flat)))
    for make in (BalancedAccuracy, F1, CalibrationError, Confusion):
        left = np.ravel(measured(make, rows[known], flat[known]))
        assert np.ravel(measured(make, output, marked)) == pytest.approx(left)


def test_what_is_not_defined_is_not_a_number() -> None:
    same = torch.zeros(4, dtype=torch.long)
    assert math.isnan(area(torch.arange(4.0), same == 0))
    assert math.isnan(measured(AUROC, torch.randn(4, 2), same))
    assert math.isnan(measured(R2, torch.randn(4), torch.ones(4)))
    assert measured(AUROC, torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 0, 1, 1])) <= 1, "class 2 is absent"


def test_one_number_is_a_column_or_none() -> None:
    output, target = values(50)
    for make in (MeanAbsoluteError, RootMeanSquaredError, R2):
        assert measured(make, output.unsqueeze(1), target) == measured(make, output, target)
        assert measured(make, output.unsqueeze(1), target.unsqueeze(1)) == measured(make, output, target)
    loss = RegressionLoss()
    assert loss(output.unsqueeze(1), target) == ((output - target) ** 2).mean()
    assert loss(output.float(), target).dtype == torch.float32


def test_labels_of_bytes_have_a_loss() -> None:
    output, target = labels()
    chance = torch.sigmoid(output)
    wanted = -(target * chance.log() + (1 - target.double()) * (1 - chance).log()).mean()
    assert float(LabelsLoss()(output, target)) == pytest.approx(float(wanted), abs=1e-12)
    assert LabelsLoss()(output.bfloat16(), target).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "pair", "wanted"),
    [
        (
            "MulticlassCohenKappa",
            {"num_classes": 7, "weights": "quadratic"},
            classes(),
            lambda o, t: sk.cohen_kappa_score(t, o.argmax(1), weights="quadratic", labels=range(7)),
        ),
        (
            "MultilabelJaccardIndex",
            {"num_labels": 5},
            labels(),
            lambda o, t: sk.jaccard_score(t, o > 0, average="macro"),
        ),
        ("R2Score", {}, values(203), lambda o, t: sk.r2_score(t, o)),
    ],
)
def test_torchmetrics_by_name(name: str, options: dict[str, Any], pair: Pair, wanted: Callable[..., float]) -> None:
    for size in (None, 20):
        assert measured(lambda: TorchMetric(name, options), *pair, size) == pytest.approx(wanted(*pair), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("MulticlassKohenKappa", {}, "the nearest are MulticlassCohenKappa"),
        ("MulticlassF1Score", {}, "MulticlassF1Score refuses {}"),
        ("MulticlassF1Score", {"num_classes": -1}, "refuses"),
        ("MetricCollection", {}, "torchmetrics has no 'MetricCollection'"),
    ],
)
def test_a_wrong_torchmetric_is_one_line(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("{}", ".*")) as caught:
        TorchMetric(name, options)
    assert "\n" not in str(caught.value)


# --- which are measured ----------------------------------------------------------------------------------------------


def test_the_usual_metrics_and_those_chosen() -> None:
    infos = {kind: DataInfo((4,), 3, kind) for kind in ("multiclass", "multilabel", "regression", "other")}
    assert [list(with_chosen(info, {})) for info in infos.values()] == [
        ["acc"],
        ["acc", "auroc"],
        ["mae", "rmse", "r2"],
        [],
    ]
    assert list(with_chosen(None, {})) == ["acc"]
    model = MLP(metrics={"f1": F1(), "acc": TopK(1)})
    made = model.metrics(infos["multiclass"])
    assert list(made) == ["acc", "f1"]
    assert isinstance(made["acc"], TopK)
    made["f1"].update(torch.randn(4, 3), torch.arange(4) % 3)
    assert model.metrics(infos["multiclass"])["f1"].state is None, "every evaluation begins anew"


@pytest.mark.parametrize(
    ("kind", "metric", "told"),
    [
        ("regression", F1(), "model.metrics.it: is for a multiclass or multilabel task, and this one is regression"),
        ("multiclass", R2(), "model.metrics.it: is for a regression task, and this one is multiclass"),
        ("multilabel", TorchMetric("MeanSquaredError"), "model.metrics.it: is for a regression task"),
        ("multiclass", torch.nn.ReLU(), "model.metrics.it: ReLU is no Metric"),
        ("ordinal", F1(), "MLP has no loss for a task of kind 'ordinal'"),
    ],
)
def test_what_does_not_fit_is_refused_before_data_are_read(kind: str, metric: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        MLP(metrics={"it": metric}).check(DataInfo((4,), 3, kind))


def test_a_run_writes_what_was_chosen() -> None:
    chosen = ["model/metrics=[classification,top5,kappa]", "~model.metrics.ece"]
    settings = ["model=mlp", "model.width=8", "runner.epochs=1", "quiet=true"]
    result = TaskTrainer.compose(*settings, *chosen, "model.metrics.top5.k=3").train()
    lines = [json.loads(line) for line in (Path(result["folder"]) / "metrics.jsonl").read_text().splitlines()]
    names = ["loss", "acc", "balanced_acc", "f1", "auroc", "top5", "kappa"]
    epoch, test = ([key.split("/")[1] for key in line if "/" in key and "train" not in key] for line in lines)
    assert epoch == names
    assert sorted(test) == sorted([*names, "confusion"])
    matrix = np.array(lines[1]["test/confusion"])
    assert matrix.shape == (10, 10)
    assert matrix.sum() == 500
    assert np.trace(matrix) / 500 == lines[1]["test/acc"]
    page = (Path(result["folder"]) / "report.html").read_text()
    assert page.count('<td style="background') == 100
    assert "[[" not in page
