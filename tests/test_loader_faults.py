"""What goes wrong while samples are read: broken files, raising data sets, and workers that are killed, hang or end."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, default_collate, get_worker_info

import fake_data
from fake_data import refused
from healsg import TaskTrainer
from healsg.data.base import Needs
from healsg.data.foreign import ForeignLoader, wrap_loader
from healsg.data.loader import Loader
from healsg.data.sharding import Sharding
from healsg.data.skipped import skipped_samples
from healsg.data.source import DatasetSource, Reading
from healsg.datasets.imagefolder import ImageFolder
from healsg.datasets.images.decoding import decode
from healsg.errors import DataError
from healsg.runner import TaskRunner
from healsg.training import diagnose
from helpers import HANG, fork, in_processes, no_hang, wait_for
from test_loader import Noisy, dealt, indices, jitter, numbered, same
from test_own_loaders import train

Faults = dict[int, Callable[[], Any]]


class Faulty(Dataset[tuple[Tensor, int]]):
    """Samples that are their index; what ``faults`` names by index is called first."""

    def __init__(self, size: int, faults: Faults, paths: bool = False) -> None:
        self.size, self.faults = size, faults
        if paths:
            self.samples = [(f"/data/{index}.jpg", 0) for index in range(size)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.faults:
            self.faults[index]()
        return torch.tensor([float(index)]), index


class Whole(Faulty):
    """The same, read many at a time."""

    def __getitems__(self, index: list[int]) -> list[tuple[Tensor, int]]:
        return [self[i] for i in index]


def fail() -> None:
    raise ValueError("odd\nlines")


def broken(*index: int) -> Faults:
    return dict.fromkeys(index, fail)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(1000)


def loader_of(dataset: Any, batch_size: int = 4, workers: int = 0, shuffle: bool = True, **reading: Any) -> Loader:
    views = {"labelled": {"input": jitter}}
    settings = Reading(**{"on_error": "skip", **reading})
    source = DatasetSource(dataset)
    return Loader({"labelled": source}, views, batch_size, shuffle=shuffle, workers=workers, reading=settings)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said to be left out, since the last call."""
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out: ")]
    caplog.clear()
    return lines


def check_that_no_workers_are_left() -> None:
    """The processes end that were started here; a loader that is let go ends its own."""
    if multiprocessing.active_children():
        gc.collect()
    wait_for(lambda: not multiprocessing.active_children())


def alone(call: Callable[[], bool]) -> bool:
    """Whether ``call``, in a process of its own, says yes before it would be taken to hang."""
    before = set(multiprocessing.active_children())

    def act() -> None:
        try:
            signal.alarm(int(HANG))
            assert call()
        finally:
            for process in set(multiprocessing.active_children()) - before:
                process.kill()

    return os.waitstatus_to_exitcode(os.waitpid(fork(act), 0)[1]) == 0


# --- a sample that cannot be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_the_message_names_sample_and_file(workers: int) -> None:
    def line(dataset: Any) -> str:
        loader = loader_of(dataset, workers=workers, on_error="raise")
        with pytest.raises(DataError) as caught:
            dealt(loader)
        assert "fail" in str(caught.value.__cause__) if workers else type(caught.value.__cause__) is ValueError
        return str(caught.value)

    assert line(Faulty(9, broken(7))) == "sample 7 of Faulty: ValueError: odd lines"
    assert line(Whole(9, broken(7))) == "sample 7 of Whole: ValueError: odd lines"
    assert line(Faulty(9, broken(7), paths=True)) == "sample 7 of Faulty (/data/7.jpg): ValueError: odd lines"
    chosen = Subset(Subset(Faulty(9, broken(7), paths=True), [8, 7, 1]), [1, 2])
    assert line(chosen) == "sample 7 of Faulty (/data/7.jpg): ValueError: odd lines"
    check_that_no_workers_are_left()


def test_samples_that_do_not_fit_together() -> None:
    class Uneven(Faulty):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(index + 1), index

    with pytest.raises(
        DataError,
        match=r"^sample 1 of Uneven cannot be joined with its batch: its input is a tensor of 2, and a tensor of 1",
    ):
        dealt(loader_of(Uneven(4, {}), shuffle=False))


