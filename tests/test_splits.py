"""The split options of every classification set: few, noisy, unequal, grouped or no labels, all told by split_seed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import fake_data
import fake_tables
from healsg import DataInfo, TaskTrainer
from healsg.data import splits
from healsg.data.base import Needs
from healsg.data.loader import Transform
from healsg.data.sharding import Sharding
from healsg.data.source import DatasetSource, Source, TensorSource
from healsg.data.splits import stratified_split
from healsg.datasets.classification import Classification
from healsg.datasets.digits import Digits
from healsg.datasets.imagefolder import ImageFolder
from healsg.datasets.targets.matrix import read_matrix
from healsg.errors import ConfigError, DataError, HealsgError
from healsg.transforms.views import Augment, ImageViews

SEMI = Needs(streams={"labelled": ("input",), "unlabelled": ("weak", "strong")}, ratio={"unlabelled": 3})
SELF = Needs(streams={"unlabelled": ("view1", "view2")})
CLASSES = torch.arange(300) % 7 % 5


class Invented(Classification):
    """300 images of 8x8 pixels in five unequal classes, in memory or read sample by sample; their first pixel counts
    them. Ten in a row share a patient."""

    def __init__(
        self,
        in_memory: bool = True,
        own: bool = False,
        kind: str = "multiclass",
        augment: Augment = "light",
        **common: Any,
    ) -> None:
        super().__init__(**{"batch_size": 16, **common})
        self.in_memory, self.own, self.kind = in_memory, own, kind
        self.images = ImageViews(augment, False, 1, (0.5,), (0.5,), size=8)

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 8, 8), 5, kind=self.kind)

    def transform(self, view: str, split: str) -> Transform:
        return self.images.of(view, split)

    def read(self, part: str) -> Source | None:
        if part == "val" or (part == "unlabelled" and not self.own):
            return None
        size = 300 if part == "train" else 40
        images = torch.arange(size * 64).view(size, 1, 8, 8) % 251
        images[:, 0, 0, 0] = torch.arange(size) % 256
        images[:, 0, 0, 1] = torch.arange(size) // 256
        images, targets = images.to(torch.uint8), self.targets(size)
        if self.in_memory:
            return TensorSource(images, targets)
        return DatasetSource(TensorDataset(images, targets), targets=targets)

    def targets(self, size: int) -> Tensor:
        return CLASSES[:size]


class Unread(Invented):
    def read(self, part: str) -> Source | None:
        raise AssertionError(part)


class Patients(Invented):
    shared = False

    def groups(self, name: str, part: str = "train") -> Tensor | None:
        if name != "patient":
            raise ConfigError(f"data.group: {name!r} is not one of patient")
        if part == "test":
            return torch.full((40,), 0 if self.shared else 99)
        return torch.arange(300) // 10


def numbers(source: Source) -> list[int]:
    """Which samples of the published part these are."""
    first = source.fetch(torch.arange(len(source)))["input"][:, 0, 0]
    return (first[:, 0].int() + 256 * first[:, 1].int()).tolist()


# --- pure functions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 7, 40, 99])
def test_allot(total):
    counts = torch.tensor([50, 30, 0, 15, 4])
    amounts = splits.allot(counts, total)
    assert int(amounts.sum()) == total
    assert float((amounts - counts * total / 99).abs().max()) < 1
    assert bool((amounts <= counts).all())
    if total >= 4:
        each = splits.allot(counts, total, at_least=1)
        assert int(each.sum()) == total
        assert bool((each[counts > 0] >= 1).all())
        assert int(each[2]) == 0


def test_folds_are_a_partition_in_equal_parts():
    fold = splits.fold_of(CLASSES, 4, seed=3)
    assert fold.bincount().tolist() == [75] * 4
    for label in range(5):
        share = fold[label == CLASSES].bincount(minlength=4)
        assert int(share.max() - share.min()) <= 1
    assert not torch.equal(fold, splits.fold_of(CLASSES, 4, seed=4))


def test_no_group_lies_on_two_sides():
    """Random classes, groups and shares: a property of them all."""
    random = np.random.default_rng(0)
    for trial in range(60):
        sides = int(random.integers(2, 6))
        shares = [1 / sides] * sides if trial % 2 else [0.9, 0.1]
        size, amount = int(random.integers(40, 300)), int(random.integers(len(shares), 40))
        groups = torch.from_numpy(np.concatenate([np.arange(amount), random.integers(0, amount, size - amount)])) * 7
        targets = torch.from_numpy(random.integers(0, 3, size))
        side = splits.side_of(targets, groups, shares, seed=trial)
        for one in groups.unique().tolist():
            assert len(side[groups == one].unique()) == 1
        assert sorted(side.unique().tolist()) == list(range(len(shares)))


def test_groups_are_stratified():
    groups, targets = torch.arange(400) // 4, torch.arange(400) // 4 % 5
    side = splits.side_of(targets, groups, [0.2] * 5, seed=0)
    table = torch.zeros(5, 5).index_put((side, targets), torch.ones(400), accumulate=True)
    assert table.tolist() == [[16.0] * 5] * 5
    assert not torch.equal(side, splits.side_of(targets, groups, [0.2] * 5, seed=1))


def test_long_tail():
    cifar = splits.long_tail(torch.full((10,), 5000), 100)
    assert cifar.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # as published for CIFAR-10-LT
    unequal = splits.long_tail(torch.tensor([100, 30, 200, 12]), 8)
    assert unequal.tolist() == [61, 30, 15, 7]
    assert splits.long_tail(torch.tensor([9, 9]), 50).tolist() == [9, 1]


def test_noise_by_share_is_exact_and_even():
    targets = torch.arange(5000) % 5
    noisy = splits.flip_labels(targets, 0.4, 5, seed=0)
    changed = noisy != targets
    assert int(changed.sum()) == 2000
    assert targets[changed].bincount().tolist() == [400] * 5
    step = ((noisy - targets) % 5)[changed].bincount(minlength=5)
    assert int(step[0]) == 0
    assert float(((step[1:] - 500) ** 2 / 500).sum()) < 16.3  # 3 degrees of freedom, one in a thousand
    assert int((splits.flip_labels(CLASSES, 0.37, 5, seed=1) != CLASSES).sum()) == round(0.37 * 300)


def test_noise_by_matrix():
    matrix = torch.tensor([[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64)
    targets = torch.arange(120) % 3
    noisy = splits.confuse_labels(targets, matrix, seed=2)
    table = torch.zeros(3, 3).index_put((targets, noisy), torch.ones(120), accumulate=True)
    assert torch.equal(table, (matrix * 40).float())


def test_balance_repeats_evenly():
    chosen = splits.balance(CLASSES, seed=0)
    counts = CLASSES.bincount()
    assert CLASSES[chosen].bincount().tolist() == [int(counts.max())] * 5
    times = chosen.bincount(minlength=300)
    for label in range(5):
        own = times[label == CLASSES]
        assert int(own.min()) >= 1
        assert int(own.max()) - int(own.min()) <= 1


def test_strata():
    assert splits.strata(CLASSES) is CLASSES
    values = torch.randperm(40, generator=torch.Generator().manual_seed(0)).float()
    assert splits.strata(values).bincount().tolist() == [4] * 10
    labels = torch.tensor([[0, 1], [1, 1], [0, 1]]).repeat(10, 1)
    assert len(splits.strata(labels).unique()) == 2
    assert len(splits.strata(torch.cat([labels, torch.tensor([[0, 0], [1, 0]])])).unique()) == 3, (
        "two rare ones are one"
    )
    numbers = torch.stack([torch.arange(30.0), torch.arange(30.0).flip(0)], dim=1)
    assert torch.equal(splits.strata(numbers), splits.strata(numbers[:, 0]))


# --- the options -----------------------------------------------------------------------------------------------------


def test_without_an_option_the_split_is_what_it_was():
    data = Digits(split_seed=4)
    whole = data.read("train")
    kept, held = stratified_split(whole.targets, 0.1, 4)
    parts = data.splits()
    assert torch.equal(parts["train"].input, whole.input[kept])
    assert torch.equal(parts["val"].input, whole.input[held])
    assert data.streams(Needs(), parts["train"])["labelled"] is parts["train"]


def test_few_labels():
    def kept(**options: Any) -> Source:
        return Invented(**options).splits()["train"]

    forty, eighty = kept(labels=40), kept(labels=80)
    counts = stratified_split(CLASSES, 0.1, 0)[0]
    exact = CLASSES[counts].bincount() * 40 / 270
    assert len(forty) == 40
    assert float((forty.targets.bincount(minlength=5) - exact).abs().max()) < 1
    assert set(numbers(forty)) < set(numbers(eighty))
    assert kept(labels_per_class=4).targets.bincount().tolist() == [4] * 5
    assert len(kept(fraction=0.1)) == 27
    assert len(kept(fraction=1.0)) == 270
    assert numbers(kept(labels=40)) == numbers(forty)
    assert set(numbers(kept(labels=40, split_seed=1))) != set(numbers(forty))
    assert kept(imbalance=60.0, labels=5).targets.bincount().tolist() == [1] * 5


def test_folds_of_a_set():
    held = [Digits(fold=f"{number}/5", val_fraction=0.0) for number in range(1, 6)]
    assert not held[0].val_is_test
    parts = [data.splits() for data in held]
    assert sorted(len(one["val"]) for one in parts) == [259, 259, 259, 260, 260]
    assert all(len(one["train"]) + len(one["val"]) == 1297 for one in parts)
    together = torch.cat([one["val"].input for one in parts]).flatten(1).sort(dim=0).values
    assert torch.equal(together, held[0].read("train").input.flatten(1).sort(dim=0).values)


@pytest.mark.parametrize("options", [{"val_fraction": 0.2}, {"fold": "3/4"}])
def test_groups_of_a_set(options):
    parts = Patients(group="patient", **options).splits()
    train, val = (
        set(torch.tensor(numbers(parts[part])).div(10, rounding_mode="floor").tolist()) for part in ("train", "val")
    )
    assert not train & val
    assert train | val == set(range(30))
    assert abs(len(parts["val"]) / 300 - (0.2 if "val_fraction" in options else 0.25)) < 0.05


def test_groups_of_pictures(tmp_path):
    fake_data.write_imagefolder(tmp_path / "flat", per_class=12)
    for part in ("train", "val", "test"):
        for place, file in enumerate(
            sorted((tmp_path / "flat" / part).rglob("*.*")) if (tmp_path / "flat" / part).is_dir() else []
        ):
            target = tmp_path / "own" / file.parent.name / f"patient{place % 5}"
            target.mkdir(parents=True, exist_ok=True)
            file.rename(target / f"p{place % 7}_{part}{place}{file.suffix}")
    for name, places in (("folder", 5), ("prefix", 7)):
        data = ImageFolder(
            str(tmp_path / "own"), image_size=8, shift=1, group=name, test_fraction=0.3, val_fraction=0.3
        )
        parts, seen = data.splits(), set()
        for source in parts.values():
            paths = [Path(source.dataset.paths[i]) for i in source.indices.tolist()]
            found = {path.parent.name if name == "folder" else path.stem.split("_")[0] for path in paths}
            assert not found & seen
            seen |= found
        assert len(seen) == places
    with pytest.raises(ConfigError, match="'patient' is not one of folder, prefix"):
        ImageFolder(str(tmp_path / "own"), image_size=8, shift=1, group="patient").splits()


def test_imbalance_of_digits():
    parts = Digits(val_fraction=0.0, imbalance=60.0).splits()
    counts = parts["train"].targets.bincount()
    largest = int(counts[0])
    assert 120 <= largest <= 130
    assert counts.tolist() == [int(largest * 60 ** (-k / 9) + 1e-9) for k in range(10)]
    assert int(counts[-1]) == 2
    assert len(parts["test"]) == 500


def test_noise_leaves_what_is_evaluated_alone():
    clean, noisy = Digits().splits(), Digits(label_noise=0.4).splits()
    assert int((clean["train"].targets != noisy["train"].targets).sum()) == round(0.4 * len(clean["train"]))
    assert torch.equal(clean["train"].input, noisy["train"].input)
    for part in ("val", "test"):
        assert torch.equal(clean[part].targets, noisy[part].targets)


def test_matrix_files(tmp_path):
    rows = [[0.5, 0.5], [0.25, 0.75]]
    Path("m.json").write_text(json.dumps(rows))
    Path("m.csv").write_text("0.5,0.5\n0.25,0.75\n")
    (tmp_path / "sets").mkdir()
    np.save(tmp_path / "sets/m.npy", np.array(rows))
    for name in ("m.json", "m.csv", "m.npy"):
        assert read_matrix(name, 2, (tmp_path, tmp_path / "sets")).tolist() == rows
    Path("ragged.json").write_text("[[1], [0.5, 0.5]]")
    Path("sums.csv").write_text("0.5,0.6\n0,1\n")
    Path("below.csv").write_text("1.5,-0.5\n0,1\n")
    Path("text.csv").write_text("a,b\n")
    np.save("objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    wrong = {"ragged.json": "cannot be read", "sums.csv": "add up to 1", "below.csv": "add up to 1"}
    wrong |= {
        "text.csv": "cannot be read",
        "objects.npy": "cannot be read",
        "none.csv": "no such file",
        "m.csv": "3 classes",
    }
    for name, said in wrong.items():
        with pytest.raises(DataError, match=f"data.label_noise: .*{said}") as caught:
            read_matrix(name, 3 if name == "m.csv" else 2, (tmp_path, tmp_path))
        assert "\n" not in str(caught.value)
    Path("five.json").write_text(json.dumps(torch.eye(5).roll(1, 1).tolist()))
    noisy = Invented(label_noise="five.json").splits()["train"].targets
    assert torch.equal(noisy, (Invented().splits()["train"].targets + 1) % 5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": 40, "labels_per_class": 4}, "data.labels_per_class: data.labels says already"),
        ({"labels": 40, "fraction": 0.1}, "data.fraction: data.labels says already"),
        ({"fold": "0/5"}, "data.fold: '0/5' is no fold"),
        ({"fold": "6/5"}, "data.fold: '6/5' is no fold"),
        ({"fold": "1/1"}, "data.fold: '1/1' is no fold"),
        ({"fold": "second"}, "data.fold: 'second' is no fold"),
        ({"group": "patient", "val_fraction": 0.0}, "data.group: nothing is held out"),
        ({"group": "patient"}, "data.group: Unread knows no groups"),
        ({"labels": 4}, "data.labels: 4 for 5 classes"),
        ({"kind": "multilabel", "labels": 40}, "data.labels: needs one class a sample"),
        ({"kind": "regression", "label_noise": 0.1}, "data.label_noise: needs one class a sample"),
    ],
)
def test_contradictions_are_refused_before_samples_are_read(options, said):
    with pytest.raises(ConfigError) as caught:
        Unread(**options).splits()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Invented, {"labels": 271}, "data.labels: 271, but there are 270"),
        (Invented, {"fraction": 0.01}, "data.fraction: 3 of 270 samples for 5 classes"),
        (Invented, {"labels_per_class": 60}, "data.labels_per_class: 60, but class"),
        (Patients, {"group": "doctor"}, "data.group: 'doctor' is not one of patient"),
        (Patients, {"group": "patient", "fold": "1/31"}, "data.group: 30 patient groups cannot lie on 31 sides"),
    ],
)
def test_what_only_the_samples_tell_is_refused(kind, options, said):
    with pytest.raises(HealsgError) as caught:
        kind(**options).splits()
    assert str(caught.value).startswith(said)


def test_groups_that_the_published_parts_share_are_refused(monkeypatch):
    monkeypatch.setattr(Patients, "shared", True)
    with pytest.raises(DataError, match="a patient of the test part is in the training part too"):
        Patients(group="patient").splits()


def test_a_set_with_a_val_part_of_its_own(monkeypatch):
    monkeypatch.setattr(Invented, "has_val", True)
    for options in ({"fold": "1/2"}, {"group": "patient"}):
        with pytest.raises(ConfigError, match="validation part of its own"):
            Patients(**options).splits()


# --- streams ---------------------------------------------------------------------------------------------------------


def first_batch(data: Classification, needs: Needs = SEMI) -> dict[str, Any]:
    loader = data.loaders(needs)["train"]
    loader = loader.sharded(Sharding(seed=1))
    return loader.batch(0, 0)[0]


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_unlabelled_stream_is_all_samples_without_their_labels(in_memory):
    data = Invented(in_memory, labels=40, imbalance=4.0, label_noise=0.2)
    batch = first_batch(data)
    assert set(batch["labelled"]) == {"input", "target", "index"}
    assert set(batch["unlabelled"]) == {"weak", "strong", "index"}
    assert batch["unlabelled"]["weak"].shape == (48, 1, 8, 8)
    assert not torch.equal(batch["unlabelled"]["weak"], batch["unlabelled"]["strong"])
    loaders = data.loaders(SEMI)
    labelled, pool = (loaders["train"].sources[name] for name in ("labelled", "unlabelled"))
    whole = Invented(in_memory, imbalance=4.0).splits()["train"]
    assert numbers(pool) == numbers(whole)
    assert set(numbers(labelled)) < set(numbers(pool))
    assert len(labelled) == 40
    assert "bank" not in loaders


def test_both_paths_deal_the_same():
    options = {"labels": 40, "imbalance": 4.0, "label_noise": 0.3, "balanced": True, "own": True}
    held, read = (first_batch(Invented(in_memory, **options)) for in_memory in (True, False))
    for stream, values in held.items():
        for name, value in values.items():
            assert torch.equal(value, read[stream][name]), (stream, name)


def test_workers_change_nothing():
    dealt = []
    for workers in (0, 2):
        data = Invented(False, augment="randaugment", labels=40, label_noise=0.4, workers=workers, batch_size=64)
        dealt.append([batch for batch, _ in data.loaders(SEMI)["train"].batches(1)])
    for one, other in zip(*dealt, strict=True):
        for stream, values in one.items():
            assert all(torch.equal(value, other[stream][name]) for name, value in values.items())


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_sets_own_unlabelled_part_joins(in_memory):
    pool = Invented(in_memory, own=True).loaders(SEMI)["train"].sources["unlabelled"]
    assert len(pool) == 270 + 40
    assert numbers(pool)[270:] == list(range(40))


def test_the_bank_is_the_labelled_samples_once_each_and_still():
    loaders = Invented(labels=40).loaders(SELF)
    assert list(loaders) == ["train", "val", "test", "bank"]
    bank = loaders["bank"]
    batches = [batch for batch, _ in bank.batches(0)]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(40))
    shown = torch.cat([batch["input"] for batch in batches])
    stored = Invented(labels=40).splits()["train"]
    torch.testing.assert_close(shown, stored.input.float() / 255 * 2 - 1)
    assert torch.equal(torch.cat([batch["target"] for batch in batches]), stored.targets)
    with pytest.raises(ConfigError, match=r"data\.balanced: the method learns without labels"):
        Invented(balanced=True).loaders(SELF)


def test_an_unknown_stream_is_refused():
    with pytest.raises(ConfigError, match="Invented has no paired samples"):
        Invented().loaders(Needs(streams={"labelled": ("input",), "paired": ("input",)}))


def test_balanced_classes_are_dealt_equally_often():
    loader = Invented(imbalance=10.0, balanced=True).loaders(Needs())["train"]
    counts = torch.cat([batch["target"] for batch, _ in loader.batches(0)]).bincount()
    assert counts.tolist() == [int(counts[0])] * 5
    assert torch.cat([batch["index"] for batch, _ in loader.batches(0)]).unique().numel() == int(counts.sum())


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_records_its_split():
    options = ["data.labels=40", "data.imbalance=20", "data.label_noise=0.2", "data.fold=2/5", "data.balanced=true"]
    settings = ["model=mlp", "model.width=8", "runner.epochs=1", "quiet=true", *options]
    first = TaskTrainer.compose(*settings, "name=first").train()
    TaskTrainer.compose(*settings, "name=second").train()
    TaskTrainer.compose(*settings, "data.split_seed=1", "name=third").train()
    told = [json.loads(Path(f"runs/{name}/run.json").read_text())["samples"] for name in ("first", "second", "third")]
    assert first["status"] == "finished"
    assert told[0] == told[1]
    assert told[0]["split_digest"] != told[2]["split_digest"]
    assert told[0]["labelled"] == sum(told[0]["labelled_per_class"]) == 40
    assert len(told[0]["labelled_per_class"]) == 10
    assert told[0]["unlabelled"] > 200


def lines_of(caplog, *, level="WARNING"):
    found = [record.getMessage() for record in caplog.records if record.levelname == level]
    caplog.clear()
    return found


def test_a_run_says_what_it_understood(caplog):
    settings = ["model=mlp", "model.width=8", "runner=debug", "quiet=true"]
    TaskTrainer.compose("data=digits", *settings, "name=digits").train()
    log = Path("runs/digits/train.log").read_text()
    assert "data: inputs of shape (1, 8, 8), 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)" in log
    counted = re.search(r"data: train: (\d+) samples \((.*)\)", log)
    counts = json.loads(Path("runs/digits/run.json").read_text())["samples"]["labelled_per_class"]
    assert counted[2] == ", ".join(f"{label} {count}" for label, count in enumerate(counts))
    assert int(counted[1]) == sum(counts)
    assert len(re.findall(r"data: (?:train|val|test): \d+ samples", log)) == 3
    assert " WARNING " not in log
    TaskTrainer.compose("data=digits", "data.labels=40", "method=fixmatch", *settings, "name=few").train()
    log = Path("runs/few/train.log").read_text()
    assert "data: train, labelled: 40 samples (0 4, 1 4," in log
    assert re.search(r"data: train, unlabelled: \d+ samples\n", log)
    assert " WARNING " not in log


def test_what_is_probably_not_meant_is_one_warning(caplog):
    table = {"a": [float(row) for row in range(60)], "label": [max(0, row - 39) for row in range(60)]}
    fake_tables.write_csv("table.csv", table)
    settings = ["data=csv", "data.file=table.csv", "model=mlp", "model.width=8", "runner=debug", "quiet=true"]
    TaskTrainer.compose(*settings, "data.columns=[a]", "name=run").train()
    counts = json.loads(Path("runs/run/run.json").read_text())["samples"]["labelled_per_class"]
    empty = [str(label) for label, count in enumerate(counts) if not count]
    assert empty
    warned = [line for line in Path("runs/run/train.log").read_text().splitlines() if " WARNING " in line]
    assert f"{len(empty)} of 21 classes have no training sample left: {', '.join(map(repr, empty))}" in warned[0]
    assert "data.batch_size: 128 is more than the 54 training samples" in warned[1]
    assert len(warned) == 2
    semi = Needs({"labelled": ("input",), "unlabelled": ("weak", "strong")})
    Invented().loaders(semi)
    assert ["every training sample keeps its label" in line for line in lines_of(caplog)] == [True]
    Invented(labels=20).loaders(semi)
    assert not lines_of(caplog)


@pytest.mark.parametrize("method", ["elr", "coteaching", "logit_adjustment"])
def test_methods_that_remember_samples_take_the_options(method):
    options = ["data.labels=60", "data.imbalance=10", "data.label_noise=0.4", "data.balanced=true"]
    settings = [f"method={method}", "model=mlp", "model.width=8", "runner=debug", "quiet=true"]
    assert TaskTrainer.compose(*settings, *options).train()["status"] == "finished"


def test_each_class_draws_its_own_order():
    """Sets whose classes lie side by side would otherwise give up the same places of each."""
    _, second = stratified_split(torch.arange(3).repeat_interleave(40), 0.5, 0)
    places = [set((second[second // 40 == label] % 40).tolist()) for label in range(3)]
    assert places[0] != places[1] != places[2] != places[0]
