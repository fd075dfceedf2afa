"""Several labels a sample, and regression, through the real program: trained, gone on with, accumulated, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fake_tables
from healsg import TaskTrainer
from healsg.build import build_task
from healsg.commands import resume
from healsg.errors import ConfigError
from healsg.runs.folder import RunFolder

BASE = ["data=synthetic", "data.train=300", "data.test=60", "data.batch_size=50", "model.width=16", "quiet=true"]
IMAGES = ["data.shape=[1,8,8]", "model=cnn", "model.dropout=0.1", "data.shift=1"]
NUMBERS = ["data.shape=[16]", "data.images=false", "model=mlp", "data.noise=0.1"]
KINDS = {
    "labels of images": ["data.kind=multilabel", "data.classes=4", "model/metrics=multilabel", *IMAGES],
    "one number": ["data.kind=regression", "data.classes=1", "model/metrics=regression", *NUMBERS],
    "three numbers": ["data.kind=regression", "data.classes=3", *NUMBERS],
}


def train(name: str, *settings: str) -> dict[str, Any]:
    return TaskTrainer.compose(*BASE, f"name={name}", *settings).train()


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_learns_and_goes_on_bit_for_bit(kind: str) -> None:
    settings = [*KINDS[kind], "runner.epochs=4", "method.optimizer.lr=1e-2"]
    whole = train("whole", *settings)
    assert train("cut", *settings, "runner.max_time=0")["status"] == "stopped"
    assert resume.run(["cut", "runner.max_time=null"]) == 0
    assert RunFolder(Path("runs/cut")).record["digest"] == whole["digest"]
    epochs = [{k: v for k, v in line.items() if k != "seconds"} for line in lines("cut")]
    assert epochs == [{k: v for k, v in line.items() if k != "seconds"} for line in lines("whole")]
    names = {"labels of images": ["acc", "auroc", "f1"]}.get(kind, ["mae", "rmse", "r2"])
    assert [key for key in epochs[0] if key.startswith("val/")] == ["val/loss", *(f"val/{name}" for name in names)]
    test = whole["test"]
    assert test["test/loss"] < 0.8 * epochs[0]["train/loss"]
    if kind == "labels of images":
        assert test["test/auroc"] > 0.9
        assert test["test/acc"] > 0.7
    else:
        scale = TaskTrainer.load("whole").predictor().info.preprocessing["target_std"]
        if len(scale) == 1:  # the loss is one of scaled numbers, metrics are in the unit of the targets
            assert test["test/rmse"] == pytest.approx(scale[0] * test["test/loss"] ** 0.5, rel=1e-5)
        assert test["test/r2"] > 0.5


@pytest.mark.parametrize("kind", ["labels of images", "one number"])
@pytest.mark.parametrize("setting", ["runner.precision=bf16", "method.mixup=0.2"])
def test_precision_and_mixing(kind: str, setting: str) -> None:
    result = train("it", *KINDS[kind], setting, "runner.epochs=2")
    assert result["status"] == "finished"
    assert result["test"]["test/loss"] < 2


def test_accumulated_batches_are_the_large_one() -> None:
    settings = [*KINDS["three numbers"], "runner.steps=5", "data.noise=0", "data.drop_last=true"]
    one = train("one", *settings, "data.batch_size=40")
    four = train("four", *settings, "data.batch_size=10", "runner.accumulate=4")
    assert four["test"]["test/loss"] == pytest.approx(one["test"]["test/loss"], rel=1e-4)


def test_tables_train(tmp_path: Path) -> None:
    """The three kinds from a file, and pictures that a table names."""
    fake_tables.write_csv("data/table.csv", fake_tables.rows())
    fake_tables.write_picture_csv("data/pictures")
    small = ["data.batch_size=32", "model=mlp", "model.width=8", "runner.epochs=8", "method.optimizer.lr=2e-2"]
    table = [
        "data=csv",
        "data.file=table.csv",
        "data.columns=[a,b,c,d]",
        "data.test_fraction=0.25",
        *small,
        "quiet=true",
    ]
    runs = {
        "acc": ["data.target=label", "data.group=patient"],
        "auroc": ["data.target=[old,ill]", "data.kind=multilabel"],
        "r2": ["data.target=dose", "data.kind=regression", "runner.epochs=30"],
    }
    for name, settings in runs.items():
        result = TaskTrainer.compose(*table, *settings, f"name={name}").train()
        assert result["test"][f"test/{name}"] > 0.6, name
    pictures = ["data=csv", "data.file=pictures/table.csv", "data.image=path", "data.image_size=8", "data.shift=1"]
    result = TaskTrainer.compose(*pictures, "data.test_fraction=0.25", "data.workers=0", *small, "quiet=true").train()
    assert result["test"]["test/acc"] > 0.6


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["data.kind=regression", "model/metrics=classification"],
            "model.metrics.balanced_acc: is for a multiclass task",
        ),
        (["model/metrics=regression"], "model.metrics.mae: is for a regression task, and this one is multiclass"),
        (["data.kind=multilabel", "method.label_smoothing=0.1"], "method.label_smoothing: needs one class a sample"),
        (["data.kind=regression", "data.labels=40"], "data.labels: needs one class a sample"),
    ],
)
def test_what_does_not_fit_is_one_line(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        TaskTrainer.compose(*BASE, *NUMBERS, *settings).train()
    assert "\n" not in str(caught.value)


def test_no_loss_or_metric_reads_a_value() -> None:
    """What a training step computes of a kind runs without a look at any number."""
    for kind in KINDS.values():
        task = build_task(TaskTrainer.compose(*BASE, *kind).composed)
        task.build()
        outputs = task.info
        assert outputs is not None
        with torch.device("meta"):
            output = torch.zeros(6, outputs.num_classes, requires_grad=True)
            target = torch.zeros(6, outputs.num_classes) if outputs.num_classes > 1 else torch.zeros(6)
        loss = task.criterion.to("meta")(output, target)
        loss.backward()
        assert loss.is_meta
        for metric in task.task_model.metrics(outputs).values():
            metric.update(output, target)
