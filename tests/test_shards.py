"""Pictures in tar archives: packed, read at random, the same numbers as from files; archives that may be anybody's."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fake_data
import fake_tables
from conftest import Program
from fake_data import refused
from healsg.cli import main
from healsg.data.base import Needs
from healsg.data.sharding import Sharding
from healsg.datasets.imagefolder import ImageFolder
from healsg.datasets.images.path_list import PathList
from healsg.datasets.shards import Shards
from healsg.datasets.tar import index as tar_index
from healsg.datasets.tar import members as tar_members
from healsg.datasets.tar import packing
from healsg.datasets.tar.array_file import read_arrays
from healsg.errors import DataError, RunError
from healsg.system import ProcessLock
from helpers import Cut, record, train

SMALL = {"image_size": 16, "shift": 2, "workers": 0}
RUN = ["data.image_size=16", "data.shift=2", "data.batch_size=8", "model=cnn", "model.width=4", "runner.steps=4"]


def picture(label: int = 0, size: int = 12) -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 60 * label, np.uint8)).save(made, "PNG")
    return made.getvalue()


def write_tar(path: Path, files: dict[str, bytes | tarfile.TarInfo]) -> Path:
    """An archive of these files, or of headers as they are given, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def numbered(count: int, classes: int = 3, start: int = 0) -> dict[str, bytes]:
    """The files of samples as webdataset's writers name them."""
    files = {}
    for number in range(start, start + count):
        files |= {f"{number:06}.png": picture(number % classes), f"{number:06}.cls": b"%d" % (number % classes)}
    return files


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The pictures of ``DIR`` as archives of a few samples each."""
    fake_data.write_imagefolder(tmp_path / "DIR", per_class=6)
    assert main(["pack", "data=imagefolder", "data.folder=DIR", "--out", "S", "--size", "0.02"]) == 0
    assert len(list((tmp_path / "S").glob("train-*.tar"))) > 2
    return tmp_path / "S"


def test_a_run_has_the_same_digest_from_files_and_from_archives(packed: Path) -> None:
    digests = set()
    for number, options in enumerate(
        (["data=imagefolder", "data.folder=DIR"], ["data=shards", "data.folder=S"], ["data=shards", "data.folder=S"])
    ):
        train(*options, *RUN, f"data.workers={2 * (number // 2)}", f"name={number}")
        digests.add(record(str(number))["digest"])
    assert len(digests) == 1


def test_what_is_packed_is_what_the_folder_has(packed: Path) -> None:
    folder, shards = ImageFolder("DIR", **SMALL), Shards(folder="S", **SMALL)
    assert shards.info == folder.info
    for part in ("train", "val"):
        loose, stored = folder.read(part), shards.read(part)
        assert loose is not None
        assert stored is not None
        assert stored.targets.tolist() == loose.targets.tolist()
        assert shards.groups("prefix", part).tolist() == folder.groups("prefix", part).tolist()
        for number in range(len(loose)):
            path = Path(loose.dataset.paths[number])
            assert stored.dataset.stored(number).read() == path.read_bytes()
            assert stored.dataset.stored(number).name == f"{path.parent.name}/{path.name}"
    assert shards.fitted() == folder.fitted()
    renamed = Shards(folder="S", classes=["cat", "ant", "bee"], **SMALL)
    assert renamed.read("val").targets.tolist() == [1] * 6 + [2] * 6 + [0] * 6
    assert renamed.restored(folder.info).read("val").targets.tolist() == folder.read("val").targets.tolist()


def test_archives_and_files_share_test_parts_folds_and_groups(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for patient in range(6):
            fake_data.write_imagefolder(tmp_path / "DIR" / label, (f"p{patient}",), (), 2)
    assert main(["pack", "data=imagefolder", "data.folder=DIR", "--out", "S"]) == 0
    for more in ({"test_fraction": 0.3}, {"fold": "2/3"}, {"group": "folder", "test_fraction": 0.2}, {"labels": 6}):
        splits = [kind(folder=name, **SMALL, **more).splits() for kind, name in ((ImageFolder, "DIR"), (Shards, "S"))]
        chosen = [{split: source.indices.tolist() for split, source in one.items()} for one in splits]
        assert chosen[0] == chosen[1], more


def epoch_of(data: Shards, batch: int, world: int, accumulate: int) -> list[int]:
    """The samples of an epoch in the order in which updates take them."""
    order = []
    loader = data.loaders(Needs())["train"]
    ranks = [loader.sharded(Sharding(3, rank=rank, world=world, accumulate=accumulate)) for rank in range(world)]
    assert loader.batch_size == batch
    for position in range(len(ranks[0])):
        for rank in ranks:
            found, rows = rank.batch(5, position)
            order += found["index"][:rows].tolist()
    return order


def test_the_order_is_one_for_any_ranks_and_split_of_batches(packed: Path) -> None:
    digests = set()
    for world, batch, accumulate in ((1, 8, 1), (2, 4, 2), (3, 8, 1), (4, 2, 4)):
        data = Shards(folder="S", batch_size=batch, val_fraction=0, augment="none", **SMALL)
        digests.add(hashlib.sha256(str(epoch_of(data, batch, world, accumulate)).encode()).hexdigest())
    assert len(digests) == 1


def test_a_seek_reads_what_a_step_reads(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Shards(folder="S", batch_size=4, **SMALL).loaders(Needs())["train"]
    reads = []
    pread = os.pread
    monkeypatch.setattr(tar_members.os, "pread", lambda *given: reads.append(given) or pread(*given))
    counts = []
    for step in (10, 10_000_000):
        reads.clear()
        loader.batch(*divmod(step, len(loader)))
        counts.append(len(reads))
    assert counts == [4, 4]


# --- archives of other programs --------------------------------------------------------------------------------------


def test_archives_of_other_programs(tmp_path: Path) -> None:
    write_tar(tmp_path / "a/set-train-0000.tar", {**numbered(6), ".DS_Store": b"x", "README": b"x"})
    write_tar(tmp_path / "a/set-train-0001.tar", numbered(4))  # the names begin anew in each
    write_tar(tmp_path / "a/set-val-0000.tar", numbered(3))
    data = Shards(folder="a", **SMALL)
    assert {split: len(source) for split, source in data.splits().items()} == {"train": 10, "val": 3}
    assert data.info.num_classes == 3
    assert data.info.class_names == ()
    assert data.read("train").targets.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert Shards(folder="a", classes=["x", "y", "z"], **SMALL).info.class_names == ("x", "y", "z")
    named = {
        "a/1.left.png": picture(),
        "a/1.right.png": picture(1),
        "a/1.json": b'{"animal": "dog", "group": {"herd": 7}}',
    }
    named |= {
        "a/2.left.png": picture(),
        "a/2.right.png": picture(2),
        "a/2.json": b'{"animal": "cat", "group": {"herd": 7}}',
    }
    write_tar(tmp_path / "b/train/0.tar", named)
    data = Shards(folder="b", image="right.png", target="animal", val_fraction=0, **SMALL)
    assert data.info.class_names == ("cat", "dog")
    assert data.read("train").targets.tolist() == [1, 0]
    assert data.groups("herd").tolist() == [0, 0]
    assert int(data.read("train").sample(1)["input"].max()) == 120
    sides = {"0.jpg": picture(), "0.json": b'{"target": [1, 2.5]}', "1.jpg": picture(), "1.json": b'{"target": [0, 3]}'}
    write_tar(tmp_path / "c/0.tar", sides)
    assert Shards(folder="c", kind="regression", **SMALL).read("train").targets.tolist() == [[1.0, 2.5], [0.0, 3.0]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_reads_what_is_packed_and_writes_what_is_read(packed: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    tars = [str(path) for path in sorted(packed.glob("train-*.tar"))]
    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [
        f"{name}/{i:03}" for name in ("ant", "bee", "cat") for i in range(6)
    ]
    assert [int(sample["cls"]) for sample in found] == [0] * 6 + [1] * 6 + [2] * 6
    (tmp_path / "W").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "W/%04d.tar"), maxcount=5, verbose=0) as writer:
        for number in range(12):
            writer.write({"__key__": f"{number:06}", "png": picture(number % 3), "cls": number % 3})
    assert Shards(folder="W", **SMALL).read("train").targets.tolist() == [0, 1, 2] * 4
    del found
    gc.collect()  # webdataset leaves files open, of which Python warns when they are collected


def member(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


PNG, ONE = picture(), {"0.png": picture(), "0.cls": b"0"}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "symbolic link": ({**ONE, "1.png": member("1.png", tarfile.SYMTYPE, "/etc/passwd")}, "'1.png' is a link"),
    "hard link": ({**ONE, "1.png": member("1.png", tarfile.LNKTYPE, "0.png")}, "'1.png' is a link"),
    "device": ({**ONE, "1.png": member("1.png", tarfile.CHRTYPE)}, "'1.png' is a device"),
    "sparse": ({**ONE, "1.png": member("1.png", tarfile.GNUTYPE_SPARSE)}, "archive"),
    "huge": ({**ONE, "1.png": member("1.png", tarfile.REGTYPE, size=1 << 50)}, "which no sample has"),
    "beyond the end": ({**ONE, "1.png": member("1.png", tarfile.REGTYPE, size=1 << 20)}, "it is cut within '1.png'"),
    "above": ({**ONE, "../1.png": PNG}, "'../1.png' is a name that leads out"),
    "absolute": ({**ONE, "/1.png": PNG}, "'/1.png' is a name that leads out"),
    "long name": ({**ONE, "L": member("L", tarfile.GNUTYPE_LONGNAME, size=1 << 40)}, "archive"),
    "a sample twice": ({**ONE, "1.png": PNG, "1.cls": b"0", "./0.png": PNG}, "two samples of the name '0'"),
    "a file twice": ({"0.png": PNG, "./0.png": PNG, "0.cls": b"0"}, "'0.png' twice"),
    "no class": ({"0.png": PNG}, "0: has no class"),
    "a class of bytes": ({"0.png": PNG, "0.cls": b"\xff\xfe"}, "0: 'utf-8' codec"),
    "a huge class": ({**ONE, "1.png": PNG, "1.cls": b"999999999"}, "a class has the index 999999999"),
    "no picture": ({"0.txt": b"x", "0.cls": b"0"}, "0: has no picture, but txt, cls"),
    "two pictures": ({"0.png": PNG, "0.jpg": PNG, "0.cls": b"0"}, "data.image=png says which"),
    "json": ({"0.png": PNG, "0.json": b"[" * 100_000}, "0.tar: 0: "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_archives_of_strangers_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    files, said = HOSTILE[name]
    path = write_tar(tmp_path / "S/0.tar", files)
    refused(lambda: Shards(folder="S", **SMALL).read("train"), tmp_path / "S", said)
    assert set((tmp_path / "S").iterdir()) <= {path, tmp_path / "S/train.index"}


def test_damaged_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", numbered(8)).read_bytes()
    (tmp_path / "S").mkdir()
    path = tmp_path / "S/0.tar"

    def read() -> Any:
        return Shards(folder="S", **SMALL).read("train")

    for place in (100, 512, 700, 1536, 6000, 16 * 1024, len(whole.rstrip(b"\0")) + 1):
        path.write_bytes(whole[:place])
        assert str(path) in refused(read)
    path.write_bytes(whole[:2048] + b"x" * 512 + whole[2560:])
    refused(read, path, "after its last complete file")
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    refused(read, path, "gunzip")
    path.write_bytes(b"")
    refused(read, path)
    path.unlink()
    os.mkfifo(path)
    refused(read, path, "not a file")
    path.unlink()
    refused(read, "holds no archives")
    path.write_bytes(whole)
    write_tar(tmp_path / "S/set-val.tar", numbered(2))
    refused(read, path, "which part is it?")


def test_an_index_is_made_anew_where_archives_changed_and_is_nothing_to_be_trusted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "healsg")
    path = write_tar(tmp_path / "S/0.tar", numbered(6))
    index = tmp_path / "S/train.index"

    def targets() -> tuple[list[int], bool]:
        caplog.clear()
        found = Shards(folder="S", **SMALL).read("train").targets.tolist()
        return found, "indexed, once" in caplog.text

    assert targets() == ([0, 1, 2, 0, 1, 2], True)
    assert targets() == ([0, 1, 2, 0, 1, 2], False)
    opened = Shards(folder="S", **SMALL).read("train")
    write_tar(path, numbered(6, start=1))
    refused(lambda: opened.sample(0), path, "was changed since the run began")
    assert targets() == ([1, 2, 0, 1, 2, 0], True)
    good = index.read_bytes()
    for damaged in (b"", b"x" * 100, good[:-1], good[:200], good[:-1] + b"x", good.replace(b'"<i8"', b'"<f8"')):
        index.write_bytes(damaged)
        assert targets() == ([1, 2, 0, 1, 2, 0], True)
    index.unlink()
    index.symlink_to(tmp_path / "elsewhere")
    assert targets() == ([1, 2, 0, 1, 2, 0], True)
    assert not (tmp_path / "elsewhere").exists()
    assert targets()[1] is False
    assert "the samples of 1 archives" not in caplog.text


# --- packing ---------------------------------------------------------------------------------------------------------


def test_numbers_labels_and_groups_of_tables_are_packed(tmp_path: Path) -> None:
    fake_tables.write_picture_csv(tmp_path / "t", 12)
    table = (tmp_path / "t").glob("*.csv")
    rows = next(iter(table)).read_text().splitlines()
    image = rows[0].split(",")[0]
    names = [row.split(",")[0] for row in rows[1:]]
    lines = [
        f"{image},dose,a,b,patient",
        *(f"{name},{0.1 * i},{i % 2},{i % 3 // 2},p{i // 3}" for i, name in enumerate(names)),
    ]
    (tmp_path / "t/own.csv").write_text("\n".join(lines))
    base = ["data=csv", "data.file=t/own.csv", f"data.image={image}", "data.group=patient"]
    assert main(["pack", *base, "data.target=dose", "data.kind=regression", "--out", "R"]) == 0
    assert main(["pack", *base, "data.target=[a,b]", "data.kind=multilabel", "--out", "M"]) == 0
    numbers = Shards(folder="R", group="patient", **SMALL)
    expected = torch.tensor([0.1 * i for i in range(12)], dtype=torch.float64).float()
    assert torch.equal(numbers.read("train").targets, expected)
    assert (numbers.info.kind, numbers.info.class_names) == ("regression", ("dose",))
    assert numbers.groups("patient").tolist() == [i // 3 for i in range(12)]
    labels = Shards(folder="M", **SMALL)
    assert labels.read("train").targets.tolist() == [[i % 2, i % 3 // 2] for i in range(12)]
    assert (labels.info.kind, labels.info.class_names) == ("multilabel", ("a", "b"))


def test_names_with_dots_and_of_one_stem_stay_apart(tmp_path: Path) -> None:
    folder = tmp_path / "DIR/x.y"
    for name in ("a.b.png", "a.png", "a.bmp", ".b%.png", "ä ö.png"):
        for inner in (folder, tmp_path / "DIR/z"):
            inner.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(inner / name, "PNG")
    assert main(["pack", "data=imagefolder", "data.folder=DIR", "--out", "S"]) == 0
    names = [Shards(folder="S", **SMALL).read("train").dataset.stored(number).name for number in range(8)]
    assert names == [f"{label}/{name}" for label in ("x.y", "z") for name in ("a.b.png", "a.bmp", "a.png", "ä ö.png")]


def test_a_packing_that_was_killed_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_data.write_imagefolder(tmp_path / "DIR", per_class=4)
    line = ["pack", "data=imagefolder", "data.folder=DIR", "--size", "0.02", "--out"]
    assert main([*line, "whole"]) == 0
    whole = {path.name: path.read_bytes() for path in Path("whole").glob("*.tar")}
    added = tarfile.TarFile.addfile
    left = [0]

    def addfile(self: tarfile.TarFile, *given: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Cut
        added(self, *given)

    monkeypatch.setattr(tarfile.TarFile, "addfile", addfile)
    for members in (9, 15):
        left[0] = members
        with pytest.raises(Cut):
            main([*line, "S"])
        Path("S/.train-000002.tar.999-abcd.tmp").write_text("what a kill leaves")
        refused(lambda: Shards(folder="S", **SMALL).read("val"), "not all archives are packed yet")
    written = {path.name: path.stat().st_mtime_ns for path in Path("S").glob("*.tar")}
    assert written
    left[0] = 0
    assert main([*line, "S"]) == 0
    assert {path.name: path.read_bytes() for path in Path("S").glob("*.tar")} == whole
    assert written.items() <= {path.name: path.stat().st_mtime_ns for path in Path("S").glob("*.tar")}.items()
    assert not list(Path("S").glob(".*"))
    assert main([*line, "S"]) == 0, "nothing is left to do"


def test_mistakes_of_packing_are_one_line(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["data=imagefolder", "data.folder=DIR"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/.packing.json").write_text("x")
    for line, said in (
        ([*folder], "the following arguments are required: --out"),
        ([*folder, "--out", "other"], "holds mine.txt"),
        ([*folder, "--out", "begun"], "another packing was begun"),
        ([*folder, "--out", "S", "--size", "1"], "holds other data"),
        ([*folder, "--out", "DIR/train/ant/000.jpg"], "is no folder"),
        ([*folder, "--out", "DIR/inner"], "lies in data.folder"),
        ([*folder, "--out", "/dev/null/new"], "cannot be made"),
        ([*folder, "--out", "new", "--size", "none"], "--size: none"),
        ([*folder, "--out", "new", "--sise", "3"], "did you mean --size"),
        ([*folder, "--out", "new", "data.labels=3"], "data.labels: is chosen by each run"),
        (["data=digits", "--out", "new"], "are no picture files"),
    ):
        capsys.readouterr()
        assert main(["pack", *line]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert main(["pack", *folder, "--out", "new", "--dry-run", "--json", "data.image_size=16"]) == 0  # below data.shift
    answer = json.loads(capsys.readouterr().out)
    assert answer["samples"] == {"train": 18, "val": 18}
    assert not (tmp_path / "new").exists()
    (packed / "train-000000.tar").unlink()
    refused(lambda: Shards(folder="S", **SMALL).info and Shards(folder="S", **SMALL).read("train"), "train-000000.tar")


def test_broken_pictures_are_left_out_of_archives_where_they_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_data.write_imagefolder(tmp_path / "DIR", per_class=4)
    broken, lost = (sorted(Path("DIR", part).rglob("*.*"))[5] for part in ("train", "val"))
    for path in (broken, lost):
        path.write_bytes(path.read_bytes()[:100])
    line = ["pack", "data=imagefolder", "data.folder=DIR", "data.group=prefix", "data.on_error=skip", "--json"]
    assert main([*line, "--out", "S"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["samples"] == {"train": 11, "val": 11}
    assert answer["skipped"] == {"train": 1, "val": 1}
    shards, folder = Shards(folder="S", **SMALL), ImageFolder("DIR", **SMALL)
    for part, gone in (("train", broken), ("val", lost)):
        source, loose = shards.read(part), folder.read(part)
        assert source is not None
        assert loose is not None
        paths = [Path(path) for path in loose.dataset.paths]
        left = [number for number, path in enumerate(paths) if path.parts[-3:] != gone.parts[-3:]]
        names = [source.dataset.stored(number).name for number in range(len(source))]
        assert names == [f"{paths[number].parent.name}/{paths[number].name}" for number in left]
        assert source.targets.tolist() == loose.targets[left].tolist()
        assert shards.groups("prefix", part).tolist() == folder.groups("prefix", part)[left].tolist()
    assert main([*line, "--out", "T", "data.max_errors=1"]) in (1, 2)
    assert "data.max_errors: more than 1 samples cannot be read" in capsys.readouterr().err
    assert not Path("T").exists()


# --- long counts -----------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_run_has_the_same_digest_for_any_number_of_workers(packed: Path) -> None:
    digests = set()
    for workers in range(5):
        train("data=shards", "data.folder=S", *RUN, f"data.workers={workers}", f"name={workers}")
        digests.add(record(str(workers))["digest"])
    train("data=imagefolder", "data.folder=DIR", *RUN, "data.workers=4", "name=files")
    assert digests == {record("files")["digest"]}


@pytest.mark.soak
def test_a_run_that_is_killed_goes_on_exactly(packed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = ["data=shards", "data.folder=S", *RUN[:-1], "runner.epochs=6", "data.workers=2", "runs=3", "kills=5"]
    assert main(["verify", *line]) == 0
    assert "exact: 5 runs agree; 15 kills" in capfd.readouterr().out


MILLION = """\
import time
import torch, torchvision, healsg.datasets.shards, healsg.transforms.views
from healsg.data.base import Needs
from healsg.data.sharding import Sharding
from healsg.datasets.tar import packing
from healsg.datasets.tar import index as tar_index
from healsg.datasets.tar import members as tar_members
began = time.perf_counter()
data = healsg.datasets.shards.Shards(folder="S", image_size=8, shift=1, batch_size=128)
loader = data.loaders(Needs())["train"].sharded(Sharding(1))
first = time.perf_counter() - began
loader.batch(0, 10)
reads, pread = [], tar_members.os.pread
tar_members.os.pread = lambda *given: reads.append(given) or pread(*given)
for step in (10, 10_000_000):
    begin, n = time.perf_counter(), len(reads)
    loader.batch(*divmod(step, len(loader)))
    print(f"step {step}: {len(reads) - n} reads, {time.perf_counter() - begin:.4f} s")
