"""Small data sets with invented samples in the true on-disk formats of the real ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import socket
import struct
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.response import addinfourl

import numpy as np
import pytest

from healsg.datasets import cifar, eurosat, food101, imagenette, mnist, pets
from healsg.datasets.published import files
from healsg.errors import DataError

TRAIN_BATCHES = 5

NEITHER = {"download": False, "verify": False}
"""The arguments with which a data set takes what is written here."""


def write_cifar(root: Path | str, classes: int = 10, per_batch: int = 40, seed: int = 0, packed: bool = False) -> Path:
    """CIFAR under ``root``, as Python 2 pickled it: five training files of ``per_batch`` images (CIFAR-100: one file of
    as many) and a test file of ``per_batch``. The classes occur equally often and show in the pixels.

    ``packed`` writes the tar.gz archive instead. Returns the folder, or the archive.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    folder = "cifar-10-batches-py" if classes == 10 else "cifar-100-python"
    rng = np.random.default_rng(seed)
    contents = {}
    for name, count in _cifar_files(classes, per_batch).items():
        labels = [int(label) for label in rng.permutation(np.arange(count) % classes)]
        level = np.array(labels)[:, None] * 200 // (classes - 1)
        images = (level + rng.integers(0, 56, (count, 3072))).astype(np.uint8)
        contents[name] = python2_pickle(_cifar_batch(name, images, labels, classes))
    contents["batches.meta" if classes == 10 else "meta"] = python2_pickle({"num_vis": 3072})
    if packed:
        archive = root / ("cifar-10-python.tar.gz" if classes == 10 else "cifar-100-python.tar.gz")
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for name, content in contents.items():
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return archive
    (root / folder).mkdir(exist_ok=True)
    for name, content in contents.items():
        (root / folder / name).write_bytes(content)
    return root / folder


def _cifar_files(classes: int, per_batch: int) -> dict[str, int]:
    if classes == 100:
        return {"train": TRAIN_BATCHES * per_batch, "test": per_batch}
    return {f"data_batch_{i + 1}": per_batch for i in range(TRAIN_BATCHES)} | {"test_batch": per_batch}


