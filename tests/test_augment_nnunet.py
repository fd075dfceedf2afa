"""nnU-Net's augmentation: masks follow images, what is not drawn stays bit for bit, batches do not matter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from healsg import TaskTrainer
from healsg.seeding import Draw, mix
from healsg.transforms import nnunet
from healsg.transforms.image import ImageTransform
from healsg.transforms.nnunet import NnunetTransform, matrices, moved_image, moved_labels, rotation
from healsg.transforms.volume import VolumeTransform

SIDES = [(12, 15), (9, 10, 11)]
COUNT = 40


def transform(axes: int, outside: int = 0, flip: bool = False) -> NnunetTransform:
    kind = ImageTransform if axes == 2 else VolumeTransform
    return NnunetTransform(kind(flip, 0, (0.0, 0.0), (1.0, 1.0), maximum=1.0), outside)


def batch_of(sides: Sequence[int], count: int = COUNT) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"input": torch.randn(count, 2, *sides), "target": torch.randint(0, 4, (count, *sides), dtype=torch.uint8)}


def draw_of(count: int = COUNT, first: int = 0) -> Draw:
    return Draw(mix(0, "test"), torch.arange(first, first + count))


@pytest.mark.parametrize("sides", SIDES)
def test_rows_that_are_not_drawn_are_bit_equal(sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    batch, made = batch_of(sides), transform(len(sides))(batch_of(sides), draw_of())
    moved = [matrix is not None for matrix in matrices(draw_of(), sides)]
    same = [torch.equal(a, b) for a, b in zip(made["target"], batch["target"], strict=True)]
    assert all(equal for equal, one in zip(same, moved, strict=True) if not one)
    assert sum(not equal for equal in same) > sum(moved) // 2, "a scale of nearly 1 may leave a mask as it is"
    assert 0.15 < sum(moved) / COUNT < 0.6, "0.36 is drawn"
    untouched = [torch.equal(a, b) for a, b in zip(made["input"], batch["input"], strict=True)]
    assert any(untouched)
    assert not all(untouched)
    for name in ("NOISY", "BLURRED", "BRIGHTENED", "CONTRASTED", "COARSE", "INVERTED_GAMMA", "GAMMA"):
        monkeypatch.setattr(nnunet, name, 0.0)
    still = transform(len(sides))(batch_of(sides), draw_of())
    same = [torch.equal(a, b) for a, b in zip(still["input"], batch["input"], strict=True)]
    assert same == [not one for one in moved]
    assert batch["input"].equal(batch_of(sides)["input"]), "the batch itself is not changed"


@pytest.mark.parametrize("sides", SIDES)
def test_a_mask_follows_its_image_exactly(sides: tuple[int, ...]) -> None:
    """An image of a label's own pixels is, where it is interpolated from that label alone, that label."""
    torch.manual_seed(0)
    mask = torch.randint(0, 4, sides, dtype=torch.uint8)
    wide = torch.nn.functional.interpolate(mask[None, None].float(), [4 * side for side in sides])[0, 0].byte()
    for matrix in filter(None, matrices(draw_of(), wide.shape)):
        labels = moved_labels(wide, matrix, len(sides), 9)
        hot = torch.stack([wide == label for label in range(4)]).float()
        shares = moved_image(hot, matrix)
        sure = shares.amax(dim=0) > 0.999
        assert sure.float().mean() > 0.1
        assert torch.equal(shares.argmax(dim=0)[sure], labels[sure].long())
        assert (labels[shares.sum(dim=0) == 0] == 9).all(), "what comes from outside"


