"""Schedules: torch's own as oracles, warm-up, intervals, resuming, the plateau."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch.optim import SGD, Optimizer, lr_scheduler

from healsg.errors import ConfigError
from healsg.schedulers.curves import Constant, Cosine, CosineArc, Curve, MultiStep, OneCycle, Poly, Step
from healsg.schedulers.plateau import Plateau

CONF = Path(__file__).parents[1] / "conf" / "method" / "scheduler"
TOTAL = 40


def sgd(*rates: float) -> Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates or (0.5,)]
    return SGD(groups, lr=0.1)


def walk(optimizer: Optimizer, scheduler: Any, steps: int) -> list[float]:
    """The learning rate with which each update is done."""
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_yaml_holds_every_argument(name: str) -> None:
    node = OmegaConf.load(CONF / f"{name}.yaml")
    kind = get_class(node._target_)
    arguments = dict(inspect.signature(kind).parameters)
    if arguments.pop("common", None):
        arguments |= inspect.signature(Curve).parameters
    assert set(node) - {"_target_"} == set(arguments)
    by_default, by_yaml = kind(), instantiate(node, _convert_="all")
    assert vars(by_default) == vars(by_yaml)
    assert by_yaml.build(sgd(), 9, 3).interval in ("update", "epoch")


ORACLES: list[tuple[Curve, Callable[[Optimizer], Any]]] = [
    (Constant(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    (Cosine(), lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL)),
    (Cosine(final=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, eta_min=0.05)),
    (CosineArc(), lambda o: lr_scheduler.LambdaLR(o, lambda k: math.cos(7 * math.pi * k / (16 * TOTAL)))),
    (Step(every=0.1, gamma=0.3), lambda o: lr_scheduler.StepLR(o, 4, gamma=0.3)),
    (Step(every=0.3), lambda o: lr_scheduler.StepLR(o, 12)),
    (MultiStep(milestones=[0.7, 0.3]), lambda o: lr_scheduler.MultiStepLR(o, [12, 28])),
    (Poly(), lambda o: lr_scheduler.PolynomialLR(o, TOTAL, power=0.9)),
    (Poly(power=2), lambda o: lr_scheduler.PolynomialLR(o, TOTAL, power=2)),
]


@pytest.mark.parametrize(("curve", "oracle"), ORACLES)
def test_curves_are_those_of_torch(curve: Curve, oracle: Callable[[Optimizer], Any]) -> None:
    ours, theirs = sgd(), sgd()
    assert walk(ours, curve.build(ours, TOTAL, 5), TOTAL) == pytest.approx(
        walk(theirs, oracle(theirs), TOTAL), rel=1e-9
    )


@pytest.mark.parametrize(("anneal", "theirs"), [("cosine", "cos"), ("linear", "linear")])
def test_one_cycle_is_that_of_torch(anneal: Any, theirs: Any) -> None:
    optimizer = sgd()
    oracle = lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=TOTAL, pct_start=0.3, anneal_strategy=theirs)
    rates = [*walk(optimizer, oracle, TOTAL - 1), float(optimizer.param_groups[0]["lr"])]
    curve = OneCycle(anneal=anneal)
    top, end = 0.3 * TOTAL - 1, TOTAL - 1
    progress = [0.3 * k / top if k <= top else 0.3 + 0.7 * (k - top) / (end - top) for k in range(TOTAL)]
    assert [0.5 * curve.factor(p) for p in progress] == pytest.approx(rates, rel=1e-6)


def test_warmup_is_a_straight_line_then_the_rest_of_the_curve() -> None:
    optimizer, theirs = sgd(), sgd()
    rates = walk(optimizer, Cosine(warmup=0.25).build(optimizer, TOTAL, 5), TOTAL)
    line = walk(theirs, lr_scheduler.LinearLR(theirs, start_factor=0.01, total_iters=10), 10)
    assert rates[:10] == pytest.approx(line)
    after = sgd()
    assert rates[10:] == pytest.approx(walk(after, lr_scheduler.CosineAnnealingLR(after, 30), 30))


@pytest.mark.parametrize("curve", [Constant, Step, MultiStep, Cosine, CosineArc, OneCycle, Poly])
def test_factors_stay_between_zero_and_one(curve: type[Curve]) -> None:
    for warmup in (0.0, 0.1, 0.99):
        made = curve(warmup=warmup)
        factors = [made.factor(k / 1000) for k in range(1001)]
        assert all(0 <= factor <= 1 for factor in factors)
        assert max(factors) == pytest.approx(1.0, abs=2e-3)
        assert made.factor(0.5) == made.factor(0.5)


def test_an_epoch_interval_is_that_of_a_schedule_stepped_by_epochs() -> None:
    ours, theirs = sgd(), sgd()
    schedule = Cosine(interval="epoch").build(ours, TOTAL, 5)
    assert schedule.interval == "epoch"
    assert walk(ours, schedule, 8) == pytest.approx(walk(theirs, lr_scheduler.CosineAnnealingLR(theirs, 8), 8))


def test_the_first_factor_applies_before_the_first_step_and_groups_keep_their_ratio() -> None:
    optimizer = sgd(0.5, 0.05)
    schedule = Poly(power=1, warmup=0.5).build(optimizer, 10, 5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.0005])
    for _ in range(25):  # also past the end
        schedule.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[0] == pytest.approx(10 * rates[1])
    assert rates[0] == 0


@pytest.mark.parametrize("curve", [Constant, Step, MultiStep, Cosine, CosineArc, OneCycle, Poly])
def test_an_epoch_that_ends_after_the_run_has_the_factor_of_its_end(curve: type[Curve]) -> None:
    """As in a run of 12 updates that was made longer twice: it has three epochs of up to 5, which ended at 4 and 8."""
    optimizer = sgd()
    made = curve(interval="epoch")
    schedule = made.build(optimizer, 12, 5)
    for _ in range(4):
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * made.factor(1.0))


def test_a_tensor_learning_rate_is_filled_in_place() -> None:
    rate = torch.tensor(0.5)
    optimizer = SGD([torch.nn.Parameter(torch.ones(2))], lr=rate)
    schedule = Poly(power=1).build(optimizer, 10, 5)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.45)


@pytest.mark.parametrize("interval", ["update", "epoch"])
def test_resuming_is_exact_and_a_longer_run_keeps_its_own_length(interval: Any) -> None:
    curve = Cosine(warmup=0.1, interval=interval)
    whole, first, second, longer = sgd(), sgd(), sgd(), sgd()
    expected = walk(whole, curve.build(whole, TOTAL, 2), 20)
    schedule = curve.build(first, TOTAL, 2)
    assert walk(first, schedule, 7) == expected[:7]
    state = schedule.state_dict()
    assert state == {"count": 7}
    resumed = curve.build(second, TOTAL, 2)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(state)
    assert walk(second, resumed, 13) == expected[7:]
    extended = curve.build(longer, 2 * TOTAL, 2)
    extended.load_state_dict(state)
    stride = 2 if interval == "epoch" else 1
    assert longer.param_groups[0]["lr"] == pytest.approx(0.5 * curve.factor(7 * stride / (2 * TOTAL)))


@pytest.mark.parametrize("milestones", [[0.5, 2], [-0.1], [float("nan")]])
def test_milestones_outside_the_run_are_refused(milestones: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"^method.scheduler.milestones"):
        MultiStep(milestones=milestones)


def test_an_arc_beyond_half_a_cosine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^method.scheduler.arc: 0.6"):
        CosineArc(arc=0.6)


def test_plateau_reduces_and_resumes() -> None:
    values = [0.1, 0.5, 0.4, 0.5, 0.45, 0.3, 0.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    settings: dict[str, Any] = {"mode": "max", "factor": 0.5, "patience": 1, "min_lr": 0.1}
    ours, theirs = sgd(), sgd()
    schedule, oracle = Plateau(**settings).build(ours, 100, 10), lr_scheduler.ReduceLROnPlateau(theirs, **settings)
    assert (schedule.interval, schedule.needs_metric) == ("epoch", True)
    for epoch, value in enumerate(values):
        schedule.step(value)
        oracle.step(value)
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        if epoch == 4:
            state, ours = schedule.state_dict(), sgd()
            schedule = Plateau(**settings).build(ours, 100, 10)
            schedule.load_state_dict(state)
    assert ours.param_groups[0]["lr"] == 0.1
