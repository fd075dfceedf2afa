"""Targets that have a place on their input: they move with it, count by pixel, and belong to cases."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from conftest import Program
from dense_data import Blobs, blob
from healsg import DataInfo, TaskTrainer
from healsg.build import build_task
from healsg.cli import main
from healsg.data import DatasetSource, Loader, Needs, TensorSource
from healsg.data.case import Case, cases_of
from healsg.data.info import SEGMENTATION
from healsg.data.masks import check_mask
from healsg.data.patches import patches_of
from healsg.data.sharding import Sharding
from healsg.data.source import About, Batch
from healsg.data.views import make_views
from healsg.errors import ConfigError, DataError
from healsg.evaluation.evaluator import EvalEpoch, in_units
from healsg.losses.segmentation import CrossEntropy
from healsg.losses.usual import MaskLoss, RegressionLoss, usual
from healsg.methods import mixing
from healsg.methods.labelled import LabelledSamples
from healsg.runs.checkpoint import load
from healsg.seeding import Draw
from healsg.training.denominator import loss_over
from healsg.transforms.image import ImageTransform
from healsg.transforms.volume import VolumeTransform
from test_distributed import events, launch

CONF = str(Path(__file__).parent / "dense_conf")


def trainer(*settings: str) -> TaskTrainer:
    options = ["data=blobs", "model=pixels", "trusted=[dense_data]", "quiet=true", *settings]
    return TaskTrainer.compose(*options, config_dir=CONF)


def built(*settings: str) -> Any:
    task = build_task(trainer("runner.epochs=2", *settings).composed)
    task.build()
    return task


# --- c: one geometric draw -------------------------------------------------------------------------------------------


def shown(images: Tensor) -> Tensor:
    """Where the box of each noisy image is, whatever its brightness: its mask with any label as 1."""
    return (images[:, 0] > images.flatten(1).mean(dim=1).view(-1, *[1] * (images.dim() - 2))).long()


class Where:
    """An image whose input is its mask, so that any difference between the two is one of geometry."""

    def __init__(self, of: Any) -> None:
        self.of = of
        self.shares_geometry = of.shares_geometry

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        return self.of(batch, draw)


@pytest.mark.parametrize("sides", [(16, 16), (32, 32), (8, 8, 8)])
def test_all_views_of_a_sample_share_one_geometric_draw_and_the_target_follows(sides: tuple[int, ...]) -> None:
    masks = torch.stack([blob(number, sides)[1] for number in range(24)])
    inputs = (200 * (masks > 0)).to(torch.uint8).unsqueeze(1)
    data = Blobs(sides=sides, flip=True, shift=3)
    names = ("weak", "strong", "view1") if len(sides) == 2 else ("weak", "view1")
    views = {"labelled": {name: data.transform(name, "train") for name in names}}
    source = TensorSource(inputs, masks)
    loader = Loader({"labelled": source}, views, 24, shuffle=True, spatial_targets=True)
    batch = loader.batch(0, 0)[0]
    moved = batch["target"] != masks[batch["index"]]
    assert moved.flatten(1).any(dim=1).float().mean() > 0.5
    weak = batch["weak"][:, 0] > 0
    assert torch.equal(weak, batch["target"] > 0)
    if len(sides) == 2:
        bright, dark = batch["target"] > 0, batch["target"] == 0
        strong = batch["strong"][:, 0]
        inside = torch.stack([one[mask].median() for one, mask in zip(strong, bright, strict=True)])
        outside = torch.stack([one[mask].median() for one, mask in zip(strong, dark, strict=True)])
        assert (inside >= outside).all(), "the strong view's box lies elsewhere"
        assert not torch.equal(batch["strong"], batch["weak"])
        assert not torch.equal(batch["strong"], batch["view1"])
    assert set(batch) == {"index", "target", *names}


def test_unlabelled_views_share_their_geometry_too() -> None:
    data = Blobs(flip=True, shift=3, batch_size=6, labels=6)
    needs = Needs({"labelled": ("input",), "unlabelled": ("weak", "view1")})
    batch = data.loaders(needs)["train"].batch(0, 0)[0]["unlabelled"]
    assert "target" not in batch
    assert (shown(batch["weak"]) == shown(batch["view1"])).float().mean() > 0.9


def test_views_of_classes_keep_draws_of_their_own() -> None:
    images = torch.randint(0, 255, (40, 1, 12, 12), dtype=torch.uint8)
    transform = ImageTransform(True, 2, [0.5], [0.25])
    views = {"labelled": {"view1": transform, "view2": transform}}
    batch = Loader({"labelled": TensorSource(images, torch.zeros(40))}, views, 40, shuffle=True).batch(0, 0)[0]
    assert not torch.equal(batch["view1"], batch["view2"])


def test_a_view_that_moves_by_itself_has_a_target_of_its_own() -> None:
    def flipped(batch: Batch, draw: Draw | None) -> Batch:
        return batch | {key: batch[key].flip(-1) for key in ("input", "target")}

    source = TensorSource(*(torch.stack(column) for column in zip(*(blob(i, (8, 8)) for i in range(4)), strict=True)))
    views = {"labelled": {"weak": None, "strong": flipped}}
    batch = Loader({"labelled": source}, views, 4, shuffle=False, spatial_targets=True).batch(0, 0)[0]
    assert torch.equal(batch["strong_target"], batch["target"].flip(-1))


def test_a_view_that_moves_by_itself_beside_one_that_shares_its_geometry_has_a_target_of_its_own() -> None:
    class Turned:
        def __init__(self, shares: bool) -> None:
            self.shares_geometry = shares

        def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
            return batch | {key: batch[key].flip(-1) for key in ("input", "target")}

    image, mask = (one.unsqueeze(0) for one in blob(0, (8, 8)))
    for shares in (True, False):
        views = {"weak": Turned(True), "strong": Turned(shares)}
        made = make_views(views, {"input": image, "target": mask}, {"weak": None, "strong": None})
        assert ("strong_target" in made) == (not shares)


@pytest.mark.parametrize("outside", [0, 255])
def test_what_a_shift_brings_into_a_mask_has_the_label_outside(outside: int) -> None:
    masks = torch.ones(50, 8, 8, dtype=torch.uint8)
    moved = ImageTransform(False, 2, [0.5], [0.25], outside=outside)(
        {"input": masks.unsqueeze(1) * 200, "target": masks}, Draw(1, torch.arange(50))
    )
    black = moved["input"][:, 0] == moved["input"].min()
    assert black.any()
    assert torch.equal(moved["target"] == outside, black)
    assert moved["target"].dtype == torch.uint8
    volume = VolumeTransform(True, 1, [0.5], [0.25])
    target = torch.rand(3, 2, 6, 6, 6)
    both = volume({"input": target, "target": target}, Draw(1, torch.arange(3)))
    assert torch.equal(both["input"], (target * 0 + both["target"]) / (255 * 0.25) - 2) or torch.allclose(
        both["input"], both["target"] / (255 * 0.25) - 2
    )


@pytest.mark.parametrize("augment", ["randaugment", "crop"])
def test_what_moves_images_by_itself_is_refused_for_masks(augment: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^data.augment: {augment} does not transform masks along with images; use standard"
    ):
        Blobs(augment=augment).loaders(Needs())["train"].batch(0, 0)


# --- d: mixing -------------------------------------------------------------------------------------------------------


def test_cutmix_pastes_the_box_into_the_mask() -> None:
    torch.manual_seed(0)
    masks = torch.arange(6).view(6, 1, 1).expand(6, 16, 16).contiguous()
    inputs = masks.float().unsqueeze(1)
    mixed, how = mixing.cutmix(inputs, 1.0)
    pasted = how.pasted(masks)
    assert pasted is not None
    assert torch.equal(mixed[:, 0], pasted.float())
    assert (pasted != masks).any()
    soft = nn.functional.one_hot(masks, 6).movedim(-1, 1).float()
    assert torch.equal(how.of(soft).argmax(dim=1), pasted)
    assert how.pasted(torch.arange(6)) is None  # a class a sample is shared out instead


@pytest.mark.parametrize("settings", [["method.cutmix=1.0"], ["method.cutmix=1.0", "method.label_smoothing=0.1"]])
def test_a_step_with_cutmix_learns_pasted_masks(settings: list[str]) -> None:
    task = built("data.ignore=255", *settings)
    seen: list[tuple[Tensor, Tensor]] = []
    criterion = task.criterion

    class Watched(MaskLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            seen.append((input, target))
            return super().forward(input, target)

    if len(settings) == 1:
        task.criterion = Watched(255)
    batch = next(iter(task.runner.train_batches(task)))[0]
    batch["target"][0, :4] = 255
    loss = task.task_method.train_step(task, batch)["loss"]
    assert torch.isfinite(loss.value if hasattr(loss, "value") else loss)
    assert criterion.ignore_index == 255


def test_random_erasing_leaves_the_mask() -> None:
    task = built("method.random_erasing=1.0")
    batch = next(iter(task.runner.train_batches(task)))[0]
    before = batch["target"].clone()
    method: Any = task.task_method
    input, mixed = method.labelled.inputs(task, batch)
    assert mixed is None
    assert not torch.equal(input, batch["input"])
    assert torch.equal(batch["target"], before)
    assert "a mask stays as it is" in " ".join((LabelledSamples.__doc__ or "").split())


# --- e: unlike sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [[], ["data.in_memory=true"], ["data.cache=true"]])
def test_samples_of_unlike_sizes_are_evaluated_alike_wherever_they_are_held(how: list[str]) -> None:
    settings = [
        "data.unlike=true",
        "data.folder=files",
        "data.patch=[8,8]",
        "data.eval_batch_size=1",
        "data.val_fraction=0.25",
    ]
    whole = trainer(*settings, *how, "runner.epochs=2", "name=run", "seed=1").train()
    again = trainer(*settings, *how, "runner.epochs=2", "name=again", "seed=1").train()
    plain = trainer(*settings, "runner.epochs=2", "name=plain", "seed=1").train()
    assert whole["test"] == again["test"] == plain["test"]
    assert whole["digest"] == plain["digest"]
    assert 0 < whole["test"]["test/dice"] <= 1


def test_a_cache_of_unlike_sizes_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    done = list[str]()
    fsync, replace = os.fsync, Path.replace

    def watched(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append("renamed")
        return replace(self, target)

    data = build_task(trainer("data.unlike=true", "data.folder=files", "data.cache=true").composed).task_data
    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(Path, "replace", renamed)
    data.stored("train")
    assert done == ["input", "target", "sums", "layout", "renamed"]


def test_a_batch_of_unlike_sizes_comes_apart_in_evaluation_and_is_refused_in_training() -> None:
    samples = [blob(number, (8 + number % 2, 8)) for number in range(5)]
    source = DatasetSource(samples)
    loader = Loader({"labelled": source}, {"labelled": {"input": None}}, 4, shuffle=False)
    sizes = [(tuple(batch["target"].shape), rows) for batch, rows in loader.batches(0)]
    assert sizes == [((1, 8, 8), 1), ((1, 9, 8), 1), ((1, 8, 8), 1), ((1, 9, 8), 1), ((1, 8, 8), 1)]
    with pytest.raises(DataError, match="1x8x8 and 1x9x8: bring all to one size, take patches"):
        Loader({"labelled": source}, {"labelled": {"input": None}}, 4, shuffle=True).batch(0, 0)


def test_eval_batch_size_is_that_of_evaluation_alone() -> None:
    loaders = Blobs(batch_size=5, eval_batch_size=2, val_fraction=0.25).loaders(Needs())
    assert [len(batch["index"]) for batch, _ in loaders["test"].batches(0)] == [2, 2, 2]
    assert [len(batch["index"]) for batch, _ in loaders["train"].batches(0)] == [5, 4]
    assert [len(batch["index"]) for batch, _ in loaders["train"].evaluation_view().batches(0)] == [2, 2, 2, 2, 1]


# --- f: cases --------------------------------------------------------------------------------------------------------


def test_metrics_and_predict_see_the_case() -> None:
    task = built("data.eval_batch_size=2")
    seen: list[Case] = []
    task.task_model.predict = lambda network, batch: (seen.extend(cases_of(batch)), network(batch["input"]))[1]
    found = EvalEpoch(task, "test").by_case()
    assert [case.name for case in seen] == [f"test{number}" for number in range(6)]
    assert seen[0].group == "test patient0"
    assert seen[0].spacing == (0.5, 0.5)
    assert list(found.cases) == [f"test{number}" for number in range(6)]
    dice = [row["dice"] for row in found.cases.values()]
    assert 0 <= min(dice) <= max(dice) <= 1
    assert {"loss", "acc", "dice", "iou"} <= set(found.numbers)


def test_cases_are_made_of_what_a_data_set_of_ones_own_says() -> None:
    batch = {"input": torch.zeros(2, 1, 4, 4), "index": torch.tensor([7, 8]), "affine": torch.eye(3).expand(2, 3, 3)}
    assert [case.name for case in cases_of(batch)] == ["7", "8"]
    assert cases_of(batch)[1].affine == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    named = cases_of(
        batch | {"name": ["a", "b"], "group": ["p", "q"], "spacing": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    )
    assert [(case.name, case.group, case.spacing) for case in named] == [("a", "p", (1, 2)), ("b", "q", (3, 4))]


# --- g: ignored pixels, regions --------------------------------------------------------------------------------------


def test_ignored_pixels_weigh_nothing() -> None:
    info = DataInfo((1, 4, 4), 3, SEGMENTATION, ignore=255)
    loss, scores = usual(info), torch.randn(4, 3, 4, 4)
    mask = torch.randint(0, 3, (4, 4, 4), dtype=torch.uint8)
    mask[0], mask[1, :2] = 255, 255
    kept = mask != 255
    own = nn.functional.cross_entropy(scores.movedim(1, -1)[kept], mask[kept].long())
    assert loss is not None
    torch.testing.assert_close(loss(scores, mask), own)
    assert loss(scores[:1], mask[:1]) == 0  # a batch in which nothing counts
    # Halves, as of two processes or accumulated batches, weighed by what they are means over.
    halves = [loss_over(loss, scores[part], mask[part]) for part in (slice(0, 2), slice(2, 4))]
    total = sum(half.value * half.over for half in halves) / sum(half.over for half in halves)
    torch.testing.assert_close(total, own)


def test_accumulated_batches_with_ignored_pixels_take_the_same_step() -> None:
    steps = []
    for settings in (["data.batch_size=8"], ["data.batch_size=2", "runner.accumulate=4"]):
        task = built("data.ignore=255", "data.unknown=true", "method=sgd", *settings, "seed=3")
        weights = []
        for batch, micro in task.runner.train_batches(task):
            _, moved = task.runner.step(task, batch, micro)
            if moved:
                weights.append(torch.cat([p.detach().flatten() for p in task.model.parameters()]))
        steps.append(weights[0])
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-5, atol=1e-6)


def test_an_ignored_label_that_is_a_class_and_regions_without_outputs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.ignore: 1 is a class too"):
        DataInfo((1, 4, 4), 3, SEGMENTATION, ignore=1)
    with pytest.raises(ConfigError, match=r"data\.regions: 1 regions for 3 outputs"):
        DataInfo((1, 4, 4), 3, SEGMENTATION, regions={"whole": (1, 2)})


def test_regions_overlap_and_come_back_from_a_checkpoint() -> None:
    whole = trainer("data.regions={both: [1, 2], bar: [2]}", "runner.epochs=2", "name=regions").train()
    assert "test/acc" not in whole["test"]
    assert {"test/dice", "test/dice.0", "test/dice.1"} <= set(whole["test"])
    predictor = TaskTrainer.load("regions", "trusted=[dense_data]").predictor()
    assert predictor.info.regions == {"both": (1, 2), "bar": (2,)}
    predicted = predictor(torch.stack([blob(0, (16, 16))[0]]))
    assert predicted.masks is not None
    assert predicted.masks.shape == (1, 2, 16, 16)
    assert predicted.masks.dtype == torch.bool


def test_a_segmentation_goes_on_bit_for_bit_and_prefers_dice() -> None:
    settings = [
        "runner.epochs=3",
        "data.patch=[8,8]",
        "data.patches_per_case=2",
        "data.foreground=0.5",
        "data.folder=f",
    ]
    whole = trainer(*settings, "name=whole", "data.workers=2").train()
    cut = trainer(*settings, "name=cut", "runner.max_time=0").train()
    assert cut["status"] == "stopped"
    again = TaskTrainer.load("cut", "trusted=[dense_data]", "runner.max_time=null")
    assert again.train()["digest"] == whole["digest"]
    assert whole["best"]["name"] == "val/dice" if "name" in whole["best"] else True


# --- i: splits count cases -------------------------------------------------------------------------------------------


def split(**settings: Any) -> tuple[list[str], list[str], Blobs]:
    data = Blobs(**settings)
    parts = data.splits()
    return *([case.name for case in parts[name].about.cases] for name in ("train", "val")), data  # type: ignore[return-value]


def test_splits_hold_out_whole_cases_with_their_strata() -> None:
    train, val, _ = split(cases=40, slices=4, val_fraction=0.2, strata=True)
    assert not set(train) & set(val)
    assert len(set(val)) == 2
    assert sorted(int(name[5:]) % 2 for name in set(val)) == [0, 1]  # one of each stratum
    assert len(val) == 8
    train, val, _ = split(cases=40, slices=4, fold="2/5")
    assert len(set(val)) == 2
    assert not set(train) & set(val)


def test_labels_count_cases() -> None:
    train, _, data = split(cases=40, slices=4, labels=3)
    assert len(set(train)) == 3
    assert len(train) == 12
    assert data.facts()["samples"]["labelled_cases"] == 3
    with pytest.raises(ConfigError, match=r"data\.labels: 30, but there are 9"):
        split(cases=40, slices=4, labels=30)
    with pytest.raises(ConfigError, match=r"data\.label_noise: no such key"):
        TaskTrainer.compose("data=shapes2d", "data.label_noise=0.1")


def test_groups_of_cases_stay_on_one_side() -> None:
    data = Blobs(cases=20, group="patient", val_fraction=0.3)
    parts = data.splits()
    train, val = ({case.group for case in parts[name].about.cases} for name in ("train", "val"))  # type: ignore[union-attr]
    assert train
    assert val
    assert not train & val


# --- j: culprits -----------------------------------------------------------------------------------------------------


def test_a_mask_that_does_not_fit_is_refused_with_its_file() -> None:
    import numpy as np

    Blobs(folder="files").read("train")
    np.save("files/train/3_mask.npy", np.zeros((16, 15), np.uint8))
    with pytest.raises(DataError, match=r"files/train/3_mask.npy: the mask is 16 x 15, its image 16 x 16"):
        list(Blobs(folder="files", val_fraction=0).loaders(Needs())["train"].batches(0))
    np.save("files/train/3_mask.npy", np.full((16, 16), 7, np.uint8))
    with pytest.raises(DataError, match=r"3_mask.npy: the label 7 is not among the set's labels, 0 to 2"):
        list(Blobs(folder="files", val_fraction=0).loaders(Needs())["train"].batches(0))


def test_labels_outside_the_list_are_refused_in_memory_too() -> None:
    info = DataInfo((1, 4, 4), 2, SEGMENTATION, ignore=9)
    check_mask(torch.zeros(1, 4, 4), torch.tensor([0, 1, 9, 0]).expand(4, 4), info)
    with pytest.raises(DataError, match="a mask of 0 and 255 needs its 255 mapped to 1"):
        check_mask(torch.zeros(1, 4, 4), torch.tensor([0, 255, 0, 0]).expand(4, 4), info)


# --- k: generators of others -----------------------------------------------------------------------------------------


class Noisy(Dataset[Any]):
    """A data set whose transform draws from a generator of its own."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.as_tensor(self.transform(torch.zeros(1, 4, 4).numpy())), index % 2


