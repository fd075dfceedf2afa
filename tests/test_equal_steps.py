"""The same step on any number of processes and with any number of accumulated micro-batches: for every method, in
float64, without BatchNorm, 20 updates give the same weights to 1e-10, except where the method declares what differs."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from healsg.errors import ConfigError
from healsg.seeding import uniform_of
from healsg.training.parallel import Parallel
from healsg.training.split import local_lines
from healsg.training.split import table as table_of
from helpers import METHODS, REPOSITORY, UNLABELLED_ACTS, beside, in_processes, state, stopped_at, train

BATCH = 48
"""Samples of an update, whatever the setting."""

UPDATES = 20

OPTIONS = ["runner.precision=fp64", f"runner.steps={UPDATES}", "runner.log_every=100", "quiet=true"]
SMALL_SET = ["data.labels=310"]
"""Its epoch ends with a batch of 22 samples, which 3 and 4 processes share unevenly."""

ACTING: dict[str, list[str]] = {
    **UNLABELLED_ACTS,
    "class_balanced": ["data.imbalance=5"],
    "ldam_drw": ["data.imbalance=5"],
    "logit_adjustment": ["data.imbalance=5"],
    "coteaching": ["data.label_noise=0.2", "method.ramp=0.5"],
    "dividemix": ["data.label_noise=0.2", "method.warmup=0", "method.ramp=0.1"],
    # The bias of their last layer has no gradient but rounding errors, which AdamW would make steps of.
    "barlow_twins": ["method/optimizer=sgd", "method.optimizer.lr=0.001"],
    "vicreg": ["method/optimizer=sgd", "method.optimizer.lr=0.001"],
    "pgd": ["method.steps=2"],
    "trades": ["method.steps=2"],
}
"""By method, settings with which each of its terms acts within a few updates."""

EQUAL = 1e-10

State = dict[str, torch.Tensor]


def settings(method: str, accumulate: int) -> list[str]:
    """The overrides of a method in one setting; a teacher is trained where it needs one."""
    own = beside(method)
    network = [] if any(option.startswith("model=") for option in own) else ["model=mlp", "model.width=16"]
    size = [f"data.batch_size={BATCH // accumulate}", f"runner.accumulate={accumulate}"]
    small = [] if "data.imbalance=5" in ACTING.get(method, []) else SMALL_SET
    return [f"method={method}", *network, *own, *ACTING.get(method, []), *small, *OPTIONS, *size]


def state_after(overrides: list[str]) -> dict[str, State]:
    """The weights and the method's own state after the updates."""
    from healsg.build import build_task
    from healsg.config.compose import Composer

    task = build_task(Composer().compose(overrides))
    task.build()
    while task.runner.step_count < task.runner.total_steps:
        task.train_epoch.run()
        task.runner.next_epoch()
    states = {"model": task.model.state_dict(), "method": task.task_method.state_dict()}
    kept = {part: {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} for part, state in states.items()}
    return kept | {"eval": task.task_method.eval_model(task).state_dict()}


def run_all(given: dict[str, list[str]], world: int) -> None:
    """Run every setting in ``world`` processes, forked once, and keep the final states of rank 0."""

    def act(rank: int) -> None:
        for name, overrides in given.items():
            try:
                reached = state_after(overrides)
            except Exception:
                Path(f"{world}-{name}-{rank}.error").write_text(traceback.format_exc())
                raise
            if rank == 0:
                torch.save(reached, f"{world}-{name}.pt")

    in_processes(world, act)


def difference(first: str, second: str) -> float:
    """The largest difference of two final states in any number; of numbers beyond 1 relative to them."""
    states = [torch.load(f"{name}.pt", weights_only=True) for name in (first, second)]
    found = 0.0
    for part, values in states[0].items():
        for key, value in values.items():
            if value.numel() and value.is_floating_point():
                assert value.dtype == torch.float64 or part == "method", key
                gap = (value.double() - states[1][part][key].double()).abs() / value.double().abs().clamp(min=1.0)
                found = max(found, float(gap.max()))
    return found


def table(methods: Iterable[str], worlds: Iterable[int], accumulations: Iterable[int]) -> dict[str, dict[str, float]]:
    """By method and setting, the largest difference from the same accumulation in one process, or (one process,
    accumulated) from one micro-batch."""
    given = {f"{method}-{parts}": settings(method, parts) for method in methods for parts in accumulations}
    for world in worlds:
        run_all(given, world)
    rows: dict[str, dict[str, float]] = {}
    for method in methods:
        row = rows[method] = {}
        for world in worlds:
            for parts in accumulations:
                if world > 1:
                    row[f"{world}x{parts}"] = difference(f"1-{method}-{parts}", f"{world}-{method}-{parts}")
                elif parts > 1:
                    row[f"1x{parts}"] = difference(f"1-{method}-1", f"1-{method}-{parts}")
    return rows


