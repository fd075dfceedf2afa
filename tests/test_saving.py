"""Saving beside the loop: what the writing thread copies after the save has returned is what it was at the save."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from healsg import BasicTask, TaskTrainer
from healsg.errors import RunError
from healsg.method import TaskMethod
from healsg.methods.supervised import Supervised
from healsg.runner import TaskRunner
from healsg.runs import checkpoint
from healsg.runs.checkpointer import Checkpointer
from healsg.runs.writer import Writer
from healsg.training.step import MicroBatch, TrainBatch
from helpers import HANG, METHODS, beside

SHORT = ["data=digits", "model=cnn", "quiet=true", "runner.limit_batches=4", "runner.epochs=2"]
KINDS = ("adamw", "sam", "fixmatch", "mean_teacher", "moco", "kd", "pgd", "dividemix", "schedule_free")
"""Methods that between them have a step of each kind; the soak tries all."""


def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let the writing thread copy only once the event is set."""
    gate, land = threading.Event(), Writer._copy_rest

    def waiting(self: Writer, *arguments: Any) -> Any:
        gate.wait(HANG)
        return land(self, *arguments)

    monkeypatch.setattr(Writer, "_copy_rest", waiting)
    return gate


def test_the_thread_copies_what_stays_until_the_next_update(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, written = held_back(monkeypatch), dict[str, Any]()

    def write(state: dict[str, Any]) -> None:
        written.update({name: state[name].clone() for name in ("weight", "buffer")})

    weight, buffer, writer = torch.ones(3), torch.ones(2), Writer(write)
    writer.save({"buffer": buffer, "rate": 0.1}, lambda state: state | {"weight": weight}, [weight])
    buffer.fill_(5)  # as a forward pass does
    gate.set()
    writer.snapshot_done()
    weight.fill_(7)  # as an update does
    writer.wait()
    assert written["weight"].tolist() == [1, 1, 1]
    assert written["buffer"].tolist() == [1, 1]


def test_a_weight_and_its_transpose_which_share_memory_are_saved_as_they_are() -> None:
    written, weight = list[Any](), torch.arange(9.0).view(3, 3)
    writer = Writer(written.append)
    writer.save({"weight": weight, "tied": weight.T})
    writer.wait()
    assert torch.equal(written[0]["weight"], weight)
    assert torch.equal(written[0]["tied"], weight.T)


def test_weights_that_change_too_early_are_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, written, weight = held_back(monkeypatch), list[Any](), torch.ones(3)
    writer = Writer(written.append)
    writer.save({}, lambda state: {"weight": weight}, [weight])
    weight.fill_(7)
    gate.set()
    with pytest.raises(RunError, match=r"train_step changed weights; set .* leaves_weights = False"):
        writer.wait()
    assert not written


def test_a_thread_that_fails_lets_the_update_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    writer, weight = Writer(lambda state: None), torch.ones(3)
    with monkeypatch.context() as patch:
        patch.setattr("healsg.runs.writer._Save.copy_rest", broken)
        writer.save({}, lambda state: {"weight": weight}, [weight])
        writer.snapshot_done()
    with pytest.raises(ZeroDivisionError):
        writer.wait()


class Reassigning(torch.nn.Module):
    """A network that gives its buffer another tensor in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * input.flatten(1).mean(0)
        output: torch.Tensor = self.body(input)
        return output


class Stepped(BasicTask):
    """torch's StepLR, as the design's example has it, and a network of one's own."""

    def build_model(self) -> torch.nn.Module:
        return Reassigning()

    def build_scheduler(self) -> Any:
        return torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=1, gamma=0.5)


class WithoutBuffers(BasicTask):
    """A norm that has places for buffers, and none in them."""

    def build_model(self) -> torch.nn.Module:
        norm = torch.nn.InstanceNorm2d(4, affine=True)
        return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), norm, torch.nn.Flatten(), torch.nn.Linear(144, 10))


class Clamping(BasicTask):
    """A hook changes weights in each forward pass."""

    def build_model(self) -> torch.nn.Module:
        def clamp(module: torch.nn.Module, inputs: Any) -> None:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.clamp_(-0.1, 0.1)

        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        network.register_forward_pre_hook(clamp)
        return network


