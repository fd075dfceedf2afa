"""Faults in the loop: numbers that are not finite, memory that runs out, a writer that breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from healsg import TaskTrainer
from healsg.data import Needs
from healsg.errors import ConfigError, RunError
from healsg.methods.supervised import Supervised
from healsg.runs import checkpoint
from healsg.runs.writer import Writer
from helpers import state, stopping_at, train

SHORT = ["model=mlp", "model.width=16", "data.batch_size=256", "runner.log_every=4", "runner.epochs=3", "quiet=true"]
MINE = [*SHORT, "name=run", "trusted=[test_faults]", "method=sgd", "method.optimizer.lr=0.05"]


def mine(name: str, *more: str) -> TaskTrainer:
    return TaskTrainer.compose(*MINE, f"method._target_=test_faults.{name}", *more)


class AtStep(Supervised):
    """Does something wrong in the forward pass of step 8 (the third batch of the second epoch)."""

    def train_step(self, task: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        self.now = task.runner.step_count == 7
        logs = super().train_step(task, batch)
        return self.spoil(task, logs) if self.now else logs

    def spoil(self, task: Any, logs: dict[str, Tensor]) -> dict[str, Tensor]:
        return logs


class NotANumber(AtStep):
    def spoil(self, task: Any, logs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": logs["loss"] * float("nan")}


class InfiniteLoss(AtStep):
    def spoil(self, task: Any, logs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": logs["loss"] + float("inf")}


class BrokenGradient(AtStep):
    """Only the gradient of the head is not finite; the loss of that step is."""

    def spoil(self, task: Any, logs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": logs["loss"] + 0.0 * task.net.head.weight.sum().sub(task.net.head.weight.sum().detach()).sqrt()}


class BrokenInput(AtStep):
    def train_step(self, task: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        if task.runner.step_count == 7:
            batch["input"][3] = float("inf")
        return super().train_step(task, batch)


class AfterUpdate(AtStep):
    """The last weights of all are spoiled, where no further loss can tell."""

    def after_update(self, task: Any) -> None:
        if task.runner.step_count == task.runner.total_steps:
            task.model.head.bias[0] = float("nan")


def good_checkpoints() -> dict[str, Any]:
    """What lies in last.pt and best.pt; all of it finite."""
    paths = list(Path("runs/run/checkpoints").glob("*.pt"))
    states = {path.stem: checkpoint.load(path) for path in paths}
    for name, held in states.items():
        assert not list(checkpoint.not_finite(held)), name
    return states


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("NotANumber", r"step 8: the loss is nan, of finite inputs and weights"),
        ("InfiniteLoss", r"step 8: the loss is inf"),
        ("BrokenGradient", r"step 8: the gradient of head\.weight is not finite; step 9: train/loss \(nan\)"),
        ("BrokenInput", r"step 8: (input of the batch is not finite|the loss is nan)"),
    ],
)
@pytest.mark.parametrize("save_every", ["null", "3"])
def test_not_finite_names_step_and_tensor(method: str, told: str, save_every: str) -> None:
    trainer = mine(method, f"runner.save_every={save_every}")
    with pytest.raises(RunError, match=told) as raised:
        trainer.train()
    assert "\n" not in str(raised.value)
    assert trainer.task is not None
    record = json.loads(Path("runs/run/run.json").read_text())
    assert record["status"] == "failed"
    assert "step 8" in record["reason"]
    last = good_checkpoints()["last"]["runner"]["step"]
    assert f"the checkpoint of step {last} is good" in str(raised.value)
    assert 0 <= last <= 8


def test_not_finite_stops_within_one_logging_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("healsg.training.diagnose.first_not_finite", lambda *_: None)  # the search would reset the step
    trainer = mine("NotANumber", "runner.epochs=400", "runner.log_every=25")
    with pytest.raises(RunError, match=r"step 8: train/loss \(nan\) is not finite; the checkpoint of step 0"):
        trainer.train()
    assert trainer.task is not None
    assert trainer.task.runner.step_count <= 25


def test_weights_of_the_last_update_are_looked_at() -> None:
    with pytest.raises(RunError, match=r"step 15: the weight head\.bias is not finite after it"):
        mine("AfterUpdate").train()
    assert checkpoint.load(Path("runs/run/checkpoints/last.pt"))["runner"]["step"] < 15


def test_too_large_a_learning_rate() -> None:
    options = [*SHORT, "name=run", "method=sgd", "method.optimizer.lr=1e38", "runner.log_every=2"]
    with pytest.raises(RunError, match=r"step \d+: .* finite.*method\.optimizer\.lr"):
        TaskTrainer.compose(*options).train()
    good_checkpoints_but_best = checkpoint.load(Path("runs/run/checkpoints/last.pt"))
    assert not list(checkpoint.not_finite(good_checkpoints_but_best))


class Masked(Supervised):
    """Holds infinities that are meant: a mask in the network."""

    def setup(self, task: Any) -> None:
        super().setup(task)
        task.model.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))


def test_what_is_not_finite_from_the_beginning_is_meant() -> None:
    assert mine("Masked").train()["status"] == "finished"


def test_skips_of_the_scaler_are_no_fault() -> None:
    """fp16's first scale, 65,536, overflows gradients above 1: torch's scaler skips those updates and halves it."""
    result = TaskTrainer.compose(*SHORT, "name=run", "method=sgd", "runner.precision=fp16").train()
    assert result["status"] == "finished"
    with pytest.MonkeyPatch.context() as patch:
        skipped = []
        step = torch.amp.GradScaler.step

        def overflowing(self: Any, optimizer: Any, *rest: Any, **more: Any) -> Any:
            if len(skipped) < 3:
                optimizer.param_groups[0]["params"][0].grad.fill_(float("inf"))
                skipped.append(1)
            return step(self, optimizer, *rest, **more)

        patch.setattr(torch.amp.GradScaler, "step", overflowing)
        options = [*SHORT, "name=skips", "method=sgd", "runner.precision=fp16"]
        assert TaskTrainer.compose(*options).train()["status"] == "finished"
        assert len(skipped) == 3


class SkippedThenBroken(AtStep):
    """A gradient that overflows in step 4, which the scaler skips, and a loss that is none in step 8."""

    def train_step(self, task: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        logs = super().train_step(task, batch)
        return {"loss": logs["loss"] * 1e20} if task.runner.step_count == 3 else logs

    def spoil(self, task: Any, logs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": logs["loss"] * float("nan")}


def test_a_skip_of_the_scaler_is_not_taken_for_the_cause_of_a_fault() -> None:
    with pytest.raises(RunError, match=r"step 8: the loss is nan, of finite inputs and weights"):
        mine("SkippedThenBroken", "runner.precision=fp16", "runner.epochs=2").train()


def out_of_memory_above(rows: int, monkeypatch: pytest.MonkeyPatch, steps: range) -> list[int]:
    """Let a training step fail for want of memory with more than ``rows`` samples; returns what was tried."""
    whole, tried = Supervised.train_step, list[int]()

    def train_step(self: Supervised, task: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        tried.append(len(batch["input"]))
        logs = whole(self, task, batch)
        if task.runner.step_count in steps and len(batch["input"]) > rows:
            logs["loss"].backward(retain_graph=True)  # gradients that a failed step leaves behind
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return logs

    monkeypatch.setattr(Supervised, "train_step", train_step)
    return tried


EXACT = ["runner.precision=fp64", "method=sgd", "method.label_smoothing=0.1", "quiet=true"]


def test_auto_accumulate_is_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*SHORT, *EXACT]
    TaskTrainer.compose(*options, "name=whole").train()
    with monkeypatch.context() as patch:
        tried = out_of_memory_above(70, patch, range(3, 99))
        TaskTrainer.compose(*options, "name=pieces", "runner.auto_accumulate=true").train()
        assert 64 in tried
        assert {128, 64} <= set(tried)
    whole, pieces = (checkpoint.load(Path(f"runs/{name}/checkpoints/last.pt")) for name in ("whole", "pieces"))
    assert pieces["runner"]["pieces"] == 4
    for key, value in whole["model"].items():
        torch.testing.assert_close(pieces["model"][key], value, rtol=0, atol=1e-12)
    means = [
        [
            json.loads(line)["train/loss"]
            for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
            if '"event": "epoch"' in line
        ]
        for name in ("whole", "pieces")
    ]
    assert means[0] == pytest.approx(means[1], abs=1e-12)


class Exhausted(torch.autograd.Function):
    """The identity, whose backward pass finds no memory."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_memory_that_runs_out_in_a_backward_pass_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither gradients nor counts: the pieces that follow are the same update as the whole batch."""
    options = [*SHORT, *EXACT, "runner.steps=4"]
    train(*options, "name=whole")
    whole, sizes = Supervised.train_step, list[int]()

    def train_step(self: Supervised, task: Any, batch: dict[str, Any]) -> dict[str, Any]:
        logs = whole(self, task, batch)
        sizes.append(len(batch["input"]))
        return logs | {"loss": Exhausted.apply(logs["loss"])} if sizes[-1] > 70 else logs

    monkeypatch.setattr(Supervised, "train_step", train_step)
    train(*options, "name=pieces", "runner.auto_accumulate=true")
    assert sizes[:3] == [256, 128, 64]
    for key, value in state("whole")["model"].items():
        torch.testing.assert_close(state("pieces")["model"][key], value, rtol=0, atol=1e-12)


