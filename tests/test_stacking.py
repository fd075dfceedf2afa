"""Averages, freezing and learning rates by depth under methods of every family, in one run each."""

from __future__ import annotations

import copy
import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import REPOSITORY, beside
from healsg import BasicTask, TaskMethod, TaskTrainer
from healsg.errors import ConfigError

SMALL = ["model=cnn", "model.width=4", "data.batch_size=64", "quiet=true", "runner.limit_batches=3", "name=run"]
UNLABELLED = ["data.labels=100", "data.augment=strong", "method.unlabelled_ratio=1", "data.batch_size=32"]
FAMILIES = {
    "supervised": [],
    "sam": [],
    "gce": [],
    "fixmatch": UNLABELLED,
    "mean_teacher": UNLABELLED,
    "simclr": [],
    "byol": [],
    "kd": [],
    "fitnet": [],
}
"""A method, with what it needs for a small run."""


def trained(method: str, *options: str) -> BasicTask:
    trainer = TaskTrainer.compose(*SMALL, f"method={method}", *beside(method), *options)
    assert trainer.train()["status"] == "finished"
    assert trainer.task is not None
    return trainer.task


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The state of the network that learns, as training begins."""
    state: dict[str, Tensor] = {}
    build = TaskMethod.build_optimizer

    def noting(self: TaskMethod, task: BasicTask) -> Any:
        state.update(copy.deepcopy(self.trained_network(task).state_dict()))
        return build(self, task)

    monkeypatch.setattr(TaskMethod, "build_optimizer", noting)
    return state


@pytest.mark.parametrize("method", FAMILIES)
def test_averages_freezing_and_rates_by_depth_stack(method: str, begun: dict[str, Tensor]) -> None:
    """After one update the average holds 2/11 of the first weights and 9/11 of the second ones."""
    more = [
        "method.ema=0.5",
        "method.freeze=body.0",
        "method.layer_decay=0.5",
        "runner.steps=1",
        "method/scheduler=constant",
    ]
    task = trained(method, *more, *FAMILIES[method])
    network = task.task_method.trained_network(task)
    average = task.task_method.eval_model(task)
    learned = {name for name, _ in network.named_parameters() if not name.startswith("body.0.")}
    now = network.state_dict()
    for name, value in average.state_dict().items():
        wanted = 2 / 11 * begun[name] + 9 / 11 * now[name] if name in learned else now[name]
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    for name, value in now.items():
        if name.startswith("body.0."):
            assert torch.equal(value, begun[name]), f"{name} is frozen, BatchNorm's statistics included"
    assert any(not torch.equal(now[name], begun[name]) for name in learned)
    rates = [group["lr"] for group in task.optimizer.param_groups]
    assert rates[0] > 0
    assert {round(math.log(rate / rates[0], 0.5), 9) for rate in rates} >= {0, 1, 2}


def test_the_momentum_encoder_is_frozen_where_the_network_is(begun: dict[str, Tensor]) -> None:
    task = trained("byol", "method.freeze=body.0|body.1", "runner.epochs=2")
    target: Any = task.task_method.target
    for name, value in target.state_dict().items():
        if name.startswith(("body.0.", "body.1.")):
            assert torch.equal(value, begun[name]), name
    assert not torch.equal(target.state_dict()["body.3.1.running_mean"], begun["body.3.1.running_mean"])


def test_swa_measures_statistics_on_both_views() -> None:
    """BatchNorm's are those of a pass over the batches that the method trains on."""
    task = trained("simclr", "method.swa=0.5", "runner.epochs=4")
    average = task.task_method.eval_model(task)
    wanted = copy.deepcopy(average)
    views = [batch["unlabelled"] for batch, _ in task.train_loader.batches(0)]
    torch.optim.swa_utils.update_bn([torch.cat([view["view1"], view["view2"]]) for view in views], wanted)
    norms = [name for name, module in average.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for name in norms:
        found, other = average.get_submodule(name), wanted.get_submodule(name)
        torch.testing.assert_close(found.running_mean, other.running_mean)
        torch.testing.assert_close(found.running_var, other.running_var)


def test_layers_thaw_one_by_one_without_labels(begun: dict[str, Tensor]) -> None:
    task = trained("simclr", "method.unfreeze_every=1", "runner.epochs=2")
    moved = {name for name, value in task.model.named_parameters() if not torch.equal(value, begun[name])}
    assert {name.split(".")[0] for name in moved} == {"head"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("method=simclr method.mixup=0.2", r"method\.mixup: no such key"),
        ("method=dino method.ema=0.99", r"method\.ema: DINO evaluates its teacher"),
        ("method=byol method.ema=0.9 method.swa=0.5", r"method\.ema: method\.swa averages the weights already"),
        ("method=simclr method.freeze=bdy", r"method\.freeze: 'bdy' matches nothing"),
        ("method=fixmatch method.cutmix=1", r"method\.cutmix: FixMatch learns from unlabelled samples"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(options: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        TaskTrainer.compose("quiet=true", "model=cnn", *options.split()).train()
    assert "\n" not in str(caught.value)


class Alone(TaskMethod):
    """A method of a user's own that forgets to call what it overrides."""

    def setup(self, task: BasicTask) -> None:
        self.seen = 0

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Any]:
        return {"loss": task.criterion(task.net(batch["input"]), batch["target"])}


class Joined(Alone):
    def setup(self, task: BasicTask) -> None:
        TaskMethod.setup(self, task)


def test_a_method_of_ones_own_has_averages_too() -> None:
    options = [
        "quiet=true",
        "model=mlp",
        "model.width=8",
        "runner.limit_batches=2",
        "runner.epochs=1",
        "trusted=[test_stacking]",
    ]
    keys = [f"~method.{key}" for key in ("label_smoothing", "mixup", "cutmix", "random_erasing")]
    own = [*options, *keys, "method.ema=0.5"]
    trainer = TaskTrainer.compose(*own, "method._target_=test_stacking.Joined")
    trainer.train()
    task = trainer.task
    assert task is not None
    assert task.task_method.eval_model(task) is not task.model
    with pytest.raises(ConfigError, match=r"method: Alone\.setup does not call super\(\)\.setup\(task\)"):
        TaskTrainer.compose(*own, "method._target_=test_stacking.Alone").train()


def test_each_method_shows_its_own_step_at_most_two_levels_deep() -> None:
    """A family, then a paper's method; what has no step of its own adds only weights or a head to learn."""
    for path in sorted((REPOSITORY / "src/healsg/methods").glob("*.py")):
        module = import_module(f"healsg.methods.{path.stem}")
        for kind in vars(module).values():
            if not (isinstance(kind, type) and issubclass(kind, TaskMethod) and kind.__module__ == module.__name__):
                continue
            levels = kind.__mro__.index(TaskMethod)
            assert levels <= 2, kind
            own = {"train_step", "step"} & set(vars(kind))
            assert own or levels == 1 or kind.__name__ in {"FineTune", "LinearProbe", "LoRA"}, kind
