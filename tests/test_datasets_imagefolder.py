from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor

import fake_data
from fake_data import refused
from healsg.data.base import Needs
from healsg.data.sharding import Sharding
from healsg.datasets.imagefolder import ImageFolder, Pictures
from healsg.datasets.images.decoding import COMPOSITED, DEEP, FIRST, ORIENTATION, TURNED, decode
from healsg.datasets.images.folders import EXTENSIONS


def test_imagefolder_parts(tmp_path, caplog):
    caplog.set_level(logging.INFO, "healsg")
    fake_data.write_imagefolder(tmp_path)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("x")
    (tmp_path / "train" / "ant" / "._000.jpg").write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    data = ImageFolder(str(tmp_path), image_size=24, shift=2, batch_size=6)
    assert data.info.class_names == ("ant", "bee", "cat")
    assert data.info.input_shape == (3, 24, 24)
    assert data.has_val
    splits = data.splits()
    assert {split: len(source) for split, source in splits.items()} == {"train": 24, "val": 24}
    assert splits["train"].targets.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert "2 other files skipped" in caplog.text
    batch = next(iter(data.loaders(Needs())["train"]))
    assert batch["input"].shape == (6, 3, 24, 24)
    assert batch["input"].dtype == torch.float32
    assert batch["target"].dtype == torch.int64


def test_imagefolder_to_be_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_data.write_imagefolder(tmp_path / "root" / "own", parts=(), per_class=10)

    def targets(**more):
        data = ImageFolder("own", root="root", image_size=24, shift=2, val_fraction=0.25, **more)
        return data, {split: source.indices.tolist() for split, source in data.splits().items()}

    data, chosen = targets(test_fraction=0.2)
    assert not data.has_val
    assert {split: len(index) for split, index in chosen.items()} == {"train": 18, "val": 6, "test": 6}
    assert sorted(index for part in chosen.values() for index in part) == list(range(30))
    assert data.read("test").targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert targets(test_fraction=0.2)[1] == chosen
    assert targets(test_fraction=0.2, split_seed=1)[1] != chosen
    assert set(targets()[1]) == {"train", "val"}


def test_imagefolder_test_folder(tmp_path):
    fake_data.write_imagefolder(tmp_path, parts=("train", "test"), per_class=4)
    data = ImageFolder(str(tmp_path), image_size=24, shift=2, val_fraction=0, test_fraction=0.5)
    assert {split: len(source) for split, source in data.splits().items()} == {"train": 12, "val": 12, "test": 12}
    assert data.val_is_test


def test_imagefolder_current_directory_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_data.write_imagefolder(tmp_path / "own", classes=("a", "b"), parts=(), per_class=1)
    fake_data.write_imagefolder(tmp_path / "root" / "own", classes=("c", "d"), parts=(), per_class=1)
    assert ImageFolder("own", root="root").info.class_names == ("a", "b")


def test_imagefolder_errors(tmp_path):
    data = ImageFolder("nothing", root=str(tmp_path / "root"))
    refused(lambda: data.info, "data.folder", Path("nothing").absolute(), tmp_path / "root" / "nothing")
    (tmp_path / "empty").mkdir()
    refused(lambda: ImageFolder(str(tmp_path / "empty")).info, tmp_path / "empty", "no class folders")
    whole = fake_data.write_imagefolder(tmp_path / "whole", parts=("train", "val", "test"), per_class=2)

    def copied(name):
        return Path(shutil.copytree(whole, tmp_path / name))

    def read(folder):
        return lambda: ImageFolder(str(folder)).splits()

    shutil.rmtree((folder := copied("a")) / "train")
    refused(read(folder), folder, "no train folder")
    shutil.rmtree((folder := copied("b")) / "val" / "bee")
    assert ImageFolder(str(folder)).read("val").targets.tolist() == [0, 0, 2, 2], "one class less to look at"
    shutil.rmtree(folder / "val" / "ant")
    assert ImageFolder(str(folder)).read("val").targets.tolist() == [2, 2]
    shutil.rmtree((folder := copied("c")) / "train" / "bee")
    refused(read(folder), "'bee'", "not in the training part")
    for picture in ((folder := copied("d")) / "train" / "cat").iterdir():
        picture.unlink()
    refused(read(folder), folder / "train" / "cat", "no pictures")