def _cifar_batch(name: str, images: np.ndarray[Any, Any], labels: list[int], classes: int) -> dict[str, Any]:
    batch: dict[str, Any] = {"data": images, "batch_label": name}
    batch["filenames"] = [f"{name}_{i}.png" for i in range(len(labels))]
    if classes == 10:
        return batch | {"labels": labels}
    return batch | {"fine_labels": labels, "coarse_labels": [label // 5 for label in labels]}


def python2_pickle(value: Any) -> bytes:
    """``value`` as Python 2's cPickle wrote it in protocol 2: dicts, lists, ints, byte strings and uint8 arrays."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + value.to_bytes(4, "little", signed=True)
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode("latin1")
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.uint8
    shape = b"(" + b"".join(map(_python2, value.shape)) + b"t"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _python2(0) + b"\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw: bytes = value.tobytes()
    return made + b"(K\x01" + shape + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"


def write_mnist(
    root: Path | str, train: int = 200, test: int = 40, seed: int = 0, packed: bool = True, name: str = "MNIST"
) -> Path:
    """Four idx files in ``root/<name>/raw``, gzipped, or unpacked as they are. Gives the folder."""
    folder = Path(root) / name / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        images = (labels[:, None, None] * 20 + rng.integers(0, 56, (count, 28, 28))).astype(np.uint8)
        for file, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            content = head + array.tobytes()
            target = folder / (file + ".gz" if packed else file)
            target.write_bytes(gzip.compress(content, compresslevel=1, mtime=0) if packed else content)
    return folder


def write_imagefolder(
    root: Path | str,
    classes: tuple[str, ...] = ("ant", "bee", "cat"),
    parts: tuple[str, ...] = ("train", "val"),
    per_class: int = 8,
    size: int = 40,
    seed: int = 0,
) -> Path:
    """Pictures in ``root/<part>/<class>/``, or with no parts in ``root/<class>/``: PNG and JPEG in turn, of different
    shapes whose shorter side is ``size``; the class shows in the brightness. Returns ``root``."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for part in parts or ("",):
        for label, name in enumerate(classes):
            folder = Path(root) / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                shape = (size + 6 * (i % 3), size) if i % 2 else (size, size + 5 * (i % 4))
                pixels = (label * 180 // max(1, len(classes) - 1) + rng.integers(0, 70, (*shape, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03d}.{'png' if i % 2 else 'jpg'}")
    return Path(root)


def write_svhn(root: Path | str, train: int = 120, test: int = 40, seed: int = 0) -> Path:
    """SVHN's two MATLAB files in ``root``: images (32, 32, 3, N), labels (N, 1) with 10 for the digit 0."""
    from scipy.io import savemat

    Path(root).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for part, count in (("train", train), ("test", test)):
        labels = (rng.permutation(np.arange(count) % 10) + 1).astype(np.uint8)
        images = (labels * 18 + rng.integers(0, 70, (32, 32, 3, count))).astype(np.uint8)
        savemat(Path(root) / f"{part}_32x32.mat", {"X": images, "y": labels[:, None]}, do_compression=True)
    return Path(root)


def write_stl10(
    root: Path | str, train: int = 60, test: int = 40, unlabelled: int = 80, seed: int = 0, packed: bool = False
) -> Path:
    """STL-10's binary files: images as bytes by channel, column, row; labels as bytes 1..10. The folder or archive."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    contents = {"class_names.txt": b"airplane\nbird\n", "fold_indices.txt": b"0 1 2\n"}
    for part, count in (("train", train), ("test", test), ("unlabeled", unlabelled)):
        labels = (rng.permutation(np.arange(count) % 10) + 1).astype(np.uint8)
        images = (labels[:, None, None, None] * 18 + rng.integers(0, 70, (count, 3, 96, 96))).astype(np.uint8)
        contents[f"{part}_X.bin"] = images.tobytes()
        if part != "unlabeled":
            contents[f"{part}_y.bin"] = labels.tobytes()
    if packed:
        return tarred(root / "stl10_binary.tar.gz", {f"stl10_binary/{name}": data for name, data in contents.items()})
    return written(root / "stl10_binary", contents)


def write_flowers102(root: Path | str, classes: int = 12, seed: int = 0) -> Path:
    """Oxford Flowers in ``root/flowers-102``: pictures by number, their labels, and the numbers of each part.

    The training part has 4 of each class, the validation part 1, the test part 2.
    """
    from scipy.io import savemat

    folder = Path(root) / "flowers-102"
    labels = np.random.default_rng(seed).permutation(np.arange(7 * classes) % classes) + 1
    written(folder / "jpg", {f"image_{i + 1:05d}.jpg": jpeg(20 * int(label), i) for i, label in enumerate(labels)})
    order = np.argsort(labels, kind="stable").reshape(classes, 7) + 1
    parts = {"trnid": order[:, :4], "valid": order[:, 4:5], "tstid": order[:, 5:]}
    savemat(folder / "setid.mat", {name: ids.reshape(1, -1).astype(np.uint16) for name, ids in parts.items()})
    savemat(folder / "imagelabels.mat", {"labels": labels.reshape(1, -1).astype(np.uint8)})
    return folder


CATS = """Abyssinian Bengal Birman Bombay British_Shorthair Egyptian_Mau Maine_Coon Persian Ragdoll Russian_Blue
    Siamese Sphynx"""
"""The breeds whose files' names begin with a capital letter."""


def write_pets(root: Path | str, packed: bool = False) -> Path:
    """Oxford-IIIT Pet in ``root/oxford-iiit-pet``: pictures by breed and number, and a list of each part.

    The training part has 4 of each breed, the test part 2. ``packed`` writes the two archives instead.
    """
    folder = Path(root) / "oxford-iiit-pet"
    names = [name.replace(" ", "_") for name in pets.NAMES]
    breeds = [name if name in CATS.split() else name.lower() for name in names]
    contents, lists = {}, {"trainval": "", "test": ""}
    for label, breed in enumerate(breeds):
        for i in range(6):
            contents[f"{breed}_{i + 1}.jpg"] = jpeg(6 * label, i)
            lists["trainval" if i < 4 else "test"] += f"{breed}_{i + 1} {label + 1} {1 + breed[0].islower()} 1\n"
    texts = {f"{part}.txt": text.encode() for part, text in lists.items()} | {"README": b"none"}
    for inner, files_of in (("images", contents), ("annotations", texts)):
        if packed:
            tarred(folder / f"{inner}.tar.gz", {f"./{inner}/{name}": data for name, data in files_of.items()})
        else:
            written(folder / inner, files_of)
    return folder


def write_food101(root: Path | str, classes: int = 8) -> Path:
    """Food-101 in ``root/food-101``: pictures by dish, and a list of each part, of 4 and 2 of each of some dishes."""
    folder = Path(root) / "food-101"
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label, dish in enumerate(food101.NAMES.split()[:classes]):
        numbers = [f"{dish}/{1_000_000 - 997 * i - label}" for i in range(6)]
        written(folder / "images", {f"{number}.jpg": jpeg(20 * label, i) for i, number in enumerate(numbers)})
        lists["train"][dish], lists["test"][dish] = numbers[:4], numbers[4:]
    written(folder / "meta", {f"{part}.json": json.dumps(lists[part]).encode() for part in lists})
    return folder


def write_eurosat(root: Path | str, per_class: int = 10, packed: bool = False) -> Path:
    """EuroSAT's folders of JPEG pictures of 64 x 64 pixels in ``root/eurosat/2750``; or the zip archive."""
    place, contents = Path(root) / "eurosat", {}
    for label, name in enumerate(eurosat.NAMES):
        for i in range(per_class):
            contents[f"2750/{name}/{name}_{i + 1}.jpg"] = jpeg(20 * label, i, (64, 64))
    if not packed:
        return written(place, contents) / "2750"
    place.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place / "EuroSAT.zip", "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return place / "EuroSAT.zip"


def write_imagenette(root: Path | str, per_class: int = 4, packed: bool = False) -> Path:
    """Imagenette of 160 pixels: ``root/imagenette2-160/{train,val}/<WordNet number>``, or its archive."""
    contents = {}
    for label, number in enumerate(imagenette.NAMES):
        for part, count in (("train", per_class), ("val", 2)):
            for i in range(count):
                contents[f"imagenette2-160/{part}/{number}/{number}_{i}.JPEG"] = jpeg(20 * label, i)
    if packed:
        return tarred(Path(root) / "imagenette2-160.tgz", contents)
    return written(Path(root), contents) / "imagenette2-160"


def write_imagenet(root: Path | str, classes: int = 5, per_class: int = 4) -> Path:
    """ImageNet's folders, of a few classes: ``root/imagenet/{train,val}/<WordNet number>``."""
    folder = Path(root) / "imagenet"
    for label in range(classes):
        number = f"n{1_440_764 + 7 * label:08d}"
        for part, count in (("train", per_class), ("val", 2)):
            pictures = {f"{number}_{i}.JPEG": jpeg(40 * label, i) for i in range(count)}
            written(folder / part / number, pictures)
    return folder


def jpeg(level: int, seed: int, shape: tuple[int, int] = (20, 26)) -> bytes:
    """A small JPEG picture of a brightness near ``level``."""
    from PIL import Image

    pixels = (level + np.random.default_rng(seed).integers(0, 40, (*shape, 3))).clip(0, 255).astype(np.uint8)
    return _encoded(Image.fromarray(pixels), "JPEG")


def written(folder: Path, contents: dict[str, bytes]) -> Path:
    """Write files by their names below ``folder``, which is returned."""
    for name, data in contents.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def tarred(archive: Path, contents: dict[str, bytes]) -> Path:
    """Write a tar.gz archive of files by their names."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive


def publish_cifar(patch: pytest.MonkeyPatch, written: Path, classes: int = 10) -> None:
    """Make the checksums of what ``write_cifar`` wrote (the folder or the archive) those that torchvision publishes."""
    from torchvision import datasets

    published = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    if written.is_file():
        content = written.read_bytes()
        patch.setattr(published, "tgz_md5", md5_of(content))
        patch.setitem(cifar.ARCHIVES, classes, (len(content), hashlib.sha256(content).hexdigest()))
        with tarfile.open(written) as tar:
            members = {Path(member.name).name: tar.extractfile(member) for member in tar.getmembers()}
            sums = {name: md5_of(member.read()) for name, member in members.items() if member}
    else:
        sums = {path.name: md5_of(path.read_bytes()) for path in written.iterdir()}
    for table in ("train_list", "test_list"):
        patch.setattr(published, table, [[name, sums[name]] for name, _ in getattr(published, table)])


def publish_mnist(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the checksums of the gzipped files in ``folder`` those that torchvision publishes."""
    from torchvision import datasets

    contents = {name: (folder / name).read_bytes() for name, _ in datasets.MNIST.resources}
    patch.setattr(datasets.MNIST, "resources", [(name, md5_of(content)) for name, content in contents.items()])
    for name, content in contents.items():
        patch.setitem(mnist.PACKED, name, (len(content), hashlib.sha256(content).hexdigest()))


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


Answer = tuple[int, dict[str, str], bytes]


def serve_https(patch: pytest.MonkeyPatch, answer: Callable[[urllib.request.Request], Answer]) -> list[str]:
    """Downloads are answered by ``answer``: status, headers and content. Returns the addresses that are asked for."""
    asked: list[str] = []
    make = files.opener

    class Server(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            asked.append(req.full_url)
            status, headers, content = answer(req)
            told = Message()
            for key, value in headers.items():
                told[key] = value
            response = addinfourl(io.BytesIO(content), told, req.full_url, status)
            response.msg = str(status)  # type: ignore[attr-defined]
            return response

    def opener() -> urllib.request.OpenerDirector:
        made = make()
        made.handle_open["https"] = [Server()]
        made.handle_open["https"][0].add_parent(made)
        return made

    patch.setattr(files, "opener", opener)
    return asked


def refuse_network(patch: pytest.MonkeyPatch) -> list[str]:
    """A network that answers no name; returns the list of the hosts that are asked for from now on."""
    asked: list[str] = []

    def refuse(host: str, *rest: Any, **more: Any) -> None:
        asked.append(host)
        raise OSError("Temporary failure in\nname resolution")

    patch.setattr(socket, "getaddrinfo", refuse)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        patch.delenv(name, raising=False)
    return asked


def refused(call: Callable[[], Any], *words: object) -> str:
    """The message of the DataError that ``call`` raises: one line that holds all ``words``."""
    with pytest.raises(DataError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert str(word) in line
    return line


def odd_pictures(folder: Path) -> dict[str, bool]:
    """Picture files in ``folder`` that are broken or odd in one way each: by name, whether it can be read."""
    from PIL import Image

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8))
    jpeg, png, webp, tiff = (_encoded(picture, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF"))
    tables, scan, data = jpeg.index(b"\xff\xc4"), jpeg.index(b"\xff\xda"), png.index(b"IDAT")
    exif = b"\xff\xe1\x00\x20Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 16
    sixteen = Image.fromarray(np.full((30, 30), 40_000, np.uint16))
    broken = {
        "empty.jpg": b"",
        "text.jpg": b"this is no picture\n" * 20,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "cut.webp": webp[: len(webp) // 2],
        "cut.tiff": tiff[: len(tiff) // 2],
        "head.jpg": jpeg[:30],
        "header_sum.png": png[:29] + bytes(4) + png[33:],
        "garbage.png": png[: data + 4] + rng.bytes(len(png) - data - 4),
        "no_tables.jpg": jpeg[: tables + 4] + b"\xff" * (scan - tables - 4) + jpeg[scan:],
        "no_scan.jpg": jpeg[:scan] + b"\xff\xd9",
        "bomb.png": _png_of(60_000, 60_000),
        "strip.png": _png_of(1, 50_000_000),
        "no_width.png": _png_of(0, 40),
        "deep_colours.png": deep_png(np.full((30, 30, 3), 40_000)),
        "float.tiff": _encoded(Image.fromarray(rng.random((30, 30), np.float32)), "TIFF"),
        "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n",
    }
    fine = {
        "sixteen.png": _encoded(sixteen, "PNG"),
        "truly_png.jpg": png,
        "grey.png": _encoded(picture.convert("L"), "PNG"),
        "cmyk.jpg": _encoded(picture.convert("CMYK"), "JPEG"),
        "palette.png": _encoded(picture.convert("P"), "PNG", transparency=b"\0\x80\xff"),
        "animated.jpg": _encoded(picture, "GIF", save_all=True, append_images=[picture.rotate(90)]),
        "exif.jpg": jpeg[:2] + exif + jpeg[2:],
        "data_sum.png": png[: png.index(b"IEND") - 8] + bytes(4) + png[png.index(b"IEND") - 4 :],
    }
    for name, content in (broken | fine).items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "pipe_link.jpg").symlink_to("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str((folder / "socket.jpg").relative_to(Path.cwd())))
    (folder / "folder.jpg").mkdir()
    special = ("pipe.jpg", "dangling.jpg", "loop.jpg", "pipe_link.jpg", "socket.jpg")
    return dict.fromkeys((*broken, *special), False) | dict.fromkeys(fine, True)


def _encoded(picture: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def deep_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write: (H, W, 3) of colours, (H, W, 2) of grey and alpha."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return _png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def deep_tiff(pixels: np.ndarray[Any, Any]) -> bytes:
    """An uncompressed little-endian TIFF of (H, W, 3) colours of 16 bits a channel, which Pillow does not write."""
    height, width, channels = pixels.shape
    data = pixels.astype("<u2").tobytes()
    bits = 8 + len(data)
    fields = [
        *[(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8)],
        *[(277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data)), (284, 3, 1, 1)],
    ]
    table = b"".join(struct.pack("<HHII", *field) for field in fields)
    head = struct.pack("<2sHI", b"II", 42, bits + 6)
    return head + data + struct.pack("<3H", 16, 16, 16) + struct.pack("<H", len(fields)) + table + bytes(4)


def _png_of(width: int, height: int) -> bytes:
    """A PNG whose header announces that many pixels, with next to no data."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    return _png(chunks)


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
