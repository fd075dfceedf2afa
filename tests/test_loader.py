"""A batch is a pure function of (seed, epoch, position): any start, any number of workers, any number of processes."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from healsg.data.foreign import wrap_loader
from healsg.data.loader import Loader, Transform
from healsg.data.sharding import Sharding
from healsg.data.source import Batch, DatasetSource, Source, TensorSource
from healsg.errors import DataError
from healsg.seeding import Draw


class Noisy(Dataset[tuple[Tensor, int]]):
    """Samples whose transform draws from all three global generators, as torchvision's and others do."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return torch.tensor([float(index), *noise], dtype=torch.float64), index


def jitter(batch: Batch, draw: Draw | None) -> Batch:
    """A transform of whole batches: adds each sample's own number."""
    if draw is None:
        return batch
    return batch | {"input": batch["input"] + draw.uniform(0).unsqueeze(1)}


def numbered(size: int) -> TensorSource:
    return TensorSource(torch.arange(size, dtype=torch.float32).view(-1, 1), torch.arange(size))


def plain(source: Source, batch_size: int, transform: Transform | None = None, **options: Any) -> Loader:
    options = {"shuffle": True, **options}
    return Loader({"labelled": source}, {"labelled": {"input": transform}}, batch_size, **options)


def dealt(loader: Any, epoch: int = 0, start: int = 0) -> list[tuple[Batch, int]]:
    return list(loader.batches(epoch, start))


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def indices(batches: list[tuple[Batch, int]]) -> list[int]:
    return [int(i) for batch, rows in batches for i in batch["index"][:rows]]


# --- purity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [numbered(29), DatasetSource(Noisy(29))], ids=["tensors", "data set"])
def test_any_start_gives_the_same_rest(source: Source) -> None:
    loader = plain(source, 4, jitter)
    loader = loader.sharded(Sharding(seed=3))
    for epoch in (0, 5):
        whole = dealt(loader, epoch)
        random.seed(99)
        torch.manual_seed(99)
        for start in range(len(loader) + 1):
            assert same(dealt(loader, epoch, start), whole[start:])
            assert same(dealt(plain_again(source), epoch, start), whole[start:])
    first, second, other = dealt(loader, 0), dealt(loader, 1), plain(source, 4, jitter)
    other = other.sharded(Sharding(seed=4))
    assert indices(first) != indices(second)
    assert indices(first) != indices(dealt(other, 0))
    assert sorted(indices(first)) == sorted(indices(second)) == list(range(29))


def noisy(batch: Batch, draw: Draw | None) -> Batch:
    """A transform of whole batches that draws from all three global generators."""
    noise = random.random() + float(np.random.rand()) + torch.rand(batch["input"].shape)
    return batch | {"input": batch["input"] + noise}


def test_a_transform_of_samples_in_memory_that_draws_from_global_generators_draws_the_same_after_any_start() -> None:
    loader = plain(numbered(29), 4, noisy)
    whole = dealt(loader, 3)
    assert same(whole, dealt(loader, 3))
    assert same(whole[5:], dealt(loader, 3, 5))


def plain_again(source: Source) -> Loader:
    loader = plain(source, 4, jitter)
    loader = loader.sharded(Sharding(seed=3))
    return loader


def test_the_number_of_workers_changes_nothing() -> None:
    runs = []
    for workers in (0, 1, 2):
        loader = plain(DatasetSource(Noisy(21)), 4, workers=workers)
        loader = loader.sharded(Sharding(seed=1))
        epochs = [dealt(loader, epoch) for epoch in (0, 1)]
        cut = loader.batches(2)
        next(cut)  # an epoch that is left early, with batches still on their way
        runs.append((epochs, dealt(loader, 0, 2), dealt(loader, 2)))
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    assert same(runs[0][1], runs[0][0][0][2:])
    noise = torch.cat([batch["input"][:, 1:] for batch, _ in runs[0][0][0]])
    assert len(noise.unique()) == noise.numel(), "no sample draws what another drew"


class Counted(Noisy):
    """Counts the samples that have been read."""

    def __init__(self, size: int, broken: int = -1) -> None:
        super().__init__(size)
        self.read = 0
        self.broken = broken

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken:
            raise ValueError("it is broken")
        self.read += 1
        return super().__getitem__(index)


def test_batches_that_are_read_ahead_are_those_that_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("healsg.data.loader.READ_AHEAD", 3600.0)
    samples = numbered(41)
    dataset = TensorDataset(samples.input, samples.target)
    other = DataLoader(dataset, batch_sampler=[range(first, first + 4) for first in range(11)])
    for loader in (plain(DatasetSource(Noisy(41)), 4), plain(samples, 4), wrap_loader(other, "train")):
        for start, stop in ((0, 10), (0, 11), (3, 7), (10, 11)):
            assert same(list(loader.batches_for_steps(2, start, stop)), dealt(loader, 2)[start:stop])


