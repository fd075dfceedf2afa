"""Compilation: of the whole network, of its repeated blocks, and what it must not change."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from healsg import TaskTrainer
from healsg.errors import ConfigError
from healsg.evaluation.evaluator import evaluating
from healsg.runs.checkpoint import load
from healsg.training.device import DeviceSetup, repeated
from helpers import lines, stopping_at

# A process whose first backward pass is that of a graph which torch compiles cannot be forked for training any more, as
# tests that come after these do.
torch.ones(1, requires_grad=True).sum().backward()

MLP = ["model=mlp", "model.width=16"]
VIT = ["model=vit", "model.depth=4", "model.width=12", "model.heads=2"]
LAST = 19
"""Batches of 64 in an epoch of digits; the last one has 15."""

pytestmark = pytest.mark.filterwarnings("ignore")


def train(*options: str, name: str = "run") -> dict[str, Any]:
    return TaskTrainer.compose("quiet=true", "method=sgd", *options, f"name={name}").train()


def state(name: str) -> dict[str, Any]:
    return load(Path("runs") / name / "checkpoints/last.pt")


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[list[int | torch.SymInt]]:
    """The sizes of what each compiled graph takes, without a compiler behind it."""
    seen: list[list[int | torch.SymInt]] = []

    def backend(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        taken = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
        seen.append([size for value in taken for size in (value.shape if isinstance(value, Tensor) else [value])])
        assert torch.is_grad_enabled()
        return graph.forward  # type: ignore[no-any-return]

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return seen


def test_cuda_graphs_are_torchs_own_and_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^runner.cuda_graph: needs a GPU that has CUDA, and this run is on cpu$"):
        train(*MLP, "runner.cuda_graph=true", "runner.device=cpu")
    for more in ("runner.accumulate=2", "runner.auto_accumulate=true"):
        with pytest.raises(ConfigError, match=r"^runner.cuda_graph: .*; do not accumulate them$"):
            train(*MLP, "runner.cuda_graph=true", more)
    with pytest.raises(ConfigError, match=r"^runner.cuda_graph: .*; set runner.compile=true$"):
        train(*MLP, "runner.cuda_graph=true", "runner.compile=regional")
    place, network, asked = DeviceSetup("cpu", "fp32", False, False), nn.Linear(2, 2), []
    place.device = torch.device("cuda")
    monkeypatch.setattr(torch, "compile", lambda net, **options: asked.append(options) or net)
    for compile, cuda_graph in ((True, False), (False, True), (True, True), (False, False)):
        assert place.wrap(network, compile, cuda_graph, find_unused_parameters=False) is network
    assert [options["mode"] for options in asked] == [None, "reduce-overhead", "reduce-overhead"]


@pytest.mark.parametrize("value", ["regionl", "yes", "1", "null"])
def test_another_word_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^runner.compile: .* is not true or false or the word regional$"):
        train(*MLP, f"runner.compile={value}")


def test_compiled_weights_are_plain_ones() -> None:
    train(*MLP, "runner.steps=8", "runner.compile=true", name="compiled")
    train(*MLP, "runner.steps=8", name="plain")
    compiled, plain = state("compiled")["model"], state("plain")["model"]
    assert list(compiled) == list(plain)
    assert distance(compiled, plain) < 1e-4
    train(*MLP, "runner.steps=1", "init_from=compiled", "method.optimizer.lr=1e-12", name="after")
    best = load(Path("runs/compiled/checkpoints/best.pt"))["model"]
    assert distance(state("after")["model"], best) < 1e-9


def test_compiled_and_plain_runs_go_on_from_each_other() -> None:
    """The keys of a checkpoint are those of the bare network."""
    options = [*MLP, "data.batch_size=256", "runner.epochs=2"]
    train(*options, "runner.max_time=0", name="plain")
    train(*options, "runner.compile=true", "runner.steps=2", name="compiled")
    keys = {name: list(state(name)["model"]) for name in ("plain", "compiled")}
    assert keys["plain"] == keys["compiled"]
    assert not any("_orig_mod" in key or key.startswith("module.") for key in keys["compiled"])
    assert train(*options, "runner.compile=true", "resume.force=true", name="plain")["status"] == "finished"
    forced = ["runner.compile=false", "runner.steps=8", "resume.force=true"]
    assert train(*options, *forced, name="compiled")["status"] == "finished"


@pytest.mark.parametrize("compile", ["true", "regional"])
def test_one_graph_for_each_size_of_batch(compile: str, graphs: list[list[int | torch.SymInt]]) -> None:
    """Alike blocks share it, evaluation has none, and it does not depend on which size came first."""
    options = [*VIT, "runner.epochs=2", "runner.log_every=1"]
    train(*options, f"runner.compile={compile}", name="compiled")
    assert len(graphs) == 2, "64 samples, and the 15 of an epoch's last batch"
    assert all(type(size) is int for sizes in graphs for size in sizes)
    train(*options, name="plain")
    assert len(graphs) == 2
    assert list(state("compiled")["model"]) == list(state("plain")["model"])
    losses = [[row["train/loss"] for row in lines(name) if "train/loss" in row] for name in ("plain", "compiled")]
    assert len(losses[0]) > 2 * LAST
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_compiled_run_is_evaluated_as_its_checkpoint_is(graphs: list[list[int | torch.SymInt]]) -> None:
    """Through what surrounds an evaluation, which leaves the network as compiled as it was."""
    trainer = TaskTrainer.compose("quiet=true", *VIT, "runner.steps=3", "runner.compile=regional", "name=run")
    trainer.train()
    assert len(graphs) == 1
    assert trainer.task is not None
    blocks = repeated(trainer.task.model)
    assert len(blocks) == 4
    assert all(block._compiled_call_impl for block in blocks)
    trainer.task.net.train()
    trainer.task.net(torch.rand(5, 1, 8, 8))
    assert len(graphs) == 2, "outside an evaluation it is"
    numbers = [row["val/loss"] for row in lines("run") if "val/loss" in row]
    assert TaskTrainer.load("run").evaluate("val", "last")["loss"] == numbers[-1]


def test_what_other_runs_compiled_does_not_count(graphs: list[list[int | torch.SymInt]]) -> None:
    """Torch compiles the same code eight times at most, and then no more: the ninth width of a sweep, say."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for width in range(2, 12):
            options = ["model=mlp", f"model.width={width}", "data.drop_last=true", "runner.compile=true"]
            assert train(*options, "runner.steps=1", name=f"w{width}")["status"] == "finished"
    assert len(graphs) == 10


