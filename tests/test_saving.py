"""Saving beside the loop: what the writing thread copies after the save has returned is what it was at the save."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import REPOSITORY
from healsg import BasicTask, TaskTrainer, checkpoint
from healsg.errors import RunError
from healsg.keeper import Keeper
from healsg.method import TaskMethod
from healsg.runner import TaskRunner
from healsg.writer import Writer

SHORT = ["data=digits", "model=cnn", "quiet=true", "runner.limit_batches=4", "runner.epochs=2"]
METHODS = sorted(path.stem for path in (REPOSITORY / "conf/method").glob("*.yaml"))


def test_the_thread_copies_what_stays_until_the_next_update() -> None:
    gate, written = threading.Event(), dict[str, Any]()

    def write(state: dict[str, Any]) -> None:
        written.update({name: value.clone() for name, value in state["last"]["model"].items()})

    def give() -> dict[str, torch.Tensor]:
        gate.wait(10)
        return {"weight": weight, "buffer": buffer}

    weight, buffer, writer = torch.ones(3), torch.ones(2), Writer(write)
    writer.save({"last": {}}, {("last", "model"): give}, [weight], [buffer])
    buffer.fill_(5)  # as a forward pass does
    gate.set()
    writer.landed()
    weight.fill_(7)  # as an update does
    writer.wait()
    assert written["weight"].tolist() == [1, 1, 1]
    assert written["buffer"].tolist() == [1, 1]


def test_weights_that_change_too_early_are_no_checkpoint() -> None:
    gate, writer, weight = threading.Event(), Writer(lambda state: None), torch.ones(3)

    def give() -> dict[str, torch.Tensor]:
        gate.wait(10)
        return {"weight": weight}

    writer.save({"last": {}}, {("last", "model"): give}, [weight])
    weight.fill_(7)
    gate.set()
    with pytest.raises(RunError, match=r"train_step changed weights; set .* leaves_weights = False"):
        writer.wait()


def test_a_thread_that_fails_lets_the_update_go_on() -> None:
    def give() -> dict[str, Any]:
        raise ZeroDivisionError

    writer = Writer(lambda state: None)
    writer.save({"last": {}}, {("last", "model"): give})
    writer.landed()
    with pytest.raises(ZeroDivisionError):
        writer.wait()


def test_every_save_is_that_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights go through the thread: each file is compared with a copy made at the save."""
    monkeypatch.setattr("healsg.keeper._WORTH", 0)
    save, saved = Keeper.save, dict[int, str]()
    late = list[int]()

    def watched(self: Keeper, task: BasicTask) -> None:
        saved[task.runner.step_count] = checkpoint.digest(task.state_dict())
        save(self, task)
        late.append(len(self.late))

    def write(path: Path, state: dict[str, Any]) -> None:
        if path.name == "last.pt":
            kept = {name: part for name, part in state.items() if name != "journal"}
            found[state["runner"]["step"]] = checkpoint.digest(kept)
        store(path, state)

    store, found = checkpoint.save, dict[int, str]()
    monkeypatch.setattr(Keeper, "save", watched)
    monkeypatch.setattr(checkpoint, "save", write)
    TaskTrainer.compose(*SHORT, "model=resnet", "model.width=8", "method=sgd", "runner.save_every=1").train()
    assert found == saved
    assert len(saved) == 9
    assert set(late) == {2}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_leaves_weights_alone_does(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    update, step = TaskRunner.update, TaskRunner.step
    before, looked = list[torch.Tensor](), list[bool]()

    def stepping(self: TaskRunner, task: BasicTask, batch: dict[str, Any]) -> Any:
        before[:] = [value.detach().clone() for value in task.model.parameters()]
        return step(self, task, batch)

    def updating(self: TaskRunner, task: BasicTask, logs: dict[str, Any]) -> bool:
        now = list(task.model.parameters())
        looked.append(all(torch.equal(*pair) for pair in zip(before, now, strict=True)))
        return update(self, task, logs)

    trainer = TaskTrainer.compose(*SHORT, f"method={method}", "model.width=4", "runner.epochs=1")
    monkeypatch.setattr(TaskRunner, "step", stepping)
    monkeypatch.setattr(TaskRunner, "update", updating)
    assert trainer.train()["status"] == "finished"
    kind = type(trainer.task.task_method)
    assert looked
    assert all(looked) or not kind.leaves_weights or kind.step is not TaskMethod.step
