"""Samples that are read once and held: the same run, whether in memory, in a mapped file, or read batch by batch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fake_data
from healsg import TaskTrainer
from healsg.data import cache
from healsg.data.source import DatasetSource, Reading, TensorSource
from healsg.datasets.decoding import decode
from healsg.datasets.imagefolder import ImageFolder, Pictures
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


@pytest.mark.parametrize("augment", ["standard", "strong"])
def test_all_ways_train_to_the_same_digest(pictures: Path, augment: str) -> None:
    plain = trained("plain", f"data.augment={augment}")
    assert trained("memory", f"data.augment={augment}", "data.in_memory=true") == plain
    assert trained("mapped", f"data.augment={augment}", "data.cache=true", "data.workers=2") == plain


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


def test_a_cache_is_read_again_and_made_anew_for_other_files(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = list[str]()

    def counted(path: str, *how: Any) -> torch.Tensor:
        decoded.append(path)
        return decode(path, *how)

    monkeypatch.setattr("healsg.datasets.imagefolder.decode", counted)
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
    monkeypatch.setattr(cache, "available", lambda: 10_000)
    with pytest.raises(ConfigError, match=r"data.in_memory: 30 train samples are 23.3 kB, and 10 kB are free; set"):
        data(pictures, in_memory=True).splits()


def test_free_memory_is_told() -> None:
    free = cache.available()
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
        cached = cache.hold(source, "train", 0, Reading(), pictures.parent / "cache")
        held.append(cached.fetch(torch.arange(len(paths)))["target"].tolist())
    assert held == [[0] * len(paths), [1] * len(paths)]


def test_what_a_killed_process_left_is_swept(pictures: Path) -> None:
    cache = pictures.parent / "cache"
    data(pictures, cache=True).splits()
    (made,) = cache.iterdir()
    left = cache / f".{made.name}.999999999.tmp"
    made.rename(left)
    data(pictures, cache=True).splits()
    assert [path.name for path in cache.iterdir()] == [made.name]
    (made / "input").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"data.cache: .*input is not whole; remove its folder"):
        data(pictures, cache=True).splits()


def test_other_samples_do_not_go_on_in_silence(pictures: Path) -> None:
    options = [*PICTURES, "runner.epochs=2", "data.batch_size=8", "quiet=true", "name=run"]
    assert TaskTrainer.compose(*options, "runner.max_time=0").train()["status"] == "stopped"
    for picture in sorted(pictures.rglob("*.jpg"))[:6]:
        picture.unlink()
    with pytest.raises(ConfigError, match=r"data: the samples are not those with which the run began"):
        TaskTrainer.compose(*options).train()
    assert TaskTrainer.compose(*options, "resume.force=true").train()["status"] == "finished"