def test_a_folder_one_level_off_is_refused_with_the_one_that_was_meant(tmp_path):
    def line(folder, needs=None):
        return refused(lambda: ImageFolder(str(folder)).loaders(needs or Needs()), "data.folder", "did you mean")

    photos = fake_data.write_imagefolder(tmp_path / "above" / "photos", per_class=2)
    assert f"did you mean data.folder={photos}?" in line(tmp_path / "above")
    views = Needs({"unlabelled": ("view1", "view2")})
    assert f"did you mean data.folder={photos}?" in line(tmp_path / "above", views), "nor without labels"
    fake_data.write_imagefolder(tmp_path / "above" / "more", per_class=2)
    assert "more has a train folder and is no class" in line(tmp_path / "above")
    assert "did you mean data.folder=" in line(photos / "train" / "ant")
    assert f"did you mean data.folder={photos}?" in line(photos / "train" / "ant")
    bare = fake_data.write_imagefolder(tmp_path / "outer" / "inner", parts=(), per_class=2)
    assert f"has one class folder alone, 'inner'; did you mean data.folder={bare}?" in line(tmp_path / "outer")
    assert f"did you mean data.folder={bare}?" in line(bare / "bee")
    (tmp_path / "loose").mkdir()
    shutil.copy(next((photos / "train" / "ant").iterdir()), tmp_path / "loose")
    refused(
        lambda: ImageFolder(str(tmp_path / "loose")).info, "pictures lie directly in it", "into a folder of its name"
    )


def test_one_class_is_refused_unless_nothing_is_learned_of_it(tmp_path):
    fake_data.write_imagefolder(tmp_path / "one", classes=("cat",), parts=(), per_class=10)
    data = ImageFolder(str(tmp_path / "one"), image_size=16, shift=2)
    refused(lambda: data.loaders(Needs()), "one class folder alone, 'cat'", "put the pictures of each class")
    streams = data.loaders(Needs({"unlabelled": ("view1", "view2")}))
    assert len(streams["train"].sources["unlabelled"]) == 9, "a method without labels takes it"


def test_parts_by_other_names_and_stray_pictures(tmp_path, caplog):
    fake_data.write_imagefolder(tmp_path / "a", parts=("train", "valid", "test"), per_class=2)
    fake_data.write_imagefolder(tmp_path / "b", parts=("Training", "Validation"), per_class=2)
    assert set(ImageFolder(str(tmp_path / "a")).splits()) == {"train", "val", "test"}
    assert set(ImageFolder(str(tmp_path / "b")).splits()) == {"train", "val"}
    fake_data.write_imagefolder(tmp_path / "c", classes=("valid", "void"), parts=(), per_class=2)
    assert ImageFolder(str(tmp_path / "c")).info.class_names == ("valid", "void"), "classes, without a training part"
    shutil.copytree(tmp_path / "b" / "Validation", tmp_path / "b" / "val2")
    (tmp_path / "b" / "val2").rename(tmp_path / "b" / "valid")
    refused(lambda: ImageFolder(str(tmp_path / "b")).info, "Validation and valid; which is the val part?")
    shutil.copy(next((tmp_path / "a" / "train" / "ant").iterdir()), tmp_path / "a" / "train" / "stray.jpg")
    ImageFolder(str(tmp_path / "a")).splits()
    assert "1 pictures lie beside the class folders and are left out" in caplog.text


def test_classes_that_differ_only_in_writing_are_pointed_out(tmp_path, caplog):
    fake_data.write_imagefolder(tmp_path, classes=("Cat", "cat", "dog", "1", "01"), per_class=2)
    ImageFolder(str(tmp_path), image_size=16, shift=2).loaders(Needs())
    told = [record.getMessage() for record in caplog.records if "differ only in how they are written" in record.msg]
    assert ["'Cat', 'cat'" in line for line in told] == [False, True]
    assert "'01', '1'" in told[0]