def show(rows: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    print(f"{'method':<20}", *(f"{name:>9}" for name in names))
    for method, row in rows.items():
        print(f"{method:<20}", *(f"{row[name]:9.1e}" for name in names))


def declared(method: str) -> Any:
    """The class of ``method=...``."""
    node = yaml.safe_load((REPOSITORY / f"conf/method/{method}.yaml").read_text())
    while "_target_" not in node:  # it is that of the option which comes first in its defaults
        first = next(entry for entry in node["defaults"] if isinstance(entry, str) and entry != "_self_")
        node = yaml.safe_load((REPOSITORY / f"conf/method/{first}.yaml").read_text())
    target = node["_target_"]
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


@pytest.fixture
def _without_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BatchNorm1d", "BatchNorm2d"):
        monkeypatch.setattr(nn, name, nn.Identity)


@pytest.mark.usefixtures("_without_norm")
def test_two_processes_with_four_micro_batches_take_the_step_of_one() -> None:
    methods = ["flexmatch", "moco", "pgd"]
    run_all({f"{method}-1": settings(method, 1) for method in methods}, 1)
    run_all({f"{method}-4": settings(method, 4) for method in methods}, 2)
    for method in methods:
        assert difference(f"1-{method}-1", f"2-{method}-4") < EQUAL, method


@pytest.mark.soak
@pytest.mark.usefixtures("_without_norm")
def test_every_method_takes_the_same_step_except_where_it_declares_it() -> None:
    rows = table(METHODS, (1, 2, 3, 4), (1, 4))
    show(rows)
    for method, row in rows.items():
        kind = declared(method)
        processes = max(value for name, value in row.items() if not name.startswith("1x"))
        micro_batches = row["1x4"]
        assert (processes < EQUAL) is not bool(kind.local_to_process), (method, row)
        assert (micro_batches < EQUAL) is not bool(kind.local_to_micro_batch), (method, row)


def keep_state_of(run: str) -> None:
    """Write the last weights of a run, and the method's own state, for ``difference``."""
    kept = {part: state(run)[part] for part in ("model", "method")}
    tensors = {part: {k: v for k, v in one.items() if isinstance(v, torch.Tensor)} for part, one in kept.items()}
    torch.save(tensors, f"{run}.pt")


@pytest.mark.soak
@pytest.mark.usefixtures("_without_norm")
def test_a_run_goes_on_with_another_number_of_processes() -> None:
    """Stopped on two processes at update 10, in mid-epoch; it goes on on one and on three, with the same samples."""
    methods = [method for method in METHODS if not declared(method).local_to_process]
    given = {method: [*settings(method, 1), "resume.force=true"] for method in methods}

    def train_all(run: str) -> None:
        for method, options in given.items():
            train(*options, f"name={run}-{method}")

    def stop_all(rank: int) -> None:
        for method, options in given.items():
            stopped_at(10, *options, f"name=two-{method}")

    train_all("whole")
    in_processes(2, stop_all)
    for run in ("one", "three"):
        for method in methods:
            shutil.copytree(f"runs/two-{method}", f"runs/{run}-{method}")
    train_all("one")
    in_processes(3, lambda rank: train_all("three"))
    rows: dict[str, dict[str, float]] = {}
    for method in methods:
        for run in ("whole", "one", "three"):
            assert state(f"{run}-{method}")["runner"]["step"] == UPDATES
            keep_state_of(f"{run}-{method}")
        rows[method] = {f"2, {run}": difference(f"whole-{method}", f"{run}-{method}") for run in ("one", "three")}
    show(rows)
    assert {method: row for method, row in rows.items() if max(row.values()) >= EQUAL} == {}


def test_batchnorm_is_that_of_the_batch_of_all_processes() -> None:
    """51 labels: of the epoch's last batch, three samples, the second process has none and repeats some."""
    small = ["data.labels=51", f"data.batch_size={BATCH}", *OPTIONS, "runner.steps=8", "runner.log_every=100"]
    given = {
        "network": ["model=cnn", "model.width=4", "method=sgd", *small],
        "heads": ["model=mlp", "model.width=8", "method=byol", *beside("byol"), "method/optimizer=sgd", *small],
    }
    synced = {name: [*overrides, "runner.sync_batchnorm=true"] for name, overrides in given.items()}
    run_all(given, 1)
    run_all({**synced, "apart": given["network"]}, 2)
    for name in given:
        assert difference(f"1-{name}", f"2-{name}") < EQUAL, name
    assert difference("1-network", "2-apart") > 1e-6


def test_a_batchnorm_that_computes_by_itself_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input

    with pytest.raises(ConfigError, match=r"^runner\.sync_batchnorm: Own has a forward of its own; set it to false$"):
        Parallel(world=2, sync_batchnorm=True).synchronise_norms(torch.device("cpu"), nn.Sequential(Own(3)))


def test_a_run_says_what_it_does_not_share() -> None:
    network, two = nn.Sequential(nn.BatchNorm1d(3)), Parallel(world=2)
    sam = declared("sam")
    lines = local_lines(sam, network, two, 1)
    assert lines[0] == f"local to each process: {sam.local_to_process['worst point']}"
    assert lines[1].startswith("local to each process: BatchNorm's statistics; runner.sync_batchnorm=true")
    assert local_lines(sam, network, Parallel(), 1) == []
    assert len(local_lines(declared("simclr"), nn.Linear(2, 2), Parallel(), 4)) == 1


def test_the_documentation_lists_what_methods_declare() -> None:
    rows = table_of({method: declared(method) for method in METHODS})
    assert "\n".join(rows) + "\n" in (REPOSITORY / "docs/methods.md").read_text()


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_a_sample_draws_the_same_numbers_in_any_batch(shape: tuple[int, ...]) -> None:
    index = torch.tensor([5, 0, 1_000_000, 7])
    whole = uniform_of(index, 3, shape)
    assert whole.shape == (4, *shape)
    assert torch.equal(uniform_of(index[1:3], 3, shape), whole[1:3])
    many = uniform_of(torch.arange(4000), 3, shape)
    assert 0.0 <= float(many.min()) < 0.01
    assert 0.99 < float(many.max()) < 1.0
    assert abs(float(many.mean()) - 0.5) < 0.01
    assert abs(float(torch.corrcoef(many.flatten(1).T)[0, 1])) < 0.06
    assert not torch.equal(uniform_of(index, 4, shape), whole)


if __name__ == "__main__":
    for name in ("BatchNorm1d", "BatchNorm2d"):
        setattr(nn, name, nn.Identity)
    show(table(sys.argv[1:] or METHODS, (1, 2, 3, 4), (1, 4)))


MASKING = """
from healsg.methods.supervised import Supervised


class Plain(Supervised):
    def train_step(self, task, batch):
        target = batch["target"].masked_fill(batch["target"] % 3 == 0, -100)
        return super().train_step(task, {**batch, "target": target})


class Copied(Supervised):
    def train_step(self, task, batch):
        target = batch["target"].masked_fill(batch["target"] % 3 == 0, -100)
        return super().train_step(task, batch | {"target": target})
"""
"""Steps of a user's own that hand other targets on, in a plain dict and in a copy of the batch."""


@pytest.mark.parametrize("kind", ["Plain", "Copied"])
def test_targets_that_a_step_replaces_are_counted_as_in_one_batch(kind: str) -> None:
    Path("my_masking.py").write_text(MASKING)
    target = f"method._target_=my_masking.{kind}"
    run_all({f"{parts}": [*settings("adamw", parts), target] for parts in (1, 2)}, 1)
    run_all({"1": [*settings("adamw", 1), target]}, 2)
    assert difference("1-1", "1-2") < EQUAL
    assert difference("1-1", "2-1") < EQUAL


def test_mixed_samples_of_a_copied_batch_are_drawn_as_in_one_process() -> None:
    Path("my_masking.py").write_text(MASKING)
    mixed = [*settings("adamw", 1), "method._target_=my_masking.Copied", "method.mixup=0.4"]
    for world in (1, 2):
        run_all({"mixed": mixed}, world)
    assert difference("1-mixed", "2-mixed") < EQUAL


def test_a_plain_dict_cannot_be_mixed_in_several_processes() -> None:
    """It does not know which samples of the batch a process has, so that each would mix otherwise than one alone."""
    Path("my_masking.py").write_text(MASKING)
    mixed = [*settings("adamw", 1), "method._target_=my_masking.Plain", "method.mixup=0.4"]
    run_all({"mixed": mixed}, 1)
    with pytest.raises(AssertionError):
        run_all({"mixed": mixed}, 2)
    told = Path("2-mixed-0.error").read_text().splitlines()[-1]
    assert told.startswith("healsg.errors.RunError: train_step: the batch became a plain dict, "), told
