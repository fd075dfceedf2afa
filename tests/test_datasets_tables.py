"""MedMNIST, tables, parquet and synthetic samples: what is read, split, standardised and refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fake_tables
from healsg.data.base import Needs
from healsg.data.loader import Loader
from healsg.data.source import TensorSource
from healsg.datasets import medmnist
from healsg.datasets.classification import Classification
from healsg.datasets.csv import Csv
from healsg.datasets.hf import HuggingFace
from healsg.datasets.medmnist import MedMNIST
from healsg.datasets.published import files
from healsg.datasets.published.medmnist_info import SETS
from healsg.datasets.synthetic import Synthetic
from healsg.datasets.targets.columns import classes_of, number
from healsg.errors import ConfigError, DataError, HealsgError
from healsg.seeding import Draw
from healsg.transforms.standard import Standardise, statistics
from healsg.transforms.volume import VolumeTransform

NEITHER: dict[str, Any] = {"download": False, "verify": False}
NUMBERS: dict[str, Any] = {"columns": ["a", "b", "c", "d"]}


def whole(data: Classification, split: str = "train", needs: Needs | None = None) -> dict[str, Tensor]:
    """All that a split deals in an epoch, in one batch."""
    loader = data.loaders(needs or Needs())[split]
    assert isinstance(loader, Loader)
    batches = [batch for batch, _ in loader.batches(0)]
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("input", "target", "index")}


def part(data: Classification, name: str) -> TensorSource:
    source = data.read(name)
    assert isinstance(source, TensorSource)
    return source


# --- MedMNIST --------------------------------------------------------------------------------------------------------


def test_the_sets_are_those_published() -> None:
    assert len(SETS) == 18
    assert sum(name.endswith("3d") for name in SETS) == 6
    assert medmnist.Name.__args__ == tuple(SETS)  # type: ignore[attr-defined]
    two, three = ({n: s for n, s in SETS.items() if n.endswith("3d") == solid} for solid in (False, True))
    assert sum(sum(one.samples) for one in two.values()) == 707_962, (
        "708,069 in the paper; its third version left some out"
    )
    assert sum(sum(one.samples) for one in three.values()) == 9_996
    for name, one in SETS.items():
        assert list(one.md5) == ([28, 64] if name.endswith("3d") else [28, 64, 128, 224])
        assert all(len(md5) == 32 for md5 in one.md5.values())
    assert len({md5 for one in SETS.values() for md5 in one.md5.values()}) == 12 * 4 + 6 * 2
    assert [(name, len(one.labels)) for name, one in SETS.items() if one.kind != "multiclass"] == [("chestmnist", 14)]


@pytest.mark.parametrize(
    ("name", "size", "shape", "kind", "classes"),
    [
        ("pathmnist", 28, (3, 28, 28), "multiclass", 9),
        ("breastmnist", 64, (1, 64, 64), "multiclass", 2),
        ("chestmnist", 28, (1, 28, 28), "multilabel", 14),
        ("retinamnist", 28, (3, 28, 28), "multiclass", 5),
        ("organmnist3d", 28, (1, 28, 28, 28), "multiclass", 11),
    ],
)
def test_medmnist_is_read(name: Any, size: Any, shape: tuple[int, ...], kind: str, classes: int) -> None:
    path = fake_tables.write_medmnist(Path("data"), name, size)
    data = MedMNIST(name, size, **NEITHER, shift=0)
    info = data.info
    assert (info.input_shape, info.kind, info.num_classes, len(info.class_names)) == (shape, kind, classes, classes)
    with np.load(path) as stored:
        for name_of, count in fake_tables.PARTS.items():
            source = part(data, name_of)
            images = torch.from_numpy(stored[f"{name_of}_images"])
            assert source.input.shape == (count, *shape)
            assert torch.equal(source.input, images.movedim(-1, 1) if shape[0] == 3 else images.unsqueeze(1))
            labels = torch.from_numpy(stored[f"{name_of}_labels"])
            wanted = labels.float() if kind == "multilabel" else labels[:, 0].long()
            assert torch.equal(source.target, wanted)
            assert source.target.dtype == wanted.dtype
    assert list(data.loaders(Needs())) == ["train", "val", "test"]
    seen = whole(data, "val")["input"]
    assert torch.allclose(seen, (part(data, "val").input / 255 - 0.5) / 0.5, atol=1e-6)


def test_medmnist_takes_only_the_published_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"breastmnist.npz is not in .*data.download=true, or put breastmnist.npz \(fr"):
        MedMNIST("breastmnist", download=False).read("train")
    path = fake_tables.write_medmnist(Path("data"), "breastmnist")
    with pytest.raises(DataError, match="not the published file, its MD5 is not 750601b1f35ba3300ea97c75c52ff8f6"):
        MedMNIST("breastmnist").read("train")
    content = path.read_bytes()
    sums = f"{hashlib.md5(content).hexdigest()} {'0' * 32}"
    changed = medmnist.SETS["breastmnist"].__class__(1, (60, 20, 20), sums, "malignant; normal, benign")
    monkeypatch.setitem(SETS, "breastmnist", changed)
    assert len(part(MedMNIST("breastmnist"), "train")) == 60
    path.unlink()
    asked = []

    def fetch(url: str, target: Path, size: int) -> None:
        asked.append((url, size))
        target.write_bytes(content if len(asked) > 1 else b"something else")

    monkeypatch.setattr(files, "fetch", fetch)
    assert len(part(MedMNIST("breastmnist"), "test")) == 20
    assert asked == [("https://zenodo.org/records/10519652/files/breastmnist.npz?download=1", medmnist.MOST)] * 2
    assert [file.name for file in Path("data/medmnist").glob("*.npz*")] == ["breastmnist.npz"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train_images": np.zeros((60, 28, 27), np.uint8)}, r"its train images are uint8 \(60, 28, 27\)"),
        ({"train_images": np.zeros((60, 28, 28), np.float32)}, "its train images are float32"),
        ({"train_labels": np.zeros((59, 1), np.uint8)}, r"its train labels \(59, 1\) do not go with 60 images"),
        ({"train_labels": np.full((60, 1), 2, np.uint8)}, r"a train label lies outside 0..1"),
        ({"train_labels": np.array([object()] * 60)}, "damaged, its train part cannot be read"),
        ({"train_labels": None}, "damaged, its train part cannot be read"),
        (None, "damaged, its train part cannot be read"),
    ],
)
def test_a_wrong_file_is_one_line(change: dict[str, Any] | None, told: str) -> None:
    path = fake_tables.write_medmnist(Path("data"), "breastmnist")
    if change is None:
        path.write_bytes(path.read_bytes()[:-200])
    else:
        with np.load(path) as stored:
            arrays = {key: change.get(key, value) for key, value in dict(stored).items()}
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(DataError, match=told) as caught:
        MedMNIST("breastmnist", **NEITHER).read("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "pathmnst"}, "data.name: 'pathmnst' is not one of pathmnist, "),
        ({"name": "organmnist3d", "size": 128}, "data.size: 128, but organmnist3d is published in 28 and 64"),
        ({"name": "organmnist3d", "augment": "strong"}, "data.augment: strong is for images"),
        ({"name": "organmnist3d", "shift": 28}, "data.shift: 28 voxels"),
    ],
)
def test_wrong_settings_of_medmnist(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        MedMNIST(**arguments)


@pytest.mark.parametrize("name", ["pathmnist", "breastmnist", "chestmnist", "organmnist3d"])
def test_a_file_of_ones_own_in_that_layout(name: Any) -> None:
    path = fake_tables.write_medmnist(Path("published"), name)
    own, published = MedMNIST(file=str(path)), MedMNIST(name, root="published", **NEITHER)
    assert (own.info.input_shape, own.info.kind) == (published.info.input_shape, published.info.kind)
    assert own.info.num_classes == published.info.num_classes
    for split in ("train", "val", "test"):
        one, two = part(own, split), part(published, split)
        assert torch.equal(one.input, two.input)
        assert torch.equal(one.target, two.target)
    assert torch.equal(whole(own)["input"], whole(published)["input"])


def test_a_file_of_ones_own_needs_a_training_part_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 9, 7, 3), np.uint8)
    np.savez("own.npz", train_images=images, train_labels=np.arange(30) % 3)
    data = MedMNIST(file="own.npz", shift=1)
    assert (data.info.input_shape, data.info.num_classes, data.has_val, data.has_test) == ((3, 9, 7), 3, False, False)
    assert {split: len(source) for split, source in data.splits().items()} == {"train": 27, "val": 3}
    for arrays, told in (
        ({"train_images": images}, "has images without labels"),
        ({"test_images": images, "test_labels": np.arange(30)}, "has no train_images"),
        ({"train_images": images / 255, "train_labels": np.arange(30)}, "train_images are float64"),
        ({"train_images": images, "train_labels": np.arange(29)}, r"train_labels \(29, 1\) do not go with 30"),
        ({"train_images": images[0, 0], "train_labels": np.arange(7)}, "train_images .* are no"),
        ({"train_images": images, "train_labels": np.array(["a"] * 30)}, "train_labels .* do not go"),
        ({"train_images": images, "train_labels": np.array([object()] * 30)}, "cannot be read as an npz file"),
    ):
        np.savez("own.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=rf"data.file: .*own.npz.*{told}") as caught:
            MedMNIST(file="own.npz").loaders(Needs())
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"data.file: no such file: .*none.npz"):
        _ = MedMNIST(file="none.npz").info
    with pytest.raises(ConfigError, match=r"data.file=own.npz reads one's own file"):
        MedMNIST("own.npz")  # type: ignore[arg-type]


def test_labels_of_several_classes_refuse_what_needs_one() -> None:
    fake_tables.write_medmnist(Path("data"), "chestmnist")
    with pytest.raises(ConfigError, match=r"data.labels: needs one class a sample, and these are multilabel targets"):
        MedMNIST("chestmnist", **NEITHER, labels=20).loaders(Needs())


def test_volumes_are_moved_and_mirrored_as_wholes() -> None:
    volumes = torch.randint(1, 255, (40, 2, 5, 6, 7), dtype=torch.uint8)
    draw = Draw(3, torch.arange(40))
    for padding, shift in (("zero", 1), ("reflect", 1), ("zero", 0)):
        moved = VolumeTransform(True, shift, (0.0,) * 2, (1.0,) * 2, padding, maximum=1.0)(  # type: ignore[arg-type]
            {"input": volumes}, draw
        )["input"]
        for volume, given, row in zip(moved, volumes, range(40), strict=True):
            made = given.float()
            for place, axis in enumerate((1, 2, 3)):
                if int(draw.integers(2 * place, 0, 1)[row]):
                    made = made.flip(axis)
                by, size = int(draw.integers(2 * place + 1, -shift, shift)[row]), made.shape[axis]
                rolled = made.roll(-by, axis)
                if by:
                    edge, inner = (size - 1, size - 2) if by > 0 else (0, 1)
                    lines = made.select(axis, inner) if padding == "reflect" else torch.zeros_like(made.select(axis, 0))
                    rolled.select(axis, edge).copy_(lines)
                made = rolled
            assert torch.equal(volume, made)
    still = VolumeTransform(True, 1, (0.5,) * 2, (0.5,) * 2)({"input": volumes}, None)["input"]
    assert torch.allclose(still, (volumes / 255 - 0.5) / 0.5, atol=1e-6)


# --- tables ----------------------------------------------------------------------------------------------------------


def patients(**arguments: Any) -> Csv:
    fake_tables.write_csv("table.csv", fake_tables.rows())
    return Csv("table.csv", **{**NUMBERS, **arguments})


def test_a_table_is_standardised_by_the_training_samples() -> None:
    data = patients(val_fraction=0.25, test_fraction=0.2)
    assert data.info.input_shape == (4,)
    assert data.info.class_names == ("high", "low", "mid")
    parts = {split: whole(data, split) for split in ("train", "val", "test")}
    assert [len(one["target"]) for one in parts.values()] == [72, 24, 24]
    train = parts["train"]["input"]
    assert torch.allclose(train[:, :3].mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(train[:, :3].std(0, correction=0), torch.ones(3), atol=1e-5)
    assert not train[:, 3].any(), "constant where it is known, else missing"
    held = torch.cat([parts["val"]["input"], parts["test"]["input"]])
    assert not torch.allclose(held[:, :3].mean(0), torch.zeros(3), atol=1e-3)
    raw = torch.tensor(fake_tables.rows()["b"])
    joined = torch.cat([one["input"][:, 1] for one in parts.values()])
    steps = joined.sort().values.diff() / raw.sort().values.diff()
    assert torch.allclose(steps, steps[:1], rtol=2e-2), "one scale for all parts"


@pytest.mark.parametrize(
    ("arguments", "kind", "shape", "dtype"),
    [
        ({"target": "old"}, "multiclass", (), torch.int64),
        ({"target": ["old", "ill"], "kind": "multilabel"}, "multilabel", (2,), torch.float32),
        ({"target": "risk", "kind": "regression"}, "regression", (), torch.float32),
        ({"target": ["risk"], "kind": "regression"}, "regression", (), torch.float32),
        ({"target": ["risk", "dose"], "kind": "regression"}, "regression", (2,), torch.float32),
    ],
)
def test_targets_by_kind(arguments: dict[str, Any], kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    data = patients(**arguments)
    source, table = part(data, "train"), fake_tables.rows()
    names = [arguments["target"]] if isinstance(arguments["target"], str) else arguments["target"]
    wanted = torch.tensor([table[name] for name in names]).T
    assert source.target.shape == (120, *shape)
    assert source.target.dtype == dtype
    assert torch.equal(source.target, (wanted if shape else wanted[:, 0]).to(dtype))
    info = data.info
    assert (info.kind, info.num_classes) == (kind, 2 if kind == "multiclass" else len(names))
    assert [len(whole(data, split)["index"]) for split in ("train", "val")] == [108, 12]


def test_columns_that_are_nothing_else_are_the_input() -> None:
    table = {name: values for name, values in fake_tables.rows().items() if name not in ("risk", "dose", "part")}
    fake_tables.write_csv("table.csv", {**table, "side": [1] * 120}, delimiter=";")
    data = Csv("table.csv", delimiter=";", group="patient")
    assert data.inputs == ["a", "b", "c", "d", "old", "ill", "side"]
    assert data.info.input_shape == (7,)


def test_parts_of_a_column_and_of_files() -> None:
    data = patients(split="part")
    assert {split: len(whole(data, split)["index"]) for split in ("train", "val", "test")} == {
        "train": 72,
        "val": 24,
        "test": 24,
    }
    table = fake_tables.rows()
    for name, rows in (("train", slice(0, 80)), ("test", slice(80, 120))):
        fake_tables.write_csv(f"{name}.csv", {key: values[rows] for key, values in table.items()})
    data = Csv("train.csv", test_file="test.csv", **NUMBERS)
    assert (len(part(data, "train")), len(part(data, "test")), data.has_val) == (80, 40, False)


@pytest.mark.parametrize("arguments", [{"val_fraction": 0.2}, {"fold": "2/4"}, {"split": "part"}])
def test_no_group_lies_on_two_sides(arguments: dict[str, Any]) -> None:
    if "split" in arguments:  # the parts are the table's own
        with pytest.raises(ConfigError, match=r"data.group: the set has a validation part of its own"):
            patients(group="patient", **arguments).loaders(Needs())
        return
    data = patients(group="patient", test_fraction=0.2, target="risk", kind="regression", **arguments)
    of = {round(value, 4): name for value, name in zip(*map(fake_tables.rows().get, ("risk", "patient")), strict=True)}  # type: ignore[arg-type]
    sides = [
        {of[round(value, 4)] for value in whole(data, split)["target"].double().tolist()}
        for split in ("train", "val", "test")
    ]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 30
    assert min(map(len, sides)) >= 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"target": "lable"}, "the train part has no column 'lable'; it has a, b, c, d, label"),
        (
            {"columns": ["a", "label"], "target": "old"},
            "column 'label' is '(low|mid|high)' in row 1, which is no number",
        ),
        ({"target": ["old", "ill"]}, r"data.target: \['old', 'ill'\] for a multiclass task; a class a sample is one"),
        ({"target": ["risk", "ill"], "kind": "multilabel"}, "data.target: risk or ill has a value that is neither"),
        (
            {"target": "d", "columns": ["a"], "kind": "regression"},
            r"data.target: no label in row 1 of table.csv \('d' is ''\); data.missing_labels=drop leaves out the 18",
        ),
        (
            {"target": "d", "kind": "regression"},
            "data.columns: .*; name at least one, each once, and none that data.target",
        ),
        ({"columns": []}, "data.columns: .*; name at least one"),
        ({"target": "risk"}, "data.target: 'risk' holds 120 different numbers in 120 rows; data.kind=regression pred"),
        ({"group": "patent"}, "data.group: there is no column 'patent'; there is a, b"),
        ({"split": "old"}, "data.split: row 1 says '.', not train, val or test"),
        ({"split": "parts"}, "has no column 'parts'"),
        ({"split": "part", "val_file": "x.csv"}, "data.split: the parts lie in files of their own already"),
        ({"val_file": "x.csv"}, "data.val_file: no such file: .*x.csv"),
        ({"delimiter": ";;"}, "data.delimiter: ';;' is not one character"),
        ({"image": "label"}, "data.columns: data.image names the input already"),
    ],
)
def test_wrong_tables_are_one_line(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(HealsgError, match=told) as caught:
        patients(**arguments).loaders(Needs())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "its first row must name the columns"),
        ("a,a\n1,2\n", "its first row must name the columns"),
        ("a,label\n1,2\n3\n", "line 3 has 1 values, not 2"),
        ('a,label\n1,"2\n', "cannot be read as a table"),
        ("a,label\n\0,1\n2,2\n", "column 'a' is '.x00' in row 1, which is no number|cannot be read as a table"),
        ("a,label\n\n", "data.target: no row has a label"),
        ("a,label\n1,x\n2,x\n", "every label in 'label' of table.csv is 'x'; two classes are needed"),
        ("label\nx\ny\n", "data.columns: no column is left for the input"),
        (b"a,label\n\xff,1\n", "cannot be read as a table"),
    ],
)
def test_damaged_tables_are_one_line(text: str | bytes, told: str) -> None:
    Path("table.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=told) as caught:
        Csv("table.csv", val_fraction=0).loaders(Needs())
    assert "\n" not in str(caught.value)


def test_a_label_that_training_does_not_have() -> None:
    fake_tables.write_csv("train.csv", {"a": [1, 2, 3], "label": [10, 9, 10]})
    fake_tables.write_csv("test.csv", {"a": [1], "label": [11]})
    data = Csv("train.csv", test_file="test.csv", val_fraction=0)
    assert data.info.class_names == ("9", "10")
    with pytest.raises(DataError, match=r"data.target: 'label' is '11' in row 1; the classes are '9', '10'"):
        data.loaders(Needs())


NUMBERED = {"a": [0.5, 0.25, 4.0] * 10, "b": [1.0, 3.0] * 15, "label": ["x", "y", "y"] * 10}


@pytest.mark.parametrize("names", [[""], ["Unnamed: 0"], ["Unnamed: 0.1", "Unnamed: 0"], ["", " "]])
def test_columns_without_a_name_are_no_input(names: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "healsg")
    header = ",".join([*names, *NUMBERED])
    lines = [
        ",".join(map(str, [*[row] * len(names), *values]))
        for row, values in enumerate(zip(*NUMBERED.values(), strict=True))
    ]
    Path("table.csv").write_text("\n".join([header, *lines]))
    data = Csv("table.csv")
    assert data.inputs == ["a", "b"]
    plain = Csv(str(fake_tables.write_csv("plain.csv", NUMBERED)))
    assert torch.equal(whole(data)["input"], whole(plain)["input"])
    assert sum("no name and is no input" in record.getMessage() for record in caplog.records) == 1
    assert Csv("table.csv", columns=["a", "Unnamed: 0"]).info.input_shape == (2,), "named, it is taken"


def test_the_index_of_a_parquet_file_is_no_input() -> None:
    pytest.importorskip("pyarrow")
    fake_tables.write_parquet("one.parquet", {**NUMBERED, "__index_level_0__": list(range(30))})
    assert HuggingFace("one.parquet").inputs == ["a", "b"]


@pytest.mark.parametrize("missing", ["", "nan", "NA", "NaN", "<NA>", " null "])
def test_missing_labels_are_no_class(missing: str, caplog: pytest.LogCaptureFixture) -> None:
    labels = [missing if row == 7 else label for row, label in enumerate(NUMBERED["label"])]
    fake_tables.write_csv("table.csv", {**NUMBERED, "label": labels})
    with pytest.raises(
        DataError, match=r"no label in row 8 of table.csv \('label' is .*missing_labels=drop leaves out the 1 "
    ):
        _ = Csv("table.csv").info
    data = Csv("table.csv", missing_labels="drop", test_fraction=0.2)
    assert data.info.class_names == ("x", "y")
    parts = {split: whole(data, split) for split in ("train", "val", "test")}
    assert sum(len(one["target"]) for one in parts.values()) == 29
    assert "1 rows of table.csv have no label and are left out" in caplog.text
    if missing:
        assert Csv("table.csv", missing_labels="keep").info.class_names == tuple(sorted({"x", "y", missing.strip()}))


def test_missing_labels_of_other_kinds_and_files() -> None:
    with pytest.raises(DataError, match=r"no label in row 1 of table.csv \('d' is ''\); .* leaves out the 18 rows"):
        patients(target="d", columns=["a"], kind="regression").loaders(Needs())
    left = patients(target=["a", "d"], columns=["b"], kind="regression", missing_labels="drop", group="patient")
    assert sum(len(whole(left, split)["target"]) for split in ("train", "val")) == 120 - 18
    pytest.importorskip("pyarrow")
    labels = [float("nan") if row == 4 else float(row % 3) for row in range(30)]
    fake_tables.write_parquet("one.parquet", {"a": NUMBERED["a"], "label": labels})
    with pytest.raises(DataError, match=r"no label in row 5 of the train part"):
        _ = HuggingFace("one.parquet").info
    assert HuggingFace("one.parquet", missing_labels="drop").info.class_names == ("0.0", "1.0", "2.0")
    fake_tables.write_csv("none.csv", {"a": [1, 2, 3], "label": ["none", "mild", "none"]})
    assert Csv("none.csv").info.class_names == ("mild", "none"), "which is a grade, not a gap"


def test_numbers_are_asked_about() -> None:
    grades = {"a": NUMBERED["a"], "label": [0.5, 1.0, 1.5] * 10}
    fake_tables.write_csv("table.csv", grades)
    with pytest.raises(DataError, match=r"'label' holds 3 different numbers in 30 rows; data.kind=regression predicts"):
        _ = Csv("table.csv").info
    assert Csv("table.csv", kind="multiclass").info.class_names == ("0.5", "1.0", "1.5")
    assert Csv("table.csv", kind="regression").info.kind == "regression"
    fake_tables.write_csv("many.csv", {"a": NUMBERED["a"], "label": list(range(30))})
    with pytest.raises(DataError, match=r"'label' holds 30 different numbers in 30 rows"):
        _ = Csv("many.csv").info
    for few in ([0.0, 1.0] * 15, [3, 1] * 15):
        fake_tables.write_csv("few.csv", {"a": NUMBERED["a"], "label": few})
        assert Csv("few.csv").info.num_classes == 2


def test_the_key_that_reads_a_column_is_named() -> None:
    path = fake_tables.write_picture_csv("there")
    with pytest.raises(
        DataError, match=r"column 'path' is 'images/0.png' in row 1, .*; data.image=path reads pictures"
    ):
        Csv(str(path)).loaders(Needs())
    with pytest.raises(DataError, match=r"column 'label' is 'mid' in row 1, .*; data.columns=\[...\] names those of"):
        patients(columns=None, target="old", group="patient").loaders(Needs())
    pytest.importorskip("pyarrow")
    fake_tables.write_pictures_parquet("set")
    with pytest.raises(DataError, match=r"data.image=image reads pictures"):
        HuggingFace("set").loaders(Needs())


def test_a_table_of_semicolons_is_asked_about() -> None:
    Path("semicolons.csv").write_text("a;label\n1;x\n2;y\n")
    with pytest.raises(DataError, match="has no column 'label'; it has a;label; is it separated by ';'"):
        Csv("semicolons.csv").loaders(Needs())


def test_what_becomes_of_a_table_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "healsg")
    patients(test_fraction=0.2).loaders(Needs())
    assert "the inputs are the columns 'a', 'b', 'c', 'd', scaled to mean 0 and deviation 1" in caplog.text
    assert "18 missing numbers are set to the mean of their column: 'd'" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    patients(target="risk", kind="regression").loaders(Needs())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    prices = {"a": NUMBERED["a"], "price": [2e5 + 1e4 * row for row in range(30)]}
    fake_tables.write_csv("prices.csv", prices)
    given = Csv("prices.csv", target="price", kind="regression")
    wanted = whole(given)["target"].double()
    scale = given.fitted().preprocessing
    assert scale["target_mean"] == pytest.approx([float(wanted.mean())])
    assert scale["target_std"] == pytest.approx([float(wanted.std(correction=0))])
    table = {"id": range(5, 35), **NUMBERED, "label": ["1", "01", "2"] * 10}
    fake_tables.write_csv("table.csv", {name: list(values) for name, values in table.items()})
    Csv("table.csv").loaders(Needs())
    assert "'id' counts the rows and is an input; data.columns names those that are" in caplog.text
    assert "the classes '01', '1' differ only in how they are written" in caplog.text


def test_values_of_columns() -> None:
    assert [number(value) for value in ("1e3", " 2 ", "True", "false", 3, True)] == [1000, 2, 1, 0, 3, 1]
    assert all(np.isnan(number(value)) for value in ("", "NA", "nan", None, "?"))
    for wrong in ("x", "inf", [1]):
        with pytest.raises((ValueError, TypeError)):
            number(wrong)
    assert classes_of(["10", "9", "-1", ""]) == ("-1", "9", "10")
    assert classes_of(["b", "10", "a", None]) == ("10", "a", "b")


@pytest.mark.parametrize("constant", [0.1, 0.3, 47.31, 83.17, 1e7])
def test_statistics_of_a_column_that_never_differs(constant: float) -> None:
    """Its mean is rounded, so that its deviation comes out as 1e-17 where it is nothing."""
    for rows in (3, 7, 301):
        numbers = torch.full((rows, 2), constant, dtype=torch.float64)
        numbers[1, 1] = torch.nan
        _, spread = statistics(numbers)
        assert spread.tolist() == [1.0, 1.0]


def test_statistics_leave_out_what_is_missing() -> None:
    numbers = torch.tensor([[1.0, 5.0, torch.nan], [3.0, 5.0, torch.nan], [torch.nan, 5.0, torch.nan]])
    centre, spread = statistics(numbers)
    assert centre.tolist() == [2, 5, 0]
    assert spread.tolist() == [1, 1, 1]
    seen = Standardise(centre, spread, noise=0.5)({"input": numbers}, None)["input"]
    assert seen.tolist() == [[-1, 0, 0], [1, 0, 0], [0, 0, 0]]
    many = torch.zeros(2000, 3)
    noisy = Standardise(centre, spread, noise=0.5)({"input": many + centre}, Draw(1, torch.arange(2000)))["input"]
    assert float(noisy.std()) == pytest.approx(0.5, rel=0.03)
    with pytest.raises(ConfigError, match="no 'strong' view of numbers"):
        Standardise(centre, spread).of("strong")


def test_pictures_of_a_table() -> None:
    path = fake_tables.write_picture_csv("there")
    data = Csv(str(path), image="path", image_size=8, shift=1, test_fraction=0.25)
    assert (data.info.input_shape, data.info.class_names) == ((3, 8, 8), ("0", "1", "2"))
    seen = whole(data, "test")
    assert seen["input"].shape == (9, 3, 8, 8)
    bright = seen["input"].mean((1, 2, 3))
    assert bright[seen["target"] == 0].max() < bright[seen["target"] == 1].min()
    assert bright[seen["target"] == 1].max() < bright[seen["target"] == 2].min()
    several = Csv(str(path), image="path", image_size=8, shift=1, target=["bright", "dark"], kind="multilabel")
    assert whole(several)["target"].shape == (32, 2)
    level = Csv(str(path), image="path", image_size=8, shift=1, target="level", kind="regression")
    assert whole(level)["target"].dtype == torch.float32
    (path.parent / "images/0.png").unlink()
    with pytest.raises(DataError, match=r"sample .* of Pictures \(.*images/0.png\): FileNotFoundError"):
        whole(Csv(str(path), image="path", image_size=8, shift=1))


# --- parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_of_numbers() -> None:
    pytest.importorskip("pyarrow")
    table = fake_tables.rows()
    fake_tables.write_parquet("one.parquet", table)
    data = HuggingFace("one.parquet", test_fraction=0.2, **NUMBERS)
    assert data.info.class_names == ("high", "low", "mid")
    other = patients(test_fraction=0.2)
    for split in ("train", "val", "test"):
        one, two = whole(data, split), whole(other, split)
        assert torch.equal(one["target"], two["target"])
        assert torch.allclose(one["input"], two["input"], atol=1e-5), "a table is a table"
    assert len(HuggingFace("one.parquet", group="patient", fold="1/3", **NUMBERS).loaders(Needs())) == 2


def test_parquet_of_pictures_as_the_hub_has_them() -> None:
    pytest.importorskip("pyarrow")
    fake_tables.write_pictures_parquet("data/set")
    data = HuggingFace("set", image="image", image_size=8, shift=1)
    assert data.info.class_names == ("ant", "cat", "zebra"), "the names stand beside the columns"
    assert (data.has_test, data.has_val) == (True, False)
    seen = whole(data, "test")
    assert seen["input"].shape == (18, 3, 8, 8)
    bright = seen["input"].mean((1, 2, 3))
    order = [bright[seen["target"] == label].mean() for label in (2, 0, 1)]  # stored as 0, 1, 2
    assert order[0] < order[1] < order[2]
    assert len(whole(data)["index"]) + len(whole(data, "val")["index"]) == 36
    grey = HuggingFace("set", image="image", image_size=8, channels=1, shift=1)
    assert whole(grey)["input"].shape[1:] == (1, 8, 8)


def test_wrong_parquet_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    Path("bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"bad.parquet: its train part cannot be read as parquet") as caught:
        _ = HuggingFace("bad.parquet").info
    assert "\n" not in str(caught.value)
    Path("empty").mkdir()
    with pytest.raises(DataError, match=r"data.train: empty has no part 'train'"):
        _ = HuggingFace("empty").info
    with pytest.raises(DataError, match=r"data.name: no such file or folder: .*none.parquet"):
        HuggingFace("none.parquet")
    from healsg.datasets import hf

    monkeypatch.setattr(hf, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'healsg\[hf\]'"):
        HuggingFace("somebody/something")


def test_a_set_of_the_hub_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded by the hub's library, here from the files that it would have fetched."""
    datasets = pytest.importorskip("datasets")
    fake_tables.write_pictures_parquet("hub")
    files = {split: [str(path) for path in Path("hub/data").glob(f"{split}-*")] for split in ("train", "test")}
    asked, load = [], datasets.load_dataset

    def from_files(name: str, config: str | None, revision: str | None, cache_dir: str) -> Any:
        asked.append((name, config, revision))
        return load("parquet", data_files=files, cache_dir=cache_dir)

    monkeypatch.setattr(datasets, "load_dataset", from_files)
    data = HuggingFace("somebody/something", revision="abc", image="image", image_size=8, shift=1)
    local = HuggingFace("hub", image="image", image_size=8, shift=1)
    assert data.info.class_names == local.info.class_names == ("ant", "cat", "zebra")
    assert torch.equal(whole(data, "test")["input"], whole(local, "test")["input"])
    assert set(asked) == {("somebody/something", None, "abc")}


