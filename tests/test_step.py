"""What a training step computes: accumulation, clipping, precision and memory format."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from healsg import BasicTask, TaskTrainer
from healsg.build import build_task
from healsg.errors import ConfigError
from healsg.evaluation.evaluator import Loss
from healsg.methods.supervised import Supervised
from healsg.models.mlp import MLP
from healsg.runner import TaskRunner
from healsg.runs.checkpoint import load
from healsg.training.draws import only_from_torch
from healsg.training.step import Accumulator, Mean, MicroBatch, Samples, TrainBatch, joined_samples, weighted_sum
from helpers import events


def train(*options: str, name: str = "run") -> dict[str, Any]:
    return TaskTrainer.compose("model=mlp", "model.width=16", "quiet=true", *options, f"name={name}").train()


def state(name: str) -> dict[str, Any]:
    return load(Path("runs") / name / "checkpoints/last.pt")


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


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"], ids=["fused", "ours"])
def test_fp16_skips_an_overflow_and_counts_it(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[Tensor] = []

    def train_step(self: Supervised, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
        weights.append(task.model.head.weight.detach().clone())  # type: ignore[union-attr, operator]
        output = task.net(batch["input"])
        return {"loss": task.criterion(output, batch["target"]) * (1e38 if task.runner.batch_count == 3 else 1.0)}

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


# --- what a criterion is a mean over ---------------------------------------------------------------------------------

CLASS_WEIGHTS = torch.tensor([20.0, 0.05, *[1.0] * 8])


class Weighted(BasicTask):
    def build_criterion(self) -> nn.Module:
        return nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)


class WeightedAndSmoothed(BasicTask):
    def build_criterion(self) -> nn.Module:
        return nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.1)


class Ignoring(BasicTask):
    """Three of the classes are not known."""

    def build_criterion(self) -> nn.Module:
        return nn.CrossEntropyLoss(ignore_index=3)


class Declared(nn.Module):
    """Learns the even classes alone, and says by how many samples it divides."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(output, target, reduction="none") * (target % 2 == 0)
        return losses.sum() / self.denominator(output, target)

    def denominator(self, output: Tensor, target: Tensor) -> Tensor:
        return (target % 2 == 0).sum()


class Declaring(BasicTask):
    def build_criterion(self) -> nn.Module:
        return Declared()


class Dice(nn.Module):
    """Of the whole batch, so that it is no mean over samples."""

    mean_over_samples = False

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        found = output.softmax(dim=1).gather(1, target[:, None])
        return 1 - 2 * found.sum() / (found.sum() + len(target))


class WithDice(BasicTask):
    def build_criterion(self) -> nn.Module:
        return Dice()


def of_task(name: str) -> list[str]:
    return [f"task._target_=test_step.{name}", "trusted=[test_step]", "data.augment=none"]


CRITERIA = {
    "weights": of_task("Weighted"),
    "weights, smoothed": [*of_task("Weighted"), "method.label_smoothing=0.1"],
    "smoothed by torch": of_task("WeightedAndSmoothed"),
    "ignored": of_task("Ignoring"),
    "ignored, smoothed": [*of_task("Ignoring"), "method.label_smoothing=0.1"],
    "declared": of_task("Declaring"),
}


@pytest.mark.parametrize("case", CRITERIA)
def test_a_criterion_is_weighed_by_what_it_divides_by(case: str) -> None:
    """Four accumulated batches of 30 are one of 120, also the last update of 87 samples; and as the loss is logged."""
    options = [*CRITERIA[case], "method=sgd", "runner.precision=fp64", "runner.epochs=2", "data.labels=327"]
    train(*options, "data.batch_size=120", name="one")
    train(*options, "data.batch_size=30", "runner.accumulate=4", name="four")
    assert distance(state("one")["model"], state("four")["model"]) < 1e-12
    for one, four in zip(events("one", "epoch"), events("four", "epoch"), strict=True):
        assert four["train/loss"] == pytest.approx(one["train/loss"], rel=1e-12)
        assert four["val/loss"] == pytest.approx(one["val/loss"], rel=1e-12)


