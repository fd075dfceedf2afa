"""Loaders that a user's own task returns, and the processes that prepare batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from healsg.data.foreign import ForeignLoader, wrap_loader
from healsg.data.loader import Loader
from healsg.data.sharding import Sharding
from healsg.data.source import stacked
from healsg.errors import DataError
from test_loader import Noisy, dealt, indices, same


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((torch.rand(2), number) for number in range(10))


# --- loaders of a user's own -----------------------------------------------------------------------------------------


def test_plain_loaders_are_dealt_anew() -> None:
    loader = wrap_loader(DataLoader(Noisy(10), batch_size=3, shuffle=True, drop_last=True, num_workers=2), "train")
    assert isinstance(loader, Loader)
    assert (loader.batch_size, loader.shuffle, loader.drop_last, loader.workers) == (3, True, True, 2)
    ordered = wrap_loader(DataLoader(Noisy(10), batch_size=3), "val")
    assert isinstance(ordered, Loader)
    assert indices(dealt(ordered)) == list(range(10))
    memory = wrap_loader(
        DataLoader(TensorDataset(torch.rand(10, 2), torch.arange(10)), batch_size=4, num_workers=2), "val"
    )
    assert isinstance(memory, Loader)
    assert memory.in_memory
    assert memory.workers == 0
    assert set(next(iter(memory))) == {"input", "target", "index"}
    assert wrap_loader(memory, "val") is memory


def test_own_collate_and_worker_init(tmp_path: Path) -> None:
    def collate(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        inputs, targets = default_collate(samples)
        return {"input": inputs[:, :1] * 2, "target": targets, "length": torch.tensor([len(samples)])}

    def started(worker: int) -> None:
        (tmp_path / f"worker{worker}").touch()

    options: dict[str, Any] = {"batch_size": 5, "collate_fn": collate, "num_workers": 2, "worker_init_fn": started}
    loader = wrap_loader(DataLoader(Noisy(10), **options), "train")
    assert isinstance(loader, Loader)
    first = dealt(loader)[0][0]
    assert first["input"].flatten().tolist() == [0, 2, 4, 6, 8]
    assert first["length"].tolist() == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker0", "worker1"]


def test_a_distributed_sampler_becomes_ours() -> None:
    sampler: Any = DistributedSampler(Noisy(20), num_replicas=2, rank=1, shuffle=True)
    loader = wrap_loader(DataLoader(Noisy(20), batch_size=3, sampler=sampler), "train")
    assert isinstance(loader, Loader)
    assert (loader.batch_size, loader.shuffle) == (6, True)
    assert sorted(indices(dealt(loader))) == list(range(20))


class Own(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(2, 1), torch.zeros(2))])


FOREIGN = {
    "sampler": lambda: DataLoader(Noisy(12), batch_size=3, sampler=SubsetRandomSampler(range(12))),
    "replacement": lambda: DataLoader(
        Noisy(12), batch_size=3, sampler=RandomSampler(Noisy(12), replacement=True, num_samples=12)
    ),
    "batch_sampler": lambda: DataLoader(
        Noisy(12), batch_sampler=type("Mine", (BatchSampler,), {})(SubsetRandomSampler(range(12)), 3, False)
    ),
    "workers": lambda: DataLoader(Noisy(12), batch_size=3, sampler=SubsetRandomSampler(range(12)), num_workers=1),
}


class Told(SubsetRandomSampler):
    """A sampler that is told the epoch, as torch's distributed one is, and deals by it alone."""

    def __init__(self) -> None:
        super().__init__(range(12))
        self.epochs = list[int]()

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter([(place + self.epochs[-1]) % 12 for place in range(12)])


def test_a_sampler_is_told_the_epoch_before_it_deals() -> None:
    sampler = Told()
    loader = wrap_loader(DataLoader(Noisy(12), batch_size=3, sampler=sampler), "train")
    loader = loader.sharded(Sharding(seed=5))
    for epoch in (0, 3, 1):
        taken = [int(target) for batch, _ in loader.batches(epoch) for target in batch["target"]]
        assert taken == [(place + epoch) % 12 for place in range(12)]
    assert sampler.epochs == [0, 3, 1]


@pytest.mark.parametrize("kind", FOREIGN)
def test_any_other_loader_is_kept_and_skipped_forward(kind: str) -> None:
    def fresh() -> ForeignLoader:
        loader = wrap_loader(FOREIGN[kind](), "train")
        assert isinstance(loader, ForeignLoader)
        loader = loader.sharded(Sharding(seed=5))
        return loader

    def drawn(loader: ForeignLoader, epoch: int, start: int = 0) -> list[Any]:
        values = []
        for value in loader.batches(epoch, start):
            values.append(value)
            torch.manual_seed(0)  # as a training step does
            random.random()
        return values

    whole = drawn(fresh(), 1)
    assert [rows for _, rows in whole] == [3, 3, 3, 3]
    for start in (0, 1, 3):
        assert same(drawn(fresh(), 1, start), whole[start:])
    assert not same(drawn(fresh(), 2), whole)


