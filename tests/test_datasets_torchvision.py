"""The data sets that torchvision knows: what is read from files in their true form is what torchvision reads."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fake_data
from fake_data import NEITHER, refuse_network, refused, serve_https, tarred
from healsg.data.base import Needs
from healsg.data.source import DatasetSource
from healsg.datasets import eurosat, fashionmnist, flowers102, food101, imagenette, pets, stl10, svhn
from healsg.datasets.eurosat import EuroSAT
from healsg.datasets.fashionmnist import KMNIST, FashionMNIST
from healsg.datasets.flowers102 import Flowers102
from healsg.datasets.food101 import Food101
from healsg.datasets.imagenet import ImageNet
from healsg.datasets.imagenette import Imagenette
from healsg.datasets.images.decoding import decode
from healsg.datasets.pets import Pets
from healsg.datasets.published import archives
from healsg.datasets.published.archives import Archive, unpack_folder
from healsg.datasets.published.files import MOST, Sums, download
from healsg.datasets.stl10 import STL10
from healsg.datasets.svhn import SVHN
from healsg.errors import ConfigError
from helpers import REPOSITORY

ROOT = Path("data")
UNCHECKED = {"root": "data", **NEITHER}
SMALL = {**UNCHECKED, "image_size": 16, "shift": 2}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return refuse_network(monkeypatch)


# --- what is known before ------------------------------------------------------------------------------------------

KNOWN: list[tuple[Callable[..., Any], tuple[int, ...], int]] = [
    (FashionMNIST, (1, 28, 28), 10),
    (KMNIST, (1, 28, 28), 10),
    (SVHN, (3, 32, 32), 10),
    (STL10, (3, 96, 96), 10),
    (EuroSAT, (3, 64, 64), 10),
    (Flowers102, (3, 224, 224), 102),
    (Pets, (3, 224, 224), 37),
    (Food101, (3, 224, 224), 101),
    (Imagenette, (3, 224, 224), 10),
    (ImageNet, (3, 224, 224), 1000),
]


@pytest.mark.parametrize(("kind", "shape", "classes"), KNOWN)
def test_info_needs_no_file(kind: Callable[..., Any], shape: tuple[int, ...], classes: int) -> None:
    info = kind(root="nowhere").info
    assert (info.input_shape, info.num_classes) == (shape, classes)
    assert len(set(info.class_names)) == (classes if kind is not ImageNet else 0)
    assert not list(Path().iterdir())


def test_class_names_are_torchvisions() -> None:
    from torchvision import datasets

    assert FashionMNIST().info.class_names == tuple(datasets.FashionMNIST.classes)
    assert KMNIST().info.class_names == tuple(datasets.KMNIST.classes)
    assert list(imagenette.NAMES) == sorted(imagenette.NAMES)
    assert {number: names[0] for number, names in datasets.Imagenette._WNID_TO_CLASS.items()} == imagenette.NAMES


def test_has_parts() -> None:
    sets = [Flowers102(), Pets(), Food101(), Imagenette(), ImageNet(), EuroSAT(), EuroSAT(test_fraction=0), STL10()]
    assert [data.has_val for data in sets] == [True, False, False, True, True, False, False, False]
    assert [data.has_test for data in sets] == [True, True, True, False, False, True, False, True]


# --- held in memory ------------------------------------------------------------------------------------------------


def equal(source: Any, images: Any, labels: Any, count: int) -> None:
    """What was read is what torchvision read: images (N, C, H, W) or (N, H, W) uint8, and labels."""
    assert len(source) == count
    assert (source.input.dtype, source.targets.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(source.input, torch.as_tensor(images).view(source.input.shape))
    assert source.targets.tolist() == list(map(int, labels))


@pytest.mark.parametrize("kind", [FashionMNIST, KMNIST])
def test_fashion_and_kuzushiji(kind: Any, offline: list[str]) -> None:
    from torchvision import datasets

    name = kind.published.name
    folder = fake_data.write_mnist(ROOT, 60, 20, packed=True, name=name)
    line = refused(lambda: kind(root="data").read("train"), folder / "train-images-idx3-ubyte.gz", "data.verify=false")
    assert "not the published file" in line
    fake_data.write_mnist(ROOT, 60, 20, packed=False, name=name)  # torchvision wants them so
    for part, count in (("train", 60), ("test", 20)):
        theirs = getattr(datasets, name)("data", train=part == "train")
        equal(kind(**UNCHECKED).read(part), theirs.data, theirs.targets, count)
    assert kind(**UNCHECKED).read("val") is None
    lacking = kind(root="new", download=False)
    refused(lambda: lacking.read("train"), name, "data.download=true", kind.published.mirrors[0])
    assert not offline


def test_svhn(monkeypatch: pytest.MonkeyPatch, offline: list[str]) -> None:
    from torchvision import datasets

    fake_data.write_svhn(ROOT)
    for part, count in (("train", 120), ("test", 40)):
        path = ROOT / f"{part}_32x32.mat"
        monkeypatch.setitem(datasets.SVHN.split_list, part, ["", path.name, fake_data.md5_of(path.read_bytes())])
        theirs = datasets.SVHN("data", part)
        equal(SVHN(**UNCHECKED).read(part), theirs.data, theirs.labels, count)
        refused(lambda part=part: SVHN(root="data").read(part), path.absolute(), "not the published file, it has")
        content = path.read_bytes()
        monkeypatch.setitem(svhn.FILES, part, (len(content), hashlib.sha256(content).hexdigest()))
        assert len(SVHN(root="data").read(part)) == count
    assert SVHN(**UNCHECKED).read("val") is None
    assert not offline


def test_svhn_wrong_files(monkeypatch: pytest.MonkeyPatch, offline: list[str]) -> None:
    from scipy.io import savemat

    path, data = ROOT.absolute() / "train_32x32.mat", SVHN(**UNCHECKED)
    refused(lambda: data.read("train"), path, "not there", "data.download=true", svhn.PAGE)
    assert not offline
    refused(lambda: SVHN(root="data").read("train"), path.name, path.parent, "download failed", svhn.PAGE)
    fake_data.write_svhn(ROOT)
    content = path.read_bytes()
    for broken in (b"", b"nothing", content[: len(content) // 2], content[:200], bytes(len(content))):
        path.write_bytes(broken)
        refused(lambda: data.read("train"), path)
    images, labels = np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"X": images}, "no array 'y'"),
        ({"y": labels}, "no array 'X'"),
        ({"X": images.astype(np.float64), "y": labels}, "no images"),
        ({"X": images[:31], "y": labels}, "no images"),
        ({"X": images[..., :3], "y": labels}, "3 images do not go with 4 labels"),
        ({"X": images, "y": labels + 10}, "1..10"),
        ({"X": images, "y": labels * 0}, "1..10"),
        ({"X": images, "y": labels.reshape(2, 2)}, "1..10"),
        ({"X": images, "y": labels * 0.5}, "1..10"),
        ({"X": images, "y": "abcd"}, "1..10"),
    ]
    for contents, said in wrong:
        savemat(path, contents)
        refused(lambda: data.read("train"), path, said)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_data.write_svhn(ROOT)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "healsg.datasets.published.matlab.find_spec", lambda name: None if name == "scipy" else find(name)
    )
    with pytest.raises(ConfigError, match=r"train_32x32\.mat.*pip install 'healsg\[mat\]'"):
        SVHN(**UNCHECKED).read("train")


def test_stl10(monkeypatch: pytest.MonkeyPatch, offline: list[str]) -> None:
    from torchvision import datasets

    folder = fake_data.write_stl10(ROOT)
    refused(lambda: STL10(root="data").read("unlabelled"), folder.absolute() / "unlabeled_X.bin", "its MD5 is not")
    for table in ("train_list", "test_list"):
        names = [name for name, _ in getattr(datasets.STL10, table)]
        sums = [[name, fake_data.md5_of((folder / name).read_bytes())] for name in names]
        monkeypatch.setattr(datasets.STL10, table, sums)
    data = STL10(root="data")
    for part, count in (("train", 60), ("test", 40), ("unlabelled", 80)):
        theirs = datasets.STL10("data", part.replace("unlabelled", "unlabeled"))
        equal(data.read(part), theirs.data.copy(), theirs.labels, count)
    assert data.read("val") is None
    assert not offline


def test_stl10_stream_of_unlabelled_samples() -> None:
    """The training samples as they were before labels were taken away, then the set's own unlabelled ones."""
    fake_data.write_stl10(ROOT, train=50)
    needs = Needs(streams={"labelled": ("input",), "unlabelled": ("weak", "strong")}, ratio={"unlabelled": 2})
    data = STL10(**UNCHECKED, labels=20, batch_size=10)
    splits = data.splits()
    assert [len(splits[split]) for split in ("train", "val", "test")] == [20, 5, 40]
    assert len(data.streams(needs, splits["train"])["unlabelled"]) == 45 + 80
    batch = next(iter(data.loaders(needs)["train"]))
    assert batch["labelled"]["input"].shape == (10, 3, 96, 96)
    assert set(batch["unlabelled"]) == {"weak", "strong", "index"}
    assert batch["unlabelled"]["weak"].shape == (20, 3, 96, 96)


