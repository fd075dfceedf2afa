"""Runs whose loaders are the user's own, and loader processes that fail."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, default_collate

from healsg import BasicTask, TaskTrainer
from healsg.data.foreign import wrap_loader
from healsg.data.source import DatasetSource, Reading
from healsg.errors import DataError
from healsg.methods.labelled import LabelledSamples
from healsg.runs.checkpoint import load
from healsg.training.step import MicroBatch, Samples, TrainBatch, loss_of
from test_adopt import Stream
from test_loader import Noisy, dealt, plain


class Broken(Noisy):
    """A data set whose sample 5 is damaged: it raises ``error``."""

    def __init__(self, size: int, error: Exception) -> None:
        super().__init__(size)
        self.error = error

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 5:
            raise self.error
        return super().__getitem__(index)


def test_a_worker_that_raises_is_one_clear_line() -> None:
    for error in (DataError("sample 5: is damaged"), ValueError("sample 5 is odd")):
        loader = plain(DatasetSource(Broken(8, error)), 2, workers=2, shuffle=False)
        with pytest.raises(DataError) as caught:
            dealt(loader)
        kind = "" if isinstance(error, DataError) else "ValueError: "
        assert str(caught.value) == f"sample 5 of Broken: {kind}{error}"
        assert "raise self.error" in str(caught.value.__cause__), "the worker's own traceback"


RUN = ["runner.epochs=2", "runner.precision=fp64", "runner.log_every=1", "quiet=true"]


class OwnLoaders(BasicTask):
    """A task whose loaders come from ``kind``; its samples are those of ``Noisy``, with a class each."""

    kind: Any = None

    def build_dataloader(self) -> Any:
        def labelled(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
            inputs, targets = default_collate(samples)
            return inputs, targets % 2

        return {"train": type(self).kind(labelled), "val": DataLoader(Noisy(7), batch_size=4, collate_fn=labelled)}

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def train(kind: Any, *options: str, name: str = "run") -> dict[str, Any]:
    """A run with the loaders that ``kind`` makes."""
    trainer = TaskTrainer.compose(*RUN, *options, f"name={name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("healsg.trainer.build_task", lambda composed: own_task(composed, kind))
        return trainer.train()


def own_task(composed: Any, kind: Any) -> BasicTask:
    from healsg.build import build_task

    task = build_task(composed)
    vars(task).pop("custom_loaders", None)  # asked already, of the class that it had before
    task.__class__ = type("Mine", (OwnLoaders,), {"kind": staticmethod(kind)})
    return task


def sampled(collate: Any) -> Any:
    return DataLoader(Noisy(13), batch_size=4, sampler=SubsetRandomSampler(range(13)), collate_fn=collate)


def shuffled(collate: Any) -> Any:
    return DataLoader(Noisy(13), batch_size=4, shuffle=True, collate_fn=collate, num_workers=1)


def endless(collate: Any) -> Any:
    return DataLoader(Stream(), batch_size=4, collate_fn=collate)


@pytest.mark.parametrize("kind", [sampled, shuffled])
def test_a_run_with_own_loaders_goes_on_where_it_stopped(kind: Any) -> None:
    size = ["runner.accumulate=2", "runner.save_every=1"]
    if kind is sampled:
        size += ["runner.limit_batches=3"]  # its tail of one sample would not do for BatchNorm
    whole = train(kind, *size, name="whole")
    train(kind, *size, "runner.max_time=0", name="cut")
    state = load(Path("runs/cut/checkpoints/last.pt"))["runner"]
    assert (state["step"], state["position"]) == (1, 2)
    assert train(kind, *size, "runner.max_time=null", name="cut")["digest"] == whole["digest"]


def test_loaders_that_cannot_train_are_one_line() -> None:
    for kind, said in (
        (lambda collate: None, "build_dataloader: there is no train loader; return"),
        (endless, "the train loader has no length: set runner.limit_batches"),
        (lambda collate: DataLoader(Noisy(0), collate_fn=collate), "the train loader has no samples"),
        (lambda collate: Noisy(4), "Noisy for train is no loader"),
        (
            lambda collate: DataLoader(Noisy(5), batch_size=8, drop_last=True, collate_fn=collate),
            "5 samples do not fill",
        ),
    ):
        with pytest.raises(DataError, match=said) as caught:
            train(kind, "fresh=true")
        assert "\n" not in str(caught.value)
    small = train(lambda collate: DataLoader(Noisy(5), batch_size=8, collate_fn=collate), "fresh=true")
    assert small["status"] == "finished", "fewer samples than a batch are one batch"


def test_a_data_set_may_hold_a_module_and_objects_whose_attributes_fail() -> None:
    class Strange:
        def __getattr__(self, name: str) -> Any:
            raise OSError(f"{name}: cannot open shared object file")

    class Samples(Dataset[Any]):
        def __init__(self) -> None:
            self.library = Strange()
            self.module = random

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.tensor([float(index)]), index

    loader = wrap_loader(DataLoader(Samples(), 4), "val")
    assert [batch["target"].tolist() for batch, _ in loader.batches(0)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert not loader.sources["labelled"].generators


@pytest.mark.parametrize("kind", [sampled, shuffled])
def test_a_loss_over_own_loaders_is_the_same_whether_its_samples_are_counted_or_not(kind: Any) -> None:
    """Torch's own mean is taken where no target is ignored; a declared denominator is counted."""

    class Counting(nn.CrossEntropyLoss):
        def denominator(self, output: Tensor, target: Tensor) -> Tensor:
            return (target != self.ignore_index).sum()

    def criterion_of(made: type[nn.Module], name: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OwnLoaders, "build_criterion", lambda task: made())
            return train(kind, "runner.limit_batches=3", name=name)["digest"]

    assert criterion_of(Counting, "counted") == criterion_of(nn.CrossEntropyLoss, "uncounted")


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (DataLoader(Noisy(8), batch_size=None), r"yields single samples and no batches \(target is int\)"),
        (
            [(torch.zeros(()), torch.zeros(()))],
            r"yields single samples .*input is a tensor without rows",
        ),
        ([{}], "yields an empty dict"),
    ],
    ids=["batch_size=None", "scalars", "empty"],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_loader_of_single_samples_is_one_line(loader: Any, words: str, split: str) -> None:
    with pytest.raises(DataError, match=f"^the {split} loader {words}"):
        list(wrap_loader(loader, split).batches(0))


