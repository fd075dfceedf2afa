"""What the numbers mean is kept with the weights: classes and their order, columns, statistics, wherever weights go."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from torch import nn

import fake_tables
from healsg import DataInfo, TaskTrainer
from healsg.cli import main
from healsg.data.info import differing_inputs, order_classes
from healsg.datasets.csv import Csv
from healsg.datasets.imagefolder import ImageFolder
from healsg.errors import ConfigError, DataError, HealsgError, RunError
from healsg.evaluation.predictor import best_of, network_of_run
from healsg.metrics.torchmetrics import TorchMetric
from healsg.models.torchvision import Torchvision
from healsg.runs import checkpoint
from healsg.runs.folder import RunFolder, weights_file
from healsg.runs.weights import initialise, read_weights

MLP = ("model=mlp", "model.width=8", "runner.epochs=2", "quiet=true")
TABLE = ("data=csv", "data.file=train.csv", "data.test_file=test.csv", *MLP)


def table(path: str, seed: int, names: tuple[str, ...] = ("cat", "dog"), rows: int = 60, columns: str = "ab") -> None:
    """Rows of the classes in turn, each a point around its class's number."""
    draw = random.Random(seed)
    lines = [",".join([*columns, "label"])]
    for row in range(rows):
        label = row % len(names)
        values = {name: draw.gauss(label * 2, 1) for name in sorted(columns)}
        lines.append(",".join([*(f"{values[name]:.4f}" for name in columns), names[label]]))
    Path(path).write_text("\n".join(lines) + "\n")


def train(*options: str) -> dict[str, Any]:
    result = TaskTrainer.compose(*options).train()
    assert result["status"] == "finished"
    return result


def evaluate(run: str, *options: str, split: str = "test") -> dict[str, float]:
    return TaskTrainer.load(run, *options).evaluate(split)


@pytest.fixture
def run() -> str:
    """A run on a table of the classes cat and dog."""
    table("train.csv", 0)
    table("test.csv", 1)
    train(*TABLE, "name=run")
    return "run"


# --- the order of classes --------------------------------------------------------------------------------------------


def test_names_that_are_numbers_sort_as_numbers() -> None:
    assert order_classes(["10", "9", "1", "-2"]) == (("-2", "1", "9", "10"), "numeric")
    assert order_classes(["1.5", "10", "2"]) == (("1.5", "2", "10"), "numeric")
    assert order_classes(["01", "1", "0"]) == (("0", "01", "1"), "numeric")
    assert order_classes(["b", "10", "9"]) == (("10", "9", "b"), "alphabetical")
    assert order_classes(["nan", "1"]) == (("1", "nan"), "alphabetical")


def pictures(folder: str, *classes: str, count: int = 2) -> None:
    for number, name in enumerate(classes):
        place = Path(folder) / name
        place.mkdir(parents=True, exist_ok=True)
        for one in range(count):
            Image.new("RGB", (9, 9), (20 * number, 7 * one, 90)).save(place / f"{one}.png")


def test_folders_that_are_numbers_sort_as_numbers() -> None:
    pictures("set/train", "10", "9", "0")
    info = ImageFolder("set", image_size=8, shift=0).info
    assert info.class_names == ("0", "9", "10")
    assert info.class_order == "numeric"


def test_the_order_of_classes_can_be_given() -> None:
    table("grades.csv", 0, ("none", "mild", "severe"))
    pictures("set/train", "none", "mild", "severe")
    pictures("set/val", "none", "mild", "severe")
    order: list[str | float] = ["none", "mild", "severe"]
    for data in (Csv("grades.csv", classes=order), ImageFolder("set", image_size=8, shift=0, classes=order)):
        assert (data.info.class_names, data.info.class_order) == (tuple(order), "given")
        train = data.read("train")
        assert train is not None
        assert train.targets is not None
        assert train.targets[0] == 0
    assert Csv("grades.csv").info.class_order == "alphabetical"


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (["none", "mild"], r"data\.classes: does not name 'severe', which the training samples have"),
        (["none", "mild", "severe", "worst"], r"data\.classes: names 'worst', but the training samples have 'mild', "),
        (["none", "none", "mild", "severe"], r"data\.classes: names 'none' twice"),
    ],
)
def test_given_classes_are_those_that_there_are(classes: list[str | float], told: str) -> None:
    table("grades.csv", 0, ("none", "mild", "severe"))
    pictures("set/train", "none", "mild", "severe")
    for data in (Csv("grades.csv", classes=classes), ImageFolder("set", image_size=8, shift=0, classes=classes)):
        with pytest.raises(ConfigError, match=told):
            data.info  # noqa: B018


