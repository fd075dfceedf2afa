"""The methods at work: what stacks, what is evaluated, exact resume, no value read, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import helpers
from healsg import BasicTask, TaskTrainer
from healsg.errors import ConfigError, HealsgError
from healsg.evaluation.evaluator import evaluating
from healsg.methods import logit_adjustment
from healsg.methods.coteaching import left_out_share
from healsg.methods.counts import class_counts
from healsg.methods.elr import EarlyLearning
from healsg.methods.labelled import LabelledSamples, is_plain
from healsg.methods.supervised import Supervised
from healsg.runner import TaskRunner
from healsg.runs.checkpoint import load
from healsg.training.averaging import Average
from healsg.training.layers import Freezing
from healsg.training.step import MicroBatch, Samples, TrainBatch
from helpers import METHODS, beside, goes_on_exactly, lines, record, taken
from test_cost import watch

SMALL = ["model=mlp", "model.width=16", "data.batch_size=256", "quiet=true", "runner.epochs=3"]
IMAGES = ["model=cnn", "model.width=4", *SMALL[2:]]
"""1,167 samples to train with: 5 updates an epoch. The convolutions have BatchNorm."""


def trained(*options: str, name: str = "run") -> BasicTask:
    task: BasicTask = helpers.trained(*options, f"name={name}")
    return task


def after_each_update(monkeypatch: pytest.MonkeyPatch, act: Callable[[BasicTask], None]) -> None:
    whole = Supervised.after_update

    def after_update(self: Supervised, task: BasicTask) -> None:
        whole(self, task)
        act(task)

    monkeypatch.setattr(Supervised, "after_update", after_update)


def distance(first: nn.Module, second: nn.Module) -> float:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((one.double() - other.double()).abs().max()) for one, other in pairs)


# --- every method, and all that stacks -------------------------------------------------------------------------------

STACKS = {
    "mixed": ["method.mixup=0.4", "method.cutmix=1", "method.random_erasing=0.5", "method.label_smoothing=0.1"],
    "ema": ["method.ema=0.9", "method.layer_decay=0.7", "method.freeze=body.0"],
    "swa": ["method.swa=0.4", "method.unfreeze_every=1", "method.mixup=0.2"],
    "free": ["method/optimizer=schedule_free", "method/scheduler=constant"],
}


@pytest.mark.parametrize("stack", STACKS)
def test_what_stacks_resumes_exactly(stack: str) -> None:
    """Killed within an epoch, at its last step before the evaluation, and after an average has begun."""
    goes_on_exactly([2, 3, 7], *IMAGES, *STACKS[stack], "runner.accumulate=2", "runner.save_every=1")


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_a_method_reads_no_value(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more = beside(method)
    seen = watch(monkeypatch)
    few = ["runner.limit_batches=2", "runner.epochs=2", "data.batch_size=32", "runner.log_every=1000"]
    few += ["runner.clip_norm=1", *taken(method, "method.label_smoothing=0.1")]
    trained(*IMAGES, f"method={method}", *more, *few)
    assert not seen, dict(seen)


@pytest.mark.parametrize("stack", STACKS)
def test_what_stacks_reads_no_value(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    trained(*IMAGES, *STACKS[stack], "runner.limit_batches=2", "data.batch_size=32", "runner.log_every=1000")
    assert not seen, dict(seen)


@pytest.mark.parametrize("place", range(len(METHODS)))
def test_methods_in_half_precision(place: int) -> None:
    """Each method in one of them, the next one in the other."""
    half(METHODS[place], ("bf16", "fp16")[place % 2])


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_methods_in_both_half_precisions_with_accumulation(method: str) -> None:
    for precision in ("bf16", "fp16"):
        half(method, precision, "runner.accumulate=2")


def half(method: str, precision: str, *more: str) -> None:
    small = beside(method)
    network = [] if any(option.startswith("model=") for option in small) else ["model=mlp", "model.width=16"]
    options = [f"method={method}", *small, *network, f"runner.precision={precision}", f"name={precision}", *more]
    options += ["runner.limit_batches=2", "runner.epochs=1", "quiet=true", "data.batch_size=256"]
    trainer = TaskTrainer.compose(*options)
    assert trainer.train()["status"] == "finished"
    task = trainer.task
    assert task is not None
    kept = task.model.state_dict().values()
    assert {value.dtype for value in kept if value.is_floating_point()} == {torch.float32}
    found = [row["train/loss"] for row in lines(precision) if row["event"] == "epoch"]
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    "options",
    [
        ["method=sgd", "method.mixup=0.4", "method.ema=0.9"],
        ["method=gce", "method/optimizer=adamw"],
        ["method=coteaching"],
        ["method=dividemix"],
        ["method=linear_probe", "method.optimizer.lr=0.03"],
        ["method=sam"],
        ["method=ldam_drw"],
        ["method=elr"],
        ["method=schedule_free"],
    ],
    ids=" ".join,
)
def test_methods_learn(options: list[str]) -> None:
    trained(*SMALL, "model.width=64", "data.batch_size=64", "runner.epochs=12", *options)
    assert record("run")["test"]["test/acc"] > 0.75


# --- what the arguments do -------------------------------------------------------------------------------------------


def test_the_moving_average_is_evaluated_kept_and_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed beside the run: ``d = min(decay, (1 + t) / (10 + t))``; BatchNorm's statistics are the network's own."""
    wanted: dict[str, Tensor] = {}

    def follow(task: BasicTask) -> None:
        t = task.runner.step_count
        decay = min(0.6, (1 + t) / (10 + t))
        for name, value in task.model.state_dict().items():
            if name in dict(task.model.named_parameters()):
                before = wanted.setdefault(name, begun[name])
                wanted[name] = decay * before + (1 - decay) * value
            else:
                wanted[name] = value.clone()

    begun: dict[str, Tensor] = {}
    setup = Supervised.setup
    monkeypatch.setattr(
        Supervised,
        "setup",
        lambda self, task: (begun.update(copy.deepcopy(task.model.double().state_dict())), setup(self, task))[1],
    )
    after_each_update(monkeypatch, follow)
    task = trained(*IMAGES, "method.ema=0.6", "runner.precision=fp64", "runner.eval_every=3")
    best = load(Path("runs/run/checkpoints/best.pt"))["model"]
    assert best.keys() == task.model.state_dict().keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(best[name].to(value.dtype), value, rtol=1e-10, atol=1e-10)
    assert distance(task.model, task.task_method.eval_model(task)) > 1e-4
    evaluated = TaskTrainer.load("run").evaluate("test", "last")
    assert evaluated == pytest.approx({key.split("/")[1]: value for key, value in record("run")["test"].items()})


