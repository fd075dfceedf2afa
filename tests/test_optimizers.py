"""Optimizers: torch's own and the plain formulas as oracles, groups, saving and resuming."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from healsg import BasicTask, TaskTrainer
from healsg.cli import main
from healsg.errors import ConfigError
from healsg.optimizers.adam import Adam, AdamW
from healsg.optimizers.groups import as_groups
from healsg.optimizers.lion import Lion
from healsg.optimizers.muon import Muon, hidden_weights, orthogonalise, step_scale
from healsg.optimizers.muon_sgd import MuonSGD
from healsg.optimizers.rmsprop import RMSprop
from healsg.optimizers.sgd import SGD
from healsg.schedulers.curves import Cosine

CONF = Path(__file__).parents[1] / "conf" / "method" / "optimizer"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def loss_of(model: nn.Module, step: int) -> Tensor:
    torch.manual_seed(step)
    return nn.functional.cross_entropy(model(torch.randn(5, 2, 8, 8)), torch.arange(5) % 3)


def train(model: nn.Module, optimizer: Any, steps: range, after: Any = lambda: None) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        after()


def assert_same(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": weights, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]


@pytest.mark.parametrize("name", NAMES)
def test_yaml_makes_a_partial_that_trains_any_kind_of_parameters(name: str) -> None:
    node: Any = OmegaConf.load(CONF / f"{name}.yaml")
    arguments = inspect.signature(get_class(node._target_)).parameters
    keys = set(node) - {"_target_", "_partial_"}
    assert keys <= set(arguments) - {"params"}
    if node._target_.startswith("healsg."):
        assert keys == set(arguments) - {"params"}
        assert all(p.default in (None, node[k]) for k, p in arguments.items() if k != "params")
    make = instantiate(node, _convert_="all")
    results = []
    for params in (lambda m: m.parameters(), lambda m: list(m.parameters()), lambda m: m.named_parameters()):
        model = network()
        before = copy.deepcopy(model.state_dict())
        train(model, make(params(model)), range(3))
        results.append(model.state_dict())
        assert all(not torch.equal(before[key], value) for key, value in model.named_parameters())
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])
    model = network()
    train(model, make(two_groups(model)), range(2))


@pytest.mark.parametrize("name", NAMES)
def test_resuming_is_bit_for_bit_also_with_a_schedule(name: str) -> None:
    make = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")

    def begin() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = network()
        optimizer = make(two_groups(model))
        return model, optimizer, Cosine(warmup=0.2).build(optimizer, 8, 4)

    model, optimizer, schedule = begin()
    train(model, optimizer, range(8), schedule.step)
    first, its_optimizer, its_schedule = begin()
    train(first, its_optimizer, range(3), its_schedule.step)
    file = io.BytesIO()
    torch.save([first.state_dict(), its_optimizer.state_dict(), its_schedule.state_dict()], file)
    file.seek(0)
    second, optimizer2, schedule2 = begin()
    for part, state in zip((second, optimizer2, schedule2), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(second, optimizer2, range(3, 8), schedule2.step)
    assert_same(second.state_dict(), model.state_dict())
    resumed, expected = optimizer2.state_dict(), optimizer.state_dict()
    assert_same(resumed["state"], expected["state"])
    assert resumed["param_groups"] == expected["param_groups"]


class NoReads(TorchDispatchMode):
    """Refuses to read a tensor's value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