def test_an_evaluation_does_not_depend_on_the_batch() -> None:
    losses = []
    for size in (8, 64, 1000):
        trainer = TaskTrainer.compose(*of_task("Weighted"), f"data.batch_size={size}", "runner.precision=fp64")
        task = build_task(trainer.composed)
        task.build()
        losses.append(task.val_epoch.run()["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("ignored", [2, -100])
def test_an_ignored_class_counts_in_no_batch_of_an_evaluation(ignored: int) -> None:
    """In a batch of it alone, in one with others, and in one without it."""
    criterion = nn.CrossEntropyLoss(ignore_index=ignored)
    output = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([ignored, ignored, ignored, 0, ignored, 3, 1, 0, 3])
    loss = Loss(criterion)
    for rows in torch.arange(9).split(3):
        loss.update(output[rows], target[rows])
    assert loss.of([loss.packed()]) == pytest.approx(criterion(output, target).item())


def test_smoothed_and_weighted_is_torchs() -> None:
    options = ["method=sgd", "runner.steps=1", "runner.log_every=1", "data.batch_size=64"]
    train(*of_task("Weighted"), *options, "method.label_smoothing=0.1", name="ours")
    train(*of_task("WeightedAndSmoothed"), *options, name="torch")
    ours, torchs = (events(name, "step")[0]["train/loss"] for name in ("ours", "torch"))
    assert ours == pytest.approx(torchs, rel=1e-6)


class Unknown(BasicTask):
    """Points of which a whole batch of each split has no class, and half of another. They are held in memory."""

    made: Any = torch.utils.data.TensorDataset
    sampler: Any = None

    def build_dataloader(self) -> Any:
        draw = torch.Generator().manual_seed(0)
        input, target = torch.randn(96, 6, generator=draw), torch.randint(0, 5, (96,), generator=draw)
        target[:48] = -100
        points = self.made(input, target)
        return tuple(torch.utils.data.DataLoader(points, batch_size=32, sampler=self.sampler) for _ in range(2))

    def build_model(self) -> nn.Module:
        torch.manual_seed(1)
        return nn.Linear(6, 5)

    def build_criterion(self) -> nn.Module:
        return nn.CrossEntropyLoss()


class Points(torch.utils.data.TensorDataset):
    """Under another name they are read one by one, and a batch's targets are known only once it is read."""


class UnknownBySample(Unknown):
    made = Points


class UnknownInOwnOrder(Unknown):
    sampler = range(96)


@pytest.mark.parametrize("kind", ["Unknown", "UnknownBySample", "UnknownInOwnOrder"])
@pytest.mark.parametrize("softened", ["label_smoothing", "mixup", None])
def test_ignored_targets_weigh_nothing(softened: str | None, kind: str) -> None:
    """Neither in the training loss nor in the evaluation, and a batch of them alone gives no number that is none."""
    options = [
        *of_task(kind)[:2],
        "method=sgd",
        "runner.epochs=1",
        "runner.log_every=1",
        "method.optimizer.lr=1e-9",
    ]
    options += [f"method.{softened}=0.1"] * (softened is not None)
    TaskTrainer.compose(*options, "quiet=true", "name=run").train()
    task = Unknown.__new__(Unknown)
    input, target = Unknown.build_dataloader(task)[0].dataset.tensors
    wanted = nn.functional.cross_entropy(Unknown.build_model(task)(input), target).item()
    (line,) = events("run", "epoch")
    assert line["val/loss"] == pytest.approx(wanted, rel=1e-5)
    if softened is None:
        assert line["train/loss"] == pytest.approx(wanted, rel=1e-5)
    assert all(torch.isfinite(value).all() for value in state("run")["model"].values())
    steps = [row.get("train/loss") for row in events("run", "step")]
    assert steps[0] is None, "nothing counted in the first update"
    assert steps[2] > 0


def test_two_streams_whose_update_is_not_known_in_advance_are_each_a_mean() -> None:
    """As of a loader of one's own, over accumulated batches: 4 and 8 rows, of which the batches alone are known."""
    weight = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    values = torch.arange(24, dtype=torch.float64).view(2, 12)
    accumulator = Accumulator(nominal=4)
    for part in values:
        first, second = Samples(4, batch=4), Samples(8, batch=8)
        loss = Mean((weight[0] * part[:4]).mean(), first) + Mean((weight[1] * part[4:]).mean(), second)
        weights = accumulator.weights(loss, MicroBatch(first, parts=2))
        weighted_sum(loss, weights).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    accumulator.weigh([weight.grad], 1)
    assert weight.grad.tolist() == pytest.approx([values[:, :4].mean().item(), values[:, 4:].mean().item()])


def test_the_samples_of_two_streams_that_are_joined_add_up_where_they_are_known() -> None:
    assert joined_samples(Samples(2, 1, 4, 8), Samples(3, 2, 6, 13)) == Samples(5, 0, 10, 21)
    assert joined_samples(Samples(2, 1, 4), Samples(3, 2, 6, 13)) == Samples(5, 0, 10, None)
    assert joined_samples(Samples(2, 1), Samples(3, 2, 6, 13)) == Samples(5, 0, None, None)


@pytest.mark.parametrize("count", [3.0, torch.tensor(3.0)], ids=["number", "tensor"])
def test_a_process_that_computes_on_copies_adds_nothing_to_any_denominator(count: Any) -> None:
    mean = Mean(torch.ones(()), count)
    assert mean.counted(MicroBatch(Samples(0, batch=1), processes=2)) == 0
    assert mean.counted(MicroBatch(Samples(1, batch=1), processes=2)) == 3


class OwnStep(Supervised):
    """Does not declare from which generators it draws."""


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Named as that of torch, and may draw from any generator."""


@pytest.mark.parametrize(
    ("changed", "only"),
    [
        ({}, True),
        ({"custom_epoch": True}, False),
        ({"custom_network": True}, False),
        ({"criterion": CrossEntropyLoss()}, False),
        ({"task_method": OwnStep(optimizer=torch.optim.SGD)}, False),
        ({"criterion": lambda output, target: output.sum()}, False),
    ],
)
def test_only_parts_that_say_so_and_torchs_own_draw_from_torch_alone(changed: dict[str, Any], only: bool) -> None:
    parts = {"task_method": Supervised(optimizer=torch.optim.SGD), "task_model": MLP(), "runner": TaskRunner()}
    weight = nn.Parameter(torch.ones(1))
    parts |= {"criterion": nn.CrossEntropyLoss(), "optimizer": torch.optim.SGD([weight], lr=0.1), "scheduler": None}
    task: Any = SimpleNamespace(**{"custom_epoch": False, "custom_network": False, **parts, **changed})
    assert only_from_torch(task) is only


def test_what_is_no_mean_over_samples_is_known() -> None:
    with pytest.raises(ConfigError, match=r"^runner.auto_accumulate: Dice is no mean over samples"):
        train(*of_task("WithDice"), "runner.auto_accumulate=true")
    assert train(*of_task("WithDice"), "runner.steps=4", "runner.accumulate=2")["status"] == "finished"
    assert "Dice is no mean over samples: each accumulated batch" in Path("runs/run/train.log").read_text()


def drawn() -> tuple[float, float, float]:
    return float(torch.rand((), dtype=torch.float64)), float(np.random.rand()), random.random()


# --- parts that are whole --------------------------------------------------------------------------------------------


def test_a_runner_is_whole_when_it_is_made() -> None:
    runner = TaskRunner(accumulate=3)
    kept = runner.state_dict()
    assert (kept["epoch"], kept["step"], kept["position"]) == (0, 0, 0)
    TaskRunner(accumulate=3).load_state_dict(kept)


def test_a_built_task_trains_and_evaluates_without_a_run() -> None:
    task = build_task(TaskTrainer.compose("model=mlp", "model.width=16").composed)
    task.build()
    before = task.val_epoch.run()["loss"]
    assert task.train_epoch.run()["loss"] > 0
    assert task.val_epoch.run()["loss"] < before
    assert task.runner.step_count == task.runner.steps_per_epoch


def test_each_step_and_each_batch_of_an_evaluation_draws_its_own_numbers() -> None:
    """By the seed, the rank, the split, the epoch and the position, from torch's generator and from others."""
    firsts: list[tuple[float, ...]] = []
    for rank, seed in ((0, 0), (1, 0), (0, 1)):
        options = ["model=mlp", "data.batch_size=16", "method._target_=test_step.OwnStep", "trusted=[test_step]"]
        task = build_task(TaskTrainer.compose(*options, f"seed={seed}", "runner.limit_batches=9").composed)
        task.build()
        task.runner.parallel.rank = rank
        task.runner.plan_run(task.train_loader, seed, 1)
        for split in ("val", "test"):
            firsts += [drawn() for _ in task.runner.eval_batches(task, split)]
        for _ in range(2):
            firsts += [drawn() for _ in task.runner.train_batches(task)]
            task.runner.next_epoch()
    assert len(firsts) == 3 * (2 * 2 + 2 * 9), "an evaluation joins eight of its nine batches"
    for numbers in zip(*firsts, strict=True):
        assert len(set(numbers)) == len(firsts)


# --- the learning rate that is logged --------------------------------------------------------------------------------


def test_a_line_tells_the_rate_of_its_update() -> None:
    options = ["method=sgd", "method.optimizer.lr=0.1", "runner.log_every=1"]
    linear = ["method/scheduler=poly", "method.scheduler.power=1", "method.scheduler.warmup=0"]
    train(*options, *linear, "runner.steps=4", name="linear")
    assert [row["lr"] for row in events("linear", "step")] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert events("linear", "epoch")[-1]["lr"] == pytest.approx(0.025)
    rates = {}
    for interval in ("update", "epoch"):
        drop = [
            "method/scheduler=multistep",
            f"method.scheduler.interval={interval}",
            "method.scheduler.milestones=[0.5]",
        ]
        train(*options, *drop, "runner.epochs=4", name=interval)
        rates[interval] = [row["lr"] for row in events(interval, "epoch")]
    assert rates["update"] == rates["epoch"] == pytest.approx([0.1, 0.1, 0.01, 0.01])