class Remembering(BasicTask):
    """Saves a number beside what every task saves."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"own": {"updates": self.runner.step_count}}


class OwnUpdate(TaskRunner):
    """A runner whose update is its own, and knows nothing of saving."""

    def update(self, task: BasicTask, logs: dict[str, Any], micro: MicroBatch) -> tuple[dict[str, Any], bool]:
        scalars = self.backward(logs, micro)
        task.optimizer.step()
        task.optimizer.zero_grad()
        self.position.count_update()
        return scalars, True


class Swapping(Supervised):
    """Evaluates with other weights, which are swapped in and out."""

    def evaluate(self, task: BasicTask, split: str) -> dict[str, float]:
        for parameter in task.model.parameters():
            parameter.data = parameter.data + 1.0
        try:
            return {"acc": 0.5}
        finally:
            for parameter in task.model.parameters():
                parameter.data = parameter.data - 1.0


class Slowing(Supervised):
    """Sets the learning rate in its step."""

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        task.optimizer.param_groups[0]["lr"] *= 0.9
        return super().train_step(task, batch)


OWN = {
    "usual": ["model=resnet", "model.width=8", "method=sgd"],
    "momentum": ["model=cnn", "method=adamw", "method.ema=0.9", "runner.accumulate=2"],
    "stepped": ["task._target_=test_saving.Stepped", "trusted=[test_saving]", "runner.eval_every=2"],
    "without buffers": ["task._target_=test_saving.WithoutBuffers", "trusted=[test_saving]", "method=sgd"],
    "remembering": ["task._target_=test_saving.Remembering", "trusted=[test_saving]", "model=mlp"],
    "clamping": ["task._target_=test_saving.Clamping", "trusted=[test_saving]"],
    "runner": ["runner._target_=test_saving.OwnUpdate", "trusted=[test_saving]", "method/scheduler=constant"],
    "swapping": ["method._target_=test_saving.Swapping", "trusted=[test_saving]", "model=cnn"],
    "slowing": ["method._target_=test_saving.Slowing", "trusted=[test_saving]", "model=cnn"],
}


def compared(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[dict[tuple[str, int], str], dict[tuple[str, int], str], set[bool]]:
    """By run and step the digests of the state at each save, and of what a thread that comes late wrote then; and
    whether something was left to it."""
    save, land, store = Checkpointer.save, Writer._copy_rest, checkpoint.save
    saved, found, late = dict[tuple[str, int], str](), dict[tuple[str, int], str](), set[bool]()

    looked = threading.Event()
    looked.set()

    def slow(self: Writer, *arguments: Any) -> Any:
        looked.wait(HANG)
        time.sleep(0.02)
        return land(self, *arguments)

    def watched(self: Checkpointer, task: BasicTask) -> None:
        saved[self.folder.path.name, task.runner.step_count] = checkpoint.digest(task.state_dict())
        self.writer.wait()
        looked.clear()
        save(self, task)
        late.add(self.writer._copying.locked())
        looked.set()

    def write(path: Path, state: dict[str, Any]) -> None:
        if path.name == "last.pt":
            kept = {name: part for name, part in state.items() if name not in ("metrics_log", "belongs", "data_info")}
            found[path.parents[1].name, state["runner"]["step"]] = checkpoint.digest(kept)
        store(path, state)

    monkeypatch.setattr(Writer, "_copy_rest", slow)
    monkeypatch.setattr(Checkpointer, "save", watched)
    monkeypatch.setattr(checkpoint, "save", write)
    return saved, found, late


@pytest.mark.parametrize("case", OWN)
def test_every_save_is_that_of_its_step(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the thread comes, each file is what the state was at its save."""
    saved, found, late = compared(monkeypatch)
    TaskTrainer.compose(*SHORT, *OWN[case], "runner.save_every=1").train()
    assert found == saved
    assert len(saved) == (5 if case == "momentum" else 9)
    assert late == {case in ("usual", "momentum")}


@pytest.mark.parametrize(
    "method", [name if name in KINDS else pytest.param(name, marks=pytest.mark.soak) for name in METHODS]
)
def test_a_method_that_leaves_weights_alone_does(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    update, step = TaskRunner.update, TaskRunner.step
    before, looked = list[torch.Tensor](), list[bool]()

    def stepping(self: TaskRunner, task: BasicTask, batch: TrainBatch, micro: MicroBatch) -> Any:
        before[:] = [value.detach().clone() for value in task.model.parameters()]
        return step(self, task, batch, micro)

    def updating(self: TaskRunner, task: BasicTask, logs: dict[str, Any], micro: MicroBatch) -> Any:
        now = list(task.model.parameters())
        looked.append(all(torch.equal(*pair) for pair in zip(before, now, strict=True)))
        return update(self, task, logs, micro)

    small = beside(method)
    small = small if any(option.startswith("model=") for option in small) else ["model.width=4", *small]
    trainer = TaskTrainer.compose(*SHORT, f"method={method}", *small, "runner.epochs=1", "runner.limit_batches=1")
    monkeypatch.setattr(TaskRunner, "step", stepping)
    monkeypatch.setattr(TaskRunner, "update", updating)
    assert trainer.train()["status"] == "finished"
    kind = type(trainer.task.task_method)
    assert looked
    assert all(looked) or not kind.leaves_weights or kind.step is not TaskMethod.step