PLAIN_SGD = {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
AS_TORCH = [
    (SGD, torch.optim.SGD, PLAIN_SGD),
    (SGD, torch.optim.SGD, {**PLAIN_SGD, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {**PLAIN_SGD, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    (Adam, torch.optim.Adam, {"lr": 0.01}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01, "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 0.2}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
]


@pytest.mark.parametrize(("ours", "theirs", "settings"), AS_TORCH)
@pytest.mark.parametrize("grouped", [False, True])
def test_bit_for_bit_as_torch(ours: Any, theirs: Any, settings: dict[str, Any], grouped: bool) -> None:
    """Also where one type of weights is not the other's, and where torch's optimizer goes on from our state."""
    models, optimizers = [network(), network()], []
    for kind, model, more in ((ours, models[0], {}), (theirs, models[1], {"fused": True})):
        model[6].double()
        optimizers.append(kind(two_groups(model) if grouped else model.parameters(), **settings, **more))
    schedules = [Cosine(warmup=0.2).build(optimizer, 9, 3) for optimizer in optimizers]
    for step in range(9):
        torch.manual_seed(step)
        for mine, other in zip(*(model.parameters() for model in models), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for each in (*optimizers, *schedules):
            each.step()  # type: ignore[attr-defined]
        assert_same(models[0].state_dict(), models[1].state_dict())
        for mine, other in zip(*(model.parameters() for model in models), strict=True):
            its, expected = optimizers[0].state[mine], optimizers[1].state[other]
            assert set(its) == {key for key, value in expected.items() if value is not None}
            assert_same(its, {key: expected[key] for key in its})
        if step == 5:
            state = copy.deepcopy(optimizers[0].state_dict()["state"])
            optimizers[1].load_state_dict({**optimizers[1].state_dict(), "state": state})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alpha": 0.9, "eps": 1e-6, "weight_decay": 0.1, "momentum": 0.9},
        {"momentum": 0.5, "centered": True},
    ],
)
def test_rmsprop_is_torchs_bit_for_bit(settings: dict[str, Any]) -> None:
    models = network(), network()
    for kind, model in zip((RMSprop, torch.optim.RMSprop), models, strict=True):
        train(model, kind(model.parameters(), lr=0.01, **settings), range(5))
    assert_same(models[0].state_dict(), models[1].state_dict())


def test_momentum_begins_with_a_weights_own_first_gradient() -> None:
    """Where a part of the network learns from the second update on, as with layers that are let go one by one."""
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "nesterov": False}
    optimizers = [
        SGD(ours.parameters(), weight_decay=0.0, **settings),
        torch.optim.SGD(theirs.parameters(), **settings),
    ]
    for step in range(4):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            torch.manual_seed(step)
            model.weight.grad, model.bias.grad = torch.randn(2, 3), torch.randn(2) if step else None
            optimizer.step()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_an_update_that_the_loss_scaler_skips_leaves_everything_as_it_was(kind: Any) -> None:
    """The first of all as well, after which training goes on as if it had not been."""
    models = [network(), network()]
    optimizers = [kind(model.parameters()) for model in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    before = copy.deepcopy(models[0].state_dict())
    for parameter in models[0].parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    scaler.scale(torch.ones(()))  # which begins the scaler
    scaler.step(optimizers[0])
    scaler.update()
    assert_same(models[0].state_dict(), before)
    assert scaler.get_scale() == 4.0
    for step in range(3):
        optimizers[0].zero_grad()
        scaler.scale(loss_of(models[0], step)).backward()
        scaler.step(optimizers[0])
        scaler.update()
    train(models[1], optimizers[1], range(3))
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("more", [{"dampening": 0.1}, {"momentum": 0.0}])
def test_nesterov_that_has_no_meaning_is_refused(more: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"^method.optimizer.nesterov: needs momentum above 0 and no dampening; "):
        SGD([nn.Parameter(torch.ones(1))], **more)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, Muon, Lion, MuonSGD, RMSprop])
def test_no_value_is_read_in_a_step(kind: Any) -> None:
    model = network()
    optimizer = kind(model.parameters())
    with NoReads():
        train(model, optimizer, range(2))
    with NoReads(), pytest.raises(AssertionError):
        torch.ones(1).item()


def test_muon_splits_the_parameters() -> None:
    model = network()
    hidden = hidden_weights(as_groups(model.parameters()))
    assert hidden == {model[3].weight, model[6].weight, model[8].weight}
    assert hidden_weights(as_groups(model.named_parameters())) == hidden
    optimizer = Muon(two_groups(model), lr=0.02, adamw_lr=0.003)
    summary = [(g["algorithm"], len(g["params"]), g["weight_decay"], g["lr"]) for g in optimizer.param_groups]
    assert summary == [("muon", 3, 0.2, 0.02), ("adamw", 2, 0.2, 0.003), ("adamw", 7, 0.0, 0.003)]
    named = Muon(model.named_parameters())
    assert named.param_groups[0]["param_names"] == ["3.weight", "6.weight", "8.weight"]
    slower = Muon([{"params": list(model.parameters()), "lr": 0.01}], lr=0.02, adamw_lr=0.003, dtype="float32")
    assert [group["lr"] for group in slower.param_groups] == pytest.approx([0.01, 0.0015])
    train(model, slower, range(1))
    small = Muon(nn.Linear(3, 2).parameters())
    assert [group["algorithm"] for group in small.param_groups] == ["adamw"]
    tokens = [nn.Parameter(torch.ones(1, 4, 5)), *nn.Linear(3, 2).parameters()]
    assert not hidden_weights(as_groups(tokens))


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_torch_on_matrices_and_adamw_on_the_rest(adjust: Any, nesterov: bool) -> None:
    ours, theirs = network(), network()
    common: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    adamw: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.1}
    optimizer = Muon(ours.parameters(), **common, adjust=adjust, adamw_lr=0.01, adamw_betas=(0.8, 0.9), adamw_eps=1e-7)
    flat = nn.Parameter(theirs[3].weight.detach().flatten(1).clone())
    hidden = [flat, theirs[6].weight, theirs[8].weight]
    matrices = torch.optim.Muon(hidden, **common, adjust_lr_fn=adjust)
    left = [p for p in theirs.parameters() if all(p is not h for h in hidden) and p is not theirs[3].weight]
    rest = torch.optim.AdamW(left, **adamw, fused=True)
    for seed in range(4):
        torch.manual_seed(seed)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        flat.grad = theirs[3].weight.grad.flatten(1)
        for each in (optimizer, matrices, rest):
            each.step()
        theirs[3].weight.data = flat.detach().view_as(theirs[3].weight).clone()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_muon_does_not_scale_convolutions() -> None:
    """As in KellerJordan/Muon, which divides the sizes of the last two dimensions: those of the kernel."""
    torch.manual_seed(0)
    wide = nn.Parameter(torch.randn(36, 9, 1, 1))
    weights = [nn.Parameter(torch.randn(4, 3)), wide, nn.Parameter(torch.randn(2, 4))]
    before = wide.detach().clone()
    optimizer = Muon(weights, lr=0.5, momentum=0.0, weight_decay=0.0, dtype="float32")
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    step = orthogonalise(wide.grad.flatten(1)[None], 5, torch.float32)[0]
    optimizer.step()
    torch.testing.assert_close(wide.detach().flatten(1), before.flatten(1) - 0.5 * step)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 20, 7), (2, 6, 40)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    made = orthogonalise(matrices, 8, torch.float64)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ made @ right.mT  # the same singular vectors
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-9)
    torch.testing.assert_close(orthogonalise(matrices, 8, torch.float32).double(), made, rtol=1e-3, atol=1e-3)
    assert step_scale(36, 9, "original") == 2.0
    assert step_scale(36, 9, "original", convolution=True) == 1.0
    assert step_scale(36, 9, "match_rms_adamw", convolution=True) == pytest.approx(1.2)
    assert torch.equal(orthogonalise(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4, dtype=torch.bfloat16))


