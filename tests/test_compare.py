"""``healsg compare`` says no more than the runs allow."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from healsg.cli import main
from healsg.commands.compare.comparison import is_clear
from healsg.commands.compare.statistics import adjusted, difference, interval, runs_needed
from healsg.commands.sweep.table import numbers, table
from json_schema import mismatch, schemas


def by_seed(values: list[float], start: int = 0) -> dict[Any, float]:
    return {(start + seed,): value for seed, value in enumerate(values)}


def test_an_interval_is_student_s() -> None:
    mean, half = interval([0.90, 0.92, 0.94])
    assert mean == pytest.approx(0.92)
    assert half == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-5), "t quantile of 2 degrees of freedom"
    assert interval([0.5]) == (0.5, math.inf)


def test_pairs_see_what_means_do_not() -> None:
    first = [0.50, 0.70, 0.90, 0.60, 0.80]
    second = [0.49, 0.688, 0.891, 0.588, 0.79]
    paired = difference(by_seed(first), by_seed(second))
    assert paired.pairs == 5
    assert paired.chance < 0.001
    apart = difference(by_seed(first), by_seed(second, start=100))
    assert apart.pairs == 0
    assert apart.chance > 0.9
    assert apart.more is not None
    assert apart.more > 100


def test_differences_agree_with_scipy_s_tests() -> None:
    from scipy import stats

    generator = random.Random(0)
    first = [generator.gauss(0.5, 0.1) for _ in range(6)]
    second = [generator.gauss(0.6, 0.2) for _ in range(6)]
    paired = stats.ttest_rel(first, second)
    assert difference(by_seed(first), by_seed(second)).chance == pytest.approx(paired.pvalue)
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert difference(by_seed(first), by_seed(second, 50)).chance == pytest.approx(welch.pvalue)


def test_runs_that_are_needed_have_the_power() -> None:
    from scipy import stats

    needed = runs_needed(1.0)
    generator = random.Random(0)
    shown = 0
    for _ in range(400):
        gaps = [generator.gauss(1.0, 1.0) for _ in range(needed)]
        shown += bool(stats.ttest_1samp(gaps, 0.0).pvalue < 0.05)
    assert 0.74 < shown / 400 < 0.9


def test_chances_are_adjusted_by_holm() -> None:
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([0.9]) == [0.9]


@pytest.mark.parametrize(("settings", "seeds"), [(2, 3), (2, 10), (4, 5)])
def test_equal_settings_are_seldom_told_apart(settings: int, seeds: int) -> None:
    """False alarms in 1,000 simulated comparisons of settings that do not differ: at most 65."""
    generator = random.Random(settings * 100 + seeds)
    alarms = 0
    for _ in range(1000):
        shared = [generator.gauss(0.0, 1.0) for _ in range(seeds)]
        drawn = [[one + generator.gauss(0.0, 1.0) for one in shared] for _ in range(settings)]
        best, *others = sorted(drawn, key=sum, reverse=True)
        chances = [difference(by_seed(best), by_seed(other)).chance for other in others]
        alarms += is_clear(adjusted(chances))
    assert alarms <= 65


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of three settings and four seeds: one setting is clearly worse, two hardly differ."""
    monkeypatch.chdir(tmp_path)
    measured = {0.1: (0.90, 0.92, 0.91, 0.89), 0.2: (0.91, 0.90, 0.92, 0.90), 0.9: (0.50, 0.52, 0.49, 0.51)}
    for lr, values in measured.items():
        for seed, acc in enumerate(values):
            path = tmp_path / "runs/s" / f"method.optimizer.lr={lr},seed={seed}"
            path.mkdir(parents=True)
            best = {"monitor": "val/acc", "value": acc, "epoch": 1, "step": 1}
            best["metrics"] = {"val/acc": acc, "val/loss": 1 - acc}
            record = {"status": "finished", "best": best, "test": {"test/acc": acc - 0.1}, "seed": seed}
            (path / "run.json").write_text(json.dumps(record))
            config = {"seed": seed, "method": {"optimizer": {"lr": lr}}, "runner": {"monitor": "auto", "mode": "auto"}}
            (path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "runs"


def test_a_sweep_is_ranked_on_val_with_test_aside(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "s"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["setting", "runs", "val/acc", "behind", "the", "best,", "paired", "test/acc"]
    assert lines[3].startswith("method.optimizer.lr=0.9")
    assert lines[4].startswith("no clear winner: the lead of method.optimizer.lr=0.")
    assert "more runs of each would show it" in lines[5]
    assert main(["compare", "s", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["clear_winner"]
    assert found["settings"][2]["behind"]["adjusted_chance"] < 0.01
    assert len(found["settings"][0]["val"]["values"]) == 4


def test_a_clear_winner_is_named(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [f"s/method.optimizer.lr={lr},seed={seed}" for lr in (0.1, 0.9) for seed in range(4)]
    assert main(["compare", *runs]) == 0
    assert "method.optimizer.lr=0.1 is better than method.optimizer.lr=0.9 on val" in capsys.readouterr().out


def test_less_is_better_of_a_loss(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "s", "--metric", "val/loss", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["better"] == "less"
    assert found["settings"][-1]["label"] == "method.optimizer.lr=0.9"


def test_single_runs_allow_to_say_nothing(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "s/method.optimizer.lr=0.1,seed=0", "s/method.optimizer.lr=0.9,seed=0"]) == 0
    assert "one run of a setting says nothing of its spread" in capsys.readouterr().out


def test_two_runs_are_compared_case_by_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gaps = {"a": 0.1, "b": 0.3, "c": -0.07, "d": 0.05}
    for run, share in (("one", 1.0), ("two", 0.0)):
        cases: dict[str, Any] = {name: {"dice": 0.5 + share * gap, "1": None} for name, gap in gaps.items()}
        cases |= {"missed": {"dice": None}, f"only {run}": {"dice": 0.1}}
        Path(f"runs/{run}").mkdir(parents=True)
        Path(f"runs/{run}/run.json").write_text("{}")
        Path(f"runs/{run}/config.yaml").write_text("{}")
        Path(f"runs/{run}/eval-test-best.json").write_text(json.dumps({"cases": cases}))
    assert main(["compare", "one", "two", "--cases", "test"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:5]] == ["case", "b", "a", "c", "d"]
    assert out[5].startswith("dice of 4 cases: one is +0.0950 above two (")
    assert out[5].endswith("; higher in 3 cases, lower in 1; 3 cases are left out")
    assert main(["compare", "one", "two", "--cases", "test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert mismatch(found, schemas()["compare --cases"]) == ""
    from scipy import stats

    wanted = stats.ttest_rel([0.5 + gap for gap in gaps.values()], [0.5] * 4)
    assert found["difference"]["chance"] == pytest.approx(wanted.pvalue)
    for arguments, words in (
        (["one", "two", "--cases", "val"], "one: was not evaluated on val; healsg eval runs/one split=val"),
        (["one", "--cases", "test"], "--cases: pairs the cases of two runs, and 1 are named"),
        (
            ["one", "two", "--cases", "test", "--metric", "hd95"],
            "has a number hd95; there is 1, dice",
        ),
    ):
        assert main(["compare", *arguments]) in (1, 2)
        assert words in capsys.readouterr().err


def test_mistakes_of_compare_are_one_line(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = "s/method.optimizer.lr=0.1,seed=0"
    (sweep / "copy").mkdir()
    for name in ("run.json", "config.yaml"):
        (sweep / "copy" / name).write_text((sweep / first / name).read_text())
    unfinished = sweep / "s/method.optimizer.lr=0.9,seed=3/run.json"
    unfinished.write_text('{"status": "running"}')
    for arguments, words in (
        ([first, "copy"], "with the same settings and seed; give one of them"),
        ([first, "--metric", "val/dice"], "has no number val/dice at its best epoch; there is val/acc, val/loss"),
        (["s/method.optimizer.lr=0.9,seed=3"], "is"),
        ([], "the following arguments are required: RUN"),
    ):
        assert main(["compare", *arguments]) in (1, 2)
        assert words in capsys.readouterr().err
    assert main(["compare", "s"]) == 0
    assert "s: 1 of 12 runs are not finished, and left out" in capsys.readouterr().out
    assert main(["compare", "s", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "s: 1 of 12 runs are not finished, and left out" in err
    assert json.loads(out)["metric"] == "val/acc"


def test_the_page_has_the_settings_and_their_curves_with_bands(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in (sweep / "s").iterdir():
        last = json.loads((run / "run.json").read_text())["best"]["value"]
        lines = [{"event": "epoch", "epoch": n, "step": n, "val/acc": last - 0.1 / n, "seconds": 1} for n in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["compare", "s", "--page", "out.html"]) == 0
    assert "page: out.html" in capsys.readouterr().out
    page = Path("out.html").read_text()
    assert page.count('<path class="band"') == 3, "an interval around each of three means"
    assert page.count("<tr class=best><th>method.optimizer.lr=0.") == 1
    assert "no clear winner" in page
    assert "best, epoch 1" in page
    assert "prefers-color-scheme: dark" in page
    assert not any(word in page for word in ("<script", "http", "src="))
    assert main(["compare", "s", "--page", "nowhere/out.html"]) == 2
    assert capsys.readouterr().err == "error: --page: there is no folder nowhere\n"
    os.mkfifo("fifo")
    assert main(["compare", "s", "--page", "fifo"]) == 2
    assert capsys.readouterr().err == "error: --page: fifo is a FIFO; name a file\n"
    assert main(["compare", "s", "--page", "/proc/page.html"]) == 2
    assert capsys.readouterr().err.startswith("error: --page: /proc/page.html cannot be written (")


def test_a_sweep_ends_with_its_jobs_best_first_and_what_compare_says(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"job": job.name, "status": "finished", "exit": 0, **numbers(json.loads((job / "run.json").read_text()))}
        for job in sorted((sweep / "s").iterdir())
    ]
    table("s", [{"job": "bad", "status": "failed", "exit": 1, "reason": "no"}, *rows])
    ended = capsys.readouterr().out.splitlines()
    values = [float(line.split()[2]) for line in ended[1:13]]
    assert values == sorted(values, reverse=True)
    assert ended[13].startswith("bad")
    assert main(["compare", "s"]) == 0
    assert ended[15:-1] == capsys.readouterr().out.splitlines()
    assert ended[-1] == "table: runs/s/sweep.csv"


def test_folds_are_pooled_each_sample_by_the_run_that_held_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["data=digits", "model=mlp", "model.width=8", "runner.epochs=1", "quiet=true"]
    assert main(["train", "-m", *small, "data.fold=1/2,2/2", "name=folds"]) == 0
    capsys.readouterr()
    assert main(["compare", "folds", "--pooled", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found["pooled"]
    values = found["settings"][0]["val"]["values"]
    assert one["samples"] == one["of"]
    assert one["acc"] == pytest.approx(sum(values) / 2, abs=2e-3), "the folds are of one size, to a few samples"
    assert one["low"] < one["acc"] < one["high"]
    assert main(["compare", "folds", "--pooled"]) == 0
    assert "out of fold" in capsys.readouterr().out