def test_imagefolder_broken_picture(tmp_path):
    fake_data.write_imagefolder(tmp_path, per_class=4)
    path = tmp_path / "train" / "bee" / "001.png"
    content = path.read_bytes()
    data = ImageFolder(str(tmp_path), image_size=24, shift=2)
    source = data.read("train")
    for broken in (content[: len(content) // 2], b"", b"text", content[:40]):
        path.write_bytes(broken)
        refused(lambda: source.fetch(torch.arange(12)), path, "sample 5 of Pictures")
    path.write_bytes(fake_data.deep_png(np.full((30, 30, 3), 40_000)))
    refused(lambda: source.fetch(torch.tensor([5])), path, "16 bits a channel", "convert it to 8 bits")


@pytest.mark.parametrize("shape", [(50, 40), (40, 50), (24, 24), (10, 33), (31, 24)])
def test_decode_as_torchvision(tmp_path, shape):
    from torchvision.transforms import functional

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(path := tmp_path / "x.png")
    expected = functional.center_crop(functional.resize(Image.fromarray(pixels), 24), [24, 24])
    assert torch.equal(decode(str(path), 24, 3), functional.pil_to_tensor(expected))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_decode_modes(tmp_path, mode, channels):
    suffix = ".tiff" if mode == "CMYK" else ".png"
    Image.new("RGB", (30, 40), (200, 200, 200)).convert(mode).save(path := tmp_path / f"x{suffix}")
    result = decode(str(path), 20, channels)
    assert result.shape == (channels, 20, 20)
    assert result.dtype == torch.uint8
    if mode != "1":
        assert abs(float(result.float().mean()) - 200) < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_pictures_are_seen_as_a_viewer_shows_them(tmp_path, orientation, suffix):
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).resize((30, 20))
    exif = stored.getexif()
    exif[ORIENTATION] = orientation
    stored.save(path := tmp_path / f"x{suffix}", exif=exif, **({} if suffix == ".tiff" else {"quality": 95}))
    with Image.open(path) as opened:
        ImageOps.exif_transpose(opened).save(shown := tmp_path / "shown.png")
    remarks = []
    assert torch.equal(decode(str(path), 16, 3, remarks.append), decode(str(shown), 16, 3))
    assert remarks == [TURNED] * (orientation > 1)
    stored.save(path)
    decode(str(path), 16, 3, remarks.append)
    assert len(remarks) == (orientation > 1), "nothing is said of a picture without an orientation"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_are_white(tmp_path, mode, channels):
    picture, options = Image.new("RGB", (20, 20), (40, 40, 40)), {}
    picture = picture.quantize(2) if mode == "P" else picture.convert(mode)
    if mode.endswith("A"):
        clear = Image.new("L", (20, 20), 255)
        clear.paste(0, (0, 0, 10, 20))
        picture.putalpha(clear)
    else:
        colour = picture.getpixel((0, 0))
        picture.paste(picture.getpixel((0, 0)) if mode == "P" else "white", (10, 0, 20, 20))
        options["transparency"] = colour
    picture.save(path := tmp_path / "x.png", **options)
    remarks = []
    result = decode(str(path), 20, channels, remarks.append)
    assert remarks == [COMPOSITED]
    assert result[:, :, :10].eq(255).all()
    assert result[:, :, 10:].eq(40 if mode.endswith("A") else 255).all()
    opaque = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 4), np.uint8))
    opaque.putalpha(255)
    opaque.save(path)
    plain = opaque.convert("RGB").convert("RGB" if channels == 3 else "L")
    assert torch.equal(decode(str(path), 20, channels, remarks.append), pil_to_tensor(plain))
    assert len(remarks) == 1, "nothing is said of an alpha channel that hides nothing"


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_grey_pictures_keep_their_bits(tmp_path, suffix, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 20)).astype(np.uint16)
    if suffix == ".pgm":
        (path := tmp_path / "x.pgm").write_bytes(b"P5 20 20 65535\n" + pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(pixels).save(path := tmp_path / f"x{suffix}")
    remarks = []
    result = decode(str(path), 20, channels, remarks.append)
    assert remarks == [DEEP]
    assert (result.dtype, result.shape) == (torch.float32, (channels, 20, 20))
    assert torch.equal((result * 257).round().int(), torch.from_numpy(pixels.astype(np.int32)).expand(channels, 20, 20))
    smaller = decode(str(path), 10, channels)
    assert smaller.shape == (channels, 10, 10)
    assert abs(float(smaller.mean() - result.mean())) < 2


def test_deep_colours_are_refused_not_cut(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 20, 3))
    (tmp_path / "x.png").write_bytes(fake_data.deep_png(pixels))
    (tmp_path / "a.png").write_bytes(fake_data.deep_png(pixels[:, :, :2]))
    (tmp_path / "x.ppm").write_bytes(b"P6 20 20 65535\n" + pixels.astype(">u2").tobytes())
    (tmp_path / "x.tiff").write_bytes(fake_data.deep_tiff(pixels))
    Image.fromarray(np.zeros((20, 20), np.int32)).save(tmp_path / "i.tiff")
    Image.fromarray(np.zeros((20, 20), np.float32)).save(tmp_path / "f.tiff")
    for name, bits in {"x.png": 16, "a.png": 16, "x.ppm": 16, "x.tiff": 16, "i.tiff": 32, "f.tiff": 32}.items():
        with pytest.raises(ValueError, match=f"{bits} bits a channel"):
            decode(str(tmp_path / name), 16, 3)