def test_stl10_wrong_files() -> None:
    folder, data = fake_data.write_stl10(ROOT).absolute(), STL10(**UNCHECKED)
    for name, broken, said in (
        ("train_y.bin", bytes([1] * 59), "60 train images do not go with 59 labels"),
        ("train_y.bin", bytes([11] * 60), "outside 1..10"),
        ("train_y.bin", bytes(60), "outside 1..10"),
        ("train_y.bin", None, "cannot be read"),
        ("train_X.bin", bytes(1000), "damaged, 1000 bytes"),
        ("train_X.bin", b"", "damaged, 0 bytes"),
        ("train_X.bin", None, "cannot be read"),
    ):
        kept = (folder / name).read_bytes()
        (folder / name).unlink() if broken is None else (folder / name).write_bytes(broken)
        refused(lambda: data.read("train"), folder, said)
        (folder / name).write_bytes(kept)
    assert len(data.read("train") or ()) == 60


def test_eurosat(offline: list[str]) -> None:
    from torchvision import datasets

    folder = fake_data.write_eurosat(ROOT, per_class=10)
    theirs = datasets.EuroSAT("data")
    assert tuple(theirs.classes) == eurosat.NAMES
    whole = EuroSAT(**UNCHECKED, test_fraction=0).read("train")
    equal(whole, np.stack([np.asarray(picture) for picture, _ in theirs]).transpose(0, 3, 1, 2), theirs.targets, 100)
    first, other = EuroSAT(**UNCHECKED), EuroSAT(**UNCHECKED, split_seed=7)
    train, test, again = first.read("train"), first.read("test"), other.read("test")
    assert (len(train or ()), first.read("val")) == (80, None)
    assert test is not None
    assert again is not None
    assert test.targets.bincount().tolist() == [2] * 10
    assert torch.equal(test.input, again.input), "the test part is always the same"
    (folder / "River" / "River_3.jpg").write_bytes(b"none")
    refused(lambda: EuroSAT(**UNCHECKED).read("train"), folder.absolute() / "River" / "River_3.jpg")
    shutil.rmtree(folder / "River")
    refused(lambda: EuroSAT(**UNCHECKED).read("train"), folder.absolute() / "River", "no such folder")
    assert not offline


