"""Every schedule with every monitor and callback goes on exactly, and so does a run under another memory format."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from healsg import BasicTask
from healsg.callbacks import Callback
from helpers import REPOSITORY, copies, goes_on_exactly, state, train, trained

SHORT = ["model=mlp", "model.width=8", "runner.epochs=6", "data.batch_size=512", "data.labels=600"]
SHORT += ["method=sgd", "runner.log_every=2", "runner.save_every=1", "quiet=true"]
SCHEDULES = sorted(path.stem for path in (REPOSITORY / "conf/method/scheduler").glob("*.yaml"))
MONITORS = {
    "auto": [],
    "loss": ["runner.monitor=val/loss", "runner.mode=min"],
    "upside down": ["runner.monitor=val/loss", "runner.mode=max"],
    "lr": ["runner.monitor=lr", "runner.mode=min"],
    "training loss": ["runner.monitor=train/loss"],
}
EARLY = ["runner/callbacks=early_stopping", "runner.callbacks.early_stopping.patience=2"]
CALLBACKS = {
    "none": [],
    "early stopping": EARLY,
    "hard to please": [*EARLY, "runner.callbacks.early_stopping.min_delta=0.5"],
    "seldom evaluated": [*EARLY, "runner.eval_every=2"],
    "own": ["+runner.callbacks.own._target_=test_resume_parts.Counting", "trusted=[test_resume_parts]"],
}


class Counting(Callback):
    """Stops after the third epoch with an odd number of rises, so that it must remember them."""

    def __init__(self) -> None:
        self.before, self.rises = 0.0, 0

    def on_epoch_end(self, numbers: dict[str, Any], monitor: str, sign: int) -> str | None:
        self.rises += numbers["train/loss"] > self.before
        self.before = numbers["train/loss"]
        return "enough" if numbers["epoch"] > 3 and self.rises % 2 else None

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "rises": self.rises}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before, self.rises = state["before"], state["rises"]


def settings(schedule: str) -> list[str]:
    plateau = ["method.scheduler.patience=0", "method.scheduler.cooldown=1", "method.scheduler.threshold=0.01"]
    return [f"method/scheduler={schedule}", *(plateau if schedule == "plateau" else [])]


PAIRS = [
    *((schedule, monitor, "none") for schedule in SCHEDULES for monitor in ("auto", "upside down")),
    *(
        ("plateau", monitor, [*CALLBACKS][(place + turn) % len(CALLBACKS)])
        for place, monitor in enumerate(MONITORS)
        for turn in (0, 1)
    ),
]
"""Each monitor with two callbacks, each callback with two monitors; the whole grid is run with ``-m soak``."""


@pytest.mark.parametrize(("schedule", "monitor", "callback"), dict.fromkeys(PAIRS))
def test_schedules_monitors_and_callbacks_go_on(schedule: str, monitor: str, callback: str) -> None:
    goes_on_exactly([5], *SHORT, *settings(schedule), *MONITORS[monitor], *CALLBACKS[callback])


@pytest.mark.soak
@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_with_every_monitor_and_callback(schedule: str, monitor: str, callback: str) -> None:
    for interval in ("update", "epoch") if schedule not in ("plateau", "constant") else (None,):
        options = [*SHORT, *settings(schedule), *MONITORS[monitor], *CALLBACKS[callback]]
        options += [f"method.scheduler.interval={interval}"] if interval else []
        goes_on_exactly(None, *options, "fresh=true")


TORCH: dict[str, Any] = {
    "plateau": lambda own: lr_scheduler.ReduceLROnPlateau(own, patience=0, threshold=0.1),
    "plateau max": lambda own: lr_scheduler.ReduceLROnPlateau(own, mode="max", patience=0, cooldown=1),
    "cosine": lambda own: lr_scheduler.CosineAnnealingLR(own, 6),
    "warm restarts": lambda own: lr_scheduler.CosineAnnealingWarmRestarts(own, 2),
    "steps": lambda own: lr_scheduler.MultiStepLR(own, [2, 3]),
    "exponential": lambda own: lr_scheduler.ExponentialLR(own, 0.7),
    "function": lambda own: lr_scheduler.LambdaLR(own, lambda epoch: 0.8**epoch),
    "cyclic": lambda own: lr_scheduler.CyclicLR(own, 0.01, 0.2, step_size_up=2, mode="exp_range", gamma=0.9),
    "one cycle": lambda own: lr_scheduler.OneCycleLR(own, 0.2, total_steps=8),
    "sequence": lambda own: lr_scheduler.SequentialLR(
        own, [lr_scheduler.LinearLR(own, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(own, 4)], [2]
    ),
    "chain": lambda own: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(own, 0.5, 2), lr_scheduler.ExponentialLR(own, 0.9)]
    ),
}


class OwnSchedule(BasicTask):
    """A task with one of torch's schedules."""

    def build_scheduler(self) -> Any:
        return TORCH[self.config.args.schedule](self.optimizer)


