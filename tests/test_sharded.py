"""Weights that are sharded over processes (FSDP2): the same numbers as with whole ones, half the memory, one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import healsg.training.sharded  # noqa: F401, once here and not in each process
from healsg.errors import ConfigError
from helpers import beside, in_processes, record, state, stopped_at, train, trainer

VIT = ["data=digits", "model=vit", "model.patch=4", "model.width=16", "model.heads=2", "model.depth=2"]
RUN = [*VIT, "method=adamw", "method.scheduler=null", "runner.precision=fp64", "data.batch_size=64", "quiet=true"]
BEHIND = 1e-10


def in_two(*options: str, after: Callable[[Any, int], None] = lambda run, rank: None, begun: int = 0) -> None:
    """Train in two processes, where ``begun`` updates were made in this one, and do something with each afterwards."""
    trainer(*options)  # so that the settings are composed once
    if begun:
        stopped_at(begun, *options)

    def act(rank: int) -> None:
        run = trainer(*options)
        run.train()
        after(run, rank)

    in_processes(2, act)


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint by their place in it."""
    if isinstance(value, Tensor):
        return {name: value}
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {place: one for key, inner in entries for place, one in tensors(inner, f"{name}.{key}").items()}


def difference(first: str, second: str) -> float:
    """The largest between two runs' weights and optimizer states."""
    ones, others = (tensors({key: state(run)[key] for key in ("model", "optimizer")}) for run in (first, second))
    assert ones.keys() == others.keys()
    assert len(ones) > 30
    assert all(one.shape == others[name].shape and type(one) is Tensor for name, one in ones.items())
    return max(float((one.double() - others[name].double()).abs().max()) for name, one in ones.items() if one.numel())


def write_share(run: Any, rank: int) -> None:
    """Write which share of the bytes of parameters and optimizer state a process has."""
    task = run.task
    values = [*task.model.parameters(), *(value for one in task.optimizer.state.values() for value in one.values())]
    own = sum(value.to_local().nbytes if hasattr(value, "to_local") else value.nbytes for value in values)
    Path(f"share{rank}").write_text(str(own / sum(value.numel() * value.element_size() for value in values)))


def test_sharded_weights_are_those_of_whole_ones() -> None:
    """Twenty updates in two processes, from a checkpoint of one process, and a file that one process can load."""
    epochs = [*RUN, "data.batch_size=16", "runner.limit_batches=20", "runner.eval_every=2", "runner.shard=true"]
    in_two(*epochs, "resume.force=true", "runner.epochs=2", "name=sharded", after=write_share, begun=20)
    assert all(0.4 < float(Path(f"share{rank}").read_text()) <= 0.6 for rank in (0, 1))
    train(*epochs, "resume.force=true", "runner.epochs=2", "name=whole")
    assert record("sharded")["status"] == record("whole")["status"] == "finished"
    assert difference("whole", "sharded") < BEHIND


@pytest.mark.soak
def test_a_run_goes_from_sharded_processes_to_one_and_back() -> None:
    epochs = [*RUN, "runner.limit_batches=10"]
    in_two(*epochs, "runner.epochs=3", "name=whole")
    sharded = [*epochs, "runner.shard=true", "resume.force=true", "name=sharded"]
    in_two(*sharded, "runner.epochs=1")
    train(*sharded, "runner.epochs=2")
    in_two(*sharded, "runner.epochs=3")
    assert difference("whole", "sharded") < BEHIND


def test_what_needs_whole_weights_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from healsg.training import parallel

    monkeypatch.setenv("WORLD_SIZE", "2")
    for options, said in (
        (["method=adamw", "method.ema=0.9"], "method.ema"),
        (["method=sam"], "SAM needs unsharded weights"),
        (["method=simclr"], "SimCLR needs unsharded weights"),
        (["method=muon"], "Muon was not tried"),
        (["method=adamw", "runner.compile=true"], "runner.compile"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            trainer("data=digits", "model=cnn", "runner.shard=true", *options).train()
        assert "\n" not in str(caught.value)
    assert parallel.Parallel.of_launch(shard=True).shards


@pytest.mark.soak
@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((name, []) for name in ("sgd", "adamw", "finetune", "kd")),
        *(("adamw", [f"method/optimizer={name}"]) for name in ("adam", "lion", "rmsprop", "sgd")),
        ("sgd", ["runner.accumulate=3", "runner.clip_norm=0.1", "data.batch_size=32"]),
        ("adamw", ["runner.accumulate=2", "runner.sync_batchnorm=true", "model=resnet", "runner.channels_last=false"]),
        ("adamw", ["method.freeze=body"]),
        ("adamw", ["model=cnn", "data.batch_size=50", "data.eval_batch_size=1", "runner.limit_batches=6"]),
    ],
)
def test_every_part_that_takes_shards_gives_the_same_numbers(method: str, more: list[str]) -> None:
    own = [option for option in RUN if not (option.startswith("model") and any("model=" in one for one in more))]
    line = [*own, f"method={method}", *beside(method), "method.scheduler=null", "runner.steps=12", *more]
    in_two(*line, "name=whole")
    in_two(*line, "runner.shard=true", "name=sharded")
    assert difference("whole", "sharded") < BEHIND