# --- in files of their own -----------------------------------------------------------------------------------------


def listed(source: DatasetSource | None) -> list[tuple[Path, int]]:
    """The files of a part and their labels, where both ways to the labels agree."""
    assert source is not None
    assert source.targets is not None
    assert source.targets.tolist() == source.dataset.targets.tolist()
    labels = source.dataset.targets.tolist()
    return [(Path(path), label) for path, label in zip(source.dataset.paths, labels, strict=True)]


def theirs(paths: Any, labels: Any) -> list[tuple[Path, int]]:
    return [(Path(path).absolute(), int(label)) for path, label in zip(paths, labels, strict=True)]


def test_flowers102(monkeypatch: pytest.MonkeyPatch, offline: list[str]) -> None:
    from torchvision import datasets

    folder = fake_data.write_flowers102(ROOT).absolute()
    sums = {name: fake_data.md5_of((folder / name).read_bytes()) for name in flowers102.LABELS}
    table = {"label": ("imagelabels.mat", sums["imagelabels.mat"]), "setid": ("setid.mat", sums["setid.mat"])}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", table)
    for part, count in (("train", 48), ("val", 12), ("test", 24)):
        published = datasets.Flowers102("data", part)
        assert listed(Flowers102(**SMALL).read(part)) == theirs(published._image_files, published._labels)
        assert len(published) == count
    refused(lambda: Flowers102(root="data").read("train"), folder / "imagelabels.mat", "not the published file")
    assert not offline