def test_the_plain_average_and_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the weights at the ends of epochs 3 to 5, and BatchNorm's as torch measures them."""
    ends: list[dict[str, Tensor]] = []

    def note(task: BasicTask) -> None:
        if task.runner.batch_count == task.runner.length:
            ends.append(copy.deepcopy(dict(task.model.named_parameters())))

    after_each_update(monkeypatch, note)
    task = trained(*IMAGES, "method.swa=0.5", "runner.epochs=5", "runner.precision=fp64", "data.batch_size=292")
    average = task.task_method.eval_model(task)
    for name, value in average.named_parameters():
        torch.testing.assert_close(value, sum(end[name] for end in ends[2:]) / 3, rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]
    wanted = copy.deepcopy(average)
    batches = [batch["input"].double() for batch, _ in task.train_loader.batches(0)]
    torch.optim.swa_utils.update_bn(batches, wanted)
    assert distance(average, wanted) == 0
    assert not average.training or all(
        module.momentum == 0.1 for module in average.modules() if hasattr(module, "momentum")
    )
    assert distance(average, task.model) > 1e-3


def test_an_epoch_that_ends_where_the_average_begins_is_in_it() -> None:
    options = [*SMALL, "method=sgd", "method.swa=0.5", "runner.epochs=4"]
    assert int(trained(*options).task_method.average.count) == 3, "the ends of epochs 2, 3 and 4"


