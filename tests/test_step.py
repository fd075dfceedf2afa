"""What a training step computes: accumulation, clipping, precision and memory format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from healsg import BasicTask, TaskTrainer
from healsg.checkpoint import load
from healsg.methods.supervised import Supervised
from healsg.runner import TaskRunner
from healsg.step import MicroBatch, TrainBatch


def train(*options: str, name: str = "run") -> dict[str, Any]:
    return TaskTrainer.compose("model=mlp", "model.width=16", "quiet=true", *options, f"name={name}").train()


def state(name: str) -> dict[str, Any]:
    return load(Path("runs") / name / "checkpoints/last.pt")


def events(name: str, event: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (Path("runs") / name / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


# --- accumulation and clipping ---------------------------------------------------------------------------------------


def own_count(self: Supervised, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
    """A step that weighs its loss by what it counted itself: the samples of even class, as a tensor."""
    chosen = (batch["target"] % 2 == 0).to(task.device)
    losses = nn.functional.cross_entropy(task.net(batch["input"]), batch["target"], reduction="none")
    return {"loss": (losses * chosen).sum() / chosen.sum(), "count": chosen.sum()}


@pytest.mark.parametrize("method", ["sgd", "adamw"])
@pytest.mark.parametrize("own", [False, True], ids=["rows", "own count"])
def test_accumulation_is_one_larger_batch(method: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,167 samples in updates of 840: the last has 327, in 2 or 3 batches of which one is not full."""
    if own:
        monkeypatch.setattr(Supervised, "train_step", own_count)
    options = [f"method={method}", "runner.precision=fp64", "runner.epochs=2"]
    for accumulate in (1, 4, 7):
        changing = [f"runner.accumulate={accumulate}", f"data.batch_size={840 // accumulate}"]
        train(*options, *changing, name=f"by{accumulate}")
    whole = state("by1")
    assert whole["runner"]["step"] == 4
    for name in ("by4", "by7"):
        assert state(name)["runner"]["step"] == 4
        assert distance(state(name)["model"], whole["model"]) < 1e-12
        for mine, other in zip(events(name, "epoch"), events("by1", "epoch"), strict=True):
            assert mine["train/loss"] == pytest.approx(other["train/loss"], rel=1e-12)
            assert mine["val/loss"] == pytest.approx(other["val/loss"], rel=1e-10)


def test_clip_norm_is_torchs() -> None:
    trainer = TaskTrainer.compose("model=mlp", "method=sgd", "runner.epochs=1", "runner.clip_norm=0.3", "quiet=true")
    begun: dict[str, Any] = {}
    batches: list[dict[str, Any]] = []
    rates: list[float] = []

    def step(self: TaskRunner, task: BasicTask, batch: TrainBatch, micro: MicroBatch) -> Any:
        if not begun:
            begun.update({key: value.clone() for key, value in task.model.state_dict().items()})
        batches.append(batch)
        rates.append(task.optimizer.param_groups[0]["lr"])
        return whole(self, task, batch, micro)

    whole = TaskRunner.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskRunner, "step", step)
        trainer.train()
    assert trainer.task is not None
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model.load_state_dict(dict(zip(model.state_dict(), begun.values(), strict=True)))
    settings = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True, **settings)
    clipped = 0
    for batch, rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        nn.functional.cross_entropy(model(batch["input"]), batch["target"]).backward()
        clipped += bool(nn.utils.clip_grad_norm_(model.parameters(), 0.3) > 0.3)
        optimizer.step()
        optimizer.zero_grad()
    assert clipped > 5
    assert all(map(torch.equal, model.state_dict().values(), trainer.task.model.state_dict().values()))


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp64", "tf32"])
def test_precisions_learn(precision: str) -> None:
    result = train(
        "method=sgd", "runner.epochs=4", f"runner.precision={precision}", "runner.clip_norm=5", "runner.accumulate=2"
    )
    assert result["test"]["test/acc"] > 0.6
    kept = state("run")
    wanted = torch.float64 if precision == "fp64" else torch.float32
    assert {value.dtype for value in kept["model"].values()} == {wanted}
    assert bool(kept["runner"]["scaler"]) == (precision == "fp16")


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"], ids=["fused", "not fused"])
def test_fp16_skips_an_overflow_and_counts_it(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[Tensor] = []

    def train_step(self: Supervised, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
        weights.append(task.model.head.weight.detach().clone())  # type: ignore[union-attr, operator]
        output = task.net(batch["input"])
        return {"loss": task.criterion(output, batch["target"]) * (1e38 if task.runner.position == 3 else 1.0)}

    monkeypatch.setattr(Supervised, "train_step", train_step)
    options = ["runner.precision=fp16", "runner.steps=6", f"method/optimizer={optimizer}", "runner.save_every=1"]
    train(*options)
    assert torch.equal(weights[2], weights[3]), "the update whose gradient is not finite is left out"
    assert not torch.equal(weights[3], weights[4])
    kept = state("run")["runner"]
    assert kept["step"] == 6, "one clock: a skipped step counts"
    assert (kept["scaler"]["scale"], kept["scaler"]["_growth_tracker"]) == (32768.0, 3)


def test_channels_last_gives_the_same_numbers() -> None:
    for flag in ("no", "yes"):
        options = ["model=resnet", "model.width=4", "runner.steps=6", "data.batch_size=32", "quiet=true"]
        options += [f"runner.channels_last={flag == 'yes'}", "runner.log_every=1", "runner.deterministic=true"]
        TaskTrainer.compose(*options, f"name={flag}").train()
    losses = [[row["train/loss"] for row in events(name, "step")] for name in ("no", "yes")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert torch.are_deterministic_algorithms_enabled()
    train("runner.steps=1", name="after")
    assert not torch.are_deterministic_algorithms_enabled()
