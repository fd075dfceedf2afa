"""``search=...``: trials in rounds, rebuilt from the folders of the runs; the same ones for any number of workers."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from healsg.cli import main
from healsg.config.compose import Composer
from healsg.runs.folder import RunFolder
from healsg.searches.grid import Grid
from healsg.searches.sampled import GP, TPE, Random
from healsg.sweeps.proposals import Mode, Trial
from healsg.sweeps.space import Space, Value, space_of
from healsg.sweeps.trials import Trials
from helpers import ended, epochs_of, events, forked, record, wait_for

pytest.importorskip("optuna")

TINY = ["train", "model=mlp", "model.width=8", "data.batch_size=256", "runner.steps=12", "quiet=true", "-m"]
SEARCH = [*TINY, "search=tpe", "search.trials=6", "search.batch=2", "search.startup=2"]
SPACE = ["method.optimizer.lr=tag(log,interval(1e-4,1e-1))", "method.label_smoothing=choice(0,0.1)"]


def outcome(name: str) -> dict[str, tuple[object, ...]]:
    """The values, the status and the digest of each trial."""
    trials = json.loads(Path("runs", name, "search.json").read_text())["trials"]
    runs = [record(f"{name}/{number:04d}") for number in range(len(trials))]
    pairs = enumerate(zip(trials, runs, strict=True))
    return {f"{at:04d}": (trial["parameters"], run["status"], run["digest"]) for at, (trial, run) in pairs}


def ranking(name: str) -> list[str]:
    with Path("runs", name, "sweep.csv").open(newline="") as file:
        return [row["job"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search by one process."""
    here, folder = Path.cwd(), tmp_path_factory.mktemp("search")
    os.chdir(folder)
    try:
        assert main([*SEARCH, *SPACE, "name=one"]) == 0
    finally:
        os.chdir(here)
    return folder / "runs/one"


def test_a_search_ends_with_a_table_best_first_and_the_command_of_the_best(
    undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed, "runs/moved")
    before = outcome("moved")
    assert main([*SEARCH, *SPACE, "name=moved"]) == 0, "a finished search is shown again, wherever it lies"
    told = capsys.readouterr().out
    values = {job: record(f"moved/{job}")["best"]["value"] for job in before}
    assert ranking("moved") == sorted(values, key=lambda job: (-values[job], job))
    assert len({str(trial[0]) for trial in before.values()}) == 6
    best = ranking("moved")[0]
    assert f"best: runs/moved/{best}, again by: healsg train model=mlp" in told
    assert f"method.optimizer.lr={before[best][0]['method.optimizer.lr']!r}" in told  # type: ignore[index]
    assert outcome("moved") == before
    assert main(["compare", "moved"]) == 0
    assert main(["runs", "--where", "status=finished"]) == 0
    assert "moved/0003" in capsys.readouterr().out


def test_two_workers_that_are_killed_try_the_same_trials(undisturbed: Path) -> None:
    line = [*SEARCH, *SPACE, "name=two", "launcher=local", "launcher.workers=2"]
    child = forked(line)
    wait_for(lambda: Path("runs/two/0002/run.json").exists())
    os.kill(child, signal.SIGKILL)
    assert ended(child) == 137
    Path("runs/two").rename("runs/there")
    assert ended(forked([*line[:-3], "name=there", *line[-2:]])) == 0, Path("output").read_text()
    shutil.copytree(undisturbed, "runs/one")
    assert outcome("there") == outcome("one")
    assert ranking("there") == ranking("one")


@pytest.mark.soak
def test_any_number_of_workers_tries_the_same_trials() -> None:
    line = [*SEARCH, *SPACE, "search.trials=8", "search.batch=4"]
    assert main([*line, "name=one"]) == 0
    for workers in (2, 4):
        asked = [*line, "launcher=local", f"launcher.workers={workers}", f"name=by{workers}"]
        assert ended(forked(asked), 300) == 0, Path("output").read_text()
        assert outcome(f"by{workers}") == outcome("one")
        assert ranking(f"by{workers}") == ranking("one")