def numpy_noise() -> Any:
    import numpy as np

    own = np.random.default_rng()
    return lambda image: image + own.normal(size=image.shape).astype("float32")


def monai_noise() -> Any:
    transforms = pytest.importorskip("monai.transforms")
    return transforms.Compose([transforms.RandGaussianNoise(1.0), transforms.RandFlip(0.5, 0)])


def test_a_sample_that_comes_again_in_an_epoch_is_read_with_other_random_numbers() -> None:
    sources = {stream: DatasetSource(Noisy(numpy_noise())) for stream in ("labelled", "unlabelled")}
    views: Any = {stream: {"input": None} for stream in sources}
    loader = Loader(sources, views, 4, shuffle=True, flat=False, ratio={"unlabelled": 2})
    streams = [batch["unlabelled"] for batch, _ in loader.batches(0)]
    index, input = (torch.cat([stream[key] for stream in streams]) for key in ("index", "input"))
    assert index.bincount().tolist() == [2] * 8
    assert len(input.flatten().unique()) == input.numel()


@pytest.mark.parametrize("make", [numpy_noise, monai_noise])
@pytest.mark.parametrize("workers", [0, 2])
def test_generators_of_other_peoples_transforms_are_seeded_by_sample(make: Any, workers: int) -> None:
    def dealt(epoch: int, batch_size: int, position: int = 0) -> dict[int, Tensor]:
        source = DatasetSource(Noisy(make()))
        views = {"labelled": {"input": None}}
        loader = Loader({"labelled": source}, views, batch_size, shuffle=True, workers=workers)
        pairs = [(batch["index"], batch["input"]) for batch, _ in loader.batches(epoch, position)]
        return {int(i): one for index, input in pairs for i, one in zip(index, input, strict=True)}

    first, other = dealt(0, 4), dealt(0, 2)
    assert all(torch.equal(first[i], other[i]) for i in range(8))
    resumed = dealt(0, 4, 1)
    assert all(torch.equal(first[i], one) for i, one in resumed.items())
    assert not torch.equal(first[0], dealt(1, 4)[0])
    assert not torch.equal(first[0], first[1])