class Unit(nn.Sequential):
    """No class of its own: what it does is a row of others."""


class Branch(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.body = nn.ModuleList(Unit(Unit(nn.Linear(2, 2))) for _ in range(inner))


class Stage(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Branch(3) for _ in range(blocks))


def test_blocks_are_the_innermost_of_a_class_of_their_own() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), Stage(2), Stage(3), nn.Sequential(Branch(1), nn.ReLU()))
    assert repeated(network) == [*network[2].blocks, *network[3].blocks]  # type: ignore[union-attr]
    assert repeated(nn.Sequential(Stage(1), Branch(2))) == []
    assert repeated(nn.Sequential(nn.ReLU(), nn.ReLU())) == []
    one, two = Branch(1), Branch(1)
    assert repeated(nn.Sequential(nn.ModuleDict({"a": one, "b": two, "c": one}), nn.ModuleList([one, two]))) == [
        one,
        two,
    ]
    scripted = [torch.jit.script(nn.Sequential(nn.Linear(2, 2))) for _ in range(2)]
    assert repeated(nn.ModuleList(scripted)) == [], "they cannot be compiled"


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.layer = factor, nn.Linear(2, 2)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.factor * torch.tanh(self.layer(input))


def wrapped(network: nn.Module, compile: Any = "regional") -> nn.Module:
    place = DeviceSetup("cpu", "fp32", False, False)
    return place.wrap(network, compile, cuda_graph=False, find_unused_parameters=False)


def test_blocks_that_are_not_alike_are_all_compiled(graphs: list[list[int | torch.SymInt]]) -> None:
    """Each for as many sizes of batches as torch allows one network."""
    network = wrapped(nn.Sequential(*(Scaled(1 / place) for place in range(1, 11))))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for rows in range(1, 9):
            network(torch.ones(rows, 2)).sum().backward()
    assert len(graphs) == 10 * 8


@pytest.mark.parametrize("before", [False, True])
def test_a_hook_of_one_block_is_not_taken_for_none(before: bool, graphs: list[list[int | torch.SymInt]]) -> None:
    """Also where torch looks among the code that it has, from the second step on."""
    network, input = nn.Sequential(*(Scaled(1.0) for _ in range(3))), torch.tensor([[0.5, -1.0]])
    alone = network(input)
    if before:
        network[1].layer.register_forward_pre_hook(lambda module, given: given[0] + 1)
    else:
        network[1].layer.register_forward_hook(lambda module, given, output: output * 3 + 1)
    plain, net = network(input), wrapped(network)
    assert not torch.allclose(plain, alone)
    assert all(torch.allclose(net(input), plain) for _ in range(3))
    assert len(graphs) == 3


class Itself(nn.Module):
    """Compiles its own part, whatever the runner does."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.rows = Scaled(1.0), nn.ModuleList(Scaled(1.0) for _ in range(2))
        self.part.compile()

    def forward(self, input: Tensor) -> Tensor:
        return self.part(self.rows[1](self.rows[0](input)))  # type: ignore[no-any-return]


def test_what_a_network_compiles_itself_stays_so(graphs: list[list[int | torch.SymInt]]) -> None:
    network = wrapped(Itself())
    with evaluating(network):
        network(torch.ones(4, 2))
        assert len(graphs) == 1
        with evaluating(network):
            assert network.rows[0]._compiled_call_impl is None  # type: ignore[index,union-attr]
        network(torch.ones(4, 2))
    assert len(graphs) == 1
    network(torch.ones(4, 2))
    assert len(graphs) == 3, "the two blocks as one, and the part in training mode"
    with pytest.raises(ConfigError, match=r"^runner.compile: the network is compiled already; set runner.compile=fa"):
        wrapped(torch.compile(nn.Linear(2, 2)), True)  # type: ignore[arg-type]


@pytest.mark.soak
@pytest.mark.parametrize("compile", ["true", "regional"])
@pytest.mark.parametrize("model", ["model=cnn", "model=resnet model.width=4", "model=vit model.depth=2"])
def test_a_compiled_run_goes_on_bit_for_bit(model: str, compile: str) -> None:
    """Where the last batch of an epoch, of another size, is the first that the new process sees, and around it."""
    options = [*model.split(), f"runner.compile={compile}", "runner.epochs=2"]
    whole = train(*options, name="whole")
    for place in (LAST - 2, LAST - 1, LAST):
        with stopping_at(place):
            assert train(*options, name=f"cut{place}")["status"] == "stopped"
        assert train(*options, name=f"cut{place}")["digest"] == whole["digest"]
        assert lines(f"cut{place}") == lines("whole")