@pytest.mark.soak
def test_fifty_kills_of_searches_change_no_trial(undisturbed: Path) -> None:
    """SIGKILL at random times, and the same command again, until there were fifty."""
    shutil.copytree(undisturbed, "runs/one")
    draw = random.Random(0)
    kills = finished = 0
    done = False
    while kills < 50 or not done:
        child = forked([*SEARCH, *SPACE, f"name=s{finished}"])
        if kills < 50:
            time.sleep(draw.uniform(0.05, 1.2))
            os.kill(child, signal.SIGKILL)
        status = ended(child)
        assert status in (0, 137), Path("output").read_text()
        done = status == 0
        kills += status == 137
        if done:
            assert outcome(f"s{finished}") == outcome("one")
            assert ranking(f"s{finished}") == ranking("one")
            finished += 1
    print(f"{kills} kills of {finished} searches")


def test_more_trials_go_on_with_the_search(undisturbed: Path) -> None:
    more = [*SEARCH, *SPACE, "name=more"]
    assert main([*more, "search.trials=3"]) == 0
    assert main(more) == 0
    shutil.copytree(undisturbed, "runs/one")
    assert outcome("more") == outcome("one")


def test_a_failed_trial_is_recorded_and_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    line = [*TINY, "search=grid", "method.optimizer.lr=choice(0.01,1e38)", "model.width=choice(4,0)", "name=grid"]
    assert main(line) == 0
    assert "4 trials, 1 finished, 3 failed" in capsys.readouterr().out
    began = record("grid/0002")["begin"], record("grid/0002").get("continued")
    assert record("grid/0002")["status"] == "failed"
    assert not Path("runs/grid/0001/run.json").exists(), "a width of 0 is refused before there is a run"
    assert main(line) == 0
    told = capsys.readouterr().out
    assert "4 trials, 1 finished, 3 failed" in told
    assert "job 1" not in told
    assert (record("grid/0002")["begin"], record("grid/0002").get("continued")) == began


HALVING = ["search=random", "search.trials=6", "search.batch=3", "search.rungs=2", "search.factor=2"]
HALVING += ["runner.steps=null", "runner.epochs=4", "method/scheduler=cosine"]


def test_successive_halving_goes_on_with_the_best_and_changes_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    line = [*TINY, *HALVING, SPACE[0], "name=half"]
    assert main(line) == 0
    told = capsys.readouterr().out
    assert "6 trials, 3 finished, 0 failed" in told
    epochs = {f"{number:04d}": epochs_of(f"half/{number:04d}") for number in range(6)}
    assert sorted(epochs.values()) == [2, 2, 2, 4, 4, 4], "no epoch is trained twice"
    early = {job: max(row["val/acc"] for row in events(f"half/{job}", "epoch")[:2]) for job in epochs}
    best = sorted(early, key=lambda job: (-early[job], job))[:3]
    assert {job for job, count in epochs.items() if count == 4} == set(best)
    assert sorted(ranking("half")[:3]) == sorted(best)
    winner = ranking("half")[0]
    again = shlex.split(told.splitlines()[-1].partition("healsg ")[2])
    assert main([*again, "quiet=true", "name=again"]) == 0
    assert record("again")["digest"] == record(f"half/{winner}")["digest"], "as a run that never paused"


def trials_of(search: Grid) -> Trials:
    """Those of a search over six seeds, of which none is proposed yet."""
    folder = RunFolder(Path("runs/own"))
    folder.path.mkdir(parents=True)
    return Trials(folder, search, space_of(Composer().parse(["seed=0,1,2,3,4,5"])))


def end(trials: Trials, number: int, value: float | None) -> None:
    """Let a trial be finished with a number, or have failed."""
    one = RunFolder(trials.folder.path / trials.job(number))
    one.path.mkdir()
    best = None if value is None else {"monitor": "val/acc", "value": value, "metrics": {}}
    one.note(mode="max", monitor="val/acc", status="finished" if best else "failed", best=best)