def odd(made: Any, at: int = 3, size: int = 9) -> list[Any]:
    """Samples of which one is ``made``."""
    return [made if index == at else (torch.tensor([float(index)]), index) for index in range(size)]


ODD = {
    "cannot be joined with its batch: its input is None, and a tensor of 1 in the others": (None, 3),
    "cannot be joined with its batch: its target is None, and int in the others": (torch.zeros(1), None),
    "cannot be joined with its batch: its input is a tensor of 2, and a tensor of 1 in the others": (torch.zeros(2), 3),
    "cannot be joined with its batch: it has no target, unlike the others": (torch.zeros(1),),
    "cannot be joined with its batch: it has extra, unlike the others": (torch.zeros(1), 3, 5),
    "cannot be joined with its batch: it is int, and input, target in the others": 3,
    "is None, and no (input, target); data.on_error=skip leaves such a sample out": None,
}


@pytest.mark.parametrize(("reason", "made"), ODD.items())
@pytest.mark.parametrize("workers", [0, 1])
def test_the_sample_that_does_not_fit_is_named(reason: str, made: Any, workers: int) -> None:
    loader = loader_of(odd(made), batch_size=9, workers=workers, on_error="raise")
    with pytest.raises(DataError) as caught:
        dealt(loader)
    assert str(caught.value).replace("list: is", "list is") == f"sample 3 of list {reason}"


@pytest.mark.parametrize("made", ODD.values())
def test_a_sample_that_does_not_fit_can_be_left_out(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    (batch, rows), *_ = dealt(loader_of(odd(made), batch_size=9, shuffle=False))
    assert batch["target"].tolist() == batch["index"].tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert rows == 8
    assert len(told(caplog)) == 1


def test_a_sample_that_no_collate_function_takes_is_named_by_its_error() -> None:
    def joined(samples: list[Any]) -> Any:
        if any(target == 6 for _, target in samples):
            raise ValueError("no sixes")
        return torch.stack([input for input, _ in samples]), torch.tensor([target for _, target in samples])

    loader = wrap_loader(DataLoader(odd((torch.zeros(1), 6)), batch_size=9, collate_fn=joined), "train")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"^sample 3 of list cannot be joined with its batch: ValueError: no sixes$"):
        dealt(loader)


def test_a_collate_function_leaves_out_no_sample_in_silence() -> None:
    def without_sixes(samples: list[Any]) -> Any:
        return default_collate([sample for sample in samples if sample[1] != 6])

    loader = wrap_loader(DataLoader(odd((torch.zeros(1), 3)), batch_size=9, collate_fn=without_sixes), "train")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="of list made 8 rows of input from 9 samples; it must leave none out"):
        dealt(loader)


@pytest.mark.parametrize(("given", "words"), [(None, "NoneType"), ([1, 2], "2 samples")])
def test_a_data_set_gives_one_sample_for_each_index(given: Any, words: str) -> None:
    class Short(Faulty):
        def __getitems__(self, index: list[int]) -> Any:
            return given

    with pytest.raises(DataError, match=rf"^Short.__getitems__: returned {words} for 4 indices; give one each$"):
        dealt(loader_of(Short(4, {}), on_error="raise"))