def test_frozen_parts_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, BatchNorm's statistics, and what the schedule-free average makes of them."""
    begun: dict[str, Tensor] = {}
    setup = Supervised.setup
    monkeypatch.setattr(
        Supervised,
        "setup",
        lambda self, task: (begun.update(copy.deepcopy(task.model.state_dict())), setup(self, task))[1],
    )
    for options in (["method.freeze=body.0|body.1"], ["method.freeze=body.0|body.1", "method/optimizer=schedule_free"]):
        task = trained(*IMAGES, *options, "fresh=true")
        for model in (task.model, task.task_method.eval_model(task)):
            for name, value in model.state_dict().items():
                still = name.startswith(("body.0.", "body.1."))
                assert torch.equal(value, begun[name]) == still, name


def test_gradual_unfreezing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more layer learns with every second epoch, from the head on; the frozen pattern never does."""
    moved: dict[int, set[str]] = {}
    before: dict[str, Tensor] = {}

    def note(task: BasicTask) -> None:
        now = copy.deepcopy(task.model.state_dict())
        names = {
            name.rsplit(".", 1)[0] for name, value in now.items() if before and not torch.equal(value, before[name])
        }
        moved.setdefault(task.runner.epoch, set()).update(names)
        before.update(now)

    after_each_update(monkeypatch, note)
    trained(*IMAGES, "method.unfreeze_every=2", "method.freeze=body.0.0", "runner.epochs=9", "runner.steps=45")
    layers = [{"head"}, {"body.5.0", "body.5.1"}, {"body.3.0", "body.3.1"}, {"body.1.0", "body.1.1"}, {"body.0.1"}]
    for epoch, names in moved.items():
        assert names == set().union(*layers[: 1 + epoch // 2]), f"epoch {epoch}"


def test_learning_rates_by_depth() -> None:
    task = trained(*IMAGES, "method=finetune", "method.layer_decay=0.5", "runner.steps=3")
    names = {parameter: name for name, parameter in task.model.named_parameters()}
    rates = {names[each]: group["initial_lr"] for group in task.optimizer.param_groups for each in group["params"]}
    decays = {names[each]: group["weight_decay"] for group in task.optimizer.param_groups for each in group["params"]}
    for height, part in enumerate(["head", "body.5", "body.3", "body.1", "body.0"]):
        found = {rate for name, rate in rates.items() if name.startswith(f"{part}.")}
        assert found == {1e-3 * 0.5**height}
    assert {name for name, decay in decays.items() if not decay} == {
        name for name, each in task.model.named_parameters() if each.dim() < 2
    }
    assert task.learning_rate == task.optimizer.param_groups[0]["lr"]


# --- the methods -----------------------------------------------------------------------------------------------------


def test_sam_is_its_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain loop in float64, with accumulation: each batch has an ascent of its own."""
    batches: list[dict[str, Any]] = []
    rates: list[float] = []
    whole = TaskRunner.step

    def step(self: TaskRunner, task: BasicTask, batch: TrainBatch, micro: MicroBatch) -> Any:
        batches.append(batch)
        rates.append(task.optimizer.param_groups[0]["lr"])
        return whole(self, task, batch, micro)

    monkeypatch.setattr(TaskRunner, "step", step)
    begun: list[nn.Module] = []
    setup = Supervised.setup
    monkeypatch.setattr(
        Supervised, "setup", lambda self, task: (begun.append(copy.deepcopy(task.model)), setup(self, task))[1]
    )
    options = ["method=sam", "method/optimizer=sgd", "method.rho=0.1", "runner.precision=fp64", "runner.clip_norm=0.5"]
    task = trained(*IMAGES, *options, "runner.accumulate=2", "data.batch_size=292", "runner.steps=4")
    model = begun[0].double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for place, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
        pair = batches[place - place % 2 : place - place % 2 + 2]
        share = len(batch["target"]) / sum(len(each["target"]) for each in pair)
        optimizer.param_groups[0]["lr"] = rate
        given = model(batch["input"])
        slopes = torch.autograd.grad(F.cross_entropy(given, batch["target"]), list(model.parameters()))
        norm = torch.sqrt(sum((slope**2).sum() for slope in slopes))  # type: ignore[arg-type]
        climbed = copy.deepcopy(model)
        with torch.no_grad():
            for weight, slope in zip(climbed.parameters(), slopes, strict=True):
                weight.add_(slope * 0.1 / norm)
        loss = F.cross_entropy(climbed(batch["input"]), batch["target"]) * share
        for weight, slope in zip(
            model.parameters(), torch.autograd.grad(loss, list(climbed.parameters())), strict=True
        ):
            weight.grad = slope if weight.grad is None else weight.grad + slope
        if place % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    assert distance(model, task.model) < 1e-11


