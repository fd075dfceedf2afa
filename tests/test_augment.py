"""Augmentations by name: each is what it says, and a pure function of the sample and its own draw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import functional as reference

from healsg import TaskTrainer
from healsg.errors import ConfigError
from healsg.seeding import Draw
from healsg.transforms import affine, colour, foreign, randaugment
from healsg.transforms.image import ImageTransform, random_shift
from healsg.transforms.numbers import bell, uniform
from healsg.transforms.views import ImageViews
from test_transforms import normalise

POLICIES = ["randaugment", "trivialaugment", "autoaugment"]
OWN = ["none", "light", "standard", "strong", "view1"]
SHAPES = {"digits": (1, 8, 8), "cifar": (3, 32, 32), "pictures": (3, 64, 48)}


def stored(count: int, shape: tuple[int, ...] = (3, 9, 7)) -> Tensor:
    top = 17 if shape[-1] == 8 else 256
    return torch.randint(0, top, (count, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def unit(count: int, shape: tuple[int, ...] = (3, 9, 7)) -> Tensor:
    return stored(count, shape).float() / (16 if shape[-1] == 8 else 255)


def draw(count: int, key: int = 5) -> Draw:
    return Draw(key, torch.arange(count))


def views(name: str, set_name: str, padding: str = "zero") -> ImageViews:
    channels, *size = SHAPES[set_name]
    chosen = name if not name.startswith("view") else "standard"
    maximum = 16.0 if set_name == "digits" else 255.0
    flip, mean, std = set_name != "digits", [0.4] * channels, [0.25] * channels
    return ImageViews(chosen, flip, 1, mean, std, maximum=maximum, padding=padding, size=min(size))


def transform(name: str, set_name: str, padding: str = "zero"):
    return views(name, set_name, padding).of(name if name.startswith("view") else "input", "train")


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_are_distributed_as_they_say():
    table = uniform(draw(20_000), 4).double()
    assert float((table.mean(0) - 0.5).abs().max()) < 3.9 * (1 / 12 / 20_000) ** 0.5
    assert float((table.T.corrcoef() - torch.eye(4)).abs().max()) < 0.03
    assert 0 <= float(table.min()) < float(table.max()) < 1
    normal = bell(draw(20_000), 4).double().flatten()
    assert abs(float(normal.mean())) < 3.3 * 80_000**-0.5
    assert abs(float(normal.var()) - 1) < 0.02
    for place in (0.5, 1.0, 2.0):
        share = float((normal.abs() < place).double().mean())
        assert abs(share - math.erf(place / 2**0.5)) < 0.02
    assert not torch.equal(uniform(draw(9), 2, which=0), uniform(draw(9), 2, which=2))


def test_numbers_are_each_samples_own():
    whole, chosen = uniform(draw(50), 3), torch.tensor([40, 2, 7])
    assert torch.equal(uniform(Draw(5, chosen), 3), whole[chosen])
    assert torch.equal(uniform(draw(50).part(10, 20), 3), whole[10:20])
    assert torch.equal(bell(draw(50).part(10, 20), 5), bell(draw(50), 5)[10:20])
    assert torch.equal(uniform(Draw(5, chosen.int()), 3), whole[chosen])


# --- geometry --------------------------------------------------------------------------------------------------------


def moved(images: Tensor, **amounts: float) -> Tensor:
    each = {name: torch.full((len(images),), float(amounts.get(name, name == "scale"))) for name in NAMES}
    mirror = torch.full((len(images),), float(amounts.get("flip", 1)))
    return affine.resample(images, affine.affine_matrix(**each, flip=mirror))


NAMES = ("angle", "right", "down", "scale", "shear")


def test_affine_in_cases_that_are_exact():
    images = unit(3, (2, 6, 6))
    torch.testing.assert_close(moved(images), images)
    torch.testing.assert_close(moved(images, angle=math.pi / 2), images.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved(images, flip=-1), images.flip(3))
    expected = torch.zeros_like(images)
    expected[:, :, 1:, 2:] = images[:, :, :-1, :-2]
    torch.testing.assert_close(moved(images, right=2, down=1), expected, atol=1e-5, rtol=0)
    half = moved(images, right=0.5)[:, :, :, 1:]
    torch.testing.assert_close(half, (images[..., 1:] + images[..., :-1]) / 2, atol=1e-5, rtol=0)
    sheared = moved(unit(1, (1, 3, 9)), shear=1)
    torch.testing.assert_close(sheared[0, 0, 2, 1:], unit(1, (1, 3, 9))[0, 0, 2, :-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(sheared[0, 0, 0, :-1], unit(1, (1, 3, 9))[0, 0, 0, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        moved(images, scale=2)[:, :, 1:5, 1:5].mean(),
        F.interpolate(images[:, :, 1:5, 1:5], scale_factor=2, mode="bilinear", align_corners=False)[
            :, :, 2:6, 2:6
        ].mean(),
        atol=2e-2,
        rtol=0,
    )


def test_affine_as_a_product_of_matrices():
    """Flip, shear, scale, turn, shift, one after the other, through torch's own grid, in float64."""
    u = uniform(draw(12), 6).double() * 2 - 1
    angle, right, down, scale, shear = u[:, 0] * 3, u[:, 1] * 2, u[:, 2] * 2, 1 + u[:, 3] / 2, u[:, 4]
    mirror = u[:, 5].sign()
    images, (height, width) = unit(12, (3, 9, 7)).double(), (9, 7)
    inverse = []
    for i in range(12):
        cos, sin = math.cos(angle[i]), math.sin(angle[i])
        parts = [
            [[1, 0, right[i]], [0, 1, down[i]], [0, 0, 1]],
            [[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]],
            [[scale[i], 0, 0], [0, scale[i], 0], [0, 0, 1]],
            [[1, shear[i], 0], [0, 1, 0], [0, 0, 1]],
            [[mirror[i], 0, 0], [0, 1, 0], [0, 0, 1]],
        ]
        inverse.append(
            torch.linalg.inv(torch.linalg.multi_dot([torch.tensor(part, dtype=torch.float64) for part in parts]))
        )
    to_pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0], dtype=torch.float64))
    theta = (torch.linalg.inv(to_pixels) @ torch.stack(inverse) @ to_pixels)[:, :2]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, align_corners=False)
    ours = affine.affine_matrix(
        angle.float(), right.float(), down.float(), scale.float(), shear.float(), mirror.float()
    )
    torch.testing.assert_close(affine.resample(images.float(), ours).double(), expected, atol=2e-5, rtol=0)


