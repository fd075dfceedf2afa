"""Metrics against scikit-learn and torchmetrics, in float64, dealt in batches and over processes; and their choice."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional as theirs
from sklearn import metrics as sk
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from healsg import TaskTrainer, distributed
from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.evaluation.evaluator import collect
from healsg.losses.usual import LabelsLoss, RegressionLoss
from healsg.metric import Accuracy, Metric, count_of_all, largest, predicted
from healsg.metrics.classification import F1, BalancedAccuracy, CalibrationError, Confusion, TopK
from healsg.metrics.multilabel import LabelAccuracy
from healsg.metrics.ranking import AUROC, area
from healsg.metrics.regression import R2, MeanAbsoluteError, RootMeanSquaredError
from healsg.metrics.torchmetrics import TorchMetric
from healsg.metrics.usual import omissions, with_chosen
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


OF_CLASSES: dict[str, Made] = {
    "acc": Accuracy,
    "balanced": BalancedAccuracy,
    "f1": F1,
    "calibration": CalibrationError,
    "confusion": lambda: Confusion(300),
    "auroc": AUROC,
    "top 2": lambda: TopK(2),
}
NAN_CASES: dict[str, tuple[Made, Pair]] = {name: (make, pair) for name, (make, pair, _) in CASES.items()}
NAN_CASES |= {
    "confusion": (Confusion, classes()),
    "kappa": (lambda: TorchMetric("MulticlassCohenKappa", {"num_classes": 7}), classes()),
    "jaccard": (lambda: TorchMetric("MultilabelJaccardIndex", {"num_labels": 5}), labels()),
    "theirs": (lambda: TorchMetric("R2Score"), values(203)),
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
    three = SimpleNamespace(gather=lambda own: [parts[0], own, parts[1]])
    monkeypatch.setattr(distributed, "processes", lambda: three)
    assert collect({"it": make()})["it"] == pytest.approx(whole, abs=1e-12)


def test_confusion_is_rows_of_true_classes() -> None:
    output = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.0, 5.0, 1.0]])
    assert measured(Confusion, output, torch.tensor([0, 1, 2, 2])) == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_pixels_are_samples_and_unknown_ones_are_left_out() -> None:
    torch.manual_seed(0)
    output, target = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5))
    rows, flat = output.movedim(1, -1).reshape(-1, 3), target.flatten()
    known, marked = flat < 2, torch.where(target < 2, target, 255)
    for make in OF_CLASSES.values():
        assert np.ravel(measured(make, output, target)) == pytest.approx(np.ravel(measured(make, rows, flat)))
        left = np.ravel(measured(make, rows[known], flat[known]))
        for mark in (255, -100):
            told = np.ravel(measured(make, output, torch.where(marked < 255, marked, mark)))
            assert told == pytest.approx(left), "also class 2, which then never occurs"
        broken = torch.where((marked == 255).unsqueeze(1), torch.nan, output)
        assert np.ravel(measured(make, broken, marked)) == pytest.approx(left), "what an ignored pixel got is no matter"


@pytest.mark.parametrize("name", ["acc", "balanced", "f1", "calibration", "top 2", "auroc"])
def test_without_a_known_target_there_is_no_number(name: str) -> None:
    assert math.isnan(measured(OF_CLASSES[name], torch.randn(4, 3), torch.full((4,), 9)))


def test_targets_in_bytes_are_compared_with_many_classes() -> None:
    """C of 300 wraps around to 44 in uint8."""
    torch.manual_seed(0)
    output, target = torch.randn(50, 300, dtype=torch.float64), torch.randint(0, 256, (50,), dtype=torch.uint8)
    for make in OF_CLASSES.values():
        assert measured(make, output, target) == measured(make, output, target.long())


@pytest.mark.parametrize("name", NAN_CASES)
@pytest.mark.parametrize("whole", [True, False])
def test_of_scores_that_are_nan_there_is_no_number(name: str, whole: bool) -> None:
    """AUROC gave 1.5; one score among many is enough, in any batch."""
    make, (output, target) = NAN_CASES[name]
    broken = output.clone()
    broken.view(len(output), -1)[slice(None) if whole else 3, slice(None) if whole else 0] = torch.nan
    for size in (None, 20):
        assert math.isnan(measured(make, broken, target, size)), size


def test_r2_keeps_its_digits_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(3)
    target = 1e7 + torch.randn(301, 2, generator=random, dtype=torch.float64)
    output = target + 0.3 * torch.randn(301, 2, generator=random, dtype=torch.float64)
    wanted = sk.r2_score(target, output)
    for size in (None, 50, 7, 1):
        assert measured(R2, output, target, size) == pytest.approx(wanted, abs=1e-7), size
    halves = []
    for piece in (slice(None, 100), slice(100, None)):
        metric = R2()
        metric.update(output[piece], target[piece])
        halves.append({"it": metric.packed()})
    monkeypatch.setattr(distributed, "processes", lambda: SimpleNamespace(gather=lambda own: halves))
    assert collect({"it": R2()})["it"] == pytest.approx(wanted, abs=1e-7), "over processes"


@pytest.mark.parametrize("constant", [0.1, 0.3, 7.7, 47.31, 83.17, 1e7])
def test_r2_of_targets_that_never_differ_is_not_defined(constant: float) -> None:
    target = torch.full((301,), constant)
    for size in (None, 50, 1):
        assert math.isnan(measured(R2, target + torch.randn(301), target, size)), size
    two = torch.stack([target, torch.arange(301.0)], dim=1)
    assert measured(R2, two, two, 50) == 1, "the number that differs counts alone"


def test_what_is_not_defined_is_not_a_number() -> None:
    same = torch.zeros(4, dtype=torch.long)
    assert math.isnan(area(torch.arange(4.0), same == 0))
    assert math.isnan(measured(AUROC, torch.randn(4, 2), same))
    assert math.isnan(measured(R2, torch.randn(4), torch.ones(4)))
    assert measured(AUROC, torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 0, 1, 1])) <= 1, "class 2 is absent"


def test_a_label_that_is_absent_counts_as_zero_and_a_class_is_left_out() -> None:
    """scikit-learn's macro F1 counts both as 0 where they are named, and a class not at all where it is not."""
    output = torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, 1.0, -1.0]])
    target = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert measured(F1, output, target) == pytest.approx((1 + 2 / 3 + 0) / 3)
    scores = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    assert measured(F1, scores, torch.tensor([0, 1, 1])) == pytest.approx((2 / 3 + 2 / 3) / 2), "class 2 is absent"
    assert measured(F1, scores, torch.tensor([0, 1, 2])) == pytest.approx((2 / 3 + 0 + 0) / 3), "and here it is missed"