def test_trials_that_failed_are_not_gone_on_with() -> None:
    """Though fewer than a half are left."""
    trials = trials_of(Grid(rungs=2, factor=2))
    trials.propose(range(6), 1)
    for number, value in enumerate((0.5, None, 0.7, None, None, None)):
        end(trials, number, value)
    assert trials.promoted(6, 1, [1, None]) == [0, 2]


def test_a_rung_is_decided_by_the_epochs_up_to_it_though_a_trial_has_gone_on() -> None:
    trials = trials_of(Grid(rungs=2, factor=2))
    trials.propose(range(2), 1)
    for number, values in enumerate(([0.5, 0.9], [0.7, 0.6])):
        end(trials, number, max(values))
        rows = [{"event": "epoch", "epoch": at, "step": at, "val/acc": acc} for at, acc in enumerate(values, 1)]
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (trials.folder.path / trials.job(number) / "metrics.jsonl").write_text(lines)
    assert [trial.value for trial in trials.all(1)] == [0.5, 0.7]
    assert [trial.value for trial in trials.all()] == [0.9, 0.7]
    assert trials.promoted(2, 1, [1, None]) == [1]


class Noting(Grid):
    """Notes what it is told of the trials before each."""

    told: ClassVar[dict[int, list[float | None]]] = {}

    def propose(self, space: Space, number: int, before: Sequence[Trial], mode: Mode) -> dict[str, Value]:
        self.told[number] = [trial.value if trial.status == "finished" else None for trial in before]
        return super().propose(space, number, before, mode)


def test_a_proposal_knows_nothing_of_its_own_round_though_a_part_of_that_has_ended() -> None:
    """As where a search is made longer within a round."""
    trials = trials_of(Noting(batch=2))
    trials.propose(range(2))
    for number, value in enumerate((0.5, 0.7)):
        end(trials, number, value)
    trials.propose(range(2, 3))
    end(trials, 2, 0.9)
    trials.propose(range(2, 4))
    assert Noting.told == {0: [], 1: [None], 2: [0.5, 0.7], 3: [0.5, 0.7, None]}


@pytest.mark.soak
def test_a_halving_that_is_killed_ends_as_the_undisturbed_one() -> None:
    line = [*TINY, *HALVING, SPACE[0]]
    assert ended(forked([*line, "name=whole"])) == 0
    killed = [*line, "name=killed", "launcher=local", "launcher.workers=2"]
    for epoch, job in ((1, "0004"), (3, "0000")):
        child = forked(killed)
        wait_for(partial(_is_past, Path("runs/killed"), job, epoch))
        os.kill(child, signal.SIGKILL)
        ended(child)
    assert ended(forked([*line, "name=killed"])) == 0, Path("output").read_text()
    for number in range(6):
        whole, other = (record(f"{name}/{number:04d}") for name in ("whole", "killed"))
        for key in ("status", "digest", "best"):
            assert other.get(key) == whole.get(key)
    assert ranking("killed") == ranking("whole")


def _is_past(folder: Path, job: str, epoch: int) -> bool:
    """Whether a trial, or at a later rung any of them, has trained an epoch."""
    jobs = [path.name for path in folder.glob("0*")] if epoch > 2 else [job]
    return any(epochs_of(f"{folder.name}/{one}") >= epoch for one in jobs)


@pytest.mark.parametrize("kind", [TPE, pytest.param(GP, marks=pytest.mark.soak)])
def test_proposals_depend_on_the_rounds_before_alone(kind: type[TPE]) -> None:
    space = space_of(Composer().parse([*SPACE, "model.width=int(interval(4,64))", "seed=range(0,9,2)"]))

    def search(order: int) -> list[Trial]:
        done: list[Trial] = []
        for first in range(0, 12, 4):
            for number in range(first, first + 4):
                values = kind(startup=4).propose(space, number, done, "max")
                done.append(Trial(number, values))
            for number in range(first, first + 4)[::order]:
                value = float(done[number].parameters["method.optimizer.lr"])
                done[number] = Trial(number, done[number].parameters, "finished", value)
        return done

    assert search(1) == search(-1)
    for trial in search(1):
        assert all(trial.parameters[key] in space[key] for key in space)