@pytest.mark.parametrize("schedule", TORCH)
def test_the_schedules_of_torch_go_on(schedule: str) -> None:
    own = ["task._target_=test_resume_parts.OwnSchedule", "trusted=[test_resume_parts]"]
    goes_on_exactly([5], *SHORT, *own, f"+args.schedule='{schedule}'")


class Jitter(lr_scheduler.ExponentialLR):
    """A schedule of one's own that draws its rates from the generators of Python, NumPy and torch."""

    def __init__(self, optimizer: Any, interval: str) -> None:
        self.interval = interval
        super().__init__(optimizer, 0.9)

    def step(self, epoch: int | None = None) -> None:
        super().step()
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5 + (random.random() + float(np.random.rand()) + float(torch.rand(()))) / 3


class OwnJitter(BasicTask):
    def build_scheduler(self) -> Any:
        return Jitter(self.optimizer, self.config.args.interval)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")  # a resume after the last step of the first epoch
@pytest.mark.parametrize("eval_every", [1, 2])
@pytest.mark.parametrize("interval", ["update", "epoch"])
def test_a_schedule_that_draws_random_numbers_goes_on(interval: str, eval_every: int) -> None:
    """Also after an epoch without an evaluation, which would seed the generators for its batches."""
    own = ["task._target_=test_resume_parts.OwnJitter", "trusted=[test_resume_parts]", f"+args.interval={interval}"]
    goes_on_exactly(None, *SHORT, *own, "runner.epochs=3", f"runner.eval_every={eval_every}")


class Impatient(Callback):
    """Stops when a number that it draws says so."""

    def on_epoch_end(self, numbers: dict[str, Any], monitor: str, sign: int) -> str | None:
        return "enough" if numbers["epoch"] > 3 and random.random() < 0.5 else None


def test_a_callback_that_draws_random_numbers_goes_on() -> None:
    own = ["+runner.callbacks.own._target_=test_resume_parts.Impatient", "trusted=[test_resume_parts]"]
    goes_on_exactly([5, 7], *SHORT, "runner.epochs=12", "runner.eval_every=20", *own)


@pytest.mark.parametrize(("features", "size"), [(30, 50), (75, 10), (7, 5), (64, 3)])
def test_samples_of_any_width_go_on(features: int, size: int) -> None:
    """Matrix products on the CPU go by where in memory a batch begins, and that is another place after a resume."""
    data = [
        "data=synthetic",
        f"data.shape=[{features}]",
        "data.train=160",
        "data.val=40",
        "data.test=0",
        "data.images=false",
    ]
    own = [*data, f"data.batch_size={size}", "runner.epochs=2", "runner.limit_batches=5", "model.width=8"]
    goes_on_exactly([1, 3, 6], *SHORT, "data.labels=null", *own)


# --- another memory format ------------------------------------------------------------------------------------------

FORMATS = ["model=cnn", "model.width=4", "runner.epochs=2", "data.batch_size=256", "runner.limit_batches=3"]
FORMATS += ["runner.save_every=1", "quiet=true"]
RULES = {
    "sgd": ["method=sgd"],
    "adamw": ["method=adamw"],
    "lion": ["method/optimizer=lion"],
    "muon": ["method/optimizer=muon"],
    "schedule-free": ["method/optimizer=schedule_free", "method/scheduler=constant"],
    "ema": ["method=sgd", "method.ema=0.9"],
    "sam": ["method=sam"],
}


@pytest.mark.parametrize(("rule", "other"), [*((rule, "true") for rule in RULES), ("adamw", "false")])
def test_a_run_goes_on_under_another_memory_format(rule: str, other: str) -> None:
    """With the numbers of the format with which it began, to rounding, which Muon enlarges."""
    options = [*FORMATS, *RULES[rule]]
    before = "false" if other == "true" else "true"
    copies(*options, f"runner.channels_last={before}", at=[3])
    train(*options, f"runner.channels_last={other}", "resume.force=true", "name=cut3")
    models = [state(name)["model"] for name in ("whole", "cut3")]
    for key, value in models[0].items():
        torch.testing.assert_close(models[1][key], value, rtol=1e-3, atol=1e-3 if rule == "muon" else 1e-5)


def test_state_takes_the_layout_of_its_weight() -> None:
    task = trained(*FORMATS, "method=adamw", "runner.channels_last=true", "name=run")
    states: dict[nn.Parameter, dict[str, torch.Tensor]] = task.optimizer.state
    plain = {weight: {key: value.contiguous() for key, value in state.items()} for weight, state in states.items()}
    saved = task.state_dict()
    saved["optimizer"] = {
        **saved["optimizer"],
        "state": dict(enumerate(plain[weight] for weight in plain)),
    }
    task.load_state_dict(saved)
    kernels = [weight for weight in task.optimizer.state if weight.dim() == 4 and weight.shape[1] > 1]
    assert kernels
    for weight in kernels:
        for key in ("exp_avg", "exp_avg_sq"):
            assert task.optimizer.state[weight][key].stride() == weight.stride()
            assert torch.equal(task.optimizer.state[weight][key], plain[weight][key])