def test_loaders_without_length_or_samples_are_one_line() -> None:
    stream = wrap_loader(DataLoader(Stream(), batch_size=4), "train")
    with pytest.raises(DataError, match=r"^the train loader has no length: set runner.limit_batches, or give"):
        len(stream)
    stream = stream.sharded(Sharding(limit=2))
    assert (len(stream), [rows for _, rows in dealt(stream)]) == (2, [4, 4])
    stream = stream.sharded(Sharding(limit=9))
    with pytest.raises(DataError, match=r"^the train loader ended after 3 of 9 batches; set runner.limit_batches=3"):
        dealt(stream)
    evaluated = wrap_loader(DataLoader(Stream(), batch_size=4), "val")
    evaluated = evaluated.sharded(Sharding(limit=9))
    assert [rows for _, rows in dealt(evaluated)] == [4, 4, 2]
    with pytest.raises(DataError, match="the val loader is empty"):
        len(wrap_loader([], "val"))
    with pytest.raises(DataError, match="the train loader has no samples"):
        wrap_loader(DataLoader(Noisy(0)), "train")
    with pytest.raises(DataError, match=r"^build_dataloader: Noisy for train is no loader; wrap it in a DataLoader$"):
        wrap_loader(Noisy(3), "train")

    class Endless:
        def __getitem__(self, index: int) -> int:
            return index

    with pytest.raises(DataError, match="the val loader: its data set, Endless, has no length"):
        wrap_loader(DataLoader(Endless(), batch_size=2), "val")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a loader yields Tensor; give"):
        dealt(wrap_loader([torch.zeros(3)], "train"))


def test_foreign_batches_are_shared_by_rows() -> None:
    batch = {"input": torch.arange(5), "names": list("abcde"), "scale": 2.0, "target": torch.arange(5)}
    nested = {"labelled": {"input": torch.arange(4)}, "unlabelled": {"weak": torch.arange(6)}}
    for value, rows in ((batch, [3, 2]), (nested, [2, 2])):
        parts = []
        for rank in (0, 1):
            loader = wrap_loader([value], "train")
            loader = loader.sharded(Sharding(rank=rank, world=2))
            parts.append(dealt(loader)[0])
        assert [count for _, count in parts] == rows
        if value is batch:
            assert parts[0][0]["names"] + parts[1][0]["names"] == list("abcde")
            assert parts[1][0]["scale"] == 2.0
        else:
            assert parts[1][0]["unlabelled"]["weak"].tolist() == [3, 4, 5]
    alone = wrap_loader([nested], "train")
    assert dealt(alone)[0][1] == 4
    assert isinstance(wrap_loader(Own(Noisy(4)), "train"), ForeignLoader)


class Named(NamedTuple):
    input: Tensor
    target: int


KINDS: dict[str, Any] = {
    "tensors": (torch.ones(3), torch.tensor(2)),
    "plain": (torch.ones(2, 3), 4, 0.5, True, "name", b"bytes"),
    "inside": (torch.ones(2), (torch.zeros(1), 2), {"a": torch.ones(1), "b": 3}, [1, 2.0]),
    "arrays": (numpy.ones((2, 3), dtype=numpy.float32), numpy.int64(3)),
    "parameter": (nn.Parameter(torch.ones(2)), torch.ones(2)),
    "named": Named(torch.ones(2), 3),
    "list": [torch.ones(2), 3],
    "dict": {"input": torch.ones(2), "target": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_joined_as_torch_joins_them(kind: str) -> None:
    ours, theirs = stacked([KINDS[kind]] * 3), default_collate([KINDS[kind]] * 3)
    assert type(ours) is type(theirs)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    "samples",
    [
        [(torch.ones(2), 1), (torch.ones(3), 1)],
        [(torch.ones(2), 1), (torch.ones(2),)],
        [(torch.ones(2), 1), (1, torch.ones(2))],
        [(torch.ones(2), None), (torch.ones(2), None)],
        [(torch.ones(2).to_sparse(), 1)] * 2,
        [(torch.ones(2), 1), 7],
    ],
)
def test_samples_that_torch_does_not_join_are_not_joined(samples: list[Any]) -> None:
    with pytest.raises((TypeError, RuntimeError)):
        default_collate(samples)
    with pytest.raises((TypeError, RuntimeError)):
        stacked(samples)