def test_both_passes_of_sam_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same mixing and the same dropout: without an ascent worth the name, the same loss."""
    found: list[float] = []
    whole = Supervised.train_step

    def train_step(self: Supervised, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
        logs = whole(self, task, batch)
        found.append(float(logs["loss"].detach()))
        return logs

    monkeypatch.setattr(Supervised, "train_step", train_step)
    options = ["method=sam", "method.rho=1e-12", "method.mixup=1", "method.cutmix=1", "model.dropout=0.5"]
    trained(*SMALL, *options, "runner.precision=fp64")
    np.testing.assert_allclose(found[::2], found[1::2], rtol=1e-9)
    assert len({round(value, 6) for value in found}) == len(found) // 2


def test_elr_remembers_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory and the loss in NumPy, from the network's outputs of two epochs."""
    memory, wanted, found = np.zeros((1167, 10)), list[float](), list[float]()
    whole = EarlyLearning.train_step

    def train_step(self: EarlyLearning, task: BasicTask, batch: dict[str, Any]) -> dict[str, Any]:
        logs = whole(self, task, batch)
        scores, rows = task.net(batch["input"]).detach().numpy(), batch["index"].numpy()
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        entropy = -np.log(p[np.arange(len(p)), batch["target"].numpy()]).mean()
        p = np.clip(p, 1e-4, 1 - 1e-4)
        memory[rows] = 0.7 * memory[rows] + 0.3 * p / p.sum(axis=1, keepdims=True)
        wanted.append(entropy + 3 * np.log(1 - (memory[rows] * p).sum(axis=1)).mean())
        found.append(float(logs["loss"].detach()))
        return logs

    monkeypatch.setattr(EarlyLearning, "train_step", train_step)
    task = trained(*SMALL, "method=elr", "runner.precision=fp64", "runner.epochs=2")
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    np.testing.assert_allclose(load(Path("runs/run/checkpoints/last.pt"))["method"]["remembered"], memory, rtol=1e-10)
    assert len(task.train_loader) * 2 == len(found)