@pytest.mark.parametrize("kind", [Faulty, Whole])
def test_a_sample_left_out_changes_no_other(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    whole, runs = dealt(loader_of(kind(22, {}))), []
    for workers in (0, 1, 2):
        loader = loader_of(kind(22, broken(5, 11)), workers=workers)
        runs.append(dealt(loader))
        assert sorted(told(caplog)) == [
            f"left out: sample {i} of {kind.__name__}: ValueError: odd lines" for i in (11, 5)
        ]
        dealt(loader, 1)
        assert not told(caplog), "each is told once"
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    for (batch, rows), (full, _) in zip(runs[0], whole, strict=True):
        good = [place for place, i in enumerate(full["index"].tolist()) if i not in (5, 11)]
        assert same(batch, {key: value[good] for key, value in full.items()})
        assert rows == len(good)


def test_streams_and_processes_leave_out_their_own() -> None:
    def streams(labelled: Any, unlabelled: Any, **terms: Any) -> list[Any]:
        views = {"labelled": {"input": jitter}, "unlabelled": {"weak": jitter, "strong": jitter}}
        sources = {"labelled": labelled, "unlabelled": unlabelled}
        loader = Loader(sources, views, 4, shuffle=True, flat=False, reading=Reading("skip"))
        loader = loader.sharded(Sharding(**terms))
        return dealt(loader)

    whole = streams(numbered(8), DatasetSource(Faulty(20, {})))
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        full = streams(numbered(8), DatasetSource(Faulty(20, {})), rank=rank, world=world)
        less = streams(numbered(8), DatasetSource(Faulty(20, broken(3))), rank=rank, world=world)
        for (batch, rows), (other, all_rows) in zip(less, full, strict=True):
            assert same(batch["labelled"], other["labelled"])
            assert rows == all_rows, "the rows of the first stream count"
            good = other["unlabelled"]["index"] != 3
            assert same(batch["unlabelled"], {key: value[good] for key, value in other["unlabelled"].items()})
    less = streams(DatasetSource(Faulty(8, broken(2))), DatasetSource(Faulty(20, {})))
    for (batch, rows), (other, _) in zip(less, whole, strict=True):
        assert rows == len(batch["labelled"]["input"]) == int((other["labelled"]["index"] != 2).sum())
        assert same(batch["unlabelled"], other["unlabelled"])


def test_a_training_batch_of_which_too_little_is_left_gives_way() -> None:
    loader = loader_of(Faulty(9, broken(1, 4)), batch_size=3)
    for min_rows, seed in ((1, 0), (2, 0), (3, 0), (2, 1), (3, 2)):
        loader = loader.sharded(Sharding(seed=seed, min_rows=min_rows))
        whole = loader_of(Faulty(9, {}), batch_size=3)
        whole = whole.sharded(Sharding(seed=seed, min_rows=min_rows))
        full = [[i for i in batch["index"].tolist() if i not in (1, 4)] for batch, _ in dealt(whole)]
        enough = [piece for piece in full if len(piece) >= min_rows]
        got = [batch["index"].tolist() for batch, rows in dealt(loader) if rows == len(batch["index"])]
        assert got == [piece if len(piece) >= min_rows else enough[0] for piece in full]
    alone = loader_of(Faulty(6, broken(4)), batch_size=1)
    assert [rows for _, rows in dealt(alone)] == [1] * 6, "also a batch of one"
    with pytest.raises(
        DataError, match=r"^data.on_error: no batch of the epoch has enough readable samples; sample \d of Faulty: Val"
    ):
        dealt(loader_of(Faulty(5, broken(*range(5)))))


def test_an_evaluation_passes_over_a_batch_of_which_nothing_is_left() -> None:
    runner = TaskRunner()
    for workers in (0, 1):
        loader = loader_of(Faulty(9, broken(6, 7, 8)), batch_size=3, workers=workers, shuffle=False)
        assert [rows for _, rows in dealt(loader)] == [3, 3, 0]
        parts = {"loaders": {"val": loader}, "config": SimpleNamespace(seed=0), "custom_network": True}
        task = type("Task", (), parts)
        seen = [batch["index"].tolist() for batch in runner.eval_batches(task, "val")]  # type: ignore[arg-type]
        assert seen == [[0, 1, 2], [3, 4, 5]]
        assert [batch["index"].tolist() for batch, rows in dealt(loader.evaluation_view()) if rows] == seen


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_are_an_error(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    assert len(dealt(loader_of(Faulty(12, broken(1, 2, 3)), workers=workers, max_errors=3))) == 3
    assert len(told(caplog)) == 3
    with pytest.raises(
        DataError, match=r"^data.max_errors: more than 2 samples cannot be read; sample \d of Faulty: Val"
    ):
        dealt(loader_of(Faulty(12, broken(1, 2, 3)), workers=workers, max_errors=2))
    assert len(told(caplog)) == 2
    check_that_no_workers_are_left()


def test_splits_count_together(tmp_path: Path) -> None:
    fake_data.write_imagefolder(tmp_path, per_class=4)
    for part in ("train", "val"):
        (tmp_path / part / "ant" / "000.jpg").write_bytes(b"")
    for limit, enough in ((2, True), (1, False)):
        loaders = ImageFolder(
            str(tmp_path), image_size=24, shift=2, batch_size=6, on_error="skip", max_errors=limit
        ).loaders(Needs())
        assert sum(rows for _, rows in dealt(loaders["train"])) == 11
        if enough:
            assert sum(rows for _, rows in dealt(loaders["val"])) == 11
        else:
            with pytest.raises(DataError, match=r"^data.max_errors: more than 1 samples .*/val/ant/000.jpg\)"):
                dealt(loaders["val"])


# --- broken pictures -------------------------------------------------------------------------------------------------


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


LATER = {"deleted.png": delete, "emptied.png": empty, "a_folder.png": folder, "a_pipe.png": pipe}
"""What becomes of a file after the folder was listed."""


def odd_folder(root: Path) -> dict[str, bool]:
    """A folder of pictures, many of them odd: by path, which can be read."""
    fake_data.write_imagefolder(root, parts=("train",), per_class=4)
    kinds = fake_data.odd_pictures(root / "train" / "bee")
    for name in LATER:
        shutil.copy(root / "train" / "bee" / "001.png", root / "train" / "bee" / name)
    (root / "train" / "cat" / "loop").symlink_to(".")
    return {str(root / "train" / "bee" / name): kinds.get(name, False) for name in (*kinds, *LATER)}


def spoil(root: Path) -> None:
    for name, change in LATER.items():
        change(root / "train" / "bee" / name)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_odd_pictures(caplog: pytest.LogCaptureFixture) -> None:
    root = Path.cwd()
    kinds = odd_folder(root)
    assert len(kinds) >= 30

    def data(**more: Any) -> ImageFolder:
        return ImageFolder(str(root), image_size=24, shift=2, batch_size=5, val_fraction=0, test_fraction=0.2, **more)

    source = data().read("train").dataset  # type: ignore[union-attr]
    assert sorted(kinds) == [path for path in source.paths if path in kinds]
    assert sum("/cat/" in path for path in source.paths) == 4, "a link to a folder above it is not followed for ever"
    skipping = {workers: data(workers=workers, on_error="skip") for workers in (0, 2)}
    loaders = {workers: each.loaders(Needs())["train"] for workers, each in skipping.items()}
    spoil(root)
    for path, good in kinds.items():
        index, one = source.paths.index(path), DatasetSource(source)
        with no_hang():
            if good:
                assert one.fetch(torch.tensor([index]))["input"].shape == (1, 3, 24, 24)
                continue
            with pytest.raises(DataError) as caught:
                one.fetch(torch.tensor([index]))
        assert str(caught.value).startswith(f"sample {index} of Pictures ({path}): ")
        assert "\n" not in str(caught.value)
        assert "program" not in path or "cannot identify" in str(caught.value), "no other program was asked"
    with no_hang():
        runs = {workers: [dealt(loader, epoch) for epoch in (0, 1)] for workers, loader in loaders.items()}
    assert same(runs[0], runs[2])
    lines = told(caplog)
    bad = {path for path, good in kinds.items() if not good}
    for path in bad:
        assert len([line for line in lines if f"({path})" in line]) in (0, 2), (
            "once by each loader, or in the test part"
        )
    assert len(lines) > len(bad), "the training part has most of them"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_records_what_it_left_out(workers: int) -> None:
    fake_data.write_imagefolder("pictures", per_class=8)
    broken = [f"pictures/{path}" for path in ("train/ant/001.png", "train/bee/003.png", "val/cat/000.jpg")]
    for path in broken:
        Path(path).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    digest("data.on_error=skip", f"data.workers={workers}", "runner.epochs=2", "name=run")
    told = json.loads(Path("runs/run/run.json").read_text())["samples_skipped"]
    assert told["number"] == len(told["first"]) == 3, "each once, over epochs, splits and workers"
    assert all(any(path in line for line in told["first"]) for path in broken)
    report = Path("runs/run/report.html").read_text()
    assert "samples_skipped" in report
    assert "number 3, first sample " in report
    for path in broken:
        shutil.copy(Path(path).with_name("005.png"), path)
    digest("data.on_error=skip", f"data.workers={workers}", "runner.epochs=3", "name=run", "resume.force=true")
    assert json.loads(Path("runs/run/run.json").read_text())["samples_skipped"] == told, "also of before it went on"
    digest("name=strict")
    assert "samples_skipped" not in json.loads(Path("runs/strict/run.json").read_text())


def test_processes_count_different_samples_once() -> None:
    def one(rank: int) -> None:
        reading = Reading("skip")
        train, val = (loader_of(Faulty(9, broken(*index))) for index in ((1, 2 + rank), (1,)))
        for loader in (train, val):
            loader.reading = reading
            dealt(loader)
        assert len(reading.skipped) == 3
        told = skipped_samples({"train": train, "val": val}, reading)
        assert told["number"] == len(told["first"]) == 4, "1, 2 and 3 of the training samples, 1 of the others"
        assert len({*told["first"]}) == 3, "of which two are called alike"

    in_processes(2, one)


@pytest.mark.parametrize("before", [None, 7, {}, {"number": "x", "first": [1, None]}, {"number": None, "first": {}}])
def test_what_a_record_says_of_before_may_be_anything(before: Any) -> None:
    assert skipped_samples({}, Reading("skip"), before) == {"number": 0, "first": []}


def test_a_record_names_the_first_and_counts_all() -> None:
    reading = Reading("skip", max_errors=1000)
    for index in range(150):
        reading.skip((0, index), f"sample {index}")
    told = skipped_samples({}, reading)
    assert (told["number"], len(told["first"])) == (150, 100)
    assert skipped_samples({}, Reading("skip"), told) == told


def test_samples_with_one_message_are_counted_each_also_after_a_resume() -> None:
    reading = Reading("skip")
    for index in range(3):
        reading.skip((0, index), "it is broken")
    assert skipped_samples({}, reading) == {"number": 3, "first": ["it is broken"] * 3}
    assert skipped_samples({}, reading, {"number": 1, "first": ["it is broken"]})["number"] == 3


def test_a_process_that_reads_copies_counts_none_of_them_though_one_is_broken() -> None:
    """The last batch has two samples, which two processes cannot share where each needs two."""
    loader = loader_of(Faulty(10, broken(8)), shuffle=False)
    parts = [loader.sharded(Sharding(rank=rank, world=2, min_rows=2)) for rank in (0, 1)]
    assert [[rows for _, rows in dealt(part)] for part in parts] == [[2, 2, 1], [2, 2, 0]]


def test_what_is_too_large_takes_no_memory() -> None:
    kinds = fake_data.odd_pictures(Path.cwd())
    assert {"bomb.png", "strip.png"} <= set(kinds)
    assert alone(lambda: grown_by_what_is_too_large() < 50_000)


def grown_by_what_is_too_large() -> int:
    """The memory that refusing it takes, in KiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("bomb.png", "strip.png"):
        with pytest.raises((Image.DecompressionBombError, ValueError)):
            decode(name, 224, 3)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


PICTURES = ["data=imagefolder", "data.folder=pictures", "data.image_size=16", "data.shift=2", "data.batch_size=6"]
RUN = [*PICTURES, "model=cnn", "runner.epochs=1", "quiet=true"]


def digest(*options: str) -> str:
    result = TaskTrainer.compose(*RUN, *options).train()
    assert result["status"] == "finished"
    return str(result["digest"])


def runs_are_the_same(settings: list[tuple[int, int]]) -> None:
    """Of pictures with broken ones among them, and of a data set that draws from the global generators."""
    fake_data.write_imagefolder("pictures", per_class=6)
    whole = digest("data.workers=0", "name=whole")
    for path in ("pictures/train/bee/001.png", "pictures/val/cat/000.jpg"):
        Path(path).write_bytes(b"")
    pictures, own = set(), set()
    for workers, prefetch in settings:
        name = f"name={workers}-{prefetch}"
        pictures.add(digest("data.on_error=skip", f"data.workers={workers}", f"data.prefetch={prefetch}", name))

        def noisy(collate: Any, workers: int = workers, prefetch: int = prefetch) -> DataLoader[Any]:
            options = {"num_workers": workers, "prefetch_factor": prefetch if workers else None}
            return DataLoader(Noisy(13), batch_size=4, shuffle=True, collate_fn=collate, **options)  # type: ignore[arg-type]

        own.add(train(noisy, name=f"own-{workers}-{prefetch}")["digest"])
    assert len(pictures) == len(own) == 1
    assert whole not in pictures
    with pytest.raises(DataError, match=r"^sample \d+ of Pictures \(.*/(bee/001.png|cat/000.jpg)\): Unidentified"):
        digest("data.workers=1", "name=raise")
    check_that_no_workers_are_left()


def test_workers_and_prefetch_change_no_run() -> None:
    runs_are_the_same([(0, 2), (1, 4), (2, 1)])


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_workers_and_prefetch_change_no_run_at_length() -> None:
    runs_are_the_same([(workers, prefetch) for workers in (0, 1, 2, 4) for prefetch in (1, 2, 4, 100)])


# --- workers that are killed, hang or end ----------------------------------------------------------------------------


def lost(dataset: Any, **more: Any) -> str:
    """The one line that a pass ends with, long before the timeout of a loader; nothing of it is left."""
    loader = loader_of(dataset, batch_size=2, workers=2, shuffle=False, **more)
    assert loader.reading.timeout > 2 * HANG
    return line_of_a_loss(loader.batches(0))


def hung(dataset: Any) -> str:
    """The same of a loader with a timeout of a second, which counts from when worker 0 hangs at sample 5."""
    loader = loader_of(dataset, batch_size=2, workers=2, shuffle=False)
    passes = loader.batches(0)
    for _ in range(2):
        next(passes)
    workers = loader._workers
    assert workers is not None
    wait_for(lambda: int(workers.at[0, 1]) == 5)
    loader.reading.timeout = 1.0
    return line_of_a_loss(passes)


def line_of_a_loss(passes: Iterator[Any]) -> str:
    with no_hang(), pytest.raises(DataError) as caught:
        list(passes)
    check_that_no_workers_are_left()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_lost_worker_is_one_line_with_the_sample() -> None:
    at = r"; it was last at sample 5 of Faulty (/data/5.jpg)"
    killed = "loader worker 0 was killed by signal 9 (Killed); fewer workers need less memory"
    assert lost(Faulty(40, {5: kill}, paths=True)) == killed + at
    assert hung(Faulty(40, {5: hang}, paths=True)) == "loader worker 0 gave no batch for 1 seconds (data.timeout)" + at
    ended = "loader worker 0 ended by itself with status 3; it was last at sample 5 of Faulty"
    assert lost(Faulty(40, {5: lambda: os._exit(3)})) == ended
    assert lost(Whole(40, {5: kill})).endswith("; it was last at sample 4 of Whole and 1 more")
    assert lost(Faulty(40, {5: kill}, paths=True), on_error="raise") == killed + at, "no setting leaves that out"


def test_a_pipe_that_nobody_writes_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    opened = Faulty(40, {5: lambda: (tmp_path / "x.jpg").read_bytes()}, paths=True)
    assert hung(opened).endswith("(data.timeout); it was last at sample 5 of Faulty (/data/5.jpg)")


class Late:
    """A pipe's end, where each result is found only after so many looks in vain, of half a second each."""

    def __init__(self, pipe: Any, looks: int) -> None:
        self.pipe, self.looks, self.vain = pipe, looks, looks

    def poll(self, seconds: float) -> bool:
        assert seconds == 0.5
        self.vain, found = (self.vain - 1, False) if self.vain else (self.looks, self.pipe.poll(HANG))
        return bool(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)


def late(looks: int, timeout: float) -> Iterator[Any]:
    """A pass of four batches, each of which comes after so many looks."""
    loader = loader_of(Faulty(8, {}), batch_size=2, workers=1, shuffle=False, timeout=timeout)
    passes = loader.batches(0)
    assert loader._workers is not None
    loader._workers.processes[:] = [(process, Late(pipe, looks)) for process, pipe in loader._workers.processes]
    for batch, _ in passes:
        yield batch["index"].tolist()


def test_slow_is_not_hung() -> None:
    """The timeout is one of each batch, and only of the time in which it is waited for."""
    batches = [[0, 1], [2, 3], [4, 5], [6, 7]]
    passes = late(looks=2, timeout=1.5)
    assert next(passes) == batches[0]
    time.sleep(1.6)  # a consumer may take as long as it likes
    assert list(passes) == batches[1:]
    assert list(late(looks=9, timeout=0)) == batches
    with pytest.raises(DataError, match=r"gave no batch for 1\.5 seconds \(data\.timeout\)"):
        next(late(looks=3, timeout=1.5))


def test_what_a_worker_cannot_do_is_one_line() -> None:
    def started(worker: int) -> None:
        raise OSError("no licence")

    unsendable = [(torch.zeros(1), number, lambda: 0) for number in range(4)]
    unsent = "[Pp]ickl" if sys.version_info < (3, 13) else "Can't get local object"
    for options, said in (
        ({"dataset": Noisy(4), "worker_init_fn": started}, "^OSError: no licence$"),
        (
            {"dataset": unsendable, "collate_fn": lambda samples: (torch.zeros(2), 1, samples[0][2])},
            f"^.*{unsent}.*lambda.*$",
        ),
    ):
        loader = wrap_loader(DataLoader(batch_size=2, num_workers=1, **options), "train")  # type: ignore[arg-type]
        with no_hang(), pytest.raises(RuntimeError, match=said) as caught:
            dealt(loader)
        assert "Traceback" in str(caught.value.__cause__)
    check_that_no_workers_are_left()


def workers_of(loader: Loader) -> list[int]:
    assert loader._workers is not None
    return [process.pid for process, _ in loader._workers.processes]


def test_signals_to_all_processes_stop_no_worker() -> None:
    loader = loader_of(Faulty(64, {}), workers=2)
    whole = dealt(loader_of(Faulty(64, {})))
    got = []
    for batch in loader.batches(0):
        got.append(batch)
        for pid in workers_of(loader) if len(got) > 1 else ():  # both have answered, so that both have begun
            os.kill(pid, random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]))
    assert same(got, whole)