def test_a_frozen_parameter_is_left_alone() -> None:
    for kind in (Muon, Lion):
        model = network()
        frozen = [model[0].weight.requires_grad_(False), model[6].weight.requires_grad_(False)]
        kept = [weight.clone() for weight in frozen]
        train(model, kind(model.parameters(), weight_decay=0.5), range(2))
        assert_same(frozen, kept)


def test_lion_is_algorithm_2() -> None:
    lr, beta1, beta2, decay = 0.03, 0.9, 0.97, 0.2
    torch.manual_seed(0)
    start = [torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    weights = [nn.Parameter(value.clone()) for value in start]
    optimizer = Lion(weights, lr=lr, betas=(beta1, beta2), weight_decay=decay)
    momenta = [torch.zeros_like(value) for value in start]
    for _ in range(6):
        for i, weight in enumerate(weights):
            weight.grad = gradient = torch.randn_like(weight)
            update = torch.sign(beta1 * momenta[i] + (1 - beta1) * gradient)
            start[i] = start[i] - lr * (update + decay * start[i])
            momenta[i] = beta2 * momenta[i] + (1 - beta2) * gradient
        optimizer.step()
        torch.testing.assert_close([w.detach() for w in weights], start, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [Muon, Lion, MuonSGD])
def test_a_tensor_learning_rate_gives_the_same_numbers(kind: Any) -> None:
    plain, tensor = network(), network()
    train(plain, kind(plain.parameters(), lr=0.01), range(1))
    train(tensor, kind(tensor.parameters(), lr=torch.tensor(0.01)), range(1))
    torch.testing.assert_close(plain.state_dict(), tensor.state_dict())


@pytest.mark.parametrize("kind", [Muon, Lion, MuonSGD])
def test_a_gradient_scaler_changes_nothing_and_skips_what_is_not_finite(kind: Any) -> None:
    plain, scaled = network(), network()
    train(plain, kind(plain.parameters()), range(1))
    optimizer, scaler = kind(scaled.parameters()), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(scaled, 0)).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(plain.state_dict(), scaled.state_dict())
    before, memory = copy.deepcopy(scaled.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    scaler.scale(next(scaled.parameters()).sum() * torch.inf).backward()
    scaler.step(optimizer)
    assert_same(scaled.state_dict(), before)
    assert_same(optimizer.state_dict()["state"], memory)


@pytest.mark.parametrize("around", ["nothing", "torch's scheduler"])
@pytest.mark.parametrize("name", NAMES)
def test_hooks_are_called_once_and_a_profiler_sees_the_update(name: str, around: str) -> None:
    """As ``torch.optim.Optimizer`` promises; and neither changes the update."""
    make = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")
    plain, model, called = network(), network(), list[str]()
    train(plain, make(plain.parameters()), range(5))
    optimizer = make(model.parameters())
    if around != "nothing":
        torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    kinds = {
        "before": optimizer.register_step_pre_hook,
        "after": optimizer.register_step_post_hook,
        "before any": register_optimizer_step_pre_hook,
        "after any": register_optimizer_step_post_hook,
    }
    for step, (where, register) in enumerate(kinds.items()):
        handle = register(lambda *_, where=where: called.append(where))
        try:
            train(model, optimizer, range(step, step + 1))
        finally:
            handle.remove()
    assert called == list(kinds)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, range(4, 5))
    seen = [row.count for row in profile.key_averages() if row.key == f"Optimizer.step#{type(optimizer).__name__}.step"]
    assert seen == [1]
    assert called == list(kinds), "they are gone"
    assert_same(model.state_dict(), plain.state_dict())