def test_a_run_with_named_grades_is_that_with_numbers() -> None:
    table("train.csv", 0, ("none", "mild", "severe"))
    table("test.csv", 1, ("none", "mild", "severe"))
    named = train(*TABLE, "data.classes=[none,mild,severe]", "name=named")
    table("train.csv", 0, ("0", "1", "2"))
    table("test.csv", 1, ("0", "1", "2"))
    assert train(*TABLE, "name=numbers")["test"] == named["test"]


def test_classes_are_for_one_class_a_sample() -> None:
    with pytest.raises(ConfigError, match=r"^data\.classes: is for one class a sample"):
        Csv("any.csv", kind="regression", classes=["a", "b"])


def test_weighted_kappa_needs_an_order() -> None:
    pytest.importorskip("torchmetrics")
    metric = TorchMetric("MulticlassCohenKappa", {"num_classes": 3, "weights": "quadratic"})
    names = ("mild", "none", "severe")
    with pytest.raises(ConfigError, match=r"'mild', 'none', 'severe' is only that of the alphabet; data\.classes="):
        metric.check(DataInfo((2,), 3, class_names=names, class_order="alphabetical"))
    metric.check(DataInfo((2,), 3, class_names=names, class_order="given"))
    TorchMetric("MulticlassCohenKappa", {"num_classes": 3}).check(
        DataInfo((2,), 3, "multiclass", names, "alphabetical")
    )


# --- what is saved ---------------------------------------------------------------------------------------------------


def test_every_checkpoint_says_what_its_numbers_mean(run: str) -> None:
    infos = [checkpoint.load(path)["data_info"] for path in sorted(Path("runs/run/checkpoints").glob("*.pt"))]
    assert len(infos) == 3
    assert infos[0] == infos[1] == infos[2]
    info = DataInfo.from_state(infos[0])
    assert (info.class_names, info.input_names, info.num_classes) == (("cat", "dog"), ("a", "b"), 2)
    assert info.state_dict() == infos[0]
    assert {"mean", "std", "missing"} <= set(info.preprocessing)
    task = TaskTrainer.load("run").composed
    assert json.dumps(infos[0])
    assert task


def test_pictures_say_how_they_are_made() -> None:
    train("data=digits", "runner.limit_batches=1", *MLP, "name=digits")
    info = checkpoint.load(Path("runs/digits/checkpoints/best.pt"))["data_info"]
    assert info["class_names"] == list("0123456789")
    assert len(info["preprocessing"]["mean"]) == 1
    pictures("set/train", "a", "b")
    said = ImageFolder("set", image_size=8, shift=0, mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 2.0]).fitted().preprocessing
    assert said["mean"] == [0.1, 0.2, 0.3]
    assert said["std"] == [1.0, 1.0, 2.0]
    assert {"resize", "crop", "maximum"} <= set(said)