def test_ldam_weighs_an_update_as_a_whole() -> None:
    """Two accumulated batches are one twice as large, before and after classes are weighted."""
    for name, size in (("one", 584), ("two", 292)):
        options = [f"data.batch_size={size}", f"runner.accumulate={584 // size}", "runner.precision=fp64"]
        trained(*SMALL, "method=ldam_drw", "method.defer=0.5", "data.shift=0", *options, name=name)
    states = [load(Path(f"runs/{name}/checkpoints/last.pt"))["model"] for name in ("one", "two")]
    assert max(float((states[0][key] - states[1][key]).abs().max()) for key in states[0]) < 1e-12
    found = [[row["train/loss"] for row in lines(name) if row["event"] == "epoch"] for name in ("one", "two")]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_co_teaching_keeps_fewer_and_gives_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def noting(first: Tensor, second: Tensor, number: int) -> tuple[Tensor, Tensor]:
        kept.append(number)
        return torch.arange(number), torch.arange(number)

    monkeypatch.setattr("healsg.methods.coteaching.exchange", noting)
    options = ["method=coteaching", "method.noise=0.4", "method.ramp=0.5", "data.drop_last=true", "runner.epochs=5"]
    task = trained(*SMALL, *options)
    steps = task.runner.steps_per_epoch
    assert kept == [int(256 * (1 - 0.4 * min(1, epoch / 1.5))) for epoch in range(5) for _ in range(steps)]
    first, second = (task.model.get_submodule(name) for name in ("first", "second"))
    assert distance(first, second) > 0.01
    assert set(load(Path("runs/run/checkpoints/best.pt"))["model"]) == set(first.state_dict())
    moving = {each for group in task.optimizer.param_groups for each in group["params"]}
    assert moving == set(task.model.parameters())


def test_dividemix_tells_right_labels_from_wrong_ones() -> None:
    """The wrong labels are found, by both networks, and what is saved is the mean of both."""
    options = ["method=dividemix", "data.label_noise=0.4", "data.batch_size=64", "runner.epochs=8"]
    task = trained(*SMALL, "model.width=64", *options)
    noisy = task.train_loader.sources["labelled"].targets
    clean = trained(*SMALL, "runner.steps=1", name="clean").train_loader.sources["labelled"].targets
    right = noisy == clean
    for divided in task.task_method.clean:
        assert float(divided[right].mean()) > float(divided[~right].mean()) + 0.4
    names = set(load(Path("runs/run/checkpoints/best.pt"))["model"])
    assert {name.partition(".")[0] for name in names} == {"first", "second"}


def test_co_teaching_leaves_all_out_in_the_last_epoch_of_the_ramp() -> None:
    """The authors' ``numpy.linspace(0, noise, 10)`` over the first 10 of 200 epochs, and less than two epochs of it."""
    shares = [left_out_share(0.2, 0.05, 390 * epoch + step, 200 * 390, 390) for epoch in range(12) for step in (0, 389)]
    assert shares[::2] == shares[1::2]
    assert shares[:20:2] == pytest.approx(np.linspace(0, 0.2, 10))
    assert shares[20:] == [0.2] * 4
    assert [left_out_share(0.4, 0.5, step, 8, 8) for step in (0, 2, 4, 7)] == pytest.approx([0, 0.2, 0.4, 0.4])


def test_the_attack_of_fgsm_sees_the_network_as_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    from healsg.methods import attack

    seen: list[bool] = []
    ascend = attack.ascend

    def noting(loss: Any, *rest: Any) -> Tensor:
        seen.append(task_model[0].training if task_model else True)
        return ascend(loss, *rest)

    task_model: list[Any] = []
    context = attack.Attack.context

    def entering(self: Any, task: Any, model: Any, train_mode: bool = False) -> Any:
        task_model[:] = [model]
        return context(self, task, model, train_mode)

    monkeypatch.setattr(attack, "ascend", noting)
    monkeypatch.setattr(attack.Attack, "context", entering)
    for method, training in (("fgsm", True), ("pgd", False)):
        seen.clear()
        options = [f"method={method}", "method.steps=1", "method.eval_steps=0", "runner.limit_batches=2"]
        trained(*IMAGES, *options, "runner.steps=2", name=method)
        assert seen == [training] * 2


@pytest.mark.parametrize("when", ["training", "after"])
def test_logit_adjustment_counts_the_classes_once(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Any] = []
    monkeypatch.setattr(logit_adjustment, "class_counts", lambda task: (counted.append(task), class_counts(task))[1])
    trained(*SMALL, "method=logit_adjustment", f"method.when={when}", "runner.steps=1", name=when)
    assert len(counted) == 1