print(f"start {first:.2f} s, {len(loader)} batches")
"""


@pytest.mark.soak
def test_a_million_samples_start_within_two_seconds(tmp_path: Path, process: Program) -> None:
    """An index of a million samples, whose pictures are those of a small archive; imports are not counted."""
    count = 1_000_000
    write_tar(tmp_path / "S/0.tar", numbered(9))
    small = Shards(folder="S", **SMALL)._indices["train"]
    places = torch.arange(count) % 9
    many = replace(
        small,
        ends=torch.tensor([count]),
        offset=small.offset[places],
        size=small.size[places],
        target=small.target[places],
        names=PathList.of(f"{number:09}.png" for number in range(count)),
    )
    facts = read_arrays(tmp_path / "S/train.index")[0]["index"]  # type: ignore[index]
    tar_index._write(many, facts, [tmp_path / "S/train.index"])
    result = process([sys.executable, "-c", MILLION])
    print(result.stdout, result.stderr)
    assert float(re.search(r"start ([\d.]+) s", result.stdout)[1]) < 2  # type: ignore[index]
    assert result.stdout.count(": 128 reads") == 2


def private_memory(number: int) -> int:
    """The bytes of a process that are its own: neither shared nor in a file."""
    rows = Path(f"/proc/{number}/status").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith("RssAnon"))


@pytest.mark.soak
def test_memory_is_flat_over_epochs_of_a_set_four_times_the_limit(tmp_path: Path) -> None:
    """256 MB of pictures, and at most 64 MB more in the run's process and its workers together."""
    limit = 64 << 20
    rng = np.random.default_rng(0)
    for number in range(1360):
        pixels = rng.integers(0, 255, (256, 256, 3), np.uint8)
        folder = tmp_path / f"DIR/{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:05}.bmp")
    assert main(["pack", "data=imagefolder", "data.folder=DIR", "--out", "S", "--size", "32"]) == 0
    shutil.rmtree("DIR")
    assert sum(path.stat().st_size for path in Path("S").glob("*.tar")) > 4 * limit
    data = Shards(folder="S", image_size=64, shift=4, workers=2, batch_size=16, val_fraction=0)
    loader = data.loaders(Needs())["train"]
    held = []
    for epoch in range(5):
        for _ in loader.batches(epoch):
            pass
        workers = [process.pid for process, _ in loader._workers.processes]
        held.append([private_memory(number) for number in (os.getpid(), *workers)])
        print(f"epoch {epoch}: {[round(one / 1e6, 1) for one in held[-1]]} MB")
    grown = [[now - before for before, now in zip(held[one], held[4], strict=True)] for one in (0, 1)]
    assert sum(grown[0]) < limit
    assert max(grown[1]) < 1 << 20, "flat, once each process has had its buffers"


