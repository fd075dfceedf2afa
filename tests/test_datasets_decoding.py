"""Decoding and resizing: level for level what twenty lines of Pillow and NumPy make, whichever the decoder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tests import fake_data

from healsg.data.base import Needs
from healsg.data.sharding import Sharding
from healsg.datasets.imagefolder import ImageFolder, Pictures
from healsg.datasets.images import decoding
from healsg.datasets.images.decoding import choose_decoder, decode
from healsg.datasets.images.jpeg_header import plain_header
from healsg.datasets.images.path_list import PathList
from healsg.datasets.images.resizing import window_box
from healsg.errors import ConfigError, DataError

Pixels = np.ndarray[Any, Any]


def reproduced(path: Path, size: int) -> Pixels:
    """What evaluation makes of a picture, by Pillow and NumPy alone: (size, size, 3) of bytes."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    pixels = np.asarray(picture.convert("RGB"))
    height, width = (size * side // min(pixels.shape[:2]) for side in pixels.shape[:2])
    pixels = along_rows(along_rows(pixels.swapaxes(0, 1), width).swapaxes(0, 1), height)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def along_rows(pixels: Pixels, size: int) -> Pixels:
    """(N, ...) bytes to (size, ...): the mean under a triangle of twice the scale's width, in whole numbers."""
    scale = len(pixels) / size
    support = max(scale, 1.0)
    centres = scale * (np.arange(size) + 0.5)
    places = np.arange(len(pixels)) + 0.5
    weights = np.maximum(0.0, 1 - abs(places - centres[:, None]) / support)
    weights /= weights.sum(axis=1, keepdims=True)
    bits = next(bits for bits in range(22) if int(0.5 + weights.max() * 2 ** (bits + 1)) >= 2**15)
    whole = np.trunc(weights * 2**bits + 0.5).astype(np.int64)
    summed = np.tensordot(whole, pixels.astype(np.int64), 1) + 2 ** (bits - 1)
    return pixels if len(pixels) == size else (summed >> bits).clip(0, 255).astype(np.uint8)


def photograph(width: int, height: int) -> Image.Image:
    """Smooth areas, edges and noise, so that a JPEG of it uses all that the format has."""
    rng = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.fromarray((np.asarray(coarse) + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8))


SIZES = [(500, 400), (257, 331), (33, 17), (7, 9), (1, 1), (24, 24), (300, 31)]


def written(kind: str, size: tuple[int, int], path: Path) -> Path:
    """A picture of a kind such as ``jpg``, ``jpg grey``, ``png RGBA`` or ``jpg turned 6``."""
    picture, (suffix, *how) = photograph(*size), kind.split()
    options: dict[str, Any] = {"quality": 90, "subsampling": 2} if suffix == "jpg" else {}
    if how[:1] == ["turned"]:
        options["exif"] = picture.getexif()
        options["exif"][decoding.ORIENTATION] = int(how[1])
    elif how == ["progressive"]:
        options |= {"progressive": True, "quality": 30, "subsampling": 0}
    elif how == ["RGBA"]:
        picture.putalpha(picture.convert("L"))
    elif how:
        picture = picture.quantize(50) if how[0] == "P" else picture.convert(how[0])
    picture.save(path := path / f"x.{suffix}", **options)
    return path


KINDS = ["jpg", "jpg progressive", "jpg L", "jpg CMYK", *(f"jpg turned {turn}" for turn in range(2, 9))]
KINDS += ["png", "png L", "png P", "png RGBA", "png turned 6", "webp", "bmp"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_gives_the_levels_of_pillow_and_numpy(tmp_path: Path, kind: str) -> None:
    for size in SIZES:
        path = written(kind, size, tmp_path)
        expected = torch.from_numpy(reproduced(path, 24).copy()).permute(2, 0, 1)
        for decoder in ("pil", "torchvision"):
            assert torch.equal(decode(str(path), 24, 3, decoder=decoder), expected), (size, decoder)  # type: ignore[arg-type]
        grey = [decode(io.BytesIO(path.read_bytes()), 24, 1, decoder=decoder) for decoder in ("pil", "torchvision")]  # type: ignore[arg-type]
        assert torch.equal(*grey)
        windows = [
            decode(str(path), 24, 3, window=[0.3, 0.6, 0.2, 0.9], decoder=each) for each in ("pil", "torchvision")
        ]  # type: ignore[arg-type]
        assert torch.equal(*windows)


def test_ordinary_jpegs_are_decoded_by_torchvision_and_the_rest_is_left_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def counted(*arguments: Any) -> Any:
        given.append(kind)
        return found(*arguments)

    found = decoding._decoded
    monkeypatch.setattr(decoding, "_decoded", counted)
    for kind in ("jpg", "jpg L", "jpg turned 6", "jpg CMYK", "png", "webp"):
        decode(str(written(kind, (33, 17), tmp_path)), 16, 3, decoder="torchvision")
    assert given == ["jpg", "jpg L", "jpg turned 6"]


def test_pillow_looks_at_those_jpegs_alone_that_say_more_than_their_size(tmp_path: Path) -> None:
    sizes = {}
    for kind in ("jpg", "jpg L", "jpg progressive", "jpg CMYK", "jpg turned 6", "png"):
        content = written(kind, (33, 17), tmp_path).read_bytes()
        sizes[kind] = plain_header(memoryview(content))
        cut = [plain_header(memoryview(content[:end])) for end in range(len(content) - 1)]
        assert set(cut) <= {None, sizes[kind]}
    plain = {"jpg": (17, 33, 3), "jpg L": (17, 33, 1), "jpg progressive": (17, 33, 3)}
    assert sizes == {"jpg CMYK": None, "jpg turned 6": None, "png": None, **plain}
    content = written("jpg", (33, 17), tmp_path).read_bytes()
    several = content[:2] + b"\xff\xe2\x00\x06MPF\x00" + content[2:]
    assert plain_header(memoryview(several)) is None, "the index of a file with several pictures"


def test_cut_and_damaged_jpegs_are_judged_alike(tmp_path: Path) -> None:
    """At whatever byte a file ends or is changed: the same levels, or the same error."""
    content, rng = written("jpg", (64, 48), tmp_path).read_bytes(), np.random.default_rng(0)
    for number in range(100):
        broken = bytearray(content[: len(content) * (number % 40 + 1) // 41] if number < 40 else content)
        if number >= 40:
            broken[rng.integers(2, len(broken))] = rng.integers(0, 256)
        told = []
        for decoder in ("pil", "torchvision"):
            try:
                told.append(decode(io.BytesIO(bytes(broken)), 16, 3, decoder=decoder).tolist())  # type: ignore[arg-type]
            except (OSError, ValueError, SyntaxError) as error:
                told.append(f"{type(error).__name__} {str(error).partition(' <')[0]}")
        assert told[0] == told[1], number


def test_the_decoder_is_chosen_by_the_number_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_decoder("auto", 10) == "pil"
    assert choose_decoder("auto", 100_000) == "torchvision"
    assert choose_decoder("torchvision", 1) == "torchvision"
    assert choose_decoder("pil", 100_000) == "pil"
    monkeypatch.setattr("healsg.torch_private.jpeg_decoder", lambda: None)
    assert choose_decoder("auto", 100_000) == "pil"
    with pytest.raises(ConfigError, match=r"^data.decoder: this torchvision has no decoder of JPEGs; set it to pil$"):
        choose_decoder("torchvision", 1)


def test_a_window_lies_in_its_picture_and_has_its_share() -> None:
    numbers = np.random.default_rng(0).random((2000, 4))
    shares = []
    for window in numbers.tolist():
        for width, height in ((500, 400), (3, 200), (1, 1)):
            left, top, wide, high = window_box(window, width, height)
            assert 0 <= left <= left + wide <= width
            assert 0 <= top <= top + high <= height
            assert wide * high > 0
        left, top, wide, high = window_box(window, 500, 400)
        shares.append(wide * high / 200_000)
    assert 0.07 < min(shares) < 0.09
    assert 0.5 < np.mean(shares) < 0.56


def crops(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(str(root), root=str(root), image_size=16, shift=2, augment="crop", batch_size=4, **options)


def test_crops_are_cut_before_they_are_resized_and_workers_change_nothing(tmp_path: Path) -> None:
    fake_data.write_imagefolder(tmp_path, per_class=5)
    runs = []
    for workers in (0, 2):
        train = crops(tmp_path, workers=workers, flip=False).loaders(Needs())["train"].sharded(Sharding(seed=3))
        runs.append([batch for epoch in (0, 1) for batch, _ in train.batches(epoch)])
    for alone, helped in zip(*runs, strict=True):
        assert torch.equal(alone["input"], helped["input"])
    first, again = (
        next(b["input"][b["index"] == 7] for b in half if 7 in b["index"]) for half in (runs[0][:4], runs[0][4:])
    )
    assert not torch.equal(first, again), "another window each epoch"
    plain = crops(tmp_path, flip=False).loaders(Needs())["train"].evaluation_view()
    whole = ImageFolder(str(tmp_path), image_size=16, shift=2, augment="none", batch_size=4).loaders(Needs())["train"]
    for seen, usual in zip(plain, whole.evaluation_view(), strict=True):
        assert torch.equal(seen["input"], usual["input"]), "evaluation sees the centre"


@pytest.mark.parametrize("held", ["in_memory", "cache"])
def test_crops_of_held_pictures_are_refused(tmp_path: Path, held: str) -> None:
    fake_data.write_imagefolder(tmp_path, per_class=3)
    with pytest.raises(ConfigError, match=r"^data.augment: crop reads windows of the original images"):
        crops(tmp_path, **{held: True}).loaders(Needs())


def test_a_broken_picture_is_named_when_a_window_of_it_is_read(tmp_path: Path) -> None:
    fake_data.write_imagefolder(tmp_path, per_class=3)
    (path := tmp_path / "train" / "bee" / "001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^sample 4 of Pictures \(.*bee/001.png\): Unidentified"):
        list(crops(tmp_path).loaders(Needs())["train"].batches(0))
    loader = crops(tmp_path, on_error="skip").loaders(Needs())["train"]
    assert sum(rows for _, rows in loader.batches(0)) == 8, path


def test_a_path_list_is_a_sequence_of_its_paths() -> None:
    paths = ["/a/b.jpg", "", "ü/木.png", "bad\udcff.jpg", "/a/b.jpg"]
    made = PathList.of(paths)
    assert list(made) == paths == made
    assert made != paths[:-1]
    assert [made[place] for place in range(-5, 5)] == paths + paths
    assert made[1:4] == paths[1:4]
    assert made.index("ü/木.png") == 2
    assert "x" not in made
    assert list(PathList.of([])) == []
    with pytest.raises(IndexError):
        made[5]


def test_targets_of_pictures_may_be_any_tensor(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    labels = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert torch.equal(Pictures([str(tmp_path / "x.png")] * 2, labels, 8, 3)[1][1], labels[1])