def test_too_sure_and_not_sure_enough_do_not_cancel_out() -> None:
    """Half the samples are taken with 0.9 and never right, half with 0.6 and always: 0.9 and 0.4 are added up."""
    sure, unsure = math.log(9), math.log(1.5)
    output = torch.tensor([[sure, 0.0]] * 4 + [[unsure, 0.0]] * 4, dtype=torch.float64)
    target = torch.tensor([1] * 4 + [0] * 4)
    for size in (None, 3):
        assert measured(CalibrationError, output, target, size) == pytest.approx((0.9 + 0.4) / 2)


def test_a_probability_between_two_bins_is_in_the_lower_one() -> None:
    """0.5 of two bins, which are (0, 0.5] and (0.5, 1]; in one bin with 0.9 it would give 0.2."""
    output = torch.tensor([[0.0, 0.0], [math.log(9), 0.0]], dtype=torch.float64)
    found = measured(lambda: CalibrationError(2), output, torch.tensor([0, 1]))
    assert found == pytest.approx((0.5 + 0.9) / 2)


@pytest.mark.parametrize(("scores", "wanted"), [([0, 0, 0, 0], 0.5), ([0, 1, 1, 2], 0.875), ([2, 1, 1, 0], 0.125)])
def test_equal_scores_count_half(scores: list[float], wanted: float) -> None:
    assert area(torch.tensor(scores, dtype=torch.float64), torch.tensor([False, False, True, True])) == wanted


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


def test_torchmetrics_is_given_probabilities() -> None:
    """Left to itself it takes outputs that all lie in 0..1 for probabilities, and says so to nobody."""
    torch.manual_seed(0)
    output, target = torch.rand(200, 5, dtype=torch.float64), torch.randint(0, 5, (200,))
    several = (torch.rand(200, 5) < 0.5).long()
    calibration = measured(lambda: TorchMetric("MulticlassCalibrationError", {"num_classes": 5}), output, target)
    assert calibration == pytest.approx(measured(CalibrationError, output, target), abs=1e-6)
    told = measured(lambda: TorchMetric("MultilabelAccuracy", {"num_labels": 5}), output, several)
    assert told == pytest.approx(measured(LabelAccuracy, output, several), abs=1e-6)


def test_torchmetrics_leaves_out_what_is_no_class() -> None:
    output, target = classes()
    marked = torch.where(target == 0, 255, target)
    kappa = measured(lambda: TorchMetric("MulticlassCohenKappa", {"num_classes": 7}), output, marked)
    known = target > 0
    assert kappa == pytest.approx(sk.cohen_kappa_score(target[known], output[known].argmax(1)), abs=1e-5)


# --- many classes ----------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that is made, and whether a value was read."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.reads = 0, set[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2"):
            self.reads.add(name)
        for tensor in made if isinstance(made, tuple | list) else [made]:
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return made


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_batch_takes_no_more_memory_than_its_outputs_and_reads_no_value(name: str) -> None:
    classes, rows = 40, 600
    # int32, which is not looked at on the CPU either, takes the same way as targets on a device
    output, target = torch.randn(rows, classes), torch.arange(rows, dtype=torch.int32) % classes
    metric = OF_CLASSES[name]()
    with Largest() as seen:
        metric.update(output, target)
        metric.update(output, target)
    assert seen.elements <= rows * classes
    assert not seen.reads