# --- faults that a review brought up ---------------------------------------------------------------------------------


def test_a_cache_knows_which_pictures_of_an_archive_it_holds(tmp_path: Path) -> None:
    files = {}
    for number in range(8):
        dark, light = picture(number % 2), picture(2 + number % 2)
        files |= {f"{number}.png": dark, f"{number}.jpg": light, f"{number}.cls": b"%d" % (number % 2)}
    write_tar(tmp_path / "S" / "train.tar", files)
    common = {"folder": "S", "val_fraction": 0.25, "cache": True, **SMALL}
    sources = [Shards(image=ending, **common).stored("train") for ending in ("png", "jpg", "png")]
    read = [float(source.fetch(torch.arange(8))["input"].float().mean()) for source in sources]
    assert read[0] == read[2] < read[1]


def test_pictures_that_changed_are_no_packing_that_is_there(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["pack", "data=imagefolder", "data.folder=DIR", "--out", "S", "--size", "0.02"]
    capsys.readouterr()
    assert main(again) == 0
    assert "these archives are there already" in capsys.readouterr().out
    first = sorted((tmp_path / "DIR").rglob("*.png"))[0]
    first.write_bytes(first.read_bytes())
    os.utime(first, ns=(1, 1))
    assert main(again) == 2
    assert "S holds other data" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["1e39", "1" + "0" * 400])