@pytest.mark.parametrize("sides", SIDES)
def test_whole_turns_and_the_identity_are_exact(sides: tuple[int, ...]) -> None:
    axes = len(sides)
    unit = rotation(axes, (0, 1), 0.0)
    mask = batch_of(sides)["target"][0]
    assert torch.equal(moved_labels(mask, unit, axes, 9), mask)
    torch.testing.assert_close(moved_image(mask[None].float(), unit)[0], mask.float())
    square = mask[:9, :9]
    turned = moved_labels(square, rotation(axes, (0, 1), math.pi / 2), axes, 9)
    assert torch.equal(turned, torch.rot90(square, -1, (0, 1))) or torch.equal(turned, torch.rot90(square, 1, (0, 1)))
    back = moved_labels(mask, rotation(axes, (0, 1), math.pi), axes, 9)
    assert torch.equal(back, mask.flip(0, 1)), "no half pixel is lost"
    moved = moved_image(mask[None].float(), rotation(axes, (0, 1), math.pi))[0]
    torch.testing.assert_close(moved, mask.flip(0, 1).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sides", SIDES)
def test_a_sample_does_not_depend_on_its_batch(sides: tuple[int, ...]) -> None:
    batch, whole = batch_of(sides), transform(len(sides), flip=True)(batch_of(sides), draw_of())
    for row in range(0, COUNT, 5):
        alone = {name: values[row : row + 1] for name, values in batch.items()}
        made = transform(len(sides), flip=True)(alone, draw_of(1, row))
        for name, values in made.items():
            assert torch.equal(values[0], whole[name][row])


def test_thin_volumes_are_turned_within_their_slices() -> None:
    for matrix in filter(None, matrices(draw_of(), (32, 32, 8))):
        assert matrix[2] == [0.0, 0.0, 1.0]
        assert matrix[0][2] == matrix[1][2] == 0.0


def test_without_a_draw_only_the_normalisation_remains() -> None:
    batch = batch_of(SIDES[0], 2)
    made = transform(2)(batch, None)
    assert torch.equal(made["input"], batch["input"])
    assert made["target"] is batch["target"]


def test_intensities_keep_what_they_say() -> None:
    torch.manual_seed(0)
    image = torch.randn(9, 10, 11)
    made = nnunet.powered(image, 1.4)
    torch.testing.assert_close(torch.stack([made.mean(), made.std()]), torch.stack([image.mean(), image.std()]))
    clamped = nnunet.contrasted(image, 1.25)
    assert image.min() <= clamped.min()
    assert clamped.max() <= image.max()
    torch.testing.assert_close(nnunet.blurred(torch.full((5, 6, 7), 2.0), 0.8), torch.full((5, 6, 7), 2.0))
    assert nnunet.coarsened(image, 0.5).shape == image.shape
    limits = [nnunet.factor(drawn, (0.7, 1.5)) for drawn in (0.0, 0.25, 0.5, 0.75)]
    assert limits == pytest.approx([0.7, 0.85, 1.0, 1.25])


@pytest.mark.parametrize("data", ["digits_seg", "shapes3d"])
def test_sets_train_with_it(data: str) -> None:
    drawn = ["data.size=16", "data.train=6", "data.test=2", "data.val_fraction=0.34", "data.batch_size=2"]
    patch = ["data.patch=[8,8,8]"] if data == "shapes3d" else []
    small = ["runner=debug", "runner.steps=3", "quiet=true", "model=unet", "model.width=4", "data.augment=nnunet"]
    assert TaskTrainer.compose(f"data={data}", *drawn, *patch, *small).train()["status"] == "finished"


def test_nothing_on_a_device_is_waited_for() -> None:
    from pretend_device import PretendDevice

    small = ["runner=debug", "runner.steps=3", "quiet=true", "model=unet", "model.width=4", "data.augment=nnunet"]
    drawn = ["data=shapes3d", "data.size=16", "data.train=9", "data.test=2", "data.val_fraction=0.34"]
    device = PretendDevice("cuda")
    device.stay_in("healsg")
    with device:
        TaskTrainer.compose(*drawn, "data.patch=[8,8,8]", *small, "data.in_memory=true").train()
    assert device.launches
    assert [event for event in device.found("mixed", "float64", "sync") if "nnunet" in event] == []