@pytest.mark.parametrize("augment", ["standard", "strong", "light", "randaugment"])
def test_deep_and_plain_pictures_train_together(tmp_path, augment):
    fake_data.write_imagefolder(tmp_path, per_class=3)
    Image.fromarray(np.full((30, 30), 257 * 100 + 128, np.uint16)).save(tmp_path / "train" / "ant" / "000.png")
    data = ImageFolder(str(tmp_path), image_size=24, shift=2, batch_size=3, augment=augment)
    inputs = [batch["input"] for batch, _ in data.loaders(Needs())["train"].batches(0)]
    assert {each.dtype for each in inputs} == {torch.float32}
    assert all(each.isfinite().all() for each in inputs)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_done_to_pictures_is_said_once(tmp_path, caplog, workers):
    caplog.set_level(logging.INFO, "healsg")
    fake_data.write_imagefolder(tmp_path, per_class=4)
    for path in sorted((tmp_path / "train").rglob("*.jpg")):
        picture = Image.open(path)
        exif = picture.getexif()
        exif[ORIENTATION] = 6
        picture.save(path, exif=exif)
    data = ImageFolder(str(tmp_path), image_size=24, shift=2, batch_size=2, workers=workers)
    loader = data.loaders(Needs())["train"]
    for epoch in (0, 1):
        list(loader.batches(epoch))
    del loader  # and its workers
    assert [record.getMessage() for record in caplog.records if "EXIF" in record.getMessage()] == [f"data: {TURNED}"]


def test_imagefolder_workers_change_nothing(tmp_path):
    fake_data.write_imagefolder(tmp_path, per_class=5)

    def batches(workers):
        data = ImageFolder(str(tmp_path), image_size=24, shift=4, batch_size=4, workers=workers)
        loader = data.loaders(Needs())["train"]
        loader = loader.sharded(Sharding(seed=3))
        dealt = [batch for epoch in (0, 1) for batch, _ in loader.batches(epoch)]
        del loader  # and its workers
        return dealt

    for alone, helped in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone["input"], helped["input"])
        assert torch.equal(alone["target"], helped["target"])


def test_imagefolder_can_be_pickled(tmp_path):
    fake_data.write_imagefolder(tmp_path, per_class=2)
    data = ImageFolder(str(tmp_path), image_size=24, shift=2)
    source = pickle.loads(pickle.dumps(data.read("train")))
    assert isinstance(source.dataset, Pictures)
    assert torch.equal(source.fetch(torch.tensor([3]))["input"], data.read("train").fetch(torch.tensor([3]))["input"])


def test_extensions_are_torchvisions():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert EXTENSIONS == IMG_EXTENSIONS


def test_a_tiff_of_several_pages_is_refused_and_the_first_of_an_animation_is_said() -> None:
    pages = [Image.new("L", (9, 8), level) for level in (10, 200)]
    pages[0].save("pages.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="2 pages in one TIFF file: save each page that is meant"):
        decode("pages.tiff", 8, 1)
    pages[0].save("moving.gif", save_all=True, append_images=pages[1:])
    told: list[str] = []
    assert decode("moving.gif", 8, 1, told.append).float().mean() == 10
    assert told == [FIRST]
    pages[0].save("one.tiff")
    assert decode("one.tiff", 8, 1).shape == (1, 8, 8)