def test_only_small_batches_that_are_read_fast_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    read = {}
    cases = (("small", 3600.0, 1 << 20), ("slow", 0.0, 1 << 20), ("large", 3600.0, 1), ("large together", 3600.0, 400))
    for name, seconds, size in cases:  # a batch is 192 bytes
        monkeypatch.setattr("healsg.data.loader.READ_AHEAD", seconds)
        monkeypatch.setattr("healsg.data.loader.TOGETHER", size)
        dataset = Counted(40)
        next(plain(DatasetSource(dataset), 4).batches_for_steps(0, 0, 8))
        read[name] = dataset.read
    assert read == {"small": 32, "slow": 4, "large": 4, "large together": 12}


class DrawingOnDevice(nn.Module):
    """A transform of batches on the device that draws from a global generator."""

    on_device = True

    def forward(self, batch: Batch, draw: Draw | None) -> Batch:
        return batch | {"input": batch["input"] + torch.rand(len(batch["input"]), 1)}


def test_what_a_transform_on_the_device_draws_depends_on_no_other_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on how many are read ahead, on workers, or on where the pass starts."""
    found = []
    for seconds, workers, start in ((0.0, 0, 0), (3600.0, 0, 0), (0.0, 1, 0), (3600.0, 0, 3)):
        monkeypatch.setattr("healsg.data.loader.READ_AHEAD", seconds)
        loader = plain(DatasetSource(Noisy(20)), 4, DrawingOnDevice(), workers=workers)
        found.append([batch for batch, _ in loader.batches_for_steps(1, start, 5)][3 - start :])
        torch.rand(7)
    assert all(same(found[0], other) for other in found[1:])


def test_transforms_on_the_device_draw_other_numbers_for_each_stream_and_each_rank() -> None:
    noise = []
    for rank in (0, 1):
        views: Any = {stream: {"input": DrawingOnDevice()} for stream in ("labelled", "unlabelled")}
        sources = {stream: DatasetSource(Noisy(8)) for stream in views}
        loader = Loader(sources, views, 8, shuffle=True, flat=False, sharding=Sharding(rank=rank, world=2))
        (batch, _), *_ = loader.batches(0)
        noise += [batch[stream]["input"][:, 0] % 1 for stream in views]  # its first number is a whole one
    assert len(torch.cat(noise).unique()) == 16


def test_a_loop_of_ones_own_reads_nothing_ahead() -> None:
    dataset = Counted(40)
    loader = plain(DatasetSource(dataset), 4)
    for number, _ in enumerate(loader, 1):
        assert dataset.read == 4 * number


def test_an_error_that_is_read_ahead_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("healsg.data.loader.READ_AHEAD", 3600.0)
    loader = plain(DatasetSource(Counted(12, broken=9)), 4, shuffle=False)
    batches = loader.batches_for_steps(0, 0, 3)
    assert [next(batches)[0]["target"].tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(DataError, match="sample 9 of Counted: ValueError: it is broken"):
        next(batches)


def test_both_sources_give_the_same_batches() -> None:
    tensors = numbered(23)
    dataset = TensorDataset(tensors.input, tensors.target)
    first, second = plain(tensors, 4, jitter), plain(DatasetSource(dataset), 4, jitter)
    assert same(dealt(first, 2), dealt(second, 2))
    evaluated = plain(tensors, 4, jitter, shuffle=False)
    assert same(torch.cat([batch["input"] for batch in evaluated]), tensors.input), "no draw, no order"


def test_a_subset_is_numbered_anew() -> None:
    source = DatasetSource(Noisy(10), targets=torch.arange(10)).subset(torch.tensor([7, 2, 4]))
    source = source.subset(torch.tensor([2, 0]))
    assert source.fetch(torch.tensor([0, 1]))["target"].tolist() == [4, 7]
    assert source.targets is not None
    assert source.targets.tolist() == [4, 7]


# --- every sample once, over all processes ---------------------------------------------------------------------------


def test_every_sample_once_over_all_processes() -> None:
    """Many sizes, batches, worlds: the ranks' rows are the global batch, and each has what BatchNorm wants."""
    chance = random.Random(0)
    for _ in range(400):
        size, batch = chance.randint(2, 40), chance.randint(1, 17)
        world, accumulate, min_rows = chance.randint(1, 4), chance.randint(1, 3), chance.randint(1, 2)
        drop = chance.random() < 0.3 and size >= batch * accumulate
        case = f"{size=} {batch=} {world=} {accumulate=} {min_rows=} {drop=}"
        sharding = [Sharding(rank=rank, world=world, accumulate=accumulate, min_rows=min_rows) for rank in range(world)]
        loaders = [plain(numbered(size), batch, drop_last=drop).sharded(own) for own in sharding]
        whole = plain(numbered(size), batch, drop_last=drop)
        whole = whole.sharded(Sharding(accumulate=accumulate, min_rows=min_rows))
        ranks = [dealt(loader, 1) for loader in loaders]
        everything = dealt(whole, 1)
        assert {len(rank) for rank in ranks} == {len(whole)}, case
        for position, (together, counted) in enumerate(everything):
            pieces = [rank[position] for rank in ranks]
            union = [int(i) for piece, rows in pieces for i in piece["index"][:rows]]
            assert union == together["index"].tolist(), case
            assert counted == len(union)
            assert pieces[0][1] > 0, case
            enough = min(min_rows, counted)
            assert all(len(piece["index"]) >= enough for piece, _ in pieces), case
            assert all(rows in (0, len(piece["index"])) for piece, rows in pieces), case
        seen = Counter(indices(everything))
        assert set(seen.values()) == {1}, case
        kept = size - size % (batch * accumulate) if drop else size
        assert len(seen) == kept == whole.samples, case
        assert whole.left_out == size - kept
        if drop:
            assert len(whole) % accumulate == 0


