"""``healsg forecast``: sums and intervals, the largest batch, wrong flags, and a run that keeps its forecast."""

from __future__ import annotations

import pytest

from healsg.cli import main
from healsg.commands.forecast.command import kind_of
from healsg.commands.forecast.model import Amount, Length, Seconds, largest_batch, saves_of, spread_of
from helpers import record, train


def test_memory_is_a_line_through_two_batches() -> None:
    most, slope = largest_batch((64, 100 << 20), (128, 164 << 20), 1000 << 20)
    assert slope == 1 << 20
    assert most == 900 - 36
    assert largest_batch((64, 100 << 20), (128, 100 << 20), 1000 << 20)[0] is None


def test_amounts_add_up_with_their_errors() -> None:
    total = Amount.within(10.0, 0.25) + Amount.within(20.0, 0.25)
    assert (total.value, total.low, total.high) == (30.0, 24.0, 37.5)


def test_steps_of_one_length_have_no_spread() -> None:
    assert spread_of([Seconds(1.0, 2.0)] * 16) == (0.0, 0.0)


def test_short_epochs_are_saved_once_a_second() -> None:
    length = Length(batches=100, epochs=20, evaluations=20, val=1, test=0, updates=100, log_every=50, save_every=None)
    assert saves_of(length, wall=5.0) == (6.0, 2.5)


def test_jobs_that_differ_in_seed_and_rate_cost_the_same() -> None:
    one = {"seed": 0, "method": {"optimizer": {"lr": 0.1}}, "model": {"width": 8}}
    other = {"seed": 1, "method": {"optimizer": {"lr": 0.2}}, "model": {"width": 8}}
    assert kind_of(one) == kind_of(other)
    assert kind_of(one) != kind_of(one | {"model": {"width": 16}})


@pytest.mark.parametrize("given", [["--jsn"], ["--seconds=0"], ["--root=x"], ["--record", "seed=1"]])
def test_a_wrong_flag_is_one_line(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast", *given]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_keeps_its_forecast_beside_what_it_used(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["model=mlp", "model.width=8", "runner.epochs=1", "data.batch_size=512", "quiet=true"]
    digest = train(*options, "runner.forecast=true", "name=told")["digest"]
    assert digest == train(*options, "name=plain")["digest"]
    assert record("told")["usage"]["cpu_seconds"] > 0
    assert record("told")["forecast"]["cpu_seconds"]["value"] > 0
    assert "forecast" not in record("plain")
    assert main(["forecast", "--record"]) == 0
    assert "CPU time" in capsys.readouterr().out
