from __future__ import annotations

import pytest
import torch

from healsg.data.views import has_stages
from healsg.errors import ConfigError
from healsg.seeding import Draw
from healsg.transforms import image
from healsg.transforms.image import ImageTransform, pad, random_flip, random_shift
from healsg.transforms.volume import VolumeTransform

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(count: int, height: int = 9, width: int = 7, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).to(dtype)


def draw(count: int, key: int = 5) -> Draw:
    return Draw(key, torch.arange(count))


def shifted(image: torch.Tensor, down: int, right: int, padding: str) -> torch.Tensor:
    """One image, pixel by pixel."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            row, column = y + down, x + right
            if padding == "reflect":
                row, column = abs(row), abs(column)
                row, column = min(row, 2 * (height - 1) - row), min(column, 2 * (width - 1) - column)
            if 0 <= row < height and 0 <= column < width:
                result[:, y, x] = image[:, row, column]
    return result


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shift_is_each_samples_own_window(padding, dtype):
    stored, drawn = images(12, dtype=dtype), draw(12)
    result = random_shift(stored, drawn, 3, which=4, padding=padding)
    down, right = drawn.integers(4, -3, 3).tolist(), drawn.integers(5, -3, 3).tolist()
    expected = torch.stack([shifted(stored[i], down[i], right[i], padding) for i in range(12)])
    assert torch.equal(result, expected)
    assert result.dtype == dtype
    assert len(set(zip(down, right, strict=True))) > 6


def test_flip_is_each_samples_own():
    stored, drawn = images(40), draw(40)
    result = random_flip(stored, drawn, which=2)
    flipped = drawn.integers(2, 0, 1).bool().tolist()
    expected = torch.stack([stored[i].flip(2) if flipped[i] else stored[i] for i in range(40)])
    assert torch.equal(result, expected)
    assert 8 < sum(flipped) < 32


def test_pad_reflect_as_torch():
    stored = images(2, dtype=torch.float32)
    expected = torch.nn.functional.pad(stored, (2, 2, 2, 2), mode="reflect")
    assert torch.equal(pad(stored, 2, "reflect"), expected)


def test_shifts_and_flips_are_uniform():
    count = 18_000
    place = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    place[0, 0, 2, 2] = 1
    where = random_shift(place.expand(count, -1, -1, -1), draw(count), 1).flatten(1).argmax(1)
    counts = where.bincount(minlength=25)
    nine = counts.view(5, 5)[1:4, 1:4].flatten()
    assert int(nine.sum()) == count
    chi_square = float(((nine - count / 9) ** 2 / (count / 9)).sum())
    assert chi_square < 26.1  # 8 degrees of freedom, one in a thousand
    pair = torch.tensor([0, 1], dtype=torch.uint8).expand(count, 1, 1, 2)
    flips = int(random_flip(pair, draw(count))[..., 0].sum())
    assert abs(flips - count / 2) < 3.3 * (count / 4) ** 0.5


def normalise(images, mean, std, maximum):
    """The formula, as it is usually written."""
    means, stds = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (images.float() / maximum - means) / stds


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise(dtype):
    stored = images(5, dtype=dtype)
    kept = stored.clone()
    result = ImageTransform(False, 0, MEAN, STD)({"input": stored}, None)["input"]
    torch.testing.assert_close(result, normalise(stored, MEAN, STD, 255.0))
    assert result.dtype == torch.float32
    assert torch.equal(stored, kept)


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_transform_depends_on_no_neighbour_and_keeps_its_input(padding, dtype):
    transform = ImageTransform(True, 2, MEAN, STD, padding=padding)
    stored = images(16, dtype=dtype)
    kept = stored.clone()
    batch = {"input": stored, "target": torch.arange(16), "index": torch.arange(16)}
    whole = transform(batch, draw(16))
    assert batch["input"] is stored
    assert torch.equal(stored, kept)
    assert torch.equal(whole["target"], batch["target"])
    chosen = torch.tensor([11, 3, 7])
    alone = transform({"input": stored[chosen]}, Draw(5, chosen))
    assert torch.equal(alone["input"], whole["input"][chosen])
    part = transform({"input": stored[4:9]}, draw(16).part(4, 9))
    assert torch.equal(part["input"], whole["input"][4:9])
    assert not torch.equal(transform(batch, draw(16, key=6))["input"], whole["input"])


def test_transform_is_its_parts():
    transform, stored, drawn = ImageTransform(True, 2, MEAN, STD, maximum=16.0), images(8), draw(8)
    moved = random_shift(random_flip(stored, drawn, which=0), drawn, 2, which=1)
    result = transform({"input": stored}, drawn)["input"]
    torch.testing.assert_close(result, normalise(moved, MEAN, STD, 16.0))


def test_without_a_draw_nothing_is_random():
    stored = images(8)
    result = ImageTransform(True, 2, MEAN, STD)({"input": stored}, None)["input"]
    torch.testing.assert_close(result, normalise(stored, MEAN, STD, 255.0))


def test_neither_flip_nor_shift():
    stored = images(4, dtype=torch.float32)
    kept = stored.clone()
    result = ImageTransform(False, 0, MEAN, STD)({"input": stored}, draw(4))["input"]
    torch.testing.assert_close(result, normalise(stored, MEAN, STD, 255.0))
    assert torch.equal(stored, kept)
    assert torch.equal(random_shift(stored, draw(4), 0), stored)


def test_no_value_is_read_on_the_host():
    """Meta tensors have no values: what reads one raises."""
    stored = torch.empty(4, 3, 8, 8, dtype=torch.uint8, device="meta")
    drawn = Draw(1, torch.empty(4, dtype=torch.int64, device="meta"))
    for padding in ("zero", "reflect"):
        result = ImageTransform(True, 2, MEAN, STD, padding=padding)({"input": stored}, drawn)["input"]
        assert result.shape == stored.shape


def test_refusals():
    with pytest.raises(ConfigError, match=r"data\.shift: 8 pixels"):
        ImageTransform(True, 8, MEAN, STD, size=8)


def test_large_images_are_changed_one_by_one_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = images(5, 80, 72)
    transform, found = ImageTransform(True, 2, MEAN, STD), []
    for least in (1, 1 << 30):
        monkeypatch.setattr(image, "LARGE", least)
        found += [(random_flip(stored, draw(5)), transform({"input": stored}, draw(5))["input"])]
    assert all(map(torch.equal, *found))


def test_a_transform_has_the_stages_of_the_class_that_calls_them() -> None:
    class Own(ImageTransform):
        def __call__(self, batch, draw):
            return batch

    usual = ImageTransform(True, 2, MEAN, STD)
    assert has_stages(usual)
    assert has_stages(VolumeTransform(True, 2, MEAN, STD))
    assert not any(map(has_stages, [Own(True, 2, MEAN, STD), None, len, torch.nn.Identity()]))
    raw = {"input": images(4)}
    staged = usual.before_normalised(raw, draw(4))["input"]
    assert staged.dtype == raw["input"].dtype
    assert torch.equal(usual.normalised(staged), usual(raw, draw(4))["input"])
