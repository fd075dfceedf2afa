"""Archives that are hostile or broken, and downloads that go wrong: none writes outside, none fills memory."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import random
import resource
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_data import NEITHER, publish_cifar, refuse_network, refused, serve_https, write_cifar, write_mnist
from healsg.datasets import cifar, mnist
from healsg.datasets.cifar import Cifar
from healsg.datasets.mnist import MNIST
from healsg.datasets.published import archives, files
from healsg.datasets.published.archives import unpack
from healsg.datasets.published.files import Sums, download, fetch
from healsg.errors import ConfigError, DataError
from helpers import fork

WANTED = ("data_batch_1", "test_batch")
GOOD = {f"set/{name}": name.encode() * 100 for name in WANTED}
CANARY = b"the canary\n"

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = CANARY, **more: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def good() -> list[Member]:
    return [member(name, content) for name, content in GOOD.items()]


def tar(members: list[Member], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as made:
        for info, content in members:
            made.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return file.getvalue()


def packed(*members: Member, form: int = tarfile.GNU_FORMAT) -> bytes:
    return gzip.compress(tar(list(members), form), compresslevel=1)


def header(content: bytes, at: int, field: bytes, start: int = 0) -> bytes:
    """A tar with another field in the header at ``start``, whose checksum is right again."""
    block = bytearray(content[start : start + 512])
    block[at : at + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:start] + bytes(block) + content[start + 512 :]


def size_field(field: bytes) -> bytes:
    return gzip.compress(header(tar(good()), 124, field.ljust(12, b"\0")))


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    return member(name, b"", type=kind, linkname=target)


def special(kind: bytes) -> Member:
    return member("set/data_batch_1", b"", type=kind, devmajor=1, devminor=3)


def through_a_folder() -> bytes:
    return packed(link("set", "../outside"), link("set/deeper", "../../outside"), *good())


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in {"../canary": CANARY, **GOOD}.items():
            made.writestr(name, content)
    return file.getvalue()


def pax(**headers: str) -> bytes:
    info, content = good()[0]
    info.pax_headers = headers
    return packed((info, content), good()[1], form=tarfile.PAX_FORMAT)


def sparse() -> bytes:
    """A GNU sparse file of a few bytes that announces a terabyte."""
    block = header(tar([member("set/data_batch_1", b"")]), 156, b"S")
    block = header(block, 386, b"%011o\0%011o\0" % (2**33 - 1, 0))
    return gzip.compress(header(block, 483, b"%011o\0" % (2**33 - 1)))


SMALL = 1 << 20
"""What ``archives.MOST`` is here, so that a bomb is quick."""

BOMB = bytes(8 * SMALL)

HOSTILE: dict[str, tuple[Callable[[], bytes], bool]] = {
    # those of which the two good files can be taken, and nothing else
    "nothing odd": (lambda: packed(*good()), True),
    "a leading ./": (lambda: packed(*(member(f"./{name}", content) for name, content in GOOD.items())), True),
    "traversal": (lambda: packed(member("../canary"), member("set/../../canary"), *good()), True),
    "a long traversal": (lambda: packed(member("set/" + "../" * 30 + "tmp/canary"), *good()), True),
    "an absolute name": (lambda: packed(member(str(Path("canary").absolute())), *good()), True),
    "windows names": (lambda: packed(member("..\\canary"), member("C:\\canary"), *good()), True),
    "a wanted name elsewhere": (
        lambda: packed(member("set/../data_batch_1"), member("/set/data_batch_1"), *good()),
        True,
    ),
    "a link": (lambda: packed(link("set/data_batch_1", "../../canary"), *good()), True),
    "an absolute link": (lambda: packed(link("set/data_batch_1", "/etc/passwd"), *good()), True),
    "a hard link": (lambda: packed(link("set/data_batch_1", "../secret", tarfile.LNKTYPE), *good()), True),
    "a link for a folder": (through_a_folder, True),
    "a character device": (lambda: packed(special(tarfile.CHRTYPE), *good()), True),
    "a block device": (lambda: packed(special(tarfile.BLKTYPE), *good()), True),
    "a pipe": (lambda: packed(special(tarfile.FIFOTYPE), *good()), True),
    "a folder": (lambda: packed(member("set/data_batch_1", b"", type=tarfile.DIRTYPE), *good()), True),
    "an unknown kind": (lambda: packed(member("set/data_batch_1", b"", type=b"Z"), *good()), True),
    "the same twice": (lambda: packed(*good(), member("set/data_batch_1"), member("set/test_batch")), True),
    "a very long name": (lambda: packed(member("set/" + "x" * 5000), *good()), True),
    "a very long wanted name": (lambda: packed(member("set/data_batch_1" + "/" * 300), *good()), True),
    "names that are none": (lambda: packed(member("set/\udcff\udcfe"), member(""), member("."), *good()), True),
    "a set-user-id bit": (lambda: packed(*(member(name, text, mode=0o6777) for name, text in GOOD.items())), True),
    "two gzip files": (lambda: gzip.compress(tar(good())[:700]) + gzip.compress(tar(good())[700:]), True),
    "more after the end": (lambda: gzip.compress(tar(good()) + tar([member("../canary")])), True),
    "headers for another name": (lambda: pax(path="../canary"), True),
    "headers for another size": (lambda: pax(size="99999999999"), True),
    # those that are refused
    "another case": (lambda: packed(*(member(name.upper(), content) for name, content in GOOD.items())), False),
    "a long link that renames": (lambda: packed(member("set/data_batch_1" + "x" * 200), good()[1]), False),
    "a sparse file": (sparse, False),
    "a size below 0": (lambda: size_field(b"-0000000777"), False),
    "a size in base 256": (lambda: size_field(b"\xff" * 12), False),
    "a size beyond the end": (lambda: size_field(b"00001000000"), False),
    "a size that is enormous": (lambda: size_field(b"77777777777"), False),
    "a size that is no number": (lambda: size_field(b"0o_12+3e9"), False),
    "a long name that is enormous": (
        lambda: gzip.compress(header(tar([member("x" * 300), *good()]), 124, b"77777777777")),
        False,
    ),
    "a wrong checksum": (lambda: gzip.compress(tar(good())[:20] + b"x" + tar(good())[21:]), False),
    "a bomb": (lambda: gzip.compress(tar([member("set/bomb", BOMB), *good()]), 9), False),
    "a wanted bomb": (lambda: gzip.compress(tar([member("set/data_batch_1", BOMB)]), 9), False),
    "a bomb of headers": (lambda: gzip.compress(tar([member("x", b"")])[:512] * (len(BOMB) // 512), 9), False),
    "cut": (lambda: packed(*good())[:100], False),
    "cut before the end": (lambda: gzip.compress(tar(good())[:600]), False),
    "a broken gzip file": (lambda: packed(*good())[:20] + b"\0" * 30 + packed(*good())[50:], False),
    "a zip": (zipped, False),
    "a bare tar": (lambda: tar(good()), False),
    "bz2": (lambda: bz2.compress(tar(good())), False),
    "xz": (lambda: lzma.compress(tar(good())), False),
    "nothing": (lambda: b"", False),
    "an empty archive": (lambda: packed(), False),
    "text": (lambda: b"<html>Not found</html>\n" * 50, False),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST", SMALL)
    make, fine = HOSTILE[kind]
    content = make()
    Path("root").mkdir()
    Path("secret").write_bytes(CANARY)
    archive, folder = Path("root/set.tar.gz").absolute(), Path("root/set").absolute()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    if fine:
        unpack(content, archive, folder, WANTED)
    else:
        line = refused(lambda: unpack(content, archive, folder, WANTED), archive, "delete it and download it again")
        assert len(line) < 500
    found = {path for path in Path().rglob("*") if path not in before}
    assert found <= {Path("root/set"), *(Path("root/set") / name for name in WANTED)}
    assert {path: path.lstat().st_mtime_ns for path in before if path.is_file()}.items() <= before.items()
    for name in WANTED:
        path = folder / name
        if fine or path.exists():
            assert not path.is_symlink()
            assert path.stat().st_mode & 0o7111 == 0
            assert path.read_bytes() == GOOD[f"set/{name}"], "no other entry had a say in it"


def test_thirty_kinds() -> None:
    assert len(HOSTILE) >= 30


def memory_taken(act: Callable[[], Any]) -> int:
    """The MiB by which a process of its own grows."""
    reading, writing = os.pipe()

    def measured() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        act()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(writing, str(grown // 1024).encode())

    assert os.waitstatus_to_exitcode(os.waitpid(fork(measured), 0)[1]) == 0
    return int(os.read(reading, 20))


def test_no_archive_fills_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST", SMALL)
    contents = {kind: make() for kind, (make, _) in HOSTILE.items()}
    zeros = gzip.compress(bytes(64 * SMALL), 1)

    def all_of_them() -> None:
        for content in contents.values():
            with contextlib.suppress(DataError):
                unpack(content, Path("x"), Path("set"), WANTED)
        refused(lambda: archives.unzip(zeros, Path("y.gz")), "y.gz: damaged", "more than 1048576 bytes")

    assert memory_taken(all_of_them) < 40


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "cifar-10-python.tar.gz").open("wb") as file:
        file.truncate(files.MOST + 1)
    refused(lambda: Cifar(root=str(tmp_path), **NEITHER).read("train"), "cifar-10-python.tar.gz", "it was not read")
    raw = write_mnist(tmp_path, 20, 20)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"")
    os.truncate(raw / "train-images-idx3-ubyte.gz", files.MOST * 3)
    refused(lambda: MNIST(root=str(tmp_path), **NEITHER).read("train"), "train-images-idx3-ubyte.gz", "it was not read")


@pytest.mark.soak
def test_real_bombs() -> None:
    """At the real limit: 4 GiB of zeros, in 4 MiB."""
    zeros = gzip.compress(bytes(1 << 28), 9) * 16
    bomb = gzip.compress(header(tar([member("set/data_batch_1", b"")]), 124, b"40000000000\0")[:512], 9) + zeros

    def all_of_them() -> None:
        refused(lambda: unpack(bomb, Path("x"), Path("set"), WANTED), "it holds more than")
        refused(lambda: archives.unzip(zeros, Path("y.gz")), "it holds more than")

    assert memory_taken(all_of_them) < 800


@pytest.mark.soak
def test_archives_with_random_damage() -> None:
    chance, whole = random.Random(0), packed(*good(), member("../canary"), link("set/x", "/etc/passwd"))
    bare = tar([*good(), member("../canary"), link("set/x", "/etc/passwd")])
    Path("root").mkdir()
    for count in range(20_000):
        content = bytearray(bare if count % 2 else whole)
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(len(content))
            content[place] ^= 1 << chance.randrange(8)
        with contextlib.suppress(DataError):
            unpack(gzip.compress(content, 0) if count % 2 else bytes(content), Path("root/x"), Path("root/set"), WANTED)
        assert {path.name for path in Path().rglob("*")} <= {"root", "set", *WANTED}


# --- downloads -------------------------------------------------------------------------------------------------------

CONTENT = random.Random(0).randbytes(300_000)
SUMS = Sums(hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
URL = "https://data.example/set.tar.gz"


class Server:
    """Answers with what there is of ``content``, each answer no longer than the next of ``cuts``."""

    def __init__(self, content: bytes = CONTENT, cuts: tuple[int, ...] = (), ranges: bool = True) -> None:
        self.content, self.cuts, self.ranges, self.wishes = content, list(cuts), ranges, []  # type: ignore[var-annotated]

    def __call__(self, request: urllib.request.Request) -> tuple[int, dict[str, str], bytes]:
        wish = request.get_header("Range")
        self.wishes.append(wish)
        start = int(wish.removeprefix("bytes=").removesuffix("-")) if wish and self.ranges else 0
        if start >= len(self.content):
            return 416, {}, b""
        rest = self.content[start:][: self.cuts.pop(0) if self.cuts else None]
        if not start:
            return 200, {"Content-Length": str(len(self.content))}, rest
        return 206, {"Content-Range": f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"}, rest


def get(patch: pytest.MonkeyPatch, server: Any, sums: Sums = SUMS, url: str = URL) -> bytes:
    serve_https(patch, server)
    target = Path("root/set.tar.gz")
    download([url], target, sums, "get it by hand")
    assert [path.name for path in Path("root").iterdir()] == [target.name], "nothing else is left"
    return target.read_bytes()


def test_a_cut_download_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(cuts=(100_000,))
    assert get(monkeypatch, server) == CONTENT
    assert server.wishes == [None, "bytes=100000-"]
    Path("root/set.tar.gz").unlink()
    refused(
        lambda: get(monkeypatch, Server(cuts=(70_000, 70_000))), "(cut after 140000 of 300000 bytes); get it by hand"
    )
    assert not Path("root/set.tar.gz").exists()
    server = Server()
    assert get(monkeypatch, server) == CONTENT
    assert server.wishes == ["bytes=140000-"], "also by the next run"


def test_a_cut_download_is_thrown_away_where_it_leads_to_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("root").mkdir()
    for left in (b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5), b""):
        Path("root/set.tar.gz").unlink(missing_ok=True)
        Path("root/set.tar.gz.part").write_bytes(left)
        assert get(monkeypatch, Server()) == CONTENT
    Path("root/set.tar.gz").unlink()
    server = Server(cuts=(1000,), ranges=False)
    assert get(monkeypatch, server) == CONTENT, "a server that always begins anew"
    Path("root/set.tar.gz").unlink()
    Path("root/set.tar.gz.part").write_bytes(CONTENT[:5000])
    shorter = Server(CONTENT[:4000])
    refused(lambda: get(monkeypatch, shorter), "download failed")
    assert shorter.wishes == ["bytes=5000-", None], "no such range"


def test_a_mirror_is_asked_first_and_believed_no_more_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (CONTENT, b"x" * len(CONTENT), b"x"):
        asked = []

        def answer(request: urllib.request.Request, given: bytes = given, asked: list[str] = asked) -> Any:
            asked.append(request.full_url)
            content = given if "mirror" in request.full_url else CONTENT
            return Server(content)(request)

        Path("root").mkdir(exist_ok=True)
        Path("root/set.tar.gz").unlink(missing_ok=True)
        serve_https(monkeypatch, answer)
        download([URL], Path("root/set.tar.gz"), SUMS, "by hand", mirror="https://mirror.example/data/")
        assert asked[0] == "https://mirror.example/data/set.tar.gz"
        assert Path("root/set.tar.gz").read_bytes() == CONTENT
    with pytest.raises(ConfigError, match=r"data\.mirror: http://mirror.example is no https address"):
        Cifar(mirror="http://mirror.example")
    with pytest.raises(ConfigError, match=r"^data\.mirror: an address with a user and a password cannot be opened"):
        Cifar(mirror="https://me:secret@mirror.example")


def test_what_a_mirror_gave_is_not_gone_on_with_at_another_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no size is published, a page that says 'not found' is as good a beginning as any."""
    official = Server(CONTENT)

    def answer(request: urllib.request.Request) -> Any:
        return (Server(b"no such page") if "mirror" in request.full_url else official)(request)

    serve_https(monkeypatch, answer)
    download([URL], Path("root/set.tar.gz"), Sums(sha256=SUMS.sha256), "by hand", mirror="https://mirror.example")
    assert Path("root/set.tar.gz").read_bytes() == CONTENT
    assert official.wishes == [None], "asked once, from the beginning"
    assert "data.mirror: set.tar.gz is not to be had there" in caplog.text