@pytest.mark.soak
@pytest.mark.parametrize("kind", [TPE, GP])
def test_a_model_of_the_trials_finds_more_than_chance(kind: type[TPE]) -> None:
    """40 trials in rounds of 4 on a bowl with a choice; at least 15 of 20 seeds."""
    space = space_of(Composer().parse(["a=tag(log,interval(1e-5,1))", "b=interval(0,1)", "c=choice(x,y,z)"]))

    def least(search: Random) -> float:
        done: list[Trial] = []
        for first in range(0, 40, 4):
            asked = list(done)
            for number in range(first, first + 4):
                asked.append(Trial(number, search.propose(space, number, asked, "min")))
            for trial in asked[first:]:
                place = math.log10(float(trial.parameters["a"])), float(trial.parameters["b"])
                value = (place[0] + 2.3) ** 2 + 4 * (place[1] - 0.7) ** 2 + "yxz".index(str(trial.parameters["c"])) / 2
                done.append(Trial(trial.number, trial.parameters, "finished", value))
        return min(trial.value for trial in done if trial.value is not None)

    better = sum(least(kind(seed=seed)) < least(Random(seed=seed)) for seed in range(20))
    print(f"{kind.__name__} is better with {better} of 20 seeds")
    assert better >= 15


def test_a_grid_covers_the_product() -> None:
    space = space_of(Composer().parse(["model.width=choice(4,8)", "seed=range(0,6,2)"]))
    grid = Grid()
    found = [tuple(grid.propose(space, number, [], "max").values()) for number in range(grid.count(space))]
    assert found == [(width, seed) for width in ("4", "8") for seed in (0, 2, 4)]
    assert Grid(trials=4).count(space) == 4


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (["method.optimizer.lr=interval(0.1,0.01)"], "method.optimizer.lr=interval(0.1,0.01): an interval goes from"),
        (
            ["method.optimizer.lr=tag(log,interval(0,1))"],
            "method.optimizer.lr=tag(log,interval(0,1)): with the tag log",
        ),
        (
            ["method.optimizer.lr=tag(ln,interval(0,1))"],
            "method.optimizer.lr=tag(ln,interval(0,1)): there is no tag ln",
        ),
        ([], "search: there is nothing to search over"),
        (["search=tpee", "seed=0,1"], "search=tpee: no such option; did you mean tpe?"),
        (["search.batch=0", "seed=0,1"], "search.batch: 0 is out of range: >= 1"),
        (
            ["search=grid", "method.label_smoothing=interval(0,0.1)"],
            "method.label_smoothing: a grid takes values, not an interval",
        ),
        (["search.rungs=2", "seed=0,1"], "runner.steps: the rungs of a search count epochs"),
        (["search.rungs=3", "runner.steps=null", "runner.epochs=8", "seed=0,1"], "search.rungs: 3 rungs by factor 3"),
        (["search.batch=1,2"], "search.batch: applies to the entire search"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(given: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [] if any(one.startswith("search=") for one in given) else ["search=random"]
    assert main([*TINY, *chosen, *given]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {answer}")
    assert told.count("\n") == 1
    assert not Path("runs").exists()


def test_without_optuna_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("healsg.searches.sampled.find_spec", lambda name: None)
    assert main([*TINY, "search=tpe", "seed=0,1"]) == 2
    assert capsys.readouterr().err == "error: search: needs Optuna; pip install 'healsg[search]'\n"
    assert "optuna" not in sys.modules or not Path("runs").exists()


def test_other_settings_are_refused_by_their_key(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(undisturbed, "runs/one")
    for other in ("search.batch=3", "search.seed=1", "method.label_smoothing=choice(0,0.2)"):
        line = [*SEARCH, *SPACE, "name=one"]
        given = [one for one in line if one.partition("=")[0] != other.partition("=")[0]]
        assert main([*given, other]) == 2
        assert capsys.readouterr().err.startswith(f"error: {other.partition('=')[0]}: runs/one was started with ")
    Path("runs/one/search.json").write_text('{"settings": {}, "trials": 1}')
    assert main([*SEARCH, *SPACE, "name=one"]) == 1
    assert "search.json: has no trials" in capsys.readouterr().err
