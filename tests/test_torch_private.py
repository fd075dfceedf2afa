"""Where a version of torch lacks a private name, the public way computes the same."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from healsg import torch_private

PACKAGE = Path(torch_private.__file__).parent
PRIVATE = [name for name in dir(torch) if name.startswith(("_foreach_", "_fused_"))]


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as a torch without private names would load it."""
    spec = importlib.util.find_spec("healsg.torch_private")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as without:
        for name in PRIVATE:
            without.delattr(torch, name)
        spec.loader.exec_module(made)
    return made


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator) + 0.1 for shape in ((3, 4), (5,), ())]


CALLS: dict[str, list[Any]] = {
    "foreach_add": [tensors(1), tensors(2)],
    "foreach_add_": [tensors(1), 2.5],
    "foreach_addcdiv_": [tensors(1), tensors(2), tensors(3)],
    "foreach_addcmul": [tensors(1), tensors(2), tensors(3)],
    "foreach_addcmul_": [tensors(1), tensors(2), tensors(3)],
    "foreach_clone": [tensors(1)],
    "foreach_copy_": [tensors(1), tensors(2)],
    "foreach_div": [tensors(1), torch.tensor(3.0)],
    "foreach_div_": [tensors(1), tensors(2)],
    "foreach_lerp": [tensors(1), tensors(2), 0.3],
    "foreach_lerp_": [tensors(1), tensors(2), 0.3],
    "foreach_mul": [tensors(1), torch.tensor(3.0)],
    "foreach_mul_": [tensors(1), torch.tensor(3.0)],
    "foreach_norm": [tensors(1)],
    "foreach_sign_": [tensors(1)],
    "foreach_sqrt": [tensors(1)],
    "foreach_sqrt_": [tensors(1)],
    "foreach_sub_": [tensors(1), tensors(2)],
}


def test_every_list_operator_is_compared() -> None:
    assert set(CALLS) == {name for name in vars(torch_private) if name.startswith("foreach_")}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_list_operators_agree_with_loops(name: str, public: ModuleType) -> None:
    results = []
    for module in (torch_private, public):
        given = [[one.clone() for one in each] if isinstance(each, list) else each for each in CALLS[name]]
        returned = getattr(module, name)(*given)
        results.append(given[0] if name.endswith("_") else returned)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "sgd": [
        {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": False, "dampening": 0.5},
    ],
    "adam": [{"weight_decay": 0.01}, {"amsgrad": True}],
    "adamw": [{"weight_decay": 0.1}, {"amsgrad": True, "weight_decay": 0.1}],
}