def test_flowers102_wrong_files() -> None:
    from scipy.io import savemat

    folder, data = fake_data.write_flowers102(ROOT).absolute(), Flowers102(**SMALL)
    savemat(folder / "setid.mat", {"trnid": np.array([[1, 85]]), "valid": np.array([[0]]), "tstid": np.array([[]])})
    refused(lambda: data.read("train"), folder / "setid.mat", "1..84")
    refused(lambda: data.read("val"), folder / "setid.mat", "1..84")
    savemat(folder / "imagelabels.mat", {"labels": np.full((1, 90), 103)})
    refused(lambda: data.read("train"), folder / "imagelabels.mat", "1..102")
    (folder / "setid.mat").unlink()
    refused(lambda: data.read("train"), folder / "setid.mat", "not there", flowers102.PAGE)


def test_pets(offline: list[str]) -> None:
    from torchvision import datasets

    folder = fake_data.write_pets(ROOT).absolute()
    for part, name, count in (("train", "trainval", 148), ("test", "test", 74)):
        published = datasets.OxfordIIITPet("data", name)
        assert listed(Pets(**SMALL).read(part)) == theirs(published._images, published._labels)
        assert len(published) == count
    assert [name.title() for name in pets.NAMES] == published.classes
    assert Pets(**SMALL).read("val") is None
    for text, said in (("Abyssinian_1", "damaged"), ("Abyssinian_1 one 1 1", "damaged"), ("x 38 1 1", "37 classes")):
        (folder / "annotations" / "test.txt").write_text(text)
        refused(lambda: Pets(**SMALL).read("test"), folder, said)
    (folder / "annotations" / "test.txt").unlink()
    refused(lambda: Pets(**SMALL).read("test"), folder / "annotations" / "test.txt", "cannot be read")
    assert not offline


def test_food101(offline: list[str]) -> None:
    from torchvision import datasets

    folder = fake_data.write_food101(ROOT).absolute()
    for part, count in (("train", 32), ("test", 16)):
        published = datasets.Food101("data", part)
        assert listed(Food101(**SMALL).read(part)) == theirs(published._image_files, published._labels)
        assert len(published) == count
    for text in ("", "{", "[]", '{"apple_pie": 3}', '{"stew": ["stew/1"]}', '{"apple_pie": [{}], "sushi": null}'):
        (folder / "meta" / "test.json").write_text(text)
        refused(lambda: Food101(**SMALL).read("test"), folder / "meta" / "test.json", "damaged")
    assert not offline