def test_batches_that_are_made_together_are_those_that_are_made_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Jitter:
        per_sample = True

        def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
            return jitter(batch, draw)

    monkeypatch.setattr("healsg.data.slices.TOGETHER", 3 * 8 * 4)
    for world, batch, shuffle in [(1, 8, True), (2, 8, True), (3, 8, True), (3, 8, False), (3, 2, False)]:
        for rank in range(world):
            loader = plain(numbered(42), batch, Jitter(), shuffle=shuffle, may_join=False)
            loader = loader.sharded(Sharding(seed=3, rank=rank, world=world, min_rows=2))
            alone = [loader.batch(1, position) for position in range(len(loader)) if loader.ordering.is_own(position)]
            assert same(dealt(loader, 1), alone), (world, rank)
            assert world > batch or same(dealt(loader, 1, 2), alone[2:]), (world, rank)


def test_a_tail_of_one_joins_the_batch_before_it() -> None:
    def sizes(samples: int, batch_size: int, min_rows: int, shuffle: bool = True) -> list[int]:
        loader = plain(numbered(samples), batch_size, shuffle=shuffle)
        loader = loader.sharded(Sharding(min_rows=min_rows))
        return [rows for _, rows in dealt(loader)]

    assert sizes(9, 4, min_rows=2) == [4, 5]
    assert sizes(9, 4, min_rows=1) == [4, 4, 1]
    assert sizes(10, 4, min_rows=2) == [4, 4, 2]
    assert sizes(3, 1, min_rows=2) == [1, 1, 1], "who asks for batches of one gets them"
    assert sizes(1, 4, min_rows=2) == [1]
    loader = plain(numbered(9), 4, shuffle=False)
    loader = loader.sharded(Sharding(min_rows=2))
    assert [loader.batch(0, place)[1] for place in range(3)] == [4, 4, 1], "an evaluation needs no second sample"


def test_small_samples_that_are_looked_at_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = plain(numbered(75), 4, shuffle=False)
    loader = loader.sharded(Sharding())
    assert [rows for _, rows in dealt(loader)] == [32, 32, 11], "eight batches as one"
    assert torch.cat([batch["index"] for batch, _ in dealt(loader)]).tolist() == list(range(75))
    assert [rows for _, rows in loader.batches(0, 17)] == [7]
    monkeypatch.setattr("healsg.data.slices.TOGETHER", 3 * 4 * 4 * loader.sources["labelled"].input[0].numel())
    assert [rows for _, rows in dealt(loader)][:2] == [12, 12], "within so many bytes"
    own = wrap_loader(DataLoader(TensorDataset(torch.rand(9, 2), torch.arange(9)), 4), "val")
    assert [rows for _, rows in own.batches(0)] == [4, 4, 1], "a loader of one's own keeps its batch size"
    train = wrap_loader(DataLoader(TensorDataset(torch.rand(9, 2), torch.arange(9)), 4), "train")
    assert [rows for _, rows in train.batches(0)] == [4, 4, 1], "nothing that is learned from is joined"


def test_drop_last_drops_incomplete_updates_and_says_how_many() -> None:
    loader = plain(numbered(50), 8, drop_last=True)
    assert (len(loader), loader.samples, loader.left_out) == (6, 48, 2)
    loader = loader.sharded(Sharding(accumulate=4))
    assert (len(loader), loader.samples, loader.left_out) == (4, 32, 18)
    with pytest.raises(DataError, match=r"^data.drop_last: 50 samples do not fill one update of 56; set data"):
        loader = loader.sharded(Sharding(accumulate=7))
    loader = loader.sharded(Sharding(limit=3))
    assert len(loader) == 3