def steps_of_ones_own(base: Any) -> list[Any]:
    """Classes over ``base`` as users write them, once torch has put around its step what it puts there."""
    base([nn.Parameter(torch.ones(1))])

    class Passed(base):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Wrapped(base):
        @functools.wraps(base.step)
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Decorated(base):
        step = torch.no_grad()(base.step)

    class Named(base):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self._step = 0

    return [base, Passed, Wrapped, Decorated, Named]


def what_hooks_are_given(kind: Any) -> list[Any]:
    weight = nn.Parameter(torch.ones(3))
    optimizer, given = kind([weight]), list[Any]()
    handle = optimizer.register_step_pre_hook(lambda _, *told: given.append((len(told[0]), *told[1])))
    for loss in (None, 3.0):
        weight.grad = torch.ones(3)
        assert (optimizer.step() if loss is None else optimizer.step(closure=lambda: 3.0)) == loss
    handle.remove()
    optimizer.register_step_pre_hook(lambda _, arguments, named: (arguments[:1], {"closure": lambda: 7.0}))
    return [*given, optimizer.step()]


@pytest.mark.parametrize("place", range(5))
def test_hooks_are_given_and_may_replace_what_those_of_torch_are(place: int) -> None:
    ours, theirs = (what_hooks_are_given(steps_of_ones_own(base)[place]) for base in (AdamW, torch.optim.AdamW))
    assert ours == theirs
    assert ours[-1] == 7.0
    assert len(ours) >= 3


def test_a_profiler_of_all_threads_and_the_older_one_see_the_update() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer, weight.grad = AdamW([weight]), torch.ones(3)
    told = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, experimental_config=told) as profile:
        thread = threading.Thread(target=optimizer.step)
        thread.start()
        thread.join()
    assert [row.count for row in profile.key_averages() if row.key == "Optimizer.step#AdamW.step"] == [1]
    with torch.autograd.profiler_legacy.profile() as older:
        optimizer.step()
    assert [row.count for row in older.key_averages() if row.key == "Optimizer.step#AdamW.step"] == [1]