def test_imagenette(offline: list[str]) -> None:
    from torchvision import datasets

    folder = fake_data.write_imagenette(ROOT).absolute()
    for part, count in (("train", 40), ("val", 20)):
        published = datasets.Imagenette("data", part, size="160px")
        assert listed(Imagenette(**SMALL).read(part)) == theirs(*zip(*published._samples, strict=True))
        assert len(published) == count
    assert Imagenette(**SMALL).read("test") is None
    line = refused(
        lambda: Imagenette(**SMALL, files="320px").read("train"), "imagenette2-320.tgz", "data.download=true"
    )
    assert imagenette.PAGE in line
    with pytest.raises(ConfigError, match=r"data\.files: '3'"):
        Imagenette(files="3")  # type: ignore[arg-type]
    shutil.rmtree(folder / "train" / "n03888257")
    (folder / "train" / "n03888257").mkdir()
    refused(lambda: Imagenette(**SMALL).read("train"), folder / "train", "n03888257")
    assert not offline


def test_imagenet(offline: list[str]) -> None:
    from torchvision import datasets

    small = {"root": "data", "image_size": 16, "shift": 2}
    folder = ROOT.absolute() / "imagenet"
    refused(lambda: ImageNet(**small).read("train"), folder / "train", "are not there", "train/<WordNet number>")
    fake_data.write_imagenet(ROOT)
    for part, count in (("train", 20), ("val", 10)):
        published = datasets.ImageFolder(str(folder / part))
        source = ImageNet(classes=5, **small).read(part)
        assert listed(source) == theirs(*zip(*published.samples, strict=True))
        assert len(published) == count
    refused(lambda: ImageNet(**small).read("train"), folder / "train", "5 class folders", "data.classes is 1000")
    shutil.rmtree(folder / "val" / "n01440764")
    refused(lambda: ImageNet(classes=5, **small).read("val"), folder / "val" / "n01440764", "no such folder")
    assert not offline


def test_a_picture_is_decoded_and_a_missing_one_is_named() -> None:
    folder = fake_data.write_pets(ROOT).absolute()
    loaders = Pets(**SMALL, batch_size=16, workers=0, val_fraction=0.2).loaders(Needs())
    batch = next(iter(loaders["train"]))
    assert batch["input"].shape == (16, 3, 16, 16)
    assert batch["input"].dtype == torch.float32
    source = Pets(**SMALL).read("test")
    assert source is not None
    first = source.fetch(torch.tensor([0]))
    assert torch.equal(first["input"][0], decode(source.dataset.paths[0], 16, 3))
    assert first["target"].tolist() == [0]
    (folder / "images" / "Abyssinian_5.jpg").unlink()
    refused(lambda: source.fetch(torch.tensor([0])), folder / "images" / "Abyssinian_5.jpg")
    (folder / "images" / "Abyssinian_6.jpg").write_bytes(b"\xff\xd8 cut")
    refused(lambda: source.fetch(torch.tensor([1])), folder / "images" / "Abyssinian_6.jpg")


# --- archives ------------------------------------------------------------------------------------------------------


def pinned(archive: Path, published: Archive) -> Archive:
    """What would be published, were ``archive`` the published one."""
    content = archive.read_bytes()
    return Archive(
        published.url, len(content), hashlib.sha256(content).hexdigest(), published.folder, published.suffixes
    )


def test_every_archive_is_pinned() -> None:
    packed = [food101.ARCHIVE, eurosat.ARCHIVE, stl10.ARCHIVE, flowers102.ARCHIVE, *pets.ARCHIVES]
    packed += [Imagenette(files=files).archive for files in ("160px", "320px", "full")]
    assert len({archive.sha256 for archive in packed}) == 9
    for archive in packed:
        assert archive.url.startswith("https://")
        assert archive.name.endswith((".tgz", ".tar.gz", ".zip"))
        assert len(bytes.fromhex(archive.sha256)) == 32
    files = [fashionmnist.FASHION, fashionmnist.KUZUSHIJI, flowers102.LABELS, svhn.FILES]
    pins = [pin for table in files for pin in table.values()]
    assert len({sha256 for _, sha256 in pins}) == len(pins) == 12
    for size, sha256 in pins:
        assert size < MOST
        assert len(bytes.fromhex(sha256)) == 32
    mirrors = [*FashionMNIST.published.mirrors, *KMNIST.published.mirrors, svhn.PAGE, flowers102.PAGE]
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in mirrors)


