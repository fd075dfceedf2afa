"""Losses of dense targets: their formulas, MONAI's numbers, and that a batch may be taken apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.losses import segmentation as dense
from healsg.training.denominator import counts_alike, loss_over, mean_over_samples

IGNORE = 255


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def labels(*shape: int, classes: int = 3, seed: int = 0, ignored: bool = False) -> Tensor:
    drawn = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.masked_fill(scores(*shape, seed=seed + 1) > 2, IGNORE) if ignored else drawn


SHAPES = [(3, 7, 9), (2, 5, 6, 7)]
"""Of targets: (N, ...) in 2D and 3D, with odd sides."""


def pair(shape: tuple[int, ...], classes: int = 3, ignored: bool = False) -> tuple[Tensor, Tensor]:
    return scores(shape[0], classes, *shape[1:]), labels(*shape, classes=classes, ignored=ignored)


# --- MONAI's numbers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def monai() -> Any:
    return pytest.importorskip("monai.losses", reason="MONAI is not installed: pip install 'healsg[seg]'")


def same(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(float(found), float(wanted), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_dice_and_tversky_are_monais(shape: tuple[int, ...], background: bool, batch: bool, monai: Any) -> None:
    for ignored in (False, True):
        output, target = pair(shape, ignored=ignored)
        usual = {"include_background": background, "to_onehot_y": True, "softmax": True, "batch": batch}
        usual |= {"ignore_index": IGNORE if ignored else None}
        ours = {"batch": batch, "background": background, "ignore": IGNORE if ignored else None}
        weights = [0.5, 2.0, 1.0]
        same(dense.Dice(**ours)(output, target), monai.DiceLoss(**usual)(output, target[:, None]))
        weighted = monai.DiceLoss(**usual, weight=weights if background else weights[1:])
        same(dense.Dice(**ours, class_weights=weights)(output, target), weighted(output, target[:, None]))
        wanted = monai.TverskyLoss(**usual, alpha=0.3, beta=0.7)(output, target[:, None])
        same(dense.Tversky(**ours)(output, target), wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_and_cross_entropy_are_monais(shape: tuple[int, ...], monai: Any) -> None:
    output, target = pair(shape)
    wanted = monai.DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(output, target[:, None])
    same(dense.DiceCrossEntropy()(output, target), wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_regions_are_monais_sigmoid(shape: tuple[int, ...], monai: Any) -> None:
    output, target = pair(shape, classes=4)
    regions = [[1, 2, 3], [2, 3], [3]]
    truth = torch.stack([torch.isin(target, torch.tensor(region)) for region in regions], dim=1).double()
    output = output[:, :3]
    same(dense.Dice(regions=regions)(output, target), monai.DiceLoss(sigmoid=True)(output, truth))
    same(dense.CrossEntropy(regions=regions)(output, target), F.binary_cross_entropy_with_logits(output, truth))
    same(dense.Focal(regions=regions)(output, target), monai.FocalLoss(gamma=2.0)(output, truth))


@pytest.mark.parametrize("shape", SHAPES)
def test_focal_is_monais_but_for_the_number_of_classes(shape: tuple[int, ...], monai: Any) -> None:
    output, target = pair(shape)
    wanted = monai.FocalLoss(gamma=1.5, use_softmax=True, to_onehot_y=True)(output, target[:, None])
    same(dense.Focal(gamma=1.5)(output, target), 3 * wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_centreline_dice_is_monais(shape: tuple[int, ...], monai: Any) -> None:
    output, target = pair(shape)
    usual = {"include_background": False, "to_onehot_y": True, "softmax": True, "iter_": 2}
    same(dense.CentrelineDice(1.0, 2)(output, target), monai.SoftclDiceLoss(**usual)(output, target[:, None]))
    both = monai.SoftDiceclDiceLoss(**usual, alpha=0.3)(output, target[:, None])
    same(dense.CentrelineDice(0.3, 2)(output, target), both)


# --- what needs nobody else ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_cross_entropy_is_torchs(shape: tuple[int, ...], weights: list[float] | None) -> None:
    output, target = pair(shape, ignored=True)
    given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    wanted = F.cross_entropy(output, target, given, ignore_index=IGNORE)
    same(dense.CrossEntropy(IGNORE, class_weights=weights)(output, target), wanted, 1e-12)
    same(dense.Focal(0.0, ignore=IGNORE)(output, target), F.cross_entropy(output, target, ignore_index=IGNORE), 1e-12)


def test_a_perfect_prediction_has_no_loss_and_dice_is_the_share_of_overlap() -> None:
    target = labels(2, 6, 6)
    perfect = F.one_hot(target, 3).movedim(-1, 1).double() * 60
    for criterion in (dense.DiceCrossEntropy(), dense.Tversky(), dense.Focal(), dense.TopK(), dense.CentrelineDice()):
        assert float(criterion(perfect, target)) == pytest.approx(0, abs=1e-4)
    wrong = F.one_hot(target.flip(1), 3).movedim(-1, 1).double() * 60
    shares = []
    for sample in range(2):
        for label in (1, 2):
            made, true = target[sample].flip(0) == label, target[sample] == label
            shares.append(1 - 2 * float((made & true).sum()) / float(made.sum() + true.sum()))
    assert float(dense.Dice()(wrong, target)) == pytest.approx(np.mean(shares), abs=1e-5)


def test_the_hardest_pixels_are_those_of_each_sample_that_count() -> None:
    output, target = pair((3, 8, 10), ignored=True)
    losses = F.cross_entropy(output, target, ignore_index=IGNORE, reduction="none")
    wanted = []
    for sample in range(3):
        valid = losses[sample][target[sample] != IGNORE].sort(descending=True).values
        wanted.append(valid[: int(len(valid) * 0.25)].mean())
    same(dense.TopK(0.25, ignore=IGNORE)(output, target), torch.stack(wanted).mean(), 1e-12)


def test_the_skeleton_of_a_bar_is_its_middle() -> None:
    bar = torch.zeros(1, 1, 11, 15)
    bar[:, :, 3:8, 2:13] = 1
    skeleton = dense.soft_skeleton(bar, 3)[0, 0]
    assert skeleton[5, 4:11].min() == 1
    assert skeleton[[3, 4, 6, 7], 5:10].max() == 0
    broken = bar.clone()
    broken[..., 7] = 0
    whole, cut = (float(dense.centreline_dice(made, bar, 3)) for made in (bar, broken))
    assert whole == pytest.approx(0, abs=1e-4)
    assert cut > 0.02


ALL: dict[str, Any] = {
    "ce": lambda **common: dense.CrossEntropy(**common),
    "weighted": lambda **common: dense.CrossEntropy(class_weights=[0.5, 2.0, 1.0], **common),
    "focal": lambda **common: dense.Focal(**common),
    "topk": lambda **common: dense.TopK(**common),
    "dice": lambda **common: dense.Dice(**common),
    "tversky": lambda **common: dense.Tversky(**common),
    "cldice": lambda **common: dense.CentrelineDice(**common),
    "both": lambda **common: dense.DiceCrossEntropy(class_weights=[0.5, 2.0, 1.0], **common),
    "deep": lambda **common: dense.DeepSupervision(dense.DiceCrossEntropy(**common)),
}


@pytest.mark.parametrize("name", ALL)
def test_a_batch_may_be_taken_apart(name: str) -> None:
    """The terms of parts, weighed by what each says it is a mean over, are the loss of the whole, ignored pixels
    too."""
    criterion = ALL[name](ignore=IGNORE)
    output, target = pair((5, 6, 8), ignored=True)
    target[4] = IGNORE
    whole, sums = loss_over(criterion, output, target), 0.0
    assert mean_over_samples(criterion)
    same(whole.value, criterion(output, target), 1e-12)
    parts = [loss_over(criterion, output[part], target[part]) for part in (slice(0, 2), slice(2, 5))]
    for place in range(len(whole.terms)):
        terms = [part.terms[place] for part in parts]
        counts = [rows if term.over is None else term.over for rows, term in zip((2, 3), terms, strict=True)]
        sums += sum(term.value * count for term, count in zip(terms, counts, strict=True)) / sum(counts)
    same(torch.as_tensor(sums), criterion(output, target), 1e-12)


@pytest.mark.parametrize("name", ALL)
def test_ignored_pixels_weigh_nothing(name: str) -> None:
    criterion = ALL[name](ignore=IGNORE)
    output, target = pair((2, 6, 8), ignored=True)
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(criterion(output, target), output)
    assert gradient.abs().sum() > 0
    if name != "cldice":  # an ignored pixel is background there, and a neighbour of others
        assert gradient.movedim(1, -1)[target == IGNORE].abs().max() == 0
    nothing = criterion(output, torch.full_like(target, IGNORE))
    (gradient,) = torch.autograd.grad(nothing, output)
    assert torch.isfinite(nothing)
    assert not gradient.any()
    soft = dense.dense_target(target, output, IGNORE)[0]
    same(criterion(output, soft).detach(), criterion(output, target).detach(), 1e-12)


def test_dice_over_the_batch_is_no_mean_over_samples() -> None:
    assert not mean_over_samples(dense.Dice(batch=True))
    assert not mean_over_samples(dense.DeepSupervision(dense.DiceCrossEntropy(batch=True)))
    assert not counts_alike(dense.DiceCrossEntropy(), None)
    assert counts_alike(dense.Dice(), None)


def test_deep_supervision_weighs_outputs_by_half_and_keeps_labels_whole() -> None:
    output, target = pair((2, 8, 12))
    coarse = scores(2, 3, 4, 6, seed=5)
    criterion = dense.CrossEntropy()
    wanted = (criterion(output, target) + 0.5 * criterion(coarse, dense.at_size(target, coarse))) / 1.5
    same(dense.DeepSupervision(criterion)([output, coarse], target), wanted, 1e-12)
    same(dense.DeepSupervision(criterion)(output, target), criterion(output, target), 1e-12)
    small = scores(2, 3, 3, 5)
    nearest = F.interpolate(target[:, None].double(), (3, 5), mode="nearest-exact")[:, 0]
    assert torch.equal(dense.at_size(target, small).double(), nearest)
    large = torch.full((1, 4, 4), 2**24 + 1)
    assert int(dense.at_size(large, scores(1, 2, 2, 2)).min()) == 2**24 + 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dense.CrossEntropy(class_weights=[0.0, 0.0]), "class_weights"),
        (lambda: dense.Dice(regions=[[1], []]), "regions"),
        (lambda: dense.Dice(regions=[[1]], class_weights=[1.0, 2.0]), "class_weights"),
        (lambda: dense.Combined({"dice": dense.Dice()}, {"ce": 1.0}), "there is no 'ce'"),
        (lambda: dense.Combined({}), "loss"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_no_criterion_reads_a_value() -> None:
    """All run on the meta device, which has none."""
    output, target = torch.zeros(2, 3, 8, 8, device="meta"), torch.zeros(2, 8, 8, device="meta", dtype=torch.long)
    for make in ALL.values():
        criterion: nn.Module = make(ignore=IGNORE).to("meta")
        assert criterion(output, target).shape == ()
        assert loss_over(criterion, output, target).value.shape == ()
