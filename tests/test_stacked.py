"""``sweep=vectorised``: jobs as one stack leave what each would have left alone, or are refused with the reason."""

from __future__ import annotations

import copy
import csv
import gc
import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from healsg import checkpoint
from healsg.cli import main
from healsg.commands.sweep import plan
from healsg.compose import Composer
from healsg.config import Composed, build_task
from healsg.datasets.digits import Digits
from healsg.errors import ConfigError
from healsg.sweeps import dealing, stack, trial
from healsg.sweeps.fitting import refuse
from healsg.sweeps.jobs import compose_jobs
from test_signals import ended, forked
from test_sweep_kills import killed_until_finished

TINY = ["model=mlp", "model.width=8", "data.labels=200", "runner.epochs=3", "runner.log_every=3", "quiet=true"]


def sweep(kind: str, *given: str, name: str | None = None, status: int = 0) -> Path:
    """Run a sweep in one way; its folder."""
    line = ["train", *TINY, f"sweep={kind}", f"name={name or kind}", "-m", *given]
    assert main(line) == status
    return Path("runs", name or kind)


def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """The record of each job."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))}


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for name, inner in pairs for k, v in leaves(inner, f"{key}.{name}").items()}
    return {key: value}


def check_state(one: Any, other: Any, tolerance: float) -> None:
    """Two checkpoints hold the same things, and numbers that agree to rounding."""
    left, right = leaves(one), leaves(other)
    assert list(left) == list(right)
    for key, value in left.items():
        assert type(value) is type(right[key]), key
        if isinstance(value, Tensor):
            assert value.dtype == right[key].dtype
            torch.testing.assert_close(right[key], value, rtol=tolerance, atol=tolerance)
        elif isinstance(value, float):
            assert right[key] == pytest.approx(value, rel=max(tolerance, 1e-12), abs=tolerance), key
        elif not key.startswith(".journal"):
            assert value == right[key], key


def check_alike(serial: Path, stacked: Path, tolerance: float) -> None:
    """Each job of one sweep left what that of the other did."""
    records = jobs(serial), jobs(stacked)
    assert list(records[0]) == list(records[1])
    for job, record in records[0].items():
        one, other = serial / job, stacked / job
        assert {path.relative_to(one) for path in one.rglob("*")} == {
            path.relative_to(other) for path in other.rglob("*")
        }
        assert record.keys() == records[1][job].keys()
        assert (record["status"], record["parameters"]) == (records[1][job]["status"], records[1][job]["parameters"])
        configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (one, other)]
        assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"name", "sweep"}
        check_state(lines(one), lines(other), 1e-4)
        for file in ("last.pt", "best.pt"):
            left, right = (checkpoint.load(folder / "checkpoints" / file) for folder in (one, other))
            check_state(left, right, tolerance)


RULES = {
    "sgd": ["method=sgd", "method.optimizer.lr=0.1,0.02", "method.optimizer.momentum=0.9,0.5"],
    "plain sgd": [
        *("method=sgd", "method.optimizer.nesterov=false", "method.optimizer.momentum=0"),
        *("method.optimizer.weight_decay=0,0.1", "method.optimizer.lr=0.1,0.02"),
    ],
    "dampening": ["method=sgd", "method.optimizer.nesterov=false", "method.optimizer.dampening=0,0.5", "seed=0,1"],
    "adam": ["method/optimizer=adam", "method.optimizer.weight_decay=0,0.1", "seed=0,1"],
    "adamw": [
        *("method=adamw", "method.optimizer.eps=1e-8,1e-3", "method.decay_norms_and_biases=false"),
        *("method.optimizer.weight_decay=0,0.3", "method.scheduler.warmup=0.3"),
    ],
    "betas": ["method.optimizer.betas=[0.9,0.999],[0.5,0.9]", "method.layer_decay=0.5"],
    "smoothing and clipping": ["method.label_smoothing=0,0.3", "runner.clip_norm=0.1,5"],
    "batchnorm": ["model=cnn", "model.width=4", "seed=0,1"],
    "parts of the data": ["data.split_seed=0,1", "data.balanced=true"],
    "one by one": ["seed=0,1", "data.augment=light", "data.shift=0,1"],
    "augmented": ["seed=0,1", "data.augment=strong"],
    "regression": [
        *("data=synthetic", "data.shape=[6]", "data.images=false", "data.kind=regression", "data.classes=2"),
        *("data.train=200", "data.noise=0.5", "seed=0,1"),
    ],
}


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


@pytest.mark.parametrize("rule", RULES)
def test_a_stack_moves_each_network_as_it_would_move_alone(rule: str, composer: Composer) -> None:
    """In float64, over two epochs of batches: weights, buffers, the optimizer's state, losses."""
    given = ["model=mlp", "model.width=8", "runner.epochs=4", "runner.precision=fp64", "runner.limit_batches=4"]
    given += RULES[rule]
    made = compose_jobs(composer, composer.sweep(given), given)
    alone, stacked = ([build_task(composed) for composed in made] for _ in range(2))
    for task in [*alone, *stacked]:
        task.build()
        task.build_training()
        task.net.train()
    alike = all(one.values["data"] == made[0].values["data"] for one in made)
    dealer, together = dealing.Dealer(stacked, alike), stack.Stack(stacked)
    for epoch in range(2):
        own = [task.train_loader.batches(epoch, 1) for task in alone]
        for batch, rows in dealer.batches(epoch, 1):
            batch = together.place.move(batch)
            losses = together.step(batch["input"], batch["target"], dealer.shared)
            for task, loss, (mine, count) in zip(alone, losses, map(next, own), strict=True):
                assert count == rows
                task.runner.rows, task.runner.closing = rows, True
                logs, moved = task.runner.step(task, task.runner.place.move(mine))
                torch.testing.assert_close(loss, logs["loss"].detach(), rtol=1e-9, atol=1e-9)
                assert moved
            for task in stacked:
                task.scheduler.step()
    for one, other in zip(alone, stacked, strict=True):
        check_state({**one.state_dict(), "runner": None}, {**other.state_dict(), "runner": None}, 1e-9)