def test_an_empty_split_is_one_line() -> None:
    with pytest.raises(DataError, match="no labelled samples") as caught:
        plain(numbered(0), 4)
    assert "\n" not in str(caught.value)


# --- several streams -------------------------------------------------------------------------------------------------


def streams(labelled: Source, unlabelled: Source, sharding: Sharding) -> Loader:
    views = {"labelled": {"input": jitter}, "unlabelled": {"weak": jitter, "strong": jitter}}
    loader = Loader(
        {"labelled": labelled, "unlabelled": unlabelled}, views, 4, shuffle=True, flat=False, ratio={"unlabelled": 3}
    )
    loader = loader.sharded(sharding)
    return loader


def test_several_streams() -> None:
    loader = streams(numbered(10), numbered(100), Sharding())
    assert (len(loader), loader.samples) == (9, 100), "the longest stream, at three times the batch, makes the epoch"
    batches = dealt(loader)
    assert [len(batch["unlabelled"]["weak"]) for batch, _ in batches] == [12] * 8 + [4]
    assert [len(batch["labelled"]["input"]) for batch, _ in batches] == [4] * 8 + [2], "the last one in proportion"
    assert set(batches[0][0]["unlabelled"]) == {"weak", "strong", "target", "index"}
    seen = Counter(int(i) for batch, _ in batches for i in batch["unlabelled"]["index"])
    assert set(seen.values()) == {1}
    turns = torch.cat([batch["labelled"]["index"] for batch, _ in batches])
    assert all(sorted(turns[start : start + 10].tolist()) == list(range(10)) for start in (0, 10, 20))
    assert turns[:10].tolist() != turns[10:20].tolist(), "each turn has its own order"
    for batch, _ in batches:
        stored = batch["unlabelled"]["index"].float().unsqueeze(1)
        weak, strong = batch["unlabelled"]["weak"] - stored, batch["unlabelled"]["strong"] - stored
        assert not (weak == strong).any(), "each view has draws of its own"
    values = torch.cat([batch["labelled"]["input"] for batch, _ in batches])
    assert len(values.unique()) == 34, "a sample that comes again in an epoch is drawn anew"
    assert same(dealt(loader, 0, 5), batches[5:])


def test_each_micro_batch_knows_the_samples_of_its_whole_update() -> None:
    loader = streams(numbered(10), numbered(100), Sharding(accumulate=2))
    updates: dict[int, list[tuple[Any, Any]]] = {}
    for position, (batch, rows) in enumerate(loader.batches(0)):
        made = loader.as_train_batch(batch, rows, position)
        own = tuple(made[stream].samples.update for stream in ("labelled", "unlabelled"))
        updates.setdefault(position // 2, []).append(own)
    assert updates == {update: [(8, 24)] * 2 for update in range(4)} | {4: [(2, 4)]}, "the last update is a rest"


def test_several_streams_over_processes() -> None:
    whole = dealt(streams(numbered(10), DatasetSource(Noisy(31)), Sharding()))
    ranks = [dealt(streams(numbered(10), DatasetSource(Noisy(31)), Sharding(rank=rank, world=2))) for rank in (0, 1)]
    for together, first, second in zip(whole, *ranks, strict=True):
        index = [part["labelled"]["index"].tolist() for part, _ in (first, second)]
        assert index[0] + index[1] == together[0]["labelled"]["index"].tolist()
        assert first[1] + second[1] == together[1]


def test_batches_for_a_gpu_are_page_locked_outside_of_the_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches as ever; the thread ends with a pass that is left early, and its errors reach the loop."""
    threads: list[str] = []

    def pinned(value: Any) -> Any:
        threads.append(threading.current_thread().name)
        return value

    monkeypatch.setattr("healsg.data.loader._pinned", pinned)
    loader = plain(DatasetSource(Noisy(21)), 4, workers=1)
    on_gpu = loader.sharded(Sharding(seed=1, device=torch.device("cuda:0")))
    wanted = dealt(loader.sharded(Sharding(seed=1)))
    assert [batch["index"].tolist() for batch, *_ in dealt(on_gpu)] == [batch["index"].tolist() for batch, *_ in wanted]
    assert set(threads) == {"pinning"}
    passing = on_gpu.batches(1)
    next(passing)
    passing.close()  # type: ignore[attr-defined]
    assert "pinning" not in {thread.name for thread in threading.enumerate()}

    def failing(value: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("healsg.data.loader._pinned", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        dealt(on_gpu)