def test_a_batch_with_fewer_samples_than_pieces_is_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one of an epoch, of two samples, where batches go in four pieces."""
    options = [*SHORT, *EXACT, "data.labels=18", "data.batch_size=16", "runner.epochs=1"]
    train(*options, "name=whole")
    tried = out_of_memory_above(4, monkeypatch, range(99))
    train(*options, "name=pieces", "runner.auto_accumulate=true")
    assert tried[-2:] == [1, 1]
    for key, value in state("whole")["model"].items():
        torch.testing.assert_close(state("pieces")["model"][key], value, rtol=0, atol=1e-12)


class TwoStreams(Supervised):
    """Has two unlabelled samples beside each labelled one, and notes which; there is memory for 64 labelled ones."""

    seen: ClassVar[list[tuple[list[int], list[int]]]] = []

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.needs = Needs({"labelled": ("input",), "unlabelled": ("input",)}, {"unlabelled": 2})

    def train_step(self, task: Any, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        if len(labelled["input"]) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        self.seen.append((labelled["index"].tolist(), unlabelled["index"].tolist()))
        return super().train_step(task, labelled)


def test_pieces_of_a_batch_share_all_samples_of_each_of_its_streams() -> None:
    TwoStreams.seen.clear()
    mine("TwoStreams", "runner.auto_accumulate=true", "runner.steps=1").train()
    assert [(len(labelled), len(unlabelled)) for labelled, unlabelled in TwoStreams.seen] == [(64, 128)] * 4
    assert len({index for labelled, _ in TwoStreams.seen for index in labelled}) == 256
    assert len({index for _, unlabelled in TwoStreams.seen for index in unlabelled}) == 512


def test_auto_accumulate_resumes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(70, monkeypatch, range(3, 99))
    options = [*SHORT, "method=adamw", "model.dropout=0.2", "runner.auto_accumulate=true", "runner.save_every=1"]
    whole = TaskTrainer.compose(*options, "name=whole").train()
    for step in (2, 4, 9):
        with stopping_at(step):
            assert TaskTrainer.compose(*options, f"name=cut{step}").train()["status"] == "stopped"
        assert TaskTrainer.compose(*options, f"name=cut{step}").train()["digest"] == whole["digest"]


def test_out_of_memory_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(0, monkeypatch, range(2, 99))
    told = (
        r"cpu: out of memory at step 3 in the train pass, with 256 samples a batch in fp32; try data\.batch_size=128 "
    )
    with pytest.raises(RunError, match=told + r"runner\.accumulate=2 .*runner\.auto_accumulate=true"):
        TaskTrainer.compose(*SHORT).train()
    with pytest.raises(RunError, match="out of memory at step 3"):
        TaskTrainer.compose(*SHORT, "runner.auto_accumulate=true").train()


class Contrastive(Supervised):
    mean_over_samples = False


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["runner.accumulate=2"], "splits batches by itself"),
        (["trusted=[test_faults]", "method._target_=test_faults.Contrastive"], "is no mean over samples"),
    ],
)
def test_auto_accumulate_is_refused_where_it_cannot_be_right(options: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=f"runner.auto_accumulate: .*{told}"):
        TaskTrainer.compose(*SHORT, "runner.auto_accumulate=true", *options).train()


def test_a_crash_in_the_writer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save

    def breaking(path: Path, state: dict[str, Any]) -> None:
        if path.name == "last.pt" and state["runner"]["step"] >= 4:
            raise ZeroDivisionError("in the writing thread")
        save(path, state)

    trainer = TaskTrainer.compose(*SHORT, "name=run", "runner.save_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", breaking)
        with pytest.raises(ZeroDivisionError, match="in the writing thread"):
            trainer.train()
    assert checkpoint.load(Path("runs/run/checkpoints/last.pt"))["runner"]["step"] == 2
    assert "in the writing thread" in json.loads(Path("runs/run/run.json").read_text())["reason"]
    assert TaskTrainer.compose(*SHORT, "name=run", "runner.save_every=2").train()["status"] == "finished"


def test_the_loop_goes_on_while_the_writer_writes() -> None:
    """What is saved is what the state was at the call, whatever becomes of it before the thread gets there."""
    import threading

    gates, written = [threading.Event(), threading.Event()], list[dict[str, Any]]()

    def write(state: dict[str, Any]) -> None:
        gates[len(written)].wait(60)
        written.append({key: value.clone() for key, value in state.items()})

    writer, weights = Writer(write), {"a": torch.zeros(3), "b": torch.ones(2, 2).t()}
    for gate, value in zip(gates, (1.0, 2.0), strict=True):
        weights["a"].fill_(value)
        writer.save(weights)
        weights["a"].fill_(-1.0)
        assert len(written) == value - 1
        gate.set()
    writer.wait()
    assert [float(state["a"][0]) for state in written] == [1.0, 2.0]
    assert written[0]["b"].stride() == (1, 2)


def test_kept_memory_is_used_again() -> None:
    seen = list[int]()
    writer = Writer(lambda state: seen.append(state["a"].data_ptr()))
    weights = {"a": torch.zeros(1000), "tied": torch.zeros(5)}
    for _ in range(3):
        writer.save(weights)
    writer.wait()
    assert len(set(seen)) == 1


def test_a_failure_of_the_search_does_not_hide_what_it_was_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("healsg.training.diagnose.first_not_finite", broken)
    with pytest.raises(RunError, match=r"step 8: train/loss \(nan\) is not finite; the checkpoint of step \d+ is good"):
        mine("NotANumber").train()


def test_half_an_update_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that runs out in the optimizer: its state may be half a step ahead."""

    def step(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("healsg.optimizers.adam.AdamW.step", step)
    with pytest.raises(RunError, match="out of memory at step 1"):
        TaskTrainer.compose(*SHORT, "method=adamw", "runner.auto_accumulate=true").train()


def test_a_thread_that_cannot_start_leaves_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    import _thread

    def refused(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    writer = Writer(lambda state: None)
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refused)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            writer.save({"a": torch.zeros(2)})
    writer.close()
    writer.save({"a": torch.zeros(2)})
    writer.wait()


def test_versions_of_modules_are_kept() -> None:
    """What torch keeps beside a module's state: modules that changed their form once look at it."""
    TaskTrainer.compose(*SHORT, "model=resnet", "model.width=4", "runner.steps=2", "name=run").train()
    for name in ("last", "best"):
        weights = checkpoint.load(Path(f"runs/run/checkpoints/{name}.pt"))["model"]
        assert {"version": 2} in weights._metadata.values(), name