@pytest.mark.parametrize("kind", [Muon, Lion, MuonSGD])
def test_a_closure_gives_its_loss(kind: Any) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight])

    def closure() -> float:
        weight.grad = torch.ones(3)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert (weight < 1).all()


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("lion", ["betas=[0.9,1]"], r"method.optimizer.betas\[1\]: 1 is out of range"),
        ("adamw", ["betas=[0.9]"], "method.optimizer.betas: .* has 1 elements, not 2"),
        ("adam", ["betas=null"], "method.optimizer.betas: null is not a list"),
        ("muon", ["adamw_betas=[-1,0.9]"], r"method.optimizer.adamw_betas\[0\]: -1 is out of range"),
        ("schedule_free", ["betas=[0,0.9]"], r"method.optimizer.betas\[0\]: 0 is out of range"),
        ("sgd", ["momentum=1"], "method.optimizer.momentum: 1 is out of range"),
        ("sgd", ["dampening=-1", "nesterov=false"], "method.optimizer.dampening: -1 is out of range"),
        ("adamw", ["lr=nan"], "method.optimizer.lr: nan is not a number"),
    ],
)
def test_settings_outside_their_range_are_refused(name: str, settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}"):
        TaskTrainer.compose(f"method/optimizer={name}", *(f"method.optimizer.{setting}" for setting in settings))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("_target_=torch.optim.SGD momentum=0", "true needs method.optimizer.momentum, which is 0; set that, or "),
        (
            "momentum=0",
            "true needs method.optimizer.momentum, which is 0; set that, or method.optimizer.nesterov=false",
        ),
        ("dampening=0.1", "true and method.optimizer.dampening=0.1 exclude each other; leave one out"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_a_run_starts(
    settings: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "method=sgd", *(f"method.optimizer.{setting}" for setting in settings.split())]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: method.optimizer.nesterov: {told}")
    assert said.count("\n") == 1
    assert not Path("runs").exists()
    single = TaskTrainer.compose(*line[1:], "method.optimizer.nesterov=false")
    assert single.config["method"]["optimizer"]["nesterov"] is False


def test_what_only_torch_s_constructor_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    left_out = [f"~method.optimizer.{name}" for name in ("momentum", "dampening", "weight_decay", "nesterov")]
    rprop = ["method.optimizer._target_=torch.optim.Rprop", "+method.optimizer.etas=[2,3]"]
    assert main(["train", "method=sgd", *left_out, *rprop]) == 2
    assert capsys.readouterr().err == "error: method.optimizer: Invalid eta values: 2, 3\n"
    assert not list(Path("runs").glob("*/checkpoints/*"))


class FusedSGD(BasicTask):
    """Torch's own fused SGD, with a loss of which fp16's scale makes infinite gradients at first."""

    def build_criterion(self) -> Any:
        return lambda output, target: 1e3 * nn.functional.cross_entropy(output, target)

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=1e-5, momentum=0.9, fused=True)


def test_torchs_fused_sgd_is_kept_from_the_loss_scaler() -> None:
    """Which would leave the momentum of a skipped first update as memory that nobody wrote."""
    parts = ["runner.precision=fp16", "runner.epochs=1", f"task._target_={__name__}.FusedSGD", f"trusted=[{__name__}]"]
    trainer = TaskTrainer.compose("model=mlp", "quiet=true", *parts)
    assert trainer.train()["status"] == "finished"
    assert trainer.task is not None
    assert trainer.task.runner.device_setup.scaler is not None
    assert trainer.task.runner.device_setup.scaler.get_scale() < 2**16, "no update was skipped"
    assert all(group["fused"] is False for group in trainer.task.optimizer.param_groups)


def test_torchs_fused_sgd_takes_layers_that_are_let_go_one_by_one() -> None:
    fused = ["method.optimizer._target_=torch.optim.SGD", "+method.optimizer.fused=true"]
    line = ["model=mlp", "quiet=true", "runner.epochs=3", "method=sgd", "method.unfreeze_every=1", *fused]
    assert TaskTrainer.compose(*line).train()["status"] == "finished"


def test_muon_sgd_is_the_published_update() -> None:
    """Two updates of a convolution, a bias and a head, with the loss summed and the outputs divided, as published."""
    batch, scale = 2000, 256
    torch.manual_seed(0)
    convolution = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    bias, head = torch.randn(8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    head = head / head.std()
    ours = [nn.Parameter(convolution.clone()), nn.Parameter(bias.clone()), nn.Parameter(head / scale)]
    optimizer = MuonSGD(ours)
    weight, buffers = convolution.clone(), [torch.zeros_like(value) for value in (convolution, bias, head)]
    for step in range(2):
        gradients = [torch.randn_like(value) * 1e-3 for value in (convolution, bias, head)]  # of the summed loss
        for parameter, gradient, divided in zip(ours, gradients, (1, 1, 1 / scale), strict=True):
            parameter.grad = gradient / batch / divided
        optimizer.step()
        buffers[0] = 0.6 * buffers[0] + gradients[0] / batch
        ahead = (gradients[0] / batch + 0.6 * buffers[0]).reshape(1, 8, -1)
        weight = weight * (8**0.5 / weight.norm()) - 0.24 * orthogonalise(ahead, 3)[0].double().view_as(weight)
        for place, rate in ((1, 0.053), (2, 0.67)):
            value = (bias, head)[place - 1]
            gradient = gradients[place] + 2e-6 * batch / rate * value
            buffers[place] = gradient.clone() if step == 0 else 0.85 * buffers[place] + gradient
            value -= rate * (gradient + 0.85 * buffers[place])
        torch.testing.assert_close(ours[0].detach(), weight)
        torch.testing.assert_close(ours[1].detach(), bias, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(ours[2].detach(), head / scale, rtol=2e-2, atol=1e-5)