# --- l: draws of a source, patches, transforms on the device ---------------------------------------------------------


def test_a_patch_is_a_pure_function_of_seed_epoch_and_index() -> None:
    def dealt(epoch: int, batch_size: int, seed: int = 0, workers: int = 0) -> dict[int, Tensor]:
        cases = DatasetSource([blob(number, (8 + number, 9, 10)) for number in range(4)])
        source = patches_of(cases, (4, 4, 4), per_case=3, foreground=0.5)
        views = {"labelled": {"input": None}}
        sharding = Sharding(seed=seed)
        loader = Loader({"labelled": source}, views, batch_size, shuffle=True, workers=workers, sharding=sharding)
        pairs = [(batch["index"], batch["input"]) for batch, _ in loader.batches(epoch)]
        return {int(i): one for index, input in pairs for i, one in zip(index, input, strict=True)}

    first = dealt(0, 4)
    assert len(first) == 12
    assert first[0].shape == (1, 4, 4, 4)
    assert all(torch.equal(first[i], dealt(0, 3, workers=2)[i]) for i in range(12))
    assert not all(torch.equal(first[i], dealt(1, 4)[i]) for i in range(12))
    assert not all(torch.equal(first[i], dealt(0, 4, seed=1)[i]) for i in range(12))
    assert not torch.equal(first[0], first[4])