def test_logit_adjustment_in_and_after_training() -> None:
    """On equal classes but for rounding the offsets are nearly the same, so that a rare class is made by hand."""
    for when in ("training", "after"):
        task = trained(*SMALL, "method=logit_adjustment", f"method.when={when}", "method.tau=1.5", name=when)
        targets = task.train_loader.sources["labelled"].targets  # type: ignore[union-attr]
        assert targets is not None
        counts = torch.bincount(targets, minlength=10).double()
        offset = 1.5 * (counts / counts.sum()).log()
        method: Any = task.task_method
        torch.testing.assert_close(method.offset.double(), offset, rtol=1e-6, atol=1e-6)
        input, target = torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 3, 9])
        with evaluating(task.model), torch.no_grad():
            evaluated = task.model(input)
        with torch.no_grad():
            plain = task.model.train()(input)
            loss = method.train_step(task, TrainBatch({"input": input, "target": target}, Samples(4)))["loss"]
        if when == "after":
            torch.testing.assert_close(evaluated, plain - offset.float())
            torch.testing.assert_close(loss, F.cross_entropy(plain, target))
        else:
            torch.testing.assert_close(evaluated, plain)
            torch.testing.assert_close(loss, F.cross_entropy(plain + offset.float(), target))
    keys = [set(load(Path(f"runs/{name}/checkpoints/best.pt"))["model"]) for name in ("training", "after")]
    assert keys[1] - keys[0] == {"head.offset"}


def test_a_linear_probe_learns_its_head_alone() -> None:
    """On the features of a run; its BatchNorm and dropout are as in evaluation, and its head is drawn anew."""
    trained(*IMAGES, "runner.epochs=8", name="source")
    given = load(Path("runs/source/checkpoints/best.pt"))["model"]
    options = ["method=linear_probe", "init_from=source", "model.dropout=0.5", "method.optimizer.lr=0.1"]
    task = trained(*IMAGES, *options, "runner.epochs=20")
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, given[name]) == (not name.startswith("head.")), name
    assert not any(module.training for name, module in task.model.named_modules() if name.startswith("body"))
    assert record("run")["test"]["test/acc"] > record("source")["test"]["test/acc"] - 0.1
    assert sum(each.numel() for group in task.optimizer.param_groups for each in group["params"]) == 90