def test_torchs_word_for_the_worker_is_there() -> None:
    class Asking(Faulty):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            info = get_worker_info()
            assert info is not None
            assert type(info.dataset) is Asking
            return torch.tensor([info.id, info.num_workers]), index

    loader = loader_of(Asking(8, {}), batch_size=2, workers=2, shuffle=False, on_error="raise")
    assert [batch["input"].tolist()[0] for batch, _ in dealt(loader)] == [[0, 2], [1, 2], [0, 2], [1, 2]]


def kill_one(chance: random.Random) -> None:
    """Kill a worker at a random time of one of many passes, which must then end with one line, soon."""
    slow = Faulty(60, dict.fromkeys(range(60), lambda: time.sleep(0.0005)))
    loader = loader_of(slow, batch_size=2, workers=2)
    next(loader.batches(0))
    victim, at = chance.choice(workers_of(loader)), chance.uniform(0, 0.04)
    killer = threading.Timer(at, os.kill, (victim, signal.SIGKILL))
    killer.start()
    with no_hang():
        said = refused(lambda: deque((dealt(loader, epoch) for epoch in itertools.count()), maxlen=0))
    killer.join()
    assert re.fullmatch(
        r"loader worker \d was killed by signal 9 [^;]*;[^;]*(; it was last at sample \d+ of Faulty)?", said
    )