# --- synthetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "shape", "dtype"),
    [
        ({"shape": [1, 8, 8]}, (1, 8, 8), torch.uint8),
        ({"shape": [2, 4, 6, 5], "flip": True}, (2, 4, 6, 5), torch.uint8),
        ({"shape": [7], "images": False}, (7,), torch.float32),
    ],
)
def test_synthetic_is_a_function_of_its_seed(
    arguments: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    for kind in ("multiclass", "multilabel", "regression"):
        made = [Synthetic(**arguments, kind=kind, classes=3, train=30, seed=seed) for seed in (0, 0, 1)]  # type: ignore[arg-type]
        one, same, other = (part(data, "train") for data in made)
        assert one.input.shape == (30, *shape)
        assert one.input.dtype == dtype
        assert torch.equal(one.input, same.input)
        assert torch.equal(one.target, same.target)
        assert not torch.equal(one.input, other.input)
        assert not torch.equal(part(made[0], "test").input[:30], one.input)
        assert made[0].info.input_shape == shape
        assert whole(made[0])["input"].dtype == torch.float32


def test_synthetic_can_be_learned() -> None:
    for arguments in ({"shape": [1, 8, 8]}, {"shape": [20], "images": False}):
        data = Synthetic(**arguments, classes=4, train=400)  # type: ignore[arg-type]
        train, test = (whole(data, split) for split in ("train", "test"))
        means = torch.stack([train["input"][train["target"] == label].mean(0) for label in range(4)]).flatten(1)
        taken = torch.cdist(test["input"].flatten(1), means).argmin(1)
        assert (taken == test["target"]).float().mean() > 0.95
    numbers = Synthetic([20], 2, "regression", images=False)
    train, test = (whole(numbers, split) for split in ("train", "test"))
    found = torch.linalg.lstsq(train["input"], train["target"]).solution
    assert ((test["input"] @ found - test["target"]) ** 2).mean() < 0.1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"shape": [10]}, r"data.shape: \[10\] is no image; set data.images=false"),
        ({"shape": [1, 0, 8]}, "has a side below 1"),
        ({"shape": [1, 8, 8, 8], "augment": "strong"}, "data.augment: strong is for images"),
    ],
)
def test_wrong_settings_of_synthetic(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Synthetic(**arguments)
