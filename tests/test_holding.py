"""Samples that are read once and held: the same run, whether in memory, in a mapped file, or read batch by batch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fake_data
from healsg import TaskTrainer, system
from healsg.data import cache
from healsg.data.source import DatasetSource, Reading, TensorSource, files_of
from healsg.datasets.imagefolder import ImageFolder, Pictures
from healsg.datasets.images.decoding import decode
from healsg.errors import ConfigError, DataError, HealsgError

PICTURES = ["data=imagefolder", "data.folder=own", "data.image_size=16", "data.shift=2", "model=cnn", "model.width=4"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    fake_data.write_imagefolder(tmp_path / "data/own", per_class=10, parts=("train",))
    return tmp_path / "data/own"


def trained(name: str, *options: str) -> str:
    run = TaskTrainer.compose(*PICTURES, "runner.epochs=2", "data.batch_size=8", "quiet=true", f"name={name}", *options)
    assert run.train()["status"] == "finished"
    digest: str = json.loads(Path(f"runs/{name}/run.json").read_text())["digest"]
    return digest


ODD = ["model=mlp", "model.width=8", "data.image_size=9", "data.val_fraction=0.4", "data.batch_size=5"]
"""Several small batches are evaluated, of which the last is smaller."""

WAYS = {
    **{augment: [f"data.augment={augment}"] for augment in ("none", "standard", "light", "strong", "alternating")},
    "randaugment": ["data.augment=randaugment"],
    "small batches": ODD,
    "small batches, strong": [*ODD, "data.augment=strong", "runner.accumulate=2"],
    "a bank": ["method=simclr", "method.hidden=8", "method.size=4", "data.label_noise=0.2", "data.batch_size=5"],
    "two streams": ["method=fixmatch", "data.labels=6", "data.augment=strong", "data.batch_size=5"],
    "balanced": ["data.balanced=true", "data.imbalance=2", "data.label_noise=0.2", *ODD],
}


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_train_to_the_same_digest(pictures: Path, way: str) -> None:
    plain = trained("plain", *WAYS[way])
    assert trained("memory", *WAYS[way], "data.in_memory=true") == plain
    assert trained("mapped", *WAYS[way], "data.cache=true", "data.workers=2") == plain


def test_pictures_of_8_and_16_bits_are_held_together_and_a_cache_says_what_to_do(pictures: Path) -> None:
    whole = pictures / "train/bee/003.png"
    grey = np.asarray(Image.open(whole).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(whole)
    assert trained("memory", "data.in_memory=true") == trained("plain")
    with pytest.raises(DataError, match=r"of 8 and of 16 bits; convert them to one, or set data\.in_memory=true"):
        data(pictures, cache=True).splits()


def test_all_ways_evaluate_to_the_same_numbers(pictures: Path) -> None:
    trained("plain", *ODD)
    found = [
        TaskTrainer.load("plain", *given).evaluate("val")
        for given in ([], ["data.in_memory=true"], ["data.cache=true"])
    ]
    assert found[0] == found[1] == found[2]


def test_a_run_goes_on_with_its_samples_held(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    whole = trained("whole")
    with monkeypatch.context() as patch:
        patch.setattr("healsg.runner.TaskRunner.end_epoch", broken)
        with pytest.raises(ZeroDivisionError):
            trained("cut")
    assert trained("cut", "data.in_memory=true") == whole


def data(folder: Path, **options: Any) -> ImageFolder:
    return ImageFolder(str(folder), root=str(folder.parent), image_size=16, shift=2, val_fraction=0, **options)


@pytest.mark.parametrize("way", [{}, {"in_memory": True}, {"cache": True}], ids=["read", "in memory", "in a cache"])
def test_samples_that_are_held_keep_the_names_of_their_files(pictures: Path, way: dict[str, Any]) -> None:
    """So that a report, a ledger or a logger can say which file was wrong."""
    for split, source in data(pictures, test_fraction=0.3, **way).splits().items():
        files = files_of(source)
        assert files is not None
        assert len({files[number] for number in range(len(source))}) == len(source)
        batch = source.fetch(torch.arange(len(source)))
        for number, input in enumerate(batch["input"]):
            assert torch.equal(input, decode(files[number], 16, 3)), split


def test_a_cache_is_read_again_and_made_anew_for_other_files(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = list[str]()

    def counted(path: str, *how: Any) -> torch.Tensor:
        decoded.append(path)
        return decode(path, *how)

    monkeypatch.setattr("healsg.datasets.images.decoded.decode", counted)
    every = torch.arange(30)
    first = data(pictures, cache=True).splits()["train"].fetch(every)
    assert len(decoded) == 31  # the first one twice, for the estimate
    again = data(pictures, cache=True).splits()["train"].fetch(every)
    assert len(decoded) == 32
    plain = data(pictures).splits()["train"].fetch(every)
    for key in ("input", "target"):
        assert torch.equal(first[key], plain[key])
        assert torch.equal(again[key], plain[key])
    picture = sorted(pictures.rglob("*.jpg"))[-1]
    os.utime(picture, ns=(1, 1))
    data(pictures, cache=True).splits()
    assert len(list((pictures.parent / "cache").iterdir())) == 2
    assert not list((pictures.parent / "cache").glob(".*"))


def test_what_does_not_fit_is_refused_with_an_estimate(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "available_memory", lambda: 10_000)
    with pytest.raises(ConfigError, match=r"data.in_memory: 30 train samples are 23.3 kB, and 10 kB are free; set"):
        data(pictures, in_memory=True).splits()


def test_free_memory_is_told() -> None:
    free = system.available_memory()
    assert free is None or 1 << 20 < free < 1 << 50


def test_a_broken_picture_is_named_and_leaves_no_cache(pictures: Path) -> None:
    broken = sorted(pictures.rglob("*.jpg"))[7]
    broken.write_bytes(b"no picture")
    for options in ({"in_memory": True}, {"cache": True}, {"cache": True, "workers": 2}):
        with pytest.raises(DataError, match=broken.name):
            data(pictures, **options).splits()
    assert not list((pictures.parent / "cache").iterdir())


def test_a_full_disk_is_one_line(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"data.cache: .* cannot be written .No space left"):
        data(pictures, cache=True).splits()
    assert not list((pictures.parent / "cache").iterdir())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"in_memory": True, "cache": True}, "data.cache: data.in_memory holds"),
        ({"in_memory": True, "on_error": "skip"}, "data.in_memory: takes no broken samples"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(HealsgError, match=told):
        data(tmp_path, **options)


def test_samples_stay_on_the_host_where_the_device_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    source = TensorSource(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.zeros(10, dtype=torch.long))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10_000))
    assert source.fits(torch.device("cpu"))
    assert not source.fits(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 10_000))
    assert source.fits(torch.device("cuda"))


def test_other_labels_are_another_cache(pictures: Path) -> None:
    """The same pictures with other labels, as a table of one's own may have them."""
    paths = sorted(map(str, pictures.rglob("*.jpg")))
    held = []
    for labels in ([0] * len(paths), [1] * len(paths)):
        source = DatasetSource(Pictures(paths, labels, 8, 3), targets=torch.tensor(labels))
        held_in_file = cache.cached(source, "train", 0, Reading(), pictures.parent / "cache")
        held.append(held_in_file.fetch(torch.arange(len(paths)))["target"].tolist())
    assert held == [[0] * len(paths), [1] * len(paths)]