def test_pixels_are_put_into_bins_in_parts() -> None:
    output, target = torch.randn(2, 3, 300, 300, dtype=torch.float64), torch.randint(0, 3, (2, 300, 300))
    with Largest() as seen:
        error = measured(CalibrationError, output, target)
    assert seen.elements < 15 * target.numel()
    flat = output.movedim(1, -1).reshape(-1, 3), target.flatten()
    assert error == pytest.approx(calibration(*flat), abs=1e-12)


def test_of_too_many_classes_what_nobody_reads_is_left_out() -> None:
    chosen: dict[str, Metric] = {"auroc": AUROC(), "confusion": Confusion(), "f1": F1()}
    few, many = DataInfo((4,), 100), DataInfo((4,), 10_000)
    assert list(with_chosen(few, chosen)) == ["acc", "auroc", "confusion", "f1"]
    assert omissions(few, chosen) == []
    assert list(with_chosen(many, chosen)) == ["acc", "f1"]
    assert omissions(many, chosen) == [
        "model.metrics.auroc: left out, since 10000 classes are more than its max_classes=1000",
        "model.metrics.confusion: left out, since 10000 classes are more than its max_classes=100",
    ]
    assert list(with_chosen(DataInfo((4,), 5000, "multilabel"), {})) == ["acc"]
    assert list(with_chosen(many, {"auroc": AUROC(max_classes=10_000)})) == ["acc", "auroc"]


def test_a_task_of_its_own_data_leaves_them_out_too(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing told before the first batch how many classes there are."""
    with caplog.at_level("INFO", logger="healsg"):
        told = {"auroc": AUROC(), "confusion": Confusion()}
        for _ in range(2):
            for metric in told.values():
                metric.update(torch.randn(4, 2000), torch.arange(4))
    assert collect(dict(told)) == {}
    assert "max_classes=1000" in caplog.text


def test_scores_beyond_the_memory_they_may_take_give_no_number(caplog: pytest.LogCaptureFixture) -> None:
    metric = AUROC(max_mib=1)
    output, target = torch.randn(1000, 50), torch.arange(1000) % 50  # 0.4 MB in float64
    for _ in range(2):
        metric.update(output, target)
    assert measured(lambda: metric, output[:0], target[:0]) > 0
    for _ in range(3):
        metric.update(output, target)
    assert metric.state == [], "what was kept is let go of"
    assert math.isnan(collect({"it": metric})["it"])
    assert caplog.text.count("max_mib=1") == 1


def test_a_run_of_many_classes_says_what_it_leaves_out() -> None:
    settings = ["data=synthetic", "data.classes=1500", "data.shape=[4]", "data.images=false", "data.train=3000"]
    options = ["model=mlp", "model.width=4", "runner.limit_batches=2", "runner.epochs=1", "quiet=true"]
    result = TaskTrainer.compose(*settings, *options, "model/metrics=classification").train()
    folder = Path(result["folder"])
    assert sorted(result["test"]) == [f"test/{name}" for name in ("acc", "balanced_acc", "ece", "f1", "loss")]
    assert (folder / "train.log").read_text().count("left out, since 1500 classes") == 2
    record = json.loads((folder / "run.json").read_text())
    assert record["samples"]["labelled_per_class"] == {"least": 1, "most": 2}


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


def test_an_auroc_of_many_classes_can_be_stopped_at_each_of_them() -> None:
    metric = AUROC()
    metric.update(torch.rand(50, 20), torch.arange(50) % 20)
    steps = list(metric.compute([metric.packed()]))
    assert len(steps) == 20

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        collect({"auroc": metric}, stop)
    assert collect({"auroc": metric})["auroc"] == metric.of([metric.packed()])


@pytest.mark.parametrize("classes", [999, 1000, 1023, 1024, 1025, 5000])
def test_the_predicted_class_among_many_is_that_of_argmax(classes):
    draws = torch.Generator().manual_seed(0)
    output = torch.randint(0, 40, (64, classes), generator=draws).float()  # with many that are the largest
    output[3, classes // 2] = output[3, 7] = math.nan
    output[5] = -math.inf
    output[6, -1] = math.inf
    assert torch.equal(predicted(output), output.argmax(dim=1))
    finite = output[6:]
    found = largest(finite, 5)
    assert torch.equal(finite.gather(1, found), finite.topk(5, dim=1).values)
    assert all(len(set(row)) == 5 for row in found.tolist())
    assert count_of_all(output).isnan()
    assert count_of_all(output[6:]).item() == output[6:].numel()