def test_random_affine_stays_within_what_is_asked():
    dot = torch.zeros(1, 1, 21, 21)
    dot[0, 0, 10, 10] = 1.0
    images = dot.expand(4000, -1, -1, -1)
    result = affine.random_affine(images, draw(4000), shift=2.5, rotation=180, scale=0.2, shear=0.2)
    place = torch.arange(21.0) - 10
    weight = result.sum((1, 2, 3))
    across, down = ((result * axis).sum((1, 2, 3)) / weight for axis in (place, place.unsqueeze(1)))
    assert float(across.abs().max()) < 3
    for one in (across, down):
        assert abs(float(one.mean())) < 0.1
        assert abs(float(one.var()) - 2.5**2 / 3) < 0.15
    assert abs(float(torch.stack([across, down]).corrcoef()[0, 1])) < 0.06
    flips = affine.random_affine(unit(1).expand(2000, -1, -1, -1), draw(2000), flip=True)
    mirrored = (flips - unit(1).flip(3)).abs().amax((1, 2, 3)) < 1e-4
    upright = (flips - unit(1)).abs().amax((1, 2, 3)) < 1e-4
    assert bool((mirrored ^ upright).all())
    assert abs(int(mirrored.sum()) - 1000) < 100


def test_random_resized_crop_shows_windows_of_the_size_asked_for():
    """A picture that tells each pixel's place tells the window."""
    place = torch.stack(
        [(torch.arange(32.0) + 0.5).expand(32, 32), (torch.arange(32.0) + 0.5).unsqueeze(1).expand(32, 32)]
    )
    images = place.expand(3000, -1, -1, -1)
    shown = affine.random_resized_crop(images, draw(3000), smallest=0.2, ratio=1.5)
    inner = shown[:, :, 4:-4, 4:-4]
    across, down = inner[:, 0, 0, -1] - inner[:, 0, 0, 0], inner[:, 1, -1, 0] - inner[:, 1, 0, 0]
    area, aspect = across * down / 23**2, across / down
    assert 0.17 < float(area.min()) < 0.25
    assert float(area.max()) <= 1.001
    assert abs(float(area.mean()) - 0.57) < 0.05
    assert 1 / 1.52 < float(aspect.min()) < 0.75
    assert 1.3 < float(aspect.max()) < 1.52
    assert float(inner.min()) >= 0
    assert float(inner.max()) <= 32