@pytest.mark.parametrize("target", [None, 3, torch.tensor(3), "a caption"], ids=["none", "int", "scalar", "text"])
def test_a_batch_may_have_one_target_for_all_its_samples(target: Any) -> None:
    ((batch, rows),) = wrap_loader([(torch.zeros(16, 8), target)], "train").batches(0)
    assert (rows, batch["target"]) == (16, target)


class Sequences(Dataset[tuple[Tensor, int]]):
    """Sequences of 3 to 5 steps."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3 + index % 3, 2), index


def test_a_collate_function_may_put_the_steps_of_sequences_first() -> None:
    def steps_first(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*samples, strict=True)
        return nn.utils.rnn.pad_sequence(list(inputs)), torch.tensor(targets)

    (batch,) = wrap_loader(DataLoader(Sequences(), batch_size=16, collate_fn=steps_first), "train")
    assert batch["input"].shape == (5, 16, 2)


class Unlike(Dataset[tuple[Tensor, Any]]):
    """Images of unlike sizes, the last of which has no target."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        size = 5 if index == 2 else 4
        return torch.zeros(1, size, size), object() if index == 3 else index


def test_of_samples_of_unlike_sizes_only_the_unusable_one_is_left_out() -> None:
    loader = plain(DatasetSource(Unlike()), 4, shuffle=False, training=False, reading=Reading("skip"))
    assert [batch["index"].tolist() for batch, _ in dealt(loader)] == [[0], [1], [2]]


def test_a_loader_without_batching_may_yield_batches_of_its_data_set() -> None:
    batches = [(torch.full((4, 2), float(number)), torch.arange(4)) for number in range(3)]
    dealt_batches = list(wrap_loader(DataLoader(batches, batch_size=None), "train").batches(0))  # type: ignore[arg-type]
    assert [rows for _, rows in dealt_batches] == [4, 4, 4]
    assert [float(batch["input"][0, 0]) for batch, _ in dealt_batches] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("how", ["written", "replaced", "unchanged"])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_targets_that_a_step_masks_count_in_no_denominator(how: str, nonnegative: bool) -> None:
    """Whether they are known to be nonnegative (a loader looked) or to be alike (targets in memory)."""
    labelled = LabelledSamples()
    labelled.alike = not nonnegative
    batch = TrainBatch(
        {"input": torch.zeros(4, 2), "target": torch.tensor([0, 1, 0, 1])}, Samples(4, 0, 4, 4, nonnegative)
    )
    if how == "written":
        batch["target"][:3] = -100
    elif how == "replaced":
        batch["target"] = torch.tensor([-100, -100, -100, 1])
    loss = loss_of(labelled.loss(nn.CrossEntropyLoss(), batch, torch.tensor([[3.0, 0.0]] * 4)))
    count = loss.terms[0].counted(MicroBatch(batch.samples))
    assert float(count) == (4 if how == "unchanged" else 1)
    expected = nn.functional.cross_entropy(torch.tensor([[3.0, 0.0]] * 4), batch["target"])
    assert torch.equal(loss.value, expected)