SWEEPS = {
    "adamw": ["method.optimizer.lr=1e-3,1e-2", "method.label_smoothing=0,0.1", "runner.precision=fp64"],
    "batchnorm": ["model=cnn", "model.width=4", "seed=0,1"],
    "plateau and early stopping": [
        *("method/scheduler=plateau", "method.scheduler.patience=0", "method.optimizer.lr=1e-12,0.01"),
        *("runner/callbacks=early_stopping", "runner.callbacks.early_stopping.patience=1"),
    ],
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.soak] * (kind == "batchnorm")) for kind in SWEEPS]
)
def test_a_stack_leaves_what_each_job_alone_would(kind: str) -> None:
    """Final weights, optimizer, lines, best, files. In float32 a difference of 1e-7 at an update, which AdamW enlarges
    where gradients are small, stays far below 1e-3 over 12 of them."""
    given = SWEEPS[kind]
    check_alike(
        sweep("serial", *given), sweep("vectorised", *given), 1e-9 if "runner.precision=fp64" in given else 1e-3
    )


def test_what_is_said_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep("vectorised", "seed=0,1", "quiet=false")
    shown = capsys.readouterr()
    assert shown.err == ""
    told, *epochs = shown.out.splitlines()[:4]
    assert told.startswith("2 jobs as one stack: a step of all takes ")
    assert [line.split("  ")[:2] for line in epochs] == [[f"epoch {n}/3", "2 jobs"] for n in (1, 2, 3)]
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["status"]) for row in rows] == [("seed=0", "finished"), ("seed=1", "finished")]
    for job in ("seed=0", "seed=1"):
        log = (folder / job / "train.log").read_text()
        assert log.count("event epoch") == 3, "its own lines, once each"
        assert f"finished: {folder / job}" in log
    assert main(["train", *TINY, "sweep=vectorised", f"name={folder.name}", "-m", "seed=0,1", "quiet=false"]) == 0
    assert capsys.readouterr().out.count("is finished\n") == 2