def test_a_download_whose_size_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was cut is gone on with at once; none is kept for the next run, which could not tell how far it is."""
    sums = Sums(sha256=SUMS.sha256)
    server = Server(cuts=(100_000,))
    assert get(monkeypatch, server, sums) == CONTENT
    assert server.wishes == [None, "bytes=100000-"]
    Path("root/set.tar.gz").unlink()
    refused(lambda: get(monkeypatch, Server(cuts=(70_000, 70_000)), sums), "its SHA-256 is not")
    assert not list(Path("root").iterdir())
    Path("root/set.tar.gz.part").write_bytes(CONTENT + b"of a run that was killed")
    assert get(monkeypatch, Server(), sums) == CONTENT


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (Server(b"x" + CONTENT[1:]), "its MD5 is not"),
        (Server(CONTENT + b"more"), "more than the 300000 bytes of the published file"),
        (Server(CONTENT[:-1]), "download failed"),
        (Server(b"<html>log in</html>"), "HTTP Error 416"),
        (Server(b""), "download failed"),
        (lambda request: (404, {}, b"not found"), "HTTP Error 404"),
        (lambda request: (302, {"Location": "http://data.example/set.tar.gz"}, b""), "is not https"),
        (lambda request: (301, {"Location": "file:///etc/passwd"}, b""), "edirect"),
        (lambda request: (307, {"Location": "ftp://data.example/x"}, b""), "is not https"),
        (lambda request: (302, {"Location": URL}, b""), "redirect"),
    ],
    ids=["changed", "longer", "shorter", "html", "empty", "missing", "to http", "to a file", "to ftp", "in a circle"],
)
def test_what_is_not_the_published_file_is_not_taken(monkeypatch: pytest.MonkeyPatch, server: Any, said: str) -> None:
    refused(lambda: get(monkeypatch, server), said, "get it by hand", "set.tar.gz is not in root")
    assert not Path("root/set.tar.gz").exists()


def test_the_sha_256_counts_where_the_md5_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = Sums(SUMS.md5, "0" * 64, SUMS.size)
    refused(lambda: get(monkeypatch, Server(), sums), f"its SHA-256 is not {'0' * 64}")


def test_a_redirect_within_https_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(cuts=(1000,))

    def answer(request: urllib.request.Request) -> tuple[int, dict[str, str], bytes]:
        if request.full_url == URL:
            return 302, {"Location": "https://mirror.example/set.tar.gz"}, b""
        return server(request)

    assert get(monkeypatch, answer) == CONTENT
    assert server.wishes == [None, "bytes=1000-"]


def test_only_https(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = refuse_network(monkeypatch)
    for url in (
        "http://data.example/x",
        "ftp://data.example/x",
        "file:///etc/passwd",
        "HTTP://x",
        "//x",
        "x",
        "data:,x",
    ):
        refused(lambda url=url: download([url], Path("root/x"), Sums(), "by hand"), "is not https")
        with pytest.raises(DataError, match="is not https"):
            fetch(url, Path("root/x.part"), 10)
    assert not asked
    from torchvision import datasets

    addresses = [*mnist.MIRRORS, cifar.PAGE, datasets.CIFAR10.url, datasets.CIFAR100.url]
    assert all(address.startswith("https://") for address in addresses)


def test_every_download_is_pinned() -> None:
    from torchvision import datasets

    assert dict(datasets.MNIST.resources).keys() == mnist.PACKED.keys()
    pinned = [*mnist.PACKED.values(), *cifar.ARCHIVES.values()]
    assert len({sha256 for _, sha256 in pinned}) == 6
    for size, sha256 in pinned:
        assert size < files.MOST
        assert len(bytes.fromhex(sha256)) == 32


def test_what_lies_there_is_checked_before_it_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = write_cifar(tmp_path, per_batch=10, packed=True)
    publish_cifar(monkeypatch, archive)
    monkeypatch.setitem(cifar.ARCHIVES, 10, (archive.stat().st_size, "0" * 64))
    monkeypatch.setattr(gzip, "GzipFile", None)
    refused(lambda: Cifar(root=str(tmp_path)).read("train"), archive, f"its SHA-256 is not {'0' * 64}", "data.verify")
    assert not (tmp_path / "cifar-10-batches-py").exists()
    refused(lambda: MNIST(root=str(write_mnist(tmp_path / "m").parents[1])).read("train"), "not the published file")