def test_patches_per_case_samples_per_epoch_and_foreground() -> None:
    cases = TensorSource(*(torch.stack(column) for column in zip(*(blob(i, (16, 16)) for i in range(4)), strict=True)))
    assert len(patches_of(cases, (4, 4), per_case=3)) == 12
    assert len(patches_of(cases, (4, 4), samples=10)) == 10
    index, draw = torch.arange(40), Draw(5, torch.arange(40))
    always = patches_of(cases, (4, 4), samples=40, foreground=1.0).fetch(index, draw=draw)["target"]
    assert (always.flatten(1) > 0).any(dim=1).all()
    small = patches_of(cases, (20, 12), outside=255).fetch(torch.tensor([0]), draw=draw.part(0, 1))
    assert small["input"].shape == (1, 1, 20, 12)
    assert (small["target"][0, :2] == 255).all()


def test_an_ignored_label_is_no_foreground_that_patches_look_for() -> None:
    mask = torch.zeros(2, 16, 16, dtype=torch.uint8)
    mask[:, :4] = 255
    mask[:, 14, 14] = 1
    cases = TensorSource(torch.zeros(2, 1, 16, 16), mask)
    index = torch.arange(20)
    source = patches_of(cases, (4, 4), samples=20, foreground=1.0, ignore=255)
    patches = source.fetch(index, draw=Draw(5, index))["target"]
    assert (patches == 1).flatten(1).any(dim=1).all()