def test_lora_gives_the_plain_network_merged() -> None:
    """What is kept has the keys of the network that was given, and the outputs of the adapted one."""
    trained(*IMAGES, "runner.steps=3", name="source")
    options = ["method=lora", "method.rank=2", "init_from=source", "runner.precision=fp64"]
    task = trained(*IMAGES, *options)
    best = load(Path("runs/run/checkpoints/best.pt"))["model"]
    given = load(Path("runs/source/checkpoints/best.pt"))["model"]
    assert best.keys() == given.keys()
    learning = {name for name, each in task.model.named_parameters() if each.requires_grad}
    assert {name.rsplit(".", 1)[-1] for name in learning} == {"up", "down", "weight", "bias"}
    assert {name for name in learning if name.endswith(("weight", "bias"))} == {"head.weight", "head.bias"}
    assert any(not torch.equal(best[name].float(), given[name]) for name in given if name.startswith("body"))
    assert all(torch.equal(best[name].float(), given[name]) for name in given if "running" in name)
    merged, input = task.task_method.eval_model(task), torch.randn(5, 1, 8, 8, dtype=torch.float64)
    with evaluating(task.model), evaluating(merged), torch.no_grad():
        assert float((task.model(input) - merged(input)).abs().max()) < 1e-12
    assert trained(*IMAGES, "init_from=run", "runner.steps=1", name="after")


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_attacks_stay_in_their_bounds(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In units of the image: at most ``eps`` away, within 0 and 1; and what was attacked is what was learned from."""
    from healsg.methods import attack

    seen: list[tuple[Tensor, Tensor]] = []
    ascend = attack.ascend

    def noting(loss: Any, input: Tensor, *rest: Any) -> Tensor:
        seen.append((input, ascend(loss, input, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(attack, "ascend", noting)
    options = [f"method={method}", "method.eps=0.15", "method.steps=3", "method.eval_steps=4"]
    task = trained(*IMAGES, *options, "runner.limit_batches=2")
    transform: Any = task.task_data.transform("input", "val")
    for input, attacked in seen:
        raw, changed = (image * transform.std[0] + transform.mean[0] for image in (input, attacked))
        difference = (raw - changed).abs().max()
        assert 0.1 < difference < 0.15 + 1e-5
        assert raw.min() >= -1e-6
        assert changed.min() >= -1e-6
        assert max(raw.max(), changed.max()) <= 1 + 1e-5
    test = record("run")["test"]
    assert test["test/robust_acc"] <= test["test/acc"]
    assert all("val/robust_acc" in row for row in lines("run") if row["event"] == "epoch")
    evaluated = TaskTrainer.load("run").evaluate("test")
    assert evaluated["robust_acc"] == test["test/robust_acc"], "the attack of an evaluation has a seed of its own"


def test_attacks_lower_and_training_under_them_raises_accuracy() -> None:
    options = [*SMALL, "model.width=64", "data.batch_size=64", "runner.epochs=10", "method.eps=0.1"]
    for name, more in {"plain": ["method.steps=1", "method.step_size=1e-6"], "robust": ["method.steps=4"]}.items():
        trained(*options, "method=pgd", "method.random_start=false", "runner.eval_every=10", *more, name=name)
    plain, robust = record("plain")["test"], record("robust")["test"]
    assert plain["test/robust_acc"] < plain["test/acc"] - 0.2
    assert robust["test/robust_acc"] > plain["test/robust_acc"] + 0.1


def test_schedule_free_evaluates_its_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of an epoch, with BatchNorm's statistics measured anew."""
    task = trained(*IMAGES, "method=schedule_free", "runner.precision=fp64", "data.batch_size=292")
    network = task.task_method.eval_model(task)
    averaged = task.optimizer.averaged(list(task.model.parameters()))  # type: ignore[attr-defined]
    assert all(map(torch.equal, network.parameters(), averaged))
    assert not any(map(torch.equal, network.parameters(), task.model.parameters()))
    wanted = copy.deepcopy(network)
    torch.optim.swa_utils.update_bn([batch["input"].double() for batch, _ in task.train_loader.batches(0)], wanted)
    assert distance(network, wanted) == 0


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "method.ema=0.9 method.swa=0.5": r"method\.ema: method\.swa averages the weights already; leave one out",
    "method=schedule_free method.swa=0.5": r"method\.swa: method/optimizer averages the weights already",
    "method.freeze=bdy": r"method\.freeze: 'bdy' matches nothing in this network; its modules are body, head",
    "method=elr method.mixup=0.2": r"method\.mixup: elr remembers the prediction of each sample as it is; set it to 0",
    "method=linear_probe method.freeze=head": r"method\.freeze: 'head' is not the word body",
    "method=coteaching method.layer_decay=0.5": r"method\.layer_decay: co-teaching trains two networks",
    "method=dividemix method.mixup=0.2": r"method\.mixup: dividemix mixes the samples itself",
    "method=dividemix method.freeze=body": r"method\.freeze: DivideMix trains two networks",
    "method=gce method.q=1.5": r"method\.q: 1\.5 is out of range",
    "method=sam runner.auto_accumulate=true": "the loss of SAM is no mean over samples",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_fit_is_one_line(options: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[options]) as caught:
        TaskTrainer.compose(*SMALL, *options.split(), "name=run").train()
    assert "\n" not in str(caught.value)


OWN = """
import torch
from torch.utils.data import DataLoader, TensorDataset

from healsg import BasicTask


class Columns(BasicTask):
    def build_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        input = torch.randn(64, 8, generator=generator)
        loader = DataLoader(TensorDataset(input, (input[:, 0] > 0).long()), batch_size=16)
        return loader, loader

    def build_model(self):
        return torch.nn.Linear(8, 2)


class Margin(Columns):
    def build_criterion(self):
        return torch.nn.MultiMarginLoss()


class Foreign(Columns):
    def build_dataloader(self):
        return [(torch.randn(4, 8), torch.zeros(4).long())] * 3, None
"""

OWN_REFUSED = {
    "Columns method.cutmix=1": r"method\.cutmix: needs images or volumes, and a batch here is \(16, 8\)",
    "Columns method.random_erasing=0.5": r"method\.random_erasing: needs images, and a batch here is \(16, 8\)",
    "Columns method=linear_probe": "method: a linear probe needs a network that ends in a linear layer `head`",
    "Columns method=ldam_drw": "method: LDAM needs a network that ends in a linear layer",
    "Columns method=pgd": "method: PGD needs to know how images are normalised",
    "Margin method.mixup=0.2": r"method\.mixup: MultiMarginLoss takes no class probabilities; set it to 0",
    "Margin method=gce": "method: GeneralisedCrossEntropy has its own loss for one class a sample",
    "Foreign method=class_balanced": "method: ClassBalanced needs the classes of all training samples",
}


def test_what_does_not_fit_a_task_of_ones_own_is_one_line() -> None:
    Path("own_columns.py").write_text(OWN)
    for options, told in OWN_REFUSED.items():
        name, *rest = options.split()
        with pytest.raises(ConfigError, match=told) as caught:
            TaskTrainer.compose(
                f"task._target_=own_columns.{name}", *SMALL[3:], *rest, "name=run", "fresh=true"
            ).train()
        assert "\n" not in str(caught.value), options


def test_what_a_plain_criterion_is() -> None:
    assert is_plain(nn.CrossEntropyLoss())
    others = [nn.CrossEntropyLoss(torch.ones(3)), nn.CrossEntropyLoss(label_smoothing=0.1), nn.NLLLoss()]
    assert not any(map(is_plain, [*others, nn.CrossEntropyLoss(ignore_index=0)]))


def test_what_is_off_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default run softens no target, holds nothing frozen, and keeps no second network."""
    monkeypatch.delattr(LabelledSamples, "class_probabilities")
    monkeypatch.delattr(Freezing, "before_step")
    task = trained(*SMALL)
    assert not task.task_method.state_dict()
    assert not any(isinstance(module, Average) for module in task.task_method.modules())


MISFITS = {
    "method=byol method.momentum=0": r"method\.momentum: 0.* is out of range",
    "method=gce data=synthetic data.kind=regression": r"method: GeneralisedCrossEntropy needs one class a sample",
    "method=pgd data=synthetic data.kind=multilabel": r"method: PGD needs one class a sample",
    "data=synthetic data.classes=4 model/metrics=kappa": r"model\.metrics\.kappa\.options\.num_classes: 10, and",
    "data.imbalance=100000": r"data\.imbalance: 100000 cannot be had of classes of \d+ to \d+ samples; set less",
    "data=synthetic data.shape=[2,16,16] data.augment=randaugment": r"data\.augment: randaugment takes images of",
    "data.label_noise=none.csv": r"data\.label_noise: no such file: \S*/none\.csv nor \S*/data/none\.csv",
}


@pytest.mark.parametrize("options", MISFITS)
def test_parts_that_do_not_fit_are_one_line(options: str) -> None:
    with pytest.raises(HealsgError, match=MISFITS[options]):
        TaskTrainer.compose("quiet=true", "runner.steps=2", *options.split()).train()


def test_layers_thaw_under_fused_sgd() -> None:
    options = ["method=sgd", "model=cnn", "model.width=4", "method.unfreeze_every=1", "runner.epochs=3", "quiet=true"]
    assert TaskTrainer.compose(*options, "runner.limit_batches=2").train()["status"] == "finished"