def test_workers_killed_at_random_times() -> None:
    chance = random.Random(0)
    for _ in range(10):
        kill_one(chance)


@pytest.mark.soak
def test_workers_killed_at_random_times_at_length() -> None:
    chance = random.Random(1)
    for _ in range(500):
        kill_one(chance)


def test_a_worker_killed_between_passes_is_missed_at_the_next() -> None:
    loader = loader_of(Faulty(8, {}), workers=2)
    dealt(loader)
    os.kill(workers_of(loader)[1], signal.SIGKILL)
    sum(i * i for i in range(10**6))  # nothing is raised at a place of its own choosing
    with no_hang(), pytest.raises(DataError, match=r"^loader worker 1 was killed by signal 9"):
        dealt(loader, 1)
    assert len(dealt(loader, 1)) == 2, "another pass begins with other workers"


def test_one_pass_at_a_time() -> None:
    loader = loader_of(Faulty(40, {}), workers=1)
    first = loader.batches(0)
    next(first)
    assert indices(dealt(loader, 1)) == indices(dealt(loader_of(Faulty(40, {})), 1))
    with pytest.raises(DataError, match="yields one pass at a time"):
        next(first)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("fault", [{}, {5: hang}], ids=["idle", "hung"])
def test_workers_end_with_a_parent_that_is_killed(fault: Faults) -> None:
    reading, writing = os.pipe()

    def act() -> None:
        loader = loader_of(Faulty(8, fault), batch_size=2, workers=2, shuffle=False)
        next(loader.batches(0))
        os.write(writing, " ".join(map(str, workers_of(loader))).encode())
        hang()

    child = fork(act)
    pids = [int(pid) for pid in os.read(reading, 100).split()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_for(lambda: not any(map(alive, pids)))


# --- loaders that are kept as they are -------------------------------------------------------------------------------


def foreign(dataset: Any, workers: int, **reading: Any) -> ForeignLoader:
    loader = DataLoader(dataset, batch_size=2, sampler=SubsetRandomSampler(range(8)), num_workers=workers)
    made = wrap_loader(loader, "train", Reading(**reading))
    assert isinstance(made, ForeignLoader)
    return made


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_of_ones_own_that_fails_is_one_line(workers: int) -> None:
    said = r"^the train loader failed at batch \d: (ValueError: odd )?lines$"
    with pytest.raises(DataError, match=said) as caught:
        dealt(foreign(Faulty(8, broken(3)), workers))
    assert "\n" not in str(caught.value)
    assert type(caught.value.__cause__) is ValueError


def killed_at_work() -> None:
    task: Any = None
    with diagnose.explained(task, task):  # which surrounds the loop: torch raises wherever this process is
        dealt(foreign(Faulty(8, {3: kill}), 1))


def killed_at_rest() -> None:
    passes, before = foreign(Faulty(8, {}), 1).batches(0), set(multiprocessing.active_children())
    next(passes)
    for worker in set(multiprocessing.active_children()) - before:
        os.kill(worker.pid or 0, signal.SIGKILL)
    task: Any = None
    with diagnose.explained(task, task):
        wait_for(lambda: False)  # until torch raises, wherever this process is


def hung_at_work() -> None:
    dealt(foreign(Faulty(8, {3: hang}), 1, timeout=1.0))


def test_a_closed_connection_is_reported_as_the_lost_worker_that_torch_reports_next() -> None:
    """torch raises its error from a signal handler once the worker's process has ended: after that of the connection,
    where it would interrupt whatever handles that."""

    class Closing:
        num_workers = 1

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[Any]:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            raise ConnectionResetError(104, "Connection reset by peer")
            yield

    def report(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGUSR1, report)
    try:
        said = refused(lambda: dealt(wrap_loader(Closing(), "train")))
    finally:
        signal.signal(signal.SIGUSR1, before)
    cause = "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed."
    assert said == f"the train loader failed at batch 0: a loader worker was lost: {cause}"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_connection_of_the_data_set_is_no_lost_worker(workers: int) -> None:
    def offline() -> None:
        raise ConnectionResetError("no route")

    said = refused(lambda: dealt(foreign(Faulty(8, {3: offline}), workers)))
    assert re.fullmatch(r"the train loader failed at batch \d: ConnectionResetError: no route", said)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (killed_at_work, "worker"),
        (killed_at_rest, "a loader worker was lost"),
        (hung_at_work, "none for 1 seconds (data.timeout)"),
    ],
)
def test_a_loader_of_ones_own_whose_worker_is_lost(call: Callable[[], None], said: str) -> None:
    """In a process of its own, since torch's alarm goes off anywhere."""
    assert alone(lambda: said in refused(call))