class OnDevice(nn.Module):
    """Turns the intensities of whole batches around, one draw a sample."""

    on_device = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(()))
        self.sizes: list[int] = []

    def forward(self, batch: Batch, draw: Draw | None) -> Batch:
        self.sizes.append(len(batch["input"]))
        sign = self.one if draw is None else 1 - 2 * draw.uniform(0)
        return batch | {"input": batch["input"].float() * sign.view(-1, *[1] * (batch["input"].dim() - 1))}


@pytest.mark.parametrize("workers", [0, 2])
def test_transforms_on_the_device_get_whole_batches_and_their_draws(workers: int) -> None:
    made = []
    for batch_size in (4, 2):
        transform = OnDevice()
        source = DatasetSource([blob(number, (8, 8)) for number in range(8)])
        views = {"labelled": {"input": transform}}
        loader = Loader({"labelled": source}, views, batch_size, shuffle=True, workers=workers, spatial_targets=True)
        pairs = [(batch["index"], batch["input"]) for batch, _ in loader.batches(3)]
        assert transform.sizes == [batch_size] * (8 // batch_size)  # in this process, not in a worker
        made.append({int(i): one for index, input in pairs for i, one in zip(index, input, strict=True)})
    assert all(torch.equal(made[0][i], made[1][i]) for i in range(8))


# --- a, b: processes -------------------------------------------------------------------------------------------------


def test_with_masks_each_of_two_processes_trains_on_one_patch_in_spite_of_batchnorm() -> None:
    task = built("model.norm=true", "data.batch_size=2")
    assert task.runner.plan.min_rows == 1
    source = task.train_loader.sources["labelled"]
    rows = []
    for rank in (0, 1):
        sharding = Sharding(rank=rank, world=2, min_rows=task.runner.plan.min_rows)
        loader = Loader({"labelled": source}, {"labelled": {"input": None}}, 2, shuffle=True, sharding=sharding)
        rows.append(sum(count for _, count in loader.batches(0)))
    assert rows == [(len(source) + 1) // 2, len(source) // 2]


@pytest.mark.parametrize("size", [1, 2])
def test_whole_cases_are_shared_by_the_processes_of_an_evaluation(size: int) -> None:
    cases = [Case(f"case{number}") for number in range(7)]
    source = DatasetSource([blob(number, (8 + number, 8)) for number in range(7)], about=About(cases))
    seen = []
    for rank in (0, 1):
        loader = Loader(
            {"labelled": source},
            {"labelled": {"input": None}},
            size,
            shuffle=False,
            whole_batches=size > 1,
            sharding=Sharding(rank=rank, world=2),
        )
        seen.append([case.name for batch, rows in loader.batches(0) if rows for case in batch["case"]])
    assert sorted(seen[0] + seen[1]) == [case.name for case in cases]
    assert len(seen[1]) == 3


# --- regression ------------------------------------------------------------------------------------------------------


def test_targets_of_a_regression_are_scaled_for_the_loss_alone() -> None:
    target = torch.tensor([1000.0, 1400.0])
    info = DataInfo((3,), 1, "regression", preprocessing={"target_mean": [1200.0], "target_std": [200.0]})
    loss = usual(info)
    assert isinstance(loss, RegressionLoss)
    assert loss(torch.tensor([[-1.0], [1.0]]), target) == 0
    assert torch.equal(in_units(torch.tensor([[-1.0], [1.0]]), info).flatten(), target)


@pytest.mark.soak
def test_two_processes_take_the_step_of_one_on_masks(program: Program) -> None:
    """Pixels to be ignored, a pasted box, one patch each; then whole cases of unlike sizes, evaluated in turn."""
    shutil.copy(Path(__file__).parent / "dense_data.py", "dense_data.py")
    options = ["data.unlike=true", "data.folder=files"]
    options += [
        "data.patch=[8,8]",
        "data.eval_batch_size=1",
        "data.ignore=255",
        "data.unknown=true",
        "data.batch_size=2",
    ]
    options += ["method.cutmix=1", "runner.epochs=2", "runner.precision=fp64", "data.val_fraction=0.25"]
    trainer(*options, "name=one").train()
    together = launch(program, "--config-dir", CONF, "data=blobs", "model=pixels", *options, "name=two")
    assert together.returncode == 0, together.stderr
    states = [load(Path("runs") / name / "checkpoints/last.pt")["model"] for name in ("one", "two")]
    for key, value in states[0].items():
        assert (value - states[1][key]).abs().max() < 1e-10, key
    one, two = (events(Path("runs") / name, "test")[0] for name in ("one", "two"))
    assert [two[key] for key in two if "/" in key] == pytest.approx([one[key] for key in one if "/" in key], rel=1e-10)


def test_eval_gives_the_table_by_case(capsys: pytest.CaptureFixture[str]) -> None:
    trainer("runner.epochs=1", "name=run").train()
    capsys.readouterr()
    assert main(["eval", "run", "trusted=[dense_data]"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["cases"]) == [f"test{number}" for number in range(6)]
    mean = sum(row["dice"] for row in found["cases"].values()) / 6
    assert 0 <= mean <= 1
    assert set(found["cases"]["test0"]) == {"dice", "dice.1", "dice.2", "iou", "iou.1", "iou.2"}
    assert json.loads(Path("runs/run/eval-test-best.json").read_text()) == found


@pytest.mark.parametrize("criterion", [MaskLoss(), CrossEntropy(regions=[[1], [1, 2]])])
def test_a_network_with_one_output_a_sample_is_refused_for_masks(criterion: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"model: it has outputs of shape \(4, 3\), and the targets are masks .*unet"):
        criterion(torch.zeros(4, 3), torch.zeros(4, 8, 8, dtype=torch.uint8))


def test_a_classifier_on_masks_ends_in_one_line() -> None:
    task = built("model=cnn", "method.label_smoothing=0.1")
    with pytest.raises(ConfigError, match=r"model: it has outputs of shape .* masks .* model=unet"):
        task.run_epoch()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.ignore=-5", r"data\.ignore: -5 is no label of a mask; give one from 0 to 255"),
        ("data.ignore=300", r"data\.ignore: 300 is no label of a mask"),
        (
            "data.regions={a:[1,99]}",
            r"data\.regions\.a: 99 is no label of the masks; the labels of this set are 0 to 1",
        ),
        ("data.patch=[4,4,4]", r"data\.patch: \[4, 4, 4\] for inputs of 2 spatial axes; give 2 sizes"),
    ],
)
def test_labels_that_no_mask_can_hold_are_refused(setting: str, words: str) -> None:
    composed = TaskTrainer.compose("data=shapes2d", "model=unet", "data.size=16", setting)
    with pytest.raises(ConfigError, match=words):
        composed.train()