def test_whether_it_pays(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([1.0, 0.25])
    monkeypatch.setattr(trial, "_seconds", lambda *_: next(seconds))
    sweep("vectorised", "seed=0,1")
    told = capsys.readouterr().out.splitlines()[0]
    assert told.endswith("0.5 times as fast; sweep=serial is the faster way here, and vectorised was asked for")


OWN = """
import torch
from torch import nn
from healsg import BasicTask, TaskModel

class Own(BasicTask):
    pass

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x):
        x = x.flatten(1)
        if KIND == "assigns" and self.training:
            self.mean = 0.9 * self.mean + x.mean(0).detach()
        if KIND == "draws" and self.training:
            x = x * torch.rand_like(x)
        if KIND == "decides" and x.mean() > 3:
            x = -x
        return self.head(x - self.mean)

class Model(TaskModel):
    def build(self, info):
        return Net()
"""

REFUSED = [
    (["model.width=8,16"], "model.width differs (8, 16)"),
    (["method=sgd,adamw"], "method.optimizer._target_ differs"),
    (["data.batch_size=32,64"], "data.batch_size differs (32, 64)"),
    (["seed=0,1", "method=sam"], "method._target_ is not healsg.methods.supervised.Supervised"),
    (["seed=0,1", "method/optimizer=lion"], "method.optimizer: a stack knows SGD, Adam, AdamW"),
    (["seed=0,1", "method/optimizer=adam", "method.optimizer.amsgrad=true"], "method.optimizer.amsgrad=true"),
    (["seed=0,1", "method.ema=0.9"], "method.ema=0.9: a stack takes 0"),
    (["seed=0,1", "method.mixup=0.2"], "method.mixup=0.2"),
    (["seed=0,1", "runner.accumulate=2"], "runner.accumulate=2: a stack takes 1"),
    (["seed=0,1", "runner.precision=fp16"], "runner.precision="),
    (["runner.clip_norm=1,null"], "runner.clip_norm differs"),
    (["sweep=serial,vectorised"], "sweep: is that of the whole sweep"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_jobs_that_do_not_fit_are_refused(given: list[str], told: str, composer: Composer, plain: Composed) -> None:
    grouped = any(text.partition("=")[0] in ("method", "method/optimizer", "sweep") for text in given)
    with pytest.raises(ConfigError) as error:
        plan(composer, [*TINY, "sweep=vectorised", "name=refused", *given]) if grouped else refuse(two(plain, given))
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert ("sweep=serial" in str(error.value)) == ("is that of" not in told)


@pytest.fixture(scope="module")
def plain(composer: Composer) -> Composed:
    return composer.compose([*TINY, "sweep=vectorised", "name=refused"])


def two(plain: Composed, given: list[str]) -> list[tuple[str, Composed]]:
    return [(str(place), changed(plain, given, place)) for place in range(2)]


def changed(plain: Composed, given: list[str], place: int) -> Composed:
    """A job of a sweep: of each key its value of that number, or the last."""
    values = copy.deepcopy(plain.values)
    for key, _, text in (override.partition("=") for override in given):
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        assert last in node
        node[last] = yaml.safe_load(text.split(",")[min(place, text.count(","))])
    return replace(plain, values=values)


REFUSED_NETWORKS = [
    (["task._target_=own_task.Own"], "task._target_ is not healsg.task.BasicTask"),
    (["model.dropout=0.1"], "has dropout (body.3), which in a stack cannot follow each job's own seed"),
    (["model._target_=own_assigns.Model"], "moves mean otherwise in a stack than alone"),
    (["model._target_=own_draws.Model"], "random operation"),
    (["model._target_=own_decides.Model"], "data-dependent control flow"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED_NETWORKS, ids=[" ".join(given) for given, _ in REFUSED_NETWORKS])
def test_networks_that_do_not_fit_are_refused(given: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is written."""
    own = given[0].partition("_target_=own")[2].partition(".")[0]
    Path(f"own{own}.py").write_text(OWN.replace("KIND", repr(own[1:])))
    tiny = ["model=mlp", "~model.width", "~model.depth", "~model.dropout", *TINY[2:]] if own else TINY
    assert main(["train", *tiny, "sweep=vectorised", "name=refused", "-m", "seed=0,1", *given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error
    assert "sweep=serial" in error
    assert not Path("runs").exists()


def test_a_job_that_fails_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value, and a rate at which the loss is soon no number."""
    given = ["method=sgd", "method.optimizer.lr=0.05,-1,1e30,0.1"]
    serial, stacked = (sweep(kind, *given, status=1) for kind in ("serial", "vectorised"))
    told = capsys.readouterr().err
    assert "Traceback" not in told
    rows = []
    for folder in (serial, stacked):
        with (folder / "sweep.csv").open(newline="") as file:
            rows.append([(row["job"], row["status"], row["reason"][:45]) for row in csv.DictReader(file)])
    assert rows[0] == rows[1]
    assert [status for _, status, _ in rows[0]] == ["finished", "failed", "failed", "finished"]
    for job in ("method.optimizer.lr=0.05", "method.optimizer.lr=0.1"):
        states = [checkpoint.load(folder / job / "checkpoints/last.pt") for folder in (serial, stacked)]
        check_state(states[0]["model"], states[1]["model"], 1e-4)


def stopping(after: int) -> Callable[[], None]:
    """Let this process be told to stop after so many updates of the stack, not counting the trial's."""

    def prepare() -> None:
        step, taken = stack.Stack.step, [0]

        def told(self: stack.Stack, *arguments: Any, **named: Any) -> Tensor:
            if Path("runs/vectorised/seed=0").exists():
                taken[0] += 1
                if taken[0] == after:
                    os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *arguments, **named)

        stack.Stack.step = told  # type: ignore[method-assign]

    return prepare


def test_a_signal_stops_all_jobs_and_each_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """At one step; by the same command, by ``healsg resume`` alone, and when the jobs stand at different steps."""
    line = ["train", *TINY, "sweep=vectorised", "name=vectorised", "-m", "seed=0,1,2"]
    whole = sweep("vectorised", "seed=0,1,2", name="whole")
    folder = Path("runs/vectorised")
    assert ended(forked(line, stopping(6))) == 143, Path("output").read_text()
    states = {path.parent.parent.name: checkpoint.load(path) for path in folder.glob("*/checkpoints/last.pt")}
    assert {state["runner"]["step"] for state in states.values()} == {6}
    assert {record["status"] for record in jobs(folder).values()} == {"stopped"}
    assert main(["resume", str(folder / "seed=0"), "quiet=true"]) == 0
    assert main(["resume", str(folder / "seed=1"), "quiet=true", "runner.max_time=0"]) == 0
    assert checkpoint.load(folder / "seed=1/checkpoints/last.pt")["runner"]["step"] == 7
    assert main(line) == 0
    check_alike_but_times(whole, folder)
    capsys.readouterr()
    assert main(["eval", str(folder / "seed=2"), "split=test"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {f"test/{key}": value for key, value in shown["metrics"].items()} == jobs(folder)["seed=2"]["test"]


def check_alike_but_times(one: Path, other: Path) -> None:
    assert list(jobs(one)) == list(jobs(other))
    for job, record in jobs(other).items():
        assert record["status"] == "finished"
        check_state(lines(one / job), lines(other / job), 1e-4)
        states = [checkpoint.load(folder / job / "checkpoints/last.pt") for folder in (one, other)]
        check_state(states[0]["model"], states[1]["model"], 1e-4)


def test_stopping_and_going_on_changes_no_bit() -> None:
    """As long as the same jobs are stacked."""
    whole = sweep("vectorised", "seed=0,1", name="whole")
    line = ["train", *TINY, "sweep=vectorised", "name=vectorised", "-m", "seed=0,1"]
    assert ended(forked(line, stopping(5))) == 143
    assert main(line) == 0
    digests = [[record["digest"] for record in jobs(folder).values()] for folder in (whole, Path("runs/vectorised"))]
    assert digests[0] == digests[1]


def test_what_was_begun_alone_goes_on_in_a_stack_and_ends_alone() -> None:
    serial = sweep("serial", "seed=0,1", name="whole")
    for kind in ("serial", "vectorised"):
        sweep(kind, "seed=0,1", "runner.max_time=0", name="mixed")
        assert {record["status"] for record in jobs(Path("runs/mixed")).values()} == {"stopped"}
    assert checkpoint.load(Path("runs/mixed/seed=1/checkpoints/last.pt"))["runner"]["step"] == 2
    check_alike_but_times(serial, sweep("serial", "seed=0,1", name="mixed"))


@pytest.mark.soak
def test_many_kills_of_a_stack() -> None:
    given = ["train", *TINY, "runner.epochs=40", "runner.save_every=3", "sweep=vectorised", "-m", "seed=range(0,4)"]
    assert ended(forked([*given, "name=whole"])) == 0
    print(killed_until_finished([*given, "name=killed"], random.Random(18), 30, 2.0, (signal.SIGKILL,)), "kills")
    check_alike_but_times(Path("runs/whole"), Path("runs/killed"))


# --- what serves the jobs of either way ------------------------------------------------------------------------------

COMPOSED = [
    ["seed=0,1,2", "model=mlp", "logger=null", "quiet=true"],
    ["model.width='4',8,16", "model=mlp"],
    ["seed=0,1", "model=mlp,cnn"],
    ["+args.a=0,1,2", "seed=3"],
    ["seed=0,1,2", "seed=7"],
    ["runner.clip_norm=null,1,2", "data.root=${name}", "name=1"],
]


@pytest.mark.parametrize("given", COMPOSED, ids=" ".join)
def test_configurations_composed_once_are_those_composed_one_by_one(given: list[str], composer: Composer) -> None:
    rows = composer.sweep(given)
    for line, one in zip(rows, compose_jobs(composer, rows, given), strict=True):
        assert vars(one) == vars(composer.compose(line, checked=False))


def test_most_jobs_are_not_composed(monkeypatch: pytest.MonkeyPatch, composer: Composer) -> None:
    count = [0]
    compose = composer.compose

    def counted(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        return compose(*arguments, **named)

    monkeypatch.setattr(composer, "compose", counted)
    given = ["seed=range(0,40)", "model=mlp"]
    assert [job.values["seed"] for job in compose_jobs(composer, composer.sweep(given), given)] == list(range(40))
    assert count[0] == 1


@pytest.mark.parametrize("kind", ["serial", "vectorised"])
def test_data_are_read_once_for_all_jobs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, parts = Digits.read, list[str]()

    def counted(self: Digits, part: str) -> Any:
        parts.append(part)
        return read(self, part)

    monkeypatch.setattr(Digits, "read", counted)
    sweep(kind, "seed=0,1")
    assert sorted(parts) == ["test", "train", "val"]
    assert gc.get_freeze_count() == 0