# --- colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_as_torchvision(factor, channels):
    images, each = unit(4, (channels, 9, 7)), torch.full((4,), factor)
    pairs = [(colour.brightness, reference.adjust_brightness), (colour.contrast, reference.adjust_contrast)]
    pairs += [(colour.saturation, reference.adjust_saturation)] * (channels == 3)
    for ours, theirs in pairs:
        expected = torch.stack([theirs(image, factor) for image in images])
        torch.testing.assert_close(ours(images, each), expected, atol=2e-3, rtol=0)
    assert channels == 3 or torch.equal(colour.saturation(images, each), images)


def test_hue():
    images = unit(4) * 0.5 + 0.25
    third = colour.hue(images, torch.full((4,), 1 / 3))
    torch.testing.assert_close(third, images.roll(1, dims=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(colour.hue(images, torch.ones(4)), images, atol=1e-5, rtol=0)
    slight = colour.hue(images, torch.full((4,), 0.05))
    torch.testing.assert_close(slight.mean(1), images.mean(1), atol=2e-2, rtol=0)
    bare = colour.grey(images).expand(-1, 3, -1, -1)
    torch.testing.assert_close(colour.hue(bare, torch.full((4,), 0.4)), bare, atol=1e-5, rtol=0)
    red = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1)
    assert float(colour.hue(red, torch.tensor([0.1]))[0, 1]) > float(colour.hue(red, torch.tensor([0.1]))[0, 2])


def test_blur_as_torchvision():
    images = unit(3, (3, 20, 17))
    deviation = torch.tensor([0.3, 1.0, 2.0])
    expected = [reference.gaussian_blur(image, 9, float(one)) for image, one in zip(images, deviation, strict=True)]
    torch.testing.assert_close(colour.blur(images, deviation, 4), torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(colour.blur(images, torch.full((3,), 0.01), 4), images)


def test_cutout_covers_a_square():
    images = torch.ones(3, 2, 10, 12)
    result = colour.cutout(images, torch.tensor([0.5, 0.0, 1.0]), torch.tensor([0.5, 0.0, 0.5]), 4.0, 0.25)
    assert (result == 0.25).sum((1, 2, 3)).tolist() == [2 * 16, 2 * 4, 2 * 8]
    assert bool((result[0, :, 3:7, 4:8] == 0.25).all())


def test_noise_has_its_deviation():
    images = torch.full((200, 1, 8, 8), 0.5)
    noise = bell(draw(200), 64)
    result = colour.add_noise(images, noise, torch.linspace(0, 0.1, 200).view(-1, 1, 1, 1)) - 0.5
    assert float(result[0].abs().max()) == 0
    torch.testing.assert_close(result[100:].std((1, 2, 3)), torch.linspace(0, 0.1, 200)[100:], atol=0.03, rtol=0)


# --- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_name", SHAPES)
@pytest.mark.parametrize("name", [*OWN, *POLICIES])
def test_a_view_is_pure(name, set_name):
    """Neighbours in the batch, its size and the epoch's other samples change nothing; another draw changes all."""
    count = 23 if name in OWN else 7
    made, images = transform(name, set_name, "reflect"), stored(count, SHAPES[set_name])
    kept, batch = images.clone(), {"input": images, "target": torch.arange(count), "index": torch.arange(count)}
    whole = made(batch, draw(count))
    assert torch.equal(images, kept)
    assert torch.equal(whole["target"], batch["target"])
    assert (whole["input"].dtype, whole["input"].shape) == (torch.float32, images.shape)
    chosen = torch.tensor([5, 0, 3])
    assert torch.equal(made({"input": images[chosen]}, Draw(5, chosen))["input"], whole["input"][chosen])
    assert torch.equal(made({"input": images[4:5]}, draw(count).part(4, 5))["input"], whole["input"][4:5])
    other = made(batch, draw(count, key=6))["input"]
    assert torch.equal(other, whole["input"]) == (name == "none")
    still = made(batch, None)["input"]
    maximum = 16.0 if set_name == "digits" else 255.0
    channels = SHAPES[set_name][0]
    torch.testing.assert_close(still, normalise(images, [0.4] * channels, [0.25] * channels, maximum))


@pytest.mark.parametrize("set_name", SHAPES)
def test_views_are_those_of_the_names(set_name):
    made, images = views("light", set_name), stored(6, SHAPES[set_name])

    def seen(view: str, split: str = "train", key: int = 5) -> Tensor:
        return made.of(view, split)({"input": images}, draw(6, key))["input"]

    assert torch.equal(seen("weak"), seen("input"))
    assert torch.equal(seen("strong"), transform("strong", set_name)({"input": images}, draw(6))["input"])
    assert torch.equal(seen("view1"), seen("view2")), "what tells them apart is the loader's draw"
    assert torch.equal(seen("view1"), seen("strong")) == (set_name == "digits")
    assert torch.equal(seen("input", "val"), transform("none", set_name)({"input": images}, draw(6))["input"])
    for view in ("weak", "strong", "view1", "input"):
        assert made.of(view, "val").mean == made.of(view, "train").mean


def test_standard_is_todays_bit_for_bit():
    usual = ImageTransform(True, 2, [0.4] * 3, [0.2] * 3, padding="reflect", size=32)
    made = ImageViews("standard", True, 2, [0.4] * 3, [0.2] * 3, padding="reflect", size=32).of("input", "train")
    images = stored(9, SHAPES["cifar"])
    assert type(made) is ImageTransform
    assert torch.equal(made({"input": images}, draw(9))["input"], usual({"input": images}, draw(9))["input"])


def test_light_digits_move_by_less_than_a_pixel_and_stay_what_they_are():
    images = stored(64, SHAPES["digits"])
    plain = transform("none", "digits")({"input": images}, None)["input"]
    light, strong = (transform(name, "digits")({"input": images}, draw(64))["input"] for name in ("light", "strong"))
    near, far = ((made - plain).abs().mean() for made in (light, strong))
    assert 0.1 < float(near) < float(far)


def test_strong_pictures_lose_a_square_of_up_to_half_their_side():
    grey = torch.full((200, 3, 32, 32), 200, dtype=torch.uint8)
    made = ImageViews("strong", False, 4, [0.2, 0.3, 0.4], [0.5] * 3, padding="reflect", size=32).of("input", "train")
    covered = (made({"input": grey}, draw(200))["input"].abs().amax(1) < 1e-6).float().mean((1, 2))
    assert 0.2 < float(covered.max()) <= 0.25
    assert 0.05 < float(covered.mean()) < 1 / 12, "the mean of a quarter of u**2, less what lies outside"


def test_views_with_settings_of_a_method():
    usual = transform("view1", "pictures")
    images = {"input": stored(60, SHAPES["pictures"])}
    assert torch.equal(usual.adjusted()(images, draw(60))["input"], usual(images, draw(60))["input"])
    inverted = [usual.adjusted(solarise=chance)(images, draw(60))["input"] for chance in (0.0, 0.25, 1.0)]
    changed = [(view != inverted[0]).flatten(1).any(1).float().mean() for view in inverted]
    assert changed[0] == 0
    assert 0.1 < changed[1] < 0.45
    assert changed[2] > 0.95
    whole = usual.adjusted(smallest_crop=1.0).move(images["input"].float(), draw(60))
    assert (whole - images["input"].float()).abs().mean() < (
        usual.move(images["input"].float(), draw(60)) - images["input"].float()
    ).abs().mean()


@pytest.mark.parametrize("method", ["dino", "vicreg"])
def test_settings_of_views_that_have_no_colours_are_refused(method):
    options = ["data=digits", "model=mlp", f"method={method}", "method.solarise=[0,0.2]", "quiet=true"]
    with pytest.raises(ConfigError, match="solarise are of crops and colours, which these samples' view2 has not"):
        TaskTrainer.compose(*options).train()


def smooth_levels() -> Tensor:
    """(4, 3, 32, 32) uint8."""
    rough = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(rough, size=(32, 32), mode="bilinear") * 255).round().to(torch.uint8)


def sheared(terms: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.transform(picture.size, Image.Transform.AFFINE, terms, Image.Resampling.BILINEAR)


RANDAUGMENT = {
    "autocontrast": (0.0, ImageOps.autocontrast),
    "equalize": (0.0, ImageOps.equalize),
    "posterize": (5.7, lambda picture: ImageOps.posterize(picture, 5)),
    "solarize": (100 / 255, lambda picture: ImageOps.solarize(picture, 100)),
    "brightness": (0.3, lambda picture: ImageEnhance.Brightness(picture).enhance(0.3)),
    "contrast": (0.3, lambda picture: ImageEnhance.Contrast(picture).enhance(0.3)),
    "saturation": (0.3, lambda picture: ImageEnhance.Color(picture).enhance(0.3)),
    "sharpness": (0.3, lambda picture: ImageEnhance.Sharpness(picture).enhance(0.3)),
    "rotate": (20.0, lambda picture: picture.rotate(20, Image.Resampling.BILINEAR)),
    "shear_x": (0.3, sheared((1, 0.3, -0.3 * 16, 0, 1, 0))),
    "shear_y": (0.3, sheared((1, 0, 0, 0.3, 1, -0.3 * 16))),
    "translate_x": (0.25, sheared((1, 0, 8, 0, 1, 0))),
    "translate_y": (-0.25, sheared((1, 0, 0, 0, 1, -8))),
}


@pytest.mark.parametrize("name", RANDAUGMENT)
def test_operations_of_randaugment_are_pils_to_its_rounding(name):
    amount, pils = RANDAUGMENT[name]
    levels = smooth_levels()
    made = getattr(randaugment, name)(levels.float() / 255, torch.full((4,), amount)) * 255
    expected = [torch.from_numpy(np.array(pils(Image.fromarray(one.permute(1, 2, 0).numpy())))) for one in levels]
    inside = slice(9, 23)  # near the border, pictures that are moved show black
    difference = made - torch.stack(expected).permute(0, 3, 1, 2)
    assert float(difference[:, :, inside, inside].abs().max()) < 1.5


def test_equalize_takes_levels_from_outside():
    odd = torch.tensor([-2.0, 0.5, 3.0, float("nan")]).repeat(1, 1, 8, 2)
    assert randaugment.equalize(odd, torch.zeros(1)).shape == odd.shape


def test_randaugment_draws_all_operations_alike_often(monkeypatch):
    table = randaugment._TABLE
    seen = Counter()

    def watched(number, operation):
        def applied(images, amount):
            seen[number] += len(images)
            assert bool((amount >= table[number][1]).all() and (amount <= table[number][2]).all())
            return operation(images, amount)

        return applied

    watching = [(one and watched(number, one), low, high) for number, (one, low, high) in enumerate(table)]
    monkeypatch.setattr(randaugment, "_TABLE", tuple(watching))
    transform("strong", "cifar")({"input": stored(2800, SHAPES["cifar"])}, draw(2800))
    assert sorted(seen) == list(range(1, 14))
    assert all(abs(count - 600) < 120 for count in seen.values()), "three draws of 14 operations, five deviations"


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_torchvisions_and_leave_the_generator_alone(name):
    images, state = stored(5, SHAPES["cifar"]), torch.get_rng_state()
    changed = foreign.apply_policy(name, images, draw(5), which=3)
    assert torch.equal(torch.get_rng_state(), state)
    policy = foreign.policy_of(name, True)
    for i in range(5):
        torch.manual_seed(int(draw(5).bits(3)[i]))
        assert torch.equal(policy(images[i]), changed[i])
    torch.set_rng_state(state)
    assert len({changed[i].float().sum().item() for i in range(5)}) == 5


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("set_name", SHAPES)
def test_no_value_is_read_on_the_host(name, set_name):
    """Meta tensors have no values: what reads one raises."""
    images = torch.empty(4, *SHAPES[set_name], dtype=torch.uint8, device="meta")
    drawn = Draw(1, torch.arange(4)).to(torch.device("meta"))
    assert transform(name, set_name)({"input": images}, drawn)["input"].shape == images.shape


def test_refusals():
    with pytest.raises(ConfigError, match=r"data\.augment: 'weak' is not one of none, light, standard"):
        ImageViews("weak", False, 1, [0.5], [0.5], size=8)
    with pytest.raises(ConfigError, match=r"data\.shift: 8 pixels"):
        ImageViews("none", False, 8, [0.5], [0.5], size=8)
    with pytest.raises(ConfigError, match="no 'view3' view of these images"):
        ImageViews("none", False, 1, [0.5], [0.5], size=8).of("view3", "train")


def test_a_shift_of_nothing_changes_nothing():
    images = unit(3)
    assert torch.equal(random_shift(images, draw(3), 0), images)