def test_a_number_beyond_float32_is_refused(tmp_path: Path, number: str) -> None:
    write_tar(tmp_path / "S" / "train.tar", {"a.png": picture(), "a.json": b'{"target": %s}' % number.encode()})
    with pytest.raises(DataError, match=r"train\.tar: a: its \.json has no finite numbers as target"):
        Shards(folder="S", kind="regression", **SMALL).read("train")


def test_labels_of_an_index_that_were_exchanged_are_not_believed(tmp_path: Path) -> None:
    files = {}
    for name, label in (("a", b"cat"), ("b", b"dog")):
        files |= {f"{name}.png": picture(), f"{name}.cls": label}
    write_tar(tmp_path / "S" / "train.tar", files)
    assert Shards(folder="S", **SMALL).info.class_names == ("cat", "dog")
    (index,) = (tmp_path / "S").glob("*.index")
    content = index.read_bytes()
    assert b'"cat"' in content
    index.write_bytes(content.replace(b'"cat"', b'"cow"'))
    assert Shards(folder="S", **SMALL).info.class_names == ("cat", "dog")


def test_a_size_that_leads_back_ends_the_reading(tmp_path: Path) -> None:
    """tarfile of some versions of Python would read such an archive for ever (CVE-2025-8194)."""
    write_tar(tmp_path / "S" / "train.tar", numbered(2))
    path = tmp_path / "S" / "train.tar"
    header = bytearray(path.read_bytes())
    header[124:136] = (-1024 + (1 << 96)).to_bytes(12, "big")  # base 256, as GNU tar writes large sizes
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(header)
    with pytest.raises(DataError, match=r"train\.tar: is no intact tar archive"):
        Shards(folder="S", **SMALL).read("train")