def test_archives_are_unpacked(monkeypatch: pytest.MonkeyPatch, offline: list[str]) -> None:
    """From a tar.gz, two of them, and a zip; the result is that of the folders themselves."""
    made = {"stl10": fake_data.write_stl10(ROOT, packed=True), "eurosat": fake_data.write_eurosat(ROOT, packed=True)}
    line = refused(lambda: EuroSAT(root="data").read("train"), made["eurosat"].absolute(), "not the published file")
    assert "data.verify=false" in line
    assert not (ROOT / "eurosat" / "2750").exists()
    monkeypatch.setattr(eurosat, "ARCHIVE", pinned(made["eurosat"], eurosat.ARCHIVE))
    unpacked = EuroSAT(root="data").read("train")
    assert torch.equal(unpacked.input, EuroSAT(root="data").read("train").input)  # type: ignore[union-attr]
    fake_data.write_eurosat("plain")
    assert torch.equal(unpacked.input, EuroSAT(**UNCHECKED | {"root": "plain"}).read("train").input)  # type: ignore[union-attr]
    fake_data.write_stl10("plain")
    assert torch.equal(STL10(**UNCHECKED).read("test").input, STL10(**UNCHECKED | {"root": "plain"}).read("test").input)  # type: ignore[union-attr]
    fake_data.write_pets(ROOT, packed=True)
    fake_data.write_imagenette(ROOT, packed=True)
    assert len(Pets(**SMALL).read("train") or ()) == 148
    assert not (ROOT / "oxford-iiit-pet" / "annotations" / "README").exists()
    assert len(Imagenette(**SMALL).read("val") or ()) == 20
    assert not list(ROOT.rglob("*.part"))
    assert not offline