def test_what_a_killed_process_left_is_swept(pictures: Path) -> None:
    cache = pictures.parent / "cache"
    data(pictures, cache=True).splits()
    (made,) = cache.iterdir()
    left = cache / f".{made.name}.999999999-0a1b2c3d.tmp"
    made.rename(left)
    data(pictures, cache=True).splits()
    assert [path.name for path in cache.iterdir()] == [made.name]
    (made / "input").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"data.cache: .*input is incomplete; remove its folder"):
        data(pictures, cache=True).splits()


def spoil(path: Path, low: float, high: float) -> None:
    """Zero a part of a file."""
    content = bytearray(path.read_bytes())
    begin, end = int(low * len(content)), int(high * len(content))
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["input", "target", "sums"])
@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (0.0, 1.0), (0.45, 0.55)])
def test_a_cache_that_was_damaged_is_named(pictures: Path, file: str, low: float, high: float) -> None:
    """As by a power cut; of ten samples a class, three classes, whose targets are 0, 1 and 2."""
    data(pictures, cache=True).splits()
    (made,) = (pictures.parent / "cache").iterdir()
    spoil(made / file, low, high)
    with pytest.raises(DataError, match=r"^data\.cache: .* is damaged at sample \d+; remove this folder"):
        data(pictures, cache=True).splits()


def test_a_sample_that_was_damaged_is_named_when_it_is_read(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large cache not all of which is looked at when it is opened."""
    monkeypatch.setattr(cache, "LOOKED_AT", 2)
    options = [*PICTURES, "data.cache=true", "runner.epochs=1", "quiet=true"]
    TaskTrainer.compose(*options, "name=first").train()
    (made,) = (pictures.parent / "cache").iterdir()
    spoil(made / "input", 0.5, 0.501)
    with pytest.raises(DataError, match=r"data\.cache: .* is damaged at sample 1[0-9]; remove this folder"):
        TaskTrainer.compose(*options, "name=second").train()


def test_a_cache_is_on_the_disk_before_it_has_its_name(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[str]()
    fsync, replace = os.fsync, Path.replace

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        synced.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(Path, "replace", renamed)
    data(pictures, cache=True).splits()
    assert synced == ["input", "target", "sums", "renamed"]


def test_other_samples_do_not_go_on_in_silence(pictures: Path) -> None:
    options = [*PICTURES, "runner.epochs=2", "data.batch_size=8", "quiet=true", "name=run"]
    assert TaskTrainer.compose(*options, "runner.max_time=0").train()["status"] == "stopped"
    for picture in sorted(pictures.rglob("*.jpg"))[:6]:
        picture.unlink()
    with pytest.raises(ConfigError, match=r"data: the samples are not those with which the run began"):
        TaskTrainer.compose(*options).train()
    assert TaskTrainer.compose(*options, "resume.force=true").train()["status"] == "finished"