def test_a_lock_that_its_last_holder_removes_as_it_is_taken_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, taken = ProcessLock.acquire, []

    def late(self: ProcessLock, wait: bool = False) -> None:
        if not taken:
            (tmp_path / packing.LOCK).unlink()
        taken.append(self)
        acquire(self, wait)

    monkeypatch.setattr(ProcessLock, "acquire", late)
    with packing._alone(tmp_path):
        assert (tmp_path / packing.LOCK).exists()
        with pytest.raises(RunError, match="another process packs into it"), packing._alone(tmp_path):
            pass
    assert len(taken) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_part_without_samples_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "S/train.tar", {"a.png": picture(), "a.json": b'{"target": [1, 2, 3]}'})
    write_tar(tmp_path / "S/val.tar", {})
    with pytest.raises(DataError, match=r"val\.tar: the archives of the val part hold no samples"):
        Shards(folder="S", kind="regression", **SMALL).read("train")


def test_a_negative_class_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "S" / "train.tar", {**numbered(2), "x.png": picture(), "x.cls": b"-1"})
    with pytest.raises(DataError, match="a class has the index -1; leave samples without a class out"):
        Shards(folder="S", **SMALL).read("train")


def test_a_class_that_only_another_part_has_is_refused(tmp_path: Path) -> None:
    """Also the one that follows the last class of the training part."""
    write_tar(tmp_path / "S/train-0.tar", numbered(6))
    write_tar(tmp_path / "S/val-0.tar", numbered(4, classes=4))
    said = "the class '3' of its val part is not in the training part"
    refused(lambda: Shards(folder="S", **SMALL).read("val"), tmp_path / "S", said)


def test_weights_with_other_classes_read_the_parts_of_a_sweep_anew(packed: Path) -> None:
    """What one job of a sweep leaves to the next has the targets of its own classes, not of those of other weights."""
    data = Shards(folder="S", **SMALL)
    data.keep_parts(1 << 20)
    own = data.source_of("train").targets
    order = ("cat", "bee", "ant")
    turned = data.restored(replace(data.info, class_names=order)).source_of("train").targets
    assert turned.tolist() == [2 - target for target in own.tolist()]
    assert data.source_of("train") is data.for_next_job().source_of("train")