def test_download_of_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is fetched once, checked before it is opened, gone on with where it was cut, and unpacked."""
    folder = fake_data.write_pets("server", packed=True)
    served = {name: (folder / name).read_bytes() for name in ("images.tar.gz", "annotations.tar.gz")}
    published = tuple(pinned(folder / archive.name, archive) for archive in pets.ARCHIVES)
    monkeypatch.setattr(Pets, "archives", published)
    half = len(served["images.tar.gz"]) // 2

    def answer(request: Any) -> tuple[int, dict[str, str], bytes]:
        content = served[request.full_url.rsplit("/", 1)[1]]
        if start := request.get_header("Range"):
            first = int(start.removeprefix("bytes=").removesuffix("-"))
            return 206, {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}, content[first:]
        return 200, {}, content[:half] if "images" in request.full_url else content

    asked = serve_https(monkeypatch, answer)
    assert len(Pets(root="data").read("train") or ()) == 148
    assert len(Pets(root="data").read("test") or ()) == 74
    assert asked == [published[0].url, published[0].url, published[1].url]
    served["annotations.tar.gz"] = served["annotations.tar.gz"][:-1] + b"?"
    line = refused(lambda: Pets(root="new").read("train"), "annotations.tar.gz", "its SHA-256 is not")
    assert published[1].url in line
    assert not list(Path("new").rglob("annotations*"))


def test_a_download_that_fails_says_what_to_put_where(offline: list[str]) -> None:
    line = refused(lambda: Food101(root="data").read("train"), "food-101.tar.gz", ROOT.absolute(), "download failed")
    assert food101.ARCHIVE.url in line
    assert set(offline) == {"data.vision.ee.ethz.ch"}
    assert not list(ROOT.glob("food*"))


def test_a_cut_download_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_https(monkeypatch, lambda request: (200, {}, b"0123456789"))
    sums = Sums(sha256="0" * 64, size=MOST + 1)
    refused(lambda: download(["https://x.org/a.tgz"], Path("a.tgz"), sums, "by hand"), "it has 10 bytes", "by hand")
    assert Path("a.tgz.part").read_bytes() == b"0123456789"
    assert not Path("a.tgz").exists()


def hostile_tar(path: Path) -> None:
    """Names that lead out of the folder, links, a device, a file where a folder should be."""
    with tarfile.open(tarred(path, {}), "w:gz") as tar:
        for name in ("set/../../canary.jpg", "/canary.jpg", "../canary.jpg", "other/canary.jpg", "set/.hidden.jpg"):
            tar.addfile(tarfile.TarInfo(name))
        for kind, name in ((tarfile.SYMTYPE, "set/a"), (tarfile.LNKTYPE, "set/b.jpg"), (tarfile.FIFOTYPE, "set/c.jpg")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(Path.cwd())
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("set/a/canary.jpg"))  # through the link, were there one
        tar.addfile(tarfile.TarInfo("set/notes.txt"))


def test_what_an_archive_may_not_do() -> None:
    hostile_tar(Path("in/set.tgz"))
    with zipfile.ZipFile("in/set.zip", "w") as archive:
        for name in ("set/../../canary.jpg", "/canary.jpg", "set\\..\\canary.jpg", "set/a/canary.jpg", "C:/canary.jpg"):
            archive.writestr(name, b"")
    for name in ("set.tgz", "set.zip"):
        unpack_folder(Path("in") / name, Sums(), Path("out/set"), (".jpg",))
        assert [path for path in Path().rglob("*") if path.is_file() and "in" not in path.parts] == [
            Path("out/set/a/canary.jpg")
        ]
        assert not any(path.is_symlink() for path in Path().rglob("*"))
        shutil.rmtree("out")


def test_damaged_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tarred(Path("set.tgz"), {f"set/{i}.jpg": bytes(3000) for i in range(3)}).read_bytes()
    with zipfile.ZipFile("set.zip", "w") as archive:
        archive.writestr("set/1.jpg", bytes(3000))
    packed = Path("set.zip").read_bytes()
    bad = packed.replace(bytes(3000), bytes(2999) + b"1")
    empty = tarred(Path("empty.tgz"), {"other/1.jpg": b""}).read_bytes()
    broken = [whole[:-12], whole[: len(whole) // 2], whole[:-8] + bytes(8), b"", b"none", gzip.compress(b"none"), bad]
    for content in (*broken, packed[:-30], empty):
        Path("bad.tgz").write_bytes(content)
        refused(lambda: unpack_folder(Path("bad.tgz"), Sums(), Path("set"), (".jpg",)), "bad.tgz", "download it again")
        assert not Path("set").exists()
        assert not Path("set.part").exists()
    monkeypatch.setattr(archives, "MOST_UNPACKED", 5000)
    refused(lambda: unpack_folder(Path("set.tgz"), Sums(), Path("set"), (".jpg",)), "more than 5000 bytes")
    refused(lambda: unpack_folder(Path("none.tgz"), Sums(), Path("set"), (".jpg",)), "none.tgz", "cannot be read")


# --- the options ---------------------------------------------------------------------------------------------------

OPTIONS = {
    "fashionmnist": FashionMNIST,
    "kmnist": KMNIST,
    "svhn": SVHN,
    "stl10": STL10,
    "eurosat": EuroSAT,
    "flowers102": Flowers102,
    "pets": Pets,
    "food101": Food101,
    "imagenette": Imagenette,
    "imagenet": ImageNet,
}


def test_the_options_are_in_the_overview_and_name_their_classes() -> None:
    for name, kind in OPTIONS.items():
        node = yaml.safe_load((REPOSITORY / "conf/data" / f"{name}.yaml").read_text())
        assert node["_target_"] == f"{kind.__module__}.{kind.__name__}"
        for document in ("docs/overview.md", "docs/zh/overview.md"):
            lines = (REPOSITORY / document).read_text().splitlines()
            row = next(line for line in lines if line.startswith("| `data` |"))
            assert f"`{name}`" in row