@pytest.mark.parametrize(
    ("name", "settings"), [(name, settings) for name, rows in SETTINGS.items() for settings in rows], ids=str
)
def test_fused_updates_agree_with_formulas(
    name: str, settings: dict[str, Any], public: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from healsg.optimizers import adam, sgd

    kind = {"sgd": sgd.SGD, "adam": adam.Adam, "adamw": adam.AdamW}[name]
    weights: list[list[Tensor]] = []
    for module in (torch_private, public):
        for room in (adam, sgd):
            for kernel in ("fused_sgd_", "fused_adam_", "fused_adamw_"):
                if hasattr(room, kernel):
                    monkeypatch.setattr(room, kernel, getattr(module, kernel))
        own = [nn.Parameter(tensor) for tensor in tensors(1)]
        optimizer = kind(own, lr=0.05, **settings)
        for step in range(5):
            for weight, gradient in zip(own, tensors(10 + step), strict=True):
                weight.grad = gradient - 0.5
            optimizer.found_inf = torch.tensor(float(step == 2))  # the third update is skipped, as under fp16
            optimizer.grad_scale = torch.tensor(2.0)
            optimizer.step()
        weights.append([weight.detach() for weight in own])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_hidden_hooks_and_profiler_mean_that_the_step_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    assert not torch_private.step_is_watched(optimizer)
    handle = optimizer.register_step_pre_hook(lambda *_: None)
    assert torch_private.step_is_watched(optimizer)
    handle.remove()
    monkeypatch.delattr(torch_private.profiler, "_is_profiler_enabled")
    assert torch_private.step_is_watched(optimizer)


def test_saved_buffers_are_those_of_the_state_dict() -> None:
    module = nn.BatchNorm1d(3)
    module.register_buffer("passing", torch.zeros(1), persistent=False)
    saved = {name for _, name in torch_private.saved_buffers(module)}
    assert saved == {"running_mean", "running_var", "num_batches_tracked"}


# --- convolutions of one volume ---------------------------------------------------------------------------------------

needs_onednn = pytest.mark.skipif(
    not (torch_private.onednn_is_enabled() and hasattr(torch, "mkldnn_convolution")), reason="torch is without oneDNN"
)

CONVOLUTIONS: list[tuple[nn.Module, int]] = [
    (nn.Conv3d(4, 6, 3, padding=1), 16),
    (nn.Conv3d(1, 4, (1, 3, 5), stride=(1, 2, 2), padding=(0, 1, 2), bias=False), 12),
    (nn.Conv3d(4, 8, 3, dilation=2, groups=2), 11),
    (nn.Conv3d(3, 4, 2, stride=2, padding=1, padding_mode="reflect"), 9),
]
"""Layers, and the side of a volume that torch alone would unfold."""


def kernels_of(layer: nn.Module, input: Tensor) -> tuple[Tensor, set[str]]:
    """The output of a layer, and the operators that computed it."""
    with torch.autograd.profiler.profile() as profile:
        output = layer(input)
    return output, {event.key for event in profile.key_averages()}


@needs_onednn
@pytest.mark.parametrize(("layer", "side"), CONVOLUTIONS, ids=str)
def test_one_volume_takes_the_kernels_of_a_batch(layer: nn.Conv3d, side: int) -> None:
    volumes = torch.rand(2, layer.in_channels, side, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch, in_batch = kernels_of(layer, volumes)
        assert "aten::mkldnn_convolution" in in_batch
        with torch_private.OneVolumeConvolutions():
            for volume, wanted in zip(volumes, batch, strict=True):
                output, alone = kernels_of(layer, volume[None])
                assert "aten::mkldnn_convolution" in alone
                assert not [name for name in alone if "slow" in name]
                torch.testing.assert_close(output[0], wanted, rtol=1e-6, atol=1e-6)


@needs_onednn
@pytest.mark.parametrize(
    "case", ["gradients", "autocast", "float64", "unbatched", "1 x 1 x 1", "same", "off", "absent"]
)
def test_other_convolutions_are_torchs_own(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv3d(2, 3, 1 if case == "1 x 1 x 1" else 3, padding="same" if case == "same" else 1)
    input = torch.rand(1, 2, 6, 7, 8)
    if case == "float64":
        layer, input = layer.double(), input.double()
    if case == "unbatched":
        input = input[0]
    if case == "off":
        monkeypatch.setattr(torch_private, "onednn_is_enabled", lambda: False)
    if case == "absent":
        monkeypatch.delattr(torch, "mkldnn_convolution")
    with torch.set_grad_enabled(case == "gradients"), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        wanted, own = kernels_of(layer, input)
        with torch_private.OneVolumeConvolutions():
            found, inside = kernels_of(layer, input)
    assert torch.equal(found, wanted)
    assert found.requires_grad == (case == "gradients")
    assert inside == own


@needs_onednn
def test_a_volume_that_does_not_fit_is_refused_in_torchs_words() -> None:
    layer = nn.Conv3d(2, 3, 3)
    with (
        torch.no_grad(),
        torch_private.OneVolumeConvolutions(),
        pytest.raises(RuntimeError, match="to have 2 channels"),
    ):
        layer(torch.rand(1, 4, 6, 6, 6))


@needs_onednn
def test_an_exported_network_keeps_its_convolutions() -> None:
    with torch.no_grad(), torch_private.OneVolumeConvolutions():
        program = torch.export.export(nn.Conv3d(2, 3, 3), (torch.rand(1, 2, 6, 6, 6),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "aten.conv3d.default" in targets
    assert not [name for name in targets if "mkldnn" in name]


PRIVATE_NAMES = re.compile(
    r"torch(\.\w+)*\._(?!_)\w+|from torch[\w.]* import .*\b_\w+|from torch[\w.]*\._\w+|hydra\._internal"
    r"|(?<!self)\.(_buffers|_non_persistent_buffers_set|_compiled_call_impl|_version|_worker_info)\b"
)


def test_private_names_of_torch_and_hydra_are_in_one_module_each() -> None:
    homes = {"torch_private.py", "config/hydra_loader.py"}
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in homes:
            lines = enumerate(path.read_text().splitlines(), 1)
            found += [f"{name}:{number}: {line.strip()}" for number, line in lines if PRIVATE_NAMES.search(line)]
    assert not found, "\n".join(found)
    assert PRIVATE_NAMES.search((PACKAGE / "torch_private.py").read_text())


def test_interpolation_into_given_memory_is_that_of_torch() -> None:
    given, size = torch.rand(1, 2, 5, 6, 7, generator=torch.Generator().manual_seed(0)), (9, 4, 8)
    wanted = torch.nn.functional.interpolate(given, size, mode="trilinear", align_corners=False)
    made = torch.empty_like(wanted)
    torch_private.interpolate_into(made, given)
    assert torch.equal(made, wanted)
