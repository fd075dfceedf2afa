"""Metrics of segmentation: by case, each convention, and the numbers of MONAI and nnU-Net where both are defined."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.metrics import segmentation as seg

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'healsg[seg]'")
IGNORE = 255


def blobs(*shape: int, seed: int, classes: int = 3) -> Tensor:
    """(N, ...) labels in smooth regions."""
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape[0], classes, *[-(-side // 3) for side in shape[1:]], generator=source)
    mode = "bilinear" if len(shape) == 3 else "trilinear"
    return F.interpolate(noise, shape[1:], mode=mode).argmax(dim=1)


def as_scores(labels: Tensor, classes: int = 3) -> Tensor:
    return F.one_hot(labels, classes).movedim(-1, 1).float()


def value(metric: Any, *pairs: tuple[Tensor, Tensor], spacing: Any = None, classes: int = 3) -> dict[str, float]:
    for predicted, truth in pairs:
        metric.update(as_scores(predicted, classes), truth, spacing)
    result: dict[str, float] = metric.of([metric.packed()])
    return result


SHAPES = [(2, 17, 20), (2, 12, 15, 9)]
SPACINGS = {2: (0.7, 1.9), 3: (0.7, 1.9, 3.0)}


@pytest.fixture(scope="module")
def monai() -> Any:
    return pytest.importorskip("monai.metrics", reason="MONAI is not installed: pip install 'healsg[seg]'")


# --- the same numbers as others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_overlaps_are_those_of_monai_and_nnunet(shape: tuple[int, ...], monai: Any) -> None:
    predicted, truth = blobs(*shape, seed=0), blobs(*shape, seed=1)
    made, true = as_scores(predicted), as_scores(truth)
    wanted = monai.compute_dice(made, true, include_background=False)
    table = seg.Dice().table((seg.overlap_counts(predicted, truth, 3),))
    np.testing.assert_allclose(np.array(table)[:, 1:], wanted, atol=1e-6)
    for case in range(2):  # as nnU-Net 2 computes it: 2 tp / (2 tp + fp + fn), by label
        for label in (1, 2):
            own, other = (predicted[case] == label).numpy(), (truth[case] == label).numpy()
            tp, fp, fn = (own & other).sum(), (own & ~other).sum(), (~own & other).sum()
            assert table[case][label] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
    found = value(seg.Dice(), (predicted, truth))
    assert found[""] == pytest.approx(float(np.array(table)[:, 1:].mean(axis=0).mean()), abs=1e-12)
    names = {"IoU": "", "Sensitivity": "sensitivity", "Specificity": "specificity", "Precision": "precision"}
    confusion = monai.get_confusion_matrix(made, true, include_background=False)
    for name, other_name in names.items():
        wanted = (
            monai.compute_iou(made, true, include_background=False)
            if not other_name
            else monai.compute_confusion_matrix_metric(other_name, confusion)
        )
        counts = (seg.overlap_counts(predicted, truth, 3),)
        np.testing.assert_allclose(np.array(getattr(seg, name)().table(counts))[:, 1:], wanted, atol=1e-6)


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")  # MONAI's own way to call itself
@pytest.mark.parametrize("spacing", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_surfaces_are_monais(shape: tuple[int, ...], spacing: bool, monai: Any) -> None:
    predicted, truth = blobs(*shape, seed=2), blobs(*shape, seed=3)
    made, true = as_scores(predicted), as_scores(truth)
    size = SPACINGS[len(shape) - 1] if spacing else (1.0,) * (len(shape) - 1)
    pairs = [((predicted[n] == label).numpy(), (truth[n] == label).numpy(), size) for n in range(2) for label in (1, 2)]
    usual = {"include_background": False, "spacing": size}
    wanted = monai.compute_hausdorff_distance(made, true, percentile=95, **usual)
    np.testing.assert_allclose([seg.hausdorff(*pair) for pair in pairs], wanted.flatten(), rtol=1e-5)
    wanted = monai.compute_average_surface_distance(made, true, symmetric=True, **usual)
    np.testing.assert_allclose([seg.average_surface_distance(*pair) for pair in pairs], wanted.flatten(), rtol=1e-5)
    for tolerance in (0.7, 1.9):
        wanted = monai.compute_surface_dice(made, true, [tolerance] * 2, use_subvoxels=True, **usual)
        np.testing.assert_allclose([seg.surface_dice(*pair, tolerance) for pair in pairs], wanted.flatten(), atol=1e-6)


def test_hd95_is_not_the_one_that_weighs_areas() -> None:
    """Two bars of unlike length: the percentile is over boundary pixels, by linear interpolation."""
    predicted, truth = np.zeros((1, 41), bool), np.zeros((1, 41), bool)
    predicted[0, :40], truth[0, :20] = True, True
    assert seg.hausdorff(predicted, truth, (1.0, 1.0)) == np.percentile(np.maximum(np.arange(40) - 19, 0), 95)
    assert seg.hausdorff(predicted, truth, (1.0, 2.5), 100) == 50


# --- each convention -------------------------------------------------------------------------------------------------


def cases() -> list[tuple[Tensor, Tensor]]:
    """A class (1) that is found, missed, predicted without being there, and absent."""
    truth, predicted = torch.zeros(4, 8, 8, dtype=torch.long), torch.zeros(4, 8, 8, dtype=torch.long)
    truth[:2, 2:6, 2:6] = 1
    predicted[0, 2:6, 2:6] = 1
    predicted[2, :2, :2] = 1
    return [(predicted, truth)]


def test_what_is_missed_counts_and_what_is_not_there_does_not(monai: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {name: value(getattr(seg, name)(), *cases(), classes=2) for name in CONVENTIONS}
    assert {name: number[""] for name, number in found.items()} == pytest.approx(CONVENTIONS)
    assert found["HD95"]["infinite"] == found["ASSD"]["infinite"] == 2
    assert found["Volume"]["bias"] == pytest.approx((0 - 16 + 4) / 3 / 1000)
    assert found["Cases"] == {"": 1, "false_alarms": 1, "left_out": 1, "all": 4}
    counts = seg.overlap_counts(*cases()[0], 2)
    assert [row[1] for row in seg.Cases().table((counts,))] == [0, 1, 0, 0], "by case, whether a class was missed"


CONVENTIONS = {
    "Dice": 1 / 3,
    "IoU": 1 / 3,
    "Sensitivity": 1 / 2,
    "Precision": 1 / 3,
    "Specificity": (1 + 1 + (1 - 4 / 64) + 1) / 4,
    "NSD": 1 / 3,
    "CentrelineDice": 1 / 3,
    "HD95": math.inf,
    "ASSD": math.inf,
    "Volume": (16 + 4) / 3 / 1000,
    "Cases": 1,
}


def test_a_median_of_distances_stands_one_missed_case_and_names_it() -> None:
    truth, predicted = torch.zeros(3, 8, 8, dtype=torch.long), torch.zeros(3, 8, 8, dtype=torch.long)
    truth[:, 2:6, 2:6] = 1
    predicted[:2, 2:6, 3:7] = 1
    assert value(seg.HD95(), (predicted, truth), classes=2) == {"": 1.0, "infinite": 1.0}


def test_classes_without_a_case_are_left_out_of_the_mean() -> None:
    truth = torch.zeros(1, 6, 6, dtype=torch.long)
    truth[:, :3] = 2
    found = value(seg.Dice(), (truth, truth), classes=4)
    assert found[""] == 1.0
    assert math.isnan(found["1"])
    assert found["2"] == 1.0
    nothing = value(seg.Dice(), (truth * 0, truth * 0), classes=4)
    assert math.isnan(nothing[""])


def test_ignored_pixels_are_in_no_count() -> None:
    truth, predicted = blobs(2, 12, 12, seed=5), blobs(2, 12, 12, seed=6)
    truth[:, :, 6:] = IGNORE
    part = (predicted[:, :, :6], truth[:, :, :6])
    for name in ("Dice", "IoU", "Sensitivity", "Specificity", "Precision", "Volume"):
        whole = value(getattr(seg, name)(ignore=IGNORE), (predicted, truth))
        assert whole == pytest.approx(value(getattr(seg, name)(), part)), name
    assert value(seg.HD95(ignore=IGNORE), (predicted, truth)) == value(seg.HD95(), part)


def test_regions_may_overlap() -> None:
    truth = blobs(2, 12, 12, seed=7, classes=4)
    regions = [[1, 2, 3], [2, 3], [3]]
    output = torch.stack([torch.isin(truth, torch.tensor(region)) for region in regions], dim=1) * 2.0 - 1.0
    output[:, 1, :6] = -1.0
    metric = seg.Dice(regions=regions)
    metric.update(output, truth)
    found = metric.of([metric.packed()])
    assert (found["0"], found["2"]) == (1.0, 1.0)
    inside = torch.isin(truth, torch.tensor([2, 3]))
    both, made = inside[:, 6:].flatten(1).sum(1), inside.flatten(1).sum(1)
    assert found["1"] == pytest.approx(float((2 * both / (both + made)).mean()))
    distances = seg.HD95(regions=regions)
    distances.update(output, truth)
    assert distances.of([distances.packed()])["0"] == 0.0


def test_volumes_are_in_millilitres() -> None:
    truth, predicted = torch.zeros(1, 10, 10, 10, dtype=torch.long), torch.zeros(1, 10, 10, 10, dtype=torch.long)
    truth[:, :5, :4, :5], predicted[:, :5, :4] = 1, 1
    found = value(seg.Volume(), (predicted, truth), spacing=[(2.0, 2.0, 5.0)], classes=2)
    assert found == pytest.approx({"": 2.0, "bias": 2.0})


def test_skeletons_are_those_of_the_loss() -> None:
    from healsg.losses.segmentation import soft_skeleton

    for shape in SHAPES:
        mask = blobs(*shape, seed=8)[0] == 1
        soft = soft_skeleton(mask[None, None].float(), 12)[0, 0] > 0
        assert np.array_equal(seg.skeleton(mask.numpy()), soft.numpy())
    whole = np.ones((5, 5), bool)
    assert seg.centreline_dice(whole, whole) == 1.0


# --- over batches and processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Dice", "Volume", "HD95", "CentrelineDice", "Cases"])
def test_any_split_into_batches_and_processes_gives_the_same_bits(name: str) -> None:
    predicted, truth = blobs(7, 14, 11, seed=9), blobs(7, 14, 11, seed=10)
    spacing = [(1.0 + n, 0.5) for n in range(7)]
    whole = value(getattr(seg, name)(), (predicted, truth), spacing=spacing)
    parts = []
    for start, stop in pairwise((0, 2, 3, 7)):
        metric = getattr(seg, name)()
        for n in range(start, stop):
            metric.update(as_scores(predicted[n : n + 1]), truth[n : n + 1], spacing[n : n + 1])
        parts.append(metric.packed())
    assert getattr(seg, name)().of([parts[2], parts[0], parts[1]]) == whole
    assert math.isfinite(whole[""])


def test_cases_of_unlike_sizes() -> None:
    metric = seg.Dice()
    for side in (8, 13):
        truth = blobs(1, side, side + 1, seed=side)
        metric.update(as_scores(truth), truth)
    assert metric.of([metric.packed()])[""] == 1.0


def test_an_output_that_is_no_number_makes_no_number() -> None:
    truth = blobs(2, 8, 8, seed=0)
    output = as_scores(truth)
    output[1, 0, 0, 0] = math.nan
    metric = seg.Dice()
    metric.update(output, truth)
    assert math.isnan(metric.of([metric.packed()])[""])


def test_counting_reads_nothing_from_the_device() -> None:
    output = torch.zeros(2, 3, 6, 6, device="meta")
    rows = seg.Dice().rows(output, torch.zeros(2, 6, 6, dtype=torch.long, device="meta"))
    assert rows is not None
    assert rows[0].shape == (2, 3, 4)