GOOD = DataInfo((2,), 2, class_names=("a", "b")).state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": "2"},
        {"num_classes": 3},
        {"class_names": "ab"},
        {"class_names": [1, 2]},
        {"class_order": "odd"},
        {"input_shape": None},
        {"preprocessing": {"mean": torch.zeros(2)}},
        {"preprocessing": 3},
    ],
    ids=str,
)
def test_a_checkpoint_of_anybody_is_read_with_care(change: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="does not describe a data set"):
        DataInfo.from_state(GOOD | change)
    with pytest.raises(RunError):
        DataInfo.from_state([])


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_eval_refuses_classes_that_the_weights_do_not_know(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    table("other.csv", 2, ("wild cat", "dog"))
    assert main(["eval", run, "data.file=other.csv", "data.test_file=other.csv"]) == 1
    told = capsys.readouterr().err
    assert "the class 'wild cat' is not among those that the weights were trained on: 'cat', 'dog'" in told
    assert told.count("\n") == 1


def test_eval_keeps_the_order_of_classes(run: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where ``data.classes`` gives another order, the run's own counts."""
    assert evaluate(run, "data.classes=[dog,cat]") == evaluate(run)
    assert "data.classes: the weights were trained with cat, dog; the outputs are in this order" in caplog.text
    caplog.clear()
    evaluate(run, "data.classes=[cat,dog]")
    assert "data.classes" not in caplog.text
    for classes in ("cat,dog,bird", "cat"):
        told = r"^data\.classes: the weights were trained with cat, dog, which an evaluation"
        with pytest.raises(ConfigError, match=told):
            evaluate(run, f"data.classes=[{classes}]")


def test_eval_takes_a_set_of_fewer_classes(run: str) -> None:
    lines = Path("test.csv").read_text().splitlines()
    Path("dogs.csv").write_text("\n".join([lines[0], *(line for line in lines if line.endswith("dog"))]) + "\n")
    Path("cats.csv").write_text("\n".join(line for line in lines if not line.endswith("dog")) + "\n")
    dogs, cats = (evaluate(run, f"data.test_file={name}.csv")["acc"] for name in ("dogs", "cats"))
    assert (dogs + cats) / 2 == pytest.approx(evaluate(run)["acc"])


def test_eval_keeps_the_statistics_of_the_training(run: str) -> None:
    before = evaluate(run)
    with Path("train.csv").open("a") as file:
        file.writelines(f"{300 + row},{500 - row},cat\n{300 + row},{500 - row},dog\n" for row in range(30))
    assert evaluate(run) == before


def test_a_run_that_goes_on_keeps_its_statistics(run: str) -> None:
    best = checkpoint.load(Path("runs/run/checkpoints/best.pt"))["data_info"]
    with Path("train.csv").open("a") as file:
        file.writelines(f"{300 + row},{500 - row},cat\n{300 + row},{500 - row},dog\n" for row in range(30))
    assert main(["resume", run, "runner.epochs=3", "resume.force=true", "quiet=true"]) == 0
    assert checkpoint.load(Path("runs/run/checkpoints/last.pt"))["data_info"] == best


def test_columns_are_found_by_name(run: str) -> None:
    """Columns in another order, and one more; where one is missing, it is named."""
    before = evaluate(run)
    table("test.csv", 1, columns="ba")
    assert evaluate(run) == before
    lines = Path("test.csv").read_text().splitlines()
    Path("test.csv").write_text(
        "\n".join(f"{line},{row}" for row, line in enumerate(lines)).replace("label,0", "label,n")
    )
    assert evaluate(run) == before
    table("test.csv", 1, columns="ac")
    with pytest.raises(DataError, match="the test part has no column 'b', which the weights take as input"):
        evaluate(run)
    with pytest.raises(DataError, match=r"data\.columns: 'a'; the weights take 'a', 'b'"):
        evaluate(run, "data.columns=[a]")


def test_several_targets_are_found_by_name() -> None:
    table("train.csv", 0, columns="abcd")
    base = ("data=csv", "data.file=train.csv", "data.test_fraction=0.3", "data.kind=regression", "data.columns=[a,b]")
    train(*base, "data.target=[c,d]", *MLP, "name=run")
    before = evaluate("run")
    assert evaluate("run", "data.target=[d,c]") == before
    with pytest.raises(DataError, match=r"data\.target: 'c', 'a'; the weights predict 'c', 'd'"):
        evaluate("run", "data.target=[c,a]", "data.columns=[b,d]")


def test_eval_of_folders_goes_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val", "test"):
        pictures(f"A/{part}", "apple", "kiwi")
        pictures(f"B/{part}", "kiwi", "red apple")
        pictures(f"C/{part}", "kiwi")
    folder = ("data=imagefolder", "data.image_size=8", "data.shift=0", "data.workers=0", "data.folder=A")
    train(*folder, *MLP, "name=run")
    assert main(["eval", "run", "data.folder=B"]) == 1
    assert "B/test: the class 'red apple' is not among those" in capsys.readouterr().err
    assert set(evaluate("run", "data.folder=C")) == {"loss", "acc"}


def test_other_inputs_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val", "test"):
        pictures(f"A/{part}", "apple", "kiwi")
    folder = ("data=imagefolder", "data.image_size=8", "data.shift=0", "data.workers=0", "data.folder=A")
    train(*folder, *MLP, "name=run")
    assert main(["eval", "run", "data.mean=[0.5,0.5,0.5]"]) == 0
    told = "the weights were trained on other inputs: mean [0.485, 0.456, 0.406] there, [0.5, 0.5, 0.5] here"
    assert [record for record in caplog.records if told in record.message]


def test_inputs_differ_only_in_what_both_sides_declare() -> None:
    """A file of an earlier version, or another kind of set, may declare less."""
    one = DataInfo((2,), 3, preprocessing={"mean": [1.0], "std": [2.0]})
    assert list(differing_inputs(one, DataInfo((2,), 3, preprocessing={"mean": (1.0,)}))) == []
    assert list(differing_inputs(DataInfo((2,), 3), one)) == list(differing_inputs(one, DataInfo((2,), 3))) == []
    other = DataInfo((2,), 3, preprocessing={"std": [3.0]})
    assert list(differing_inputs(one, other)) == ["std [2] there, [3] here"]


# --- init_from -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, classes)


def test_a_head_goes_only_to_the_same_classes(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    table("train.csv", 0, ("cat", "fox"))
    table("test.csv", 1, ("cat", "fox"))
    options = [*TABLE, "init_from=run", "quiet=false"]
    assert main(["train", *options, "name=other"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 tensors loaded; 2 not taken, since they are for other classes: 'dog' there alone, 'fox' here" in told
    table("train.csv", 0)
    table("test.csv", 1)
    assert main(["train", *options, "data.classes=[dog,cat]", "name=turned"]) == 0
    assert "2 not taken, since they are for the same classes in another order" in " ".join(
        capsys.readouterr().out.split()
    )


def test_other_columns_are_told_at_init_from(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    table("train.csv", 0, columns="ac")
    table("test.csv", 1, columns="ac")
    assert main(["train", *TABLE, "init_from=run", "quiet=false", "name=other"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "was trained on other inputs: input columns 'a', 'b' there, 'a', 'c' here" in said


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod.", "module.backbone."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_state_dicts_of_pytorch_are_read(prefix: str, key: str | None) -> None:
    given, model = Net(), Net()
    state: Any = {prefix + name: value for name, value in given.state_dict().items()}
    torch.save({key: state, "epoch": 3, "optimizer": {"state": {}}} if key else state, "weights.pth")
    report, warnings = initialise(model, Path("weights.pth"))
    assert report.startswith("init_from weights.pth: 6 of 6 tensors loaded")
    assert (f"names without {prefix!r}" in report) is bool(prefix)
    assert not warnings
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_body_alone_is_found_in_ours() -> None:
    given, model = Net(), Net()
    torch.save({"fc.weight": torch.zeros(7, 4), **given.body.state_dict()}, "weights.pth")
    report, _ = initialise(model, Path("weights.pth"))
    assert "4 of 6 tensors loaded; 2 not in it (head.weight, head.bias); 1 not used (body.fc.weight)" in report
    assert "names with 'body.' before them" in report
    assert torch.equal(model.body[0].weight, given.body[0].weight)


def test_safetensors_are_read() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    given, model = Net(), Net()
    safetensors.save_file(given.state_dict(), "weights.safetensors")
    assert initialise(model, Path("weights.safetensors"))[0].startswith("init_from weights.safetensors: 6 of 6")
    assert torch.equal(model.head.weight, given.head.weight)


class Program:
    def __reduce__(self) -> Any:
        return print, ("run",)


def write_hostile(kind: str) -> None:
    if kind == "program":
        torch.save({"weight": torch.zeros(1), "run": Program()}, "bad.pth")
    elif kind == "compressed":
        import zipfile

        torch.save({"weight": torch.zeros(1 << 18)}, "plain.pth")
        with zipfile.ZipFile("plain.pth") as old, zipfile.ZipFile("bad.pth", "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.namelist():
                new.writestr(entry, old.read(entry))
    elif kind == "none":
        torch.save({"epoch": 3}, "bad.pth")
    else:
        Path("bad.pth").write_bytes({"text": b"no weights at all", "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["program", "compressed", "none", "text", "empty"])
def test_other_files_are_refused_in_one_line(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    write_hostile(kind)
    with pytest.raises(HealsgError, match=r"^bad\.pth: ") as caught:
        read_weights(Path("bad.pth"))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


# --- methods for trained networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["finetune", "linear_probe", "lora"])
def test_random_weights_are_warned_of(method: str, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TABLE, f"method={method}", "runner.epochs=1", "name=random"]) == 0
    assert "is for a trained network" in capsys.readouterr().out
    assert main(["train", *TABLE, f"method={method}", "runner.epochs=1", "init_from=run", "name=tuned"]) == 0
    assert "is for a trained network" not in capsys.readouterr().out


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


NET = ("data=synthetic", "data.shape=[3,32,32]", "data.classes=3", "data.train=12", "data.val=6", "data.test=6")
NET = (*NET, "model=torchvision", "model.name=shufflenet_v2_x0_5", "runner.epochs=1", "quiet=true")


def test_finetuning_begins_with_published_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    offline(monkeypatch)
    with pytest.raises(RunError, match=r"^model\.weights: .*no network.*model\.weights=FILE, init_from=RUN or "):
        TaskTrainer.compose(*NET, "method=finetune", "name=tuned").train()
    given = models.get_model("shufflenet_v2_x0_5")
    file = tmp_path / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(given.state_dict(), file)
    trainer = TaskTrainer.compose(*NET, "method=linear_probe", "name=probe")
    trainer.train()
    assert trainer.task is not None
    trained: Any = trainer.task.model
    assert torch.equal(trained.body.conv1[0].weight, given.conv1[0].weight)
    file.unlink()
    assert set(evaluate("probe")) == {"loss", "acc"}, "the checkpoint has all weights; none are fetched again"


def test_torchvision_takes_a_local_file(tmp_path: Path) -> None:
    from torchvision import models

    info = DataInfo((3, 32, 32), 3)
    given = models.get_model("shufflenet_v2_x0_5", num_classes=5)
    torch.save({"state_dict": {f"module.{key}": value for key, value in given.state_dict().items()}}, "own.pth")
    made: Any = Torchvision("shufflenet_v2_x0_5", weights="own.pth").build(info)
    assert torch.equal(made.body.conv1[0].weight, given.conv1[0].weight)
    assert made.head.weight.shape == (3, 1024)
    same: Any = Torchvision("shufflenet_v2_x0_5", weights="own.pth").build(DataInfo((3, 32, 32), 5))
    assert torch.equal(same.head.weight, given.fc.weight)
    with pytest.raises(RunError, match=r"own\.pth does not fit torchvision's resnet18: it has no "):
        Torchvision("resnet18", weights="own.pth").build(info)
    with pytest.raises(ConfigError, match=r"model\.weights: there is no file nowhere\.pth"):
        Torchvision("resnet18", weights="nowhere.pth").build(info)


# --- a network of a checkpoint alone ---------------------------------------------------------------------------------

IMAGES = ("data=digits", "data.batch_size=64", "runner.limit_batches=2", "runner.epochs=1", "quiet=true")
ALONE = {
    "plain": ("model=cnn", "model.width=3"),
    "average": ("model=cnn", "model.width=3", "method.ema=0.9"),
    "lora": ("model=cnn", "model.width=3", "method=lora"),
    "cosines": ("model=cnn", "model.width=3", "method=ldam_drw"),
    "shifted": ("model=cnn", "model.width=3", "method=logit_adjustment", "method.when=after"),
    "two networks": ("model=cnn", "model.width=3", "method=coteaching"),
    "a teacher": ("model=cnn", "model.width=3", "method=mean_teacher", "data.labels=40"),
    "a projector": ("model=cnn", "model.width=3", "method=simclr"),
    "prototypes": ("model=cnn", "model.width=3", "method=dino"),
    "an encoder": ("model=vit", "model.width=12", "model.heads=2", "model.depth=1", "model.patch=2", "method=mae"),
}


LAST_NEEDS_THE_TASK = {"two networks", "prototypes", "an encoder"}
"""Where ``last.pt`` holds more than the evaluated network, and the method does not say which part that is."""


@pytest.mark.parametrize("case", ALONE)
def test_the_evaluated_network_is_made_of_the_checkpoint_alone(case: str) -> None:
    options = ALONE[case]
    trainer = TaskTrainer.compose(*IMAGES, *options, "name=run")
    trainer.train()
    task = trainer.task
    assert task is not None
    folder = RunFolder(Path("runs/run"))
    info, state = best_of(folder)
    assert info is not None
    composed = TaskTrainer.load("run").composed
    _, network = network_of_run(composed, info, state)
    input = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = task.task_method.eval_model(task).eval()
    last = folder.last_state()
    assert last is not None
    if case in LAST_NEEDS_THE_TASK:
        with pytest.raises(RunError):
            network_of_run(composed, info, last)
    else:
        weights = network_of_run(composed, info, last)[1].state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    model.load_state_dict(state["model"])
    task.runner.device_setup.move_module(network)  # into the memory format of the model
    with torch.no_grad():
        outputs = [one(input) for one in (network, model)]
    assert torch.equal(*(one[0] if isinstance(one, tuple) else one for one in outputs))


def test_weights_of_double_precision_are_evaluated_unrounded() -> None:
    TaskTrainer.compose(*IMAGES, "model=mlp", "runner.precision=fp64", "runner.steps=2", "name=run").train()
    info, state = best_of(RunFolder(Path("runs/run")))
    assert info is not None
    weights = network_of_run(TaskTrainer.load("run").composed, info, state)[1].state_dict()
    assert any(not torch.equal(value, value.float().double()) for value in state["model"].values())
    assert all(torch.equal(value, weights[name].to(value.dtype)) for name, value in state["model"].items())


# --- a run that stands alone -----------------------------------------------------------------------------------------


def test_a_test_table_alone_is_enough_for_eval(run: str) -> None:
    best = evaluate(run)
    last = TaskTrainer.load(run).evaluate("test", "last")
    Path("train.csv").unlink()
    assert evaluate(run) == best
    assert TaskTrainer.load(run).evaluate("test", "last") == last
    with pytest.raises(DataError, match=r"train\.csv"):
        evaluate(run, split="train")
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        evaluate(run, "data.test_file=nowhere.csv")


def test_a_folder_of_test_pictures_alone_is_enough_for_eval() -> None:
    for part in ("train", "val", "test"):
        pictures(f"A/{part}", "apple", "kiwi")
    folder = ("data=imagefolder", "data.image_size=8", "data.shift=0", "data.workers=0", "data.folder=A")
    train(*folder, *MLP, "name=run")
    before = evaluate("run")
    Path("B").mkdir()
    Path("A/test").rename("B/test")
    assert evaluate("run", "data.folder=B") == before


def test_a_student_is_evaluated_without_its_teacher(run: str) -> None:
    train(*TABLE, "method=kd", "method.teacher=run", "name=student")
    before = evaluate("student")
    Path("runs/run").rename("elsewhere")
    assert evaluate("student") == before


def test_a_predictor_needs_no_data_and_is_the_evaluation(run: str) -> None:
    """From a file, columns and a tensor; with the numbers of ``healsg eval``."""
    rows = [line.split(",") for line in Path("test.csv").read_text().splitlines()[1:]]
    evaluated = evaluate(run)
    Path("train.csv").unlink()
    predictor = TaskTrainer.load(run).predictor()
    found = predictor("test.csv", batch_size=1000, features=True)
    target = torch.tensor([("cat", "dog").index(row[2]) for row in rows])
    assert found.probabilities is not None
    assert nn.functional.cross_entropy(found.outputs, target).item() == pytest.approx(evaluated["loss"], abs=1e-7)
    assert sum(one == row[2] for one, row in zip(found.classes or [], rows, strict=True)) / 60 == evaluated["acc"]
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(60))
    assert found.features is not None
    assert found.features.shape == (60, 8)
    columns = {name: [row[place] for row in rows] for place, name in enumerate("ab")}
    tensor = torch.tensor([[float(value) for value in row[:2]] for row in rows])
    for given in (columns, tensor, tensor.numpy()):
        assert torch.equal(predictor(given, batch_size=1000).outputs, found.outputs)
    torch.testing.assert_close(predictor(tensor, batch_size=7).outputs, found.outputs, rtol=0, atol=1e-5)


def test_a_predictor_of_pictures(run: str) -> None:
    for part in ("train", "val", "test"):
        pictures(f"A/{part}", "apple", "kiwi")
    folder = ("data=imagefolder", "data.image_size=8", "data.shift=0", "data.workers=0", "data.folder=A")
    trainer = TaskTrainer.compose(*folder, "model=cnn", "model.width=4", "runner.epochs=2", "quiet=true", "name=images")
    trainer.train()
    assert trainer.task is not None
    model = trainer.task.task_method.eval_model(trainer.task).eval()
    model.load_state_dict(checkpoint.load(Path("runs/images/checkpoints/best.pt"))["model"])
    batch = next(iter(trainer.task.loaders["test"]))
    with torch.no_grad():
        wanted = model(batch["input"])
    Path("A/train").rename("gone")
    predictor = TaskTrainer.load("images").predictor()
    found = predictor("A/test")
    assert torch.equal(found.outputs, wanted)
    assert set(found.classes or []) <= {"apple", "kiwi"}
    files = [f"A/test/kiwi/{one}.png" for one in range(2)]
    assert torch.equal(predictor(files).outputs, predictor("A/test/kiwi").outputs)
    with pytest.raises(DataError, match=r"nowhere\.png: there is no such file"):
        predictor("nowhere.png")
    with pytest.raises(DataError, match="a table of columns, but the network takes no columns"):
        predictor({"a": [1]})
    with pytest.raises(DataError, match=r"samples of \(2,\); the network takes \(3, 8, 8\)"):
        predictor(torch.zeros(1, 2))
    with pytest.raises(DataError, match="pictures, but the network takes 'a', 'b'"):
        TaskTrainer.load(run).predictor()("A/test")


def test_init_from_finds_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "weights.pt").write_bytes(b"x")
    assert weights_file("~/weights.pt", tmp_path / "elsewhere") == tmp_path / "home" / "weights.pt"


def test_a_regression_is_learned_in_any_unit_and_predicts_in_that_unit() -> None:
    base = ["data=csv", "data.target=y", "data.kind=regression", "model=mlp", "runner.epochs=3", "quiet=true"]
    rows = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    small = rows @ torch.tensor([1.0, -2.0, 0.5]) + 0.1
    found = {}
    for name, factor, offset in (("small", 1.0, 0.0), ("large", 1e6, 5e7)):
        columns = {f"x{column}": rows[:, column].tolist() for column in range(3)}
        fake_tables.write_csv(f"{name}.csv", columns | {"y": (small.double() * factor + offset).tolist()})
        best = TaskTrainer.compose(*base, f"data.file={name}.csv", f"name={name}").train()["best"]
        assert best is not None
        error = best["metrics"]["val/mae"]
        assert TaskTrainer.load(name).evaluate(split="val")["mae"] == pytest.approx(error)
        outputs = TaskTrainer.load(name).predictor()({key: values[:5] for key, values in columns.items()}).outputs
        found[name] = error / factor, (outputs.double().flatten() - offset) / factor
    assert found["large"][0] == pytest.approx(found["small"][0], rel=1e-2)
    torch.testing.assert_close(found["large"][1], found["small"][1], rtol=1e-2, atol=1e-2)
