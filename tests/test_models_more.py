"""The catalogue's networks: the same mathematics as a second way to compute them, sizes, learning, and refusals."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fake_data
from healsg import TaskTrainer
from healsg.data.base import DataInfo
from healsg.datasets.cifar import STATISTICS
from healsg.errors import ConfigError, RunError
from healsg.model import Network, TaskModel
from healsg.models.airbench import Airbench, patch_moments, whitening
from healsg.models.cifar_resnet import CifarResNet
from healsg.models.resnet import ResNet
from healsg.models.timm import Timm
from healsg.models.vit import ViT, drop_path
from healsg.models.wide_resnet import WideResNet

CIFAR = DataInfo((3, 32, 32), 10)
SMALL = DataInfo((3, 16, 16), 5)
HAS_TIMM = importlib.util.find_spec("timm") is not None
NETWORKS: dict[str, tuple[TaskModel, DataInfo]] = {
    "wide": (WideResNet(10, 1), SMALL),
    "wide raw": (WideResNet(16, 1, 0.1, 0.1, 0.001, "raw"), DataInfo((1, 9, 13), 3)),
    "cifar": (CifarResNet(14, 1, 16), SMALL),
    "vit": (ViT(4, 2, 24, 3), SMALL),
    "vit mean": (ViT(2, 2, 24, 4, 2.5, 0.1, 0.2, "mean"), DataInfo((1, 8, 12), 3)),
    "airbench": (Airbench(8), SMALL),
    "preactivation": (ResNet(18, 4, preactivation=True), SMALL),
    "preactivation 3D": (ResNet(50, 4, preactivation=True, zero_init_residual=False), DataInfo((1, 8, 8, 8), 3)),
    "plain 101": (ResNet(101, 4, stem="large"), SMALL),
}


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def on_meta(model: TaskModel, info: DataInfo) -> int:
    """The number of parameters, without memory for them."""
    with torch.device("meta"):
        return count(model.build(info))


def stirred(network: nn.Module) -> nn.Module:
    """In evaluation and float64, every parameter and statistic with a value of its own, so that a wrong order shows."""
    draw = torch.Generator().manual_seed(1)
    for name, value in network.double().state_dict().items():
        if value.is_floating_point():
            value += 0.1 * torch.rand(value.shape, generator=draw, dtype=value.dtype) * (1 + ("var" in name))
    return network.eval()


def made(model: TaskModel, info: DataInfo, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return model.build(info)


def images(info: DataInfo, rows: int = 3) -> Tensor:
    return torch.randn(rows, *info.input_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# --- what every network keeps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_features_gradients_and_seeds(name: str) -> None:
    model, info = NETWORKS[name]
    model.check(info)
    network, same, other = made(model, info), made(model, info), made(model, info, seed=1)
    assert isinstance(network, Network)
    pairs = list(zip(network.state_dict().values(), same.state_dict().values(), strict=True))
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(network.head.weight, other.head.weight)
    inputs, targets = images(info, 6).float(), torch.arange(6) % info.num_classes
    network.eval()
    features = network(inputs, features=True)
    assert features.shape == (6, network.num_features)
    assert torch.equal(network(inputs), network.head(features))
    assert network(inputs).shape == (6, info.num_classes)
    network.train()
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=3e-3), []
    for _ in range(12):
        loss = F.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        learning = [weight for weight in network.parameters() if weight.requires_grad]
        assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in learning)
        optimizer.step()
        losses.append(loss.item())
    assert all(weight.grad.abs().sum() > 0 for weight in learning)
    assert min(losses[-3:]) < losses[0]


@pytest.mark.parametrize(
    ("model", "info", "parameters"),
    [
        (WideResNet(28, 10), CIFAR, 36_479_194),  # 36.5 M in the paper's Table 4; osmr/imgclsmob's table has the digits
        (WideResNet(16, 10), CIFAR, 17_116_634),  # the same table
        (WideResNet(28, 2), CIFAR, 1_467_610),  # "1.5 M" in Oliver et al. 2018, section 4
        (WideResNet(28, 2, 0.1, 0.1, 0.001, "raw"), CIFAR, 1_467_610),
        (CifarResNet(8), DataInfo((3, 32, 32), 100), 1_233_540),  # RepDistiller's network, counted
        (CifarResNet(32), DataInfo((3, 32, 32), 100), 7_433_860),  # the same
        (CifarResNet(56, 1, 16), CIFAR, 855_770),  # 0.85 M in Table 6 of He et al. 2015, plus 1x1 shortcuts
        (ResNet(18), CIFAR, 11_173_962),  # kuangliu/pytorch-cifar
        (ResNet(18, preactivation=True), CIFAR, 11_172_170),  # ResNetV2-18 of Flax users' tables
        (ResNet(50, preactivation=True), CIFAR, 23_513_162),  # the same
        (ResNet(101), DataInfo((3, 224, 224), 1000), 44_549_160),  # torchvision's documentation
        (ResNet(152), DataInfo((3, 224, 224), 1000), 60_192_808),  # the same
        (ViT(16, 12, 768, 12), DataInfo((3, 224, 224), 1000), 86_567_656),  # the same, vit_b_16
        (ViT(16, 12, 192, 3), DataInfo((3, 224, 224), 1000), 5_717_416),  # DeiT-Ti, timm's table: 5.72 M
        (ViT(16, 12, 384, 6, pooling="mean"), DataInfo((3, 224, 224), 1000), 22_049_896),  # ViT-S/16: 22.05 M
    ],
)
def test_published_sizes(model: TaskModel, info: DataInfo, parameters: int) -> None:
    assert on_meta(model, info) == parameters


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (WideResNet(), (13,), "model=mlp takes any shape"),
        (WideResNet(), (3, 3, 8), "4x4 pixels and more, not 3x8"),
        (CifarResNet(), (1, 8, 8, 8), "images"),
        (CifarResNet(), (3, 2, 2), "4x4"),
        (Airbench(), (1, 8, 8), "9x9 pixels and more, not 8x8"),
        (Airbench(), (8,), "model=mlp"),
        (ViT(), (8, 8), "images"),
        (ViT(16), (3, 24, 32), "those of 1, 2, 4, 8 do"),
        (ResNet(preactivation=True), (13,), "model=mlp"),
        (Timm(), (13,), "model=mlp"),
    ],
)
def test_unfit_data_are_refused_in_one_line(model: TaskModel, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        model.check(DataInfo(shape, 10))
    assert str(caught.value).startswith("model")
    assert "\n" not in str(caught.value)


def test_unfit_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.depth: 27 is not 6 n \+ 4"):
        WideResNet(27)
    with pytest.raises(ConfigError, match=r"model.depth: 4 is not"):
        WideResNet(4)
    with pytest.raises(ConfigError, match=r"model.depth: 10 is not 6 n \+ 2"):
        CifarResNet(10)
    with pytest.raises(ConfigError, match=r"model.heads: 5 heads do not divide model.width=192"):
        ViT(heads=5)


# --- residual networks, written plainly ------------------------------------------------------------------------------


def normed(state: dict[str, Tensor], name: str, input: Tensor) -> Tensor:
    """BatchNorm's formula in evaluation."""
    mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    shaped = [value.view(1, -1, 1, 1) for value in (mean, var, weight, bias)]
    return (input - shaped[0]) / (shaped[1] + 1e-5).sqrt() * shaped[2] + shaped[3]


@pytest.mark.parametrize(("slope", "shortcut"), [(0.0, "activated"), (0.1, "raw")])
def test_wide_resnet_is_the_formula(slope: float, shortcut: Any) -> None:
    network = stirred(made(WideResNet(16, 2, 0.3, slope, 0.1, shortcut), SMALL))
    state = network.state_dict()

    def active(hidden: Tensor) -> Tensor:
        return torch.where(hidden > 0, hidden, slope * hidden)

    hidden = F.conv2d(images(SMALL), state["stem.weight"], padding=1)
    for group in range(3):
        for position in range(2):
            name, stride = f"stages.{group}.{position}", 2 if group and not position else 1
            pre = active(normed(state, f"{name}.norm", hidden))
            inner = F.conv2d(pre, state[f"{name}.residual.0.weight"], stride=stride, padding=1)
            inner = active(normed(state, f"{name}.residual.1", inner))
            inner = F.conv2d(inner, state[f"{name}.residual.4.weight"], padding=1)
            if not position:
                seen = hidden if shortcut == "raw" and group else pre
                hidden = F.conv2d(seen, state[f"{name}.shortcut.weight"], stride=stride)
            hidden = hidden + inner
    pooled = active(normed(state, "last.0", hidden)).mean((2, 3))
    torch.testing.assert_close(network(images(SMALL)), pooled @ state["head.weight"].T + state["head.bias"])


def test_cifar_resnet_is_the_formula() -> None:
    network = stirred(made(CifarResNet(14, 2, 8), SMALL))
    state = network.state_dict()
    hidden = normed(state, "stem.1", F.conv2d(images(SMALL), state["stem.0.weight"], padding=1)).relu()
    for stage in range(3):
        for position in range(2):
            name, stride = f"stages.{stage}.{position}", 2 if stage and not position else 1
            inner = F.conv2d(hidden, state[f"{name}.residual.0.weight"], stride=stride, padding=1)
            inner = F.conv2d(
                normed(state, f"{name}.residual.1", inner).relu(), state[f"{name}.residual.3.weight"], padding=1
            )
            if not position:
                hidden = F.conv2d(hidden, state[f"{name}.shortcut.0.weight"], stride=stride)
                hidden = normed(state, f"{name}.shortcut.1", hidden)
            hidden = (normed(state, f"{name}.residual.4", inner) + hidden).relu()
    pooled = hidden.mean((2, 3))
    torch.testing.assert_close(network(images(SMALL)), pooled @ state["head.weight"].T + state["head.bias"])


@pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
@pytest.mark.parametrize("depth", [18, 50])
def test_preactivation_is_that_of_timm(depth: Any) -> None:
    import timm

    theirs = stirred(timm.create_model(f"resnetv2_{depth}", num_classes=5))
    ours = made(ResNet(depth, stem="large", preactivation=True), SMALL).double().eval()
    given, blocks = theirs.state_dict(), [2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]
    order = ["stem.conv"]
    for stage, amount in enumerate(blocks):
        for position in range(amount):
            name = f"stages.{stage}.blocks.{position}"
            layers = ["norm1", "conv1", "norm2", "conv2"] + ["norm3", "conv3"] * (depth == 50)
            order += [f"{name}.{layer}" for layer in layers]
            order += [f"{name}.downsample.conv"] * (f"{name}.downsample.conv.weight" in given)
    order += ["norm", "head.fc"]
    values = [value for name in order for key, value in given.items() if key.rpartition(".")[0] == name]
    assert len(values) == len(given)
    values[-2] = values[-2].flatten(1)
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    inputs = images(DataInfo((3, 64, 64), 5), 2)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs))


@pytest.mark.parametrize("depth", [18, 50])
def test_zero_init_makes_preactivation_blocks_the_identity(depth: Any) -> None:
    network = made(ResNet(depth, 8, preactivation=True), SMALL)
    inputs = torch.randn(2, network.stages[1].norm.num_features, 6, 6)
    assert torch.equal(network.stages[1](inputs), inputs)


# --- transformers ----------------------------------------------------------------------------------------------------


def test_vit_is_that_of_torchvision() -> None:
    from torchvision.models import VisionTransformer

    theirs = stirred(VisionTransformer(16, 4, 3, 4, 24, 60, num_classes=5))
    ours = made(ViT(4, 3, 24, 4, 2.5), SMALL).double().eval()
    given = theirs.state_dict()
    names = {"patches": "conv_proj", "norm": "encoder.ln", "head": "heads.head"}
    parts = {"first_norm": "ln_1", "projection": "self_attention.out_proj", "second_norm": "ln_2"}
    parts |= {"perceptron.0": "mlp.0", "perceptron.3": "mlp.3"}
    names |= {
        f"layers.{i}.{ours_}": f"encoder.layers.encoder_layer_{i}.{theirs_}"
        for i in range(3)
        for ours_, theirs_ in parts.items()
    }
    mapped = {
        f"{ours_}.{key}": given.pop(f"{theirs_}.{key}")
        for ours_, theirs_ in names.items()
        for key in ("weight", "bias")
    }
    for i in range(3):
        for key in ("weight", "bias"):
            inside = given.pop(f"encoder.layers.encoder_layer_{i}.self_attention.in_proj_{key}")
            mapped[f"layers.{i}.queries_keys_values.{key}"] = inside
    mapped |= {"token": given.pop("class_token"), "position": given.pop("encoder.pos_embedding")}
    assert not given
    ours.load_state_dict(mapped)
    with torch.no_grad():
        torch.testing.assert_close(ours(images(SMALL)), theirs(images(SMALL)))


@pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_vit_is_that_of_timm(pooling: Any) -> None:
    from timm.models.vision_transformer import VisionTransformer

    mean = {"class_token": False, "global_pool": "avg", "fc_norm": False} if pooling == "mean" else {}
    sizes: dict[str, Any] = {"img_size": (8, 12), "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 24}
    theirs = stirred(VisionTransformer(**sizes, depth=2, num_heads=3, mlp_ratio=2, **mean))
    ours = made(ViT(2, 2, 24, 3, 2.0, pooling=pooling), DataInfo((1, 8, 12), 3)).double().eval()
    words = {"cls_token": "token", "pos_embed": "position", "patch_embed.proj": "patches", "blocks.": "layers."}
    words |= {"norm1": "first_norm", "norm2": "second_norm", "attn.qkv": "queries_keys_values"}
    words |= {"attn.proj": "projection", "mlp.fc1": "perceptron.0", "mlp.fc2": "perceptron.3"}
    mapped = {}
    for key, value in theirs.state_dict().items():
        for theirs_, ours_ in words.items():
            key = key.replace(theirs_, ours_)
        mapped[key] = value
    ours.load_state_dict(mapped)
    inputs = images(DataInfo((1, 8, 12), 3))
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs))
        theirs_ = theirs.forward_head(theirs.forward_features(inputs), pre_logits=True)
        torch.testing.assert_close(ours(inputs, features=True), theirs_)


def test_stochastic_depth() -> None:
    torch.manual_seed(0)
    branch = torch.ones(20_000, 3, 2)
    left = drop_path(branch, 0.3)
    assert torch.equal(left.amax((1, 2)), left.amin((1, 2)))
    assert set(left.unique().tolist()) == {0.0, (branch[0, 0, 0] / 0.7).item()}
    assert left.mean().item() == pytest.approx(1, abs=4 * math.sqrt(0.3 / 0.7 / 20_000))
    network = made(ViT(4, 5, 24, 3, stochastic_depth=0.4), SMALL)
    assert [layer.left_out for layer in network.layers] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    inputs = images(SMALL).float()
    assert not torch.equal(network(inputs), network(inputs))
    network.eval()
    assert torch.equal(network(inputs), network(inputs))


def test_vit_encodes_a_part_of_its_patches() -> None:
    network = made(ViT(4, 2, 24, 3), SMALL).eval()
    tokens = network.tokens(images(SMALL).float())
    assert tokens.shape == (3, 16, 24)
    assert network.encode(tokens[:, :5]).shape == (3, 6, 24)
    assert torch.equal(network.encode(tokens)[:, 0], network(images(SMALL).float(), features=True))


# --- airbench --------------------------------------------------------------------------------------------------------


def test_airbench_is_the_formula() -> None:
    network = stirred(made(Airbench(8, epsilon=1e-3, temperature=3.0), CIFAR))
    state = network.state_dict()
    assert [layer.weight.requires_grad for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)] == [
        False
    ] * 6
    hidden = F.gelu(F.conv2d(images(CIFAR), state["first.weight"], state["first.bias"]))
    for i in range(3):
        hidden = F.max_pool2d(F.conv2d(hidden, state[f"stages.{i}.0.weight"], padding=1), 2)
        hidden = F.gelu(plain_norm(state, f"stages.{i}.2", hidden))
        hidden = F.conv2d(hidden, state[f"stages.{i}.4.weight"], padding=1)
        hidden = F.gelu(plain_norm(state, f"stages.{i}.5", hidden))
    assert hidden.shape == (3, 32, 3, 3)
    wanted = F.max_pool2d(hidden, 3).flatten(1) @ state["head.weight"].T / 3
    torch.testing.assert_close(network(images(CIFAR)), wanted)


def plain_norm(state: dict[str, Tensor], name: str, input: Tensor) -> Tensor:
    """``normed`` with the small constant of airbench."""
    return normed({**state, f"{name}.running_var": state[f"{name}.running_var"] - 1e-5 + 1e-12}, name, input)


def test_airbench_begins_by_passing_on() -> None:
    network = made(Airbench(32), CIFAR)
    inputs = torch.randn(2, 24, 6, 6)
    assert torch.equal(network.stages[0][0](inputs)[:, :24], inputs)
    assert network.first.bias.abs().sum() == 0


def test_whitening_makes_the_power_of_patches_one() -> None:
    draw = torch.Generator().manual_seed(3)
    mixing = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    smooth = F.avg_pool2d(torch.randn(40, 3, 20, 20, generator=draw, dtype=torch.float64), 3, 1)
    pictures = torch.einsum("ij,njhw->nihw", mixing, smooth) + 0.3
    moments = patch_moments(pictures.split(16))
    patches = pictures.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    torch.testing.assert_close(moments, patches.T @ patches / len(patches))
    filters = whitening(moments, epsilon=0.01)
    assert torch.equal(filters[:12], -filters[12:])
    seen = F.conv2d(pictures, filters.view(24, 3, 2, 2))[:, :12].transpose(0, 1).flatten(1)
    powers = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)
    torch.testing.assert_close(seen @ seen.T / seen.shape[1], torch.diag(powers / (powers + 0.01)))
    strongest = filters[:12].gather(1, filters[:12].abs().argmax(1, keepdim=True))
    assert (strongest > 0).all()


def test_whitening_asks_for_no_more_images_than_it_needs() -> None:
    asked = []

    def batches() -> Iterator[Tensor]:
        for number in range(9):
            asked.append(number)
            yield torch.full((4, 1, 5, 5), float(number))

    moments = patch_moments(batches(), most=10)
    assert asked == [0, 1, 2]
    torch.testing.assert_close(moments, torch.full((4, 4), (4 * 0 + 4 * 1 + 2 * 4) / 10, dtype=torch.float64))


def test_whitening_freezes_the_first_layer_and_draws_nothing() -> None:
    model, pictures = Airbench(4), images(CIFAR, 20).float()
    network = made(model, CIFAR)
    before = torch.get_rng_state()

    def reseeded() -> Iterator[Tensor]:
        torch.manual_seed(7)
        yield pictures

    model.adapt(network, reseeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.first.weight.requires_grad
    assert network.first.bias.requires_grad
    wanted = whitening(patch_moments([pictures]), 5e-4).float().view_as(network.first.weight)
    assert torch.equal(network.first.weight, wanted)
    plain = made(Airbench(4, whitening=False), CIFAR)
    drawn = plain.first.weight.clone()
    Airbench(4, whitening=False).adapt(plain, [pictures])
    assert torch.equal(plain.first.weight, drawn)
    assert plain.first.weight.requires_grad


def test_a_task_whitens_with_its_training_images(tmp_path: Path) -> None:
    """Through the frame, in every order of things: the weights at the end are those of the training images alone."""
    fake_data.write_cifar(tmp_path / "files")
    settings = ["data=cifar", "data.root=files", "data.download=false", "data.verify=false", "data.val_fraction=0"]
    settings += [
        "model=airbench",
        "model.width=4",
        "runner=debug",
        "runner.steps=2",
        "data.batch_size=16",
        "quiet=true",
    ]
    trained = []
    for seed in (0, 1):
        trainer = TaskTrainer.compose(*settings, f"seed={seed}", f"name=run{seed}")
        assert trainer.train()["status"] == "finished"
        assert trainer.task is not None
        source = trainer.task.task_data.read("train")
        assert source is not None
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in STATISTICS[10])
        pictures = (source.fetch(torch.arange(len(source)))["input"].double() / 255 - mean) / std
        first = trainer.task.model.first
        wanted = whitening(patch_moments([pictures]), 5e-4).view_as(first.weight)
        torch.testing.assert_close(first.weight.double(), wanted, rtol=1e-3, atol=1e-4)
        assert not first.weight.requires_grad
        assert first.bias.abs().sum() > 0
        trained.append(first.weight)
    assert torch.equal(*trained)


# --- timm ------------------------------------------------------------------------------------------------------------

with_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")


def built(name: str, info: DataInfo = SMALL, **settings: Any) -> Any:
    model = Timm(name, **settings)
    model.check(info)
    return made(model, info)


@with_timm
@pytest.mark.parametrize(
    ("name", "info", "width"),
    [
        ("test_resnet", DataInfo((1, 8, 8), 4), 96),
        ("test_vit", DataInfo((3, 32, 32), 7), 64),
        ("test_convnext", DataInfo((3, 32, 32), 5), 64),
        ("test_efficientnet", DataInfo((2, 32, 48), 7), 256),
        ("resnetv2_18", SMALL, 512),
    ],
)
def test_timm_networks_are_those_of_timm(name: str, info: DataInfo, width: int) -> None:
    import timm

    ours = built(name, info)
    assert isinstance(ours, Network)
    assert ours.training
    size = {"img_size": info.input_shape[1:]} if name == "test_vit" else {}
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=info.num_classes, in_chans=info.input_shape[0], **size)
    assert count(ours) == count(theirs)
    assert ours.num_features == width
    inputs = images(info).float()
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs))
        features = theirs.forward_head(theirs.forward_features(inputs), pre_logits=True).flatten(1)
        torch.testing.assert_close(ours(inputs, features=True), features)
        assert torch.equal(ours(inputs), ours.head(ours(inputs, features=True)))


@with_timm
def test_timm_networks_that_end_in_two_layers_are_left_whole() -> None:
    network = built("deit_tiny_distilled_patch16_224", DataInfo((3, 32, 32), 7), options={"depth": 1})
    inputs = torch.randn(2, 3, 32, 32)
    assert network(inputs).shape == (2, 7)
    with pytest.raises(ConfigError, match="no features"):
        network(inputs, features=True)


@with_timm
def test_timm_weights_from_a_file(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    theirs = stirred(timm.create_model("test_resnet", num_classes=5)).float()
    given = theirs.state_dict()
    save_file(given, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in given.items()}}, tmp_path / "b.pth")
    save_file({key: value for key, value in given.items() if not key.startswith("fc.")}, tmp_path / "c.safetensors")
    inputs = images(SMALL).float()
    with torch.no_grad():
        features, outputs = theirs.forward_head(theirs.forward_features(inputs), pre_logits=True), theirs(inputs)
        for file, classes in (("a.safetensors", 5), ("b.pth", 5), ("a.safetensors", 9), ("c.safetensors", 5)):
            info = DataInfo((3, 16, 16), classes)
            network = built("test_resnet", info, weights=str(tmp_path / file)).eval()
            assert torch.equal(network(inputs, features=True), features)
            assert network(inputs).shape == (3, classes)
            kept = file[0] in "ab" and classes == 5
            assert kept == (
                network.head.weight.shape == given["fc.weight"].shape and torch.equal(network(inputs), outputs)
            )
            assert "state_dict" not in network.body.pretrained_cfg
    grey = built("test_resnet", DataInfo((1, 16, 16), 5), weights=str(tmp_path / "a.safetensors"))
    torch.testing.assert_close(grey.body.conv1[0].weight, given["conv1.0.weight"].sum(1, keepdim=True))


class Planted:
    """What a pickle would call as it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("planted").touch, ()


@with_timm
def test_timm_refuses_files_that_do_not_fit(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    other = timm.create_model("test_vit", num_classes=5).state_dict()
    save_file(other, tmp_path / "other.safetensors")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"fc.weight": Planted()}, tmp_path / "planted.pth")
    for file, words in (("other.safetensors", "does not fit timm's test_resnet"), ("text.pth", "file of weights")):
        with pytest.raises(RunError, match=words) as caught:
            built("test_resnet", weights=str(tmp_path / file))
        assert str(caught.value).startswith("model.weights: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="cannot be read as a file of weights"):
        built("test_resnet", weights=str(tmp_path / "planted.pth"))
    assert not Path("planted").exists()
    with pytest.raises(ConfigError, match=r"^model.weights: there is no file nowhere.pth"):
        built("test_resnet", weights="nowhere.pth")


@with_timm
def test_timm_refuses_names_sizes_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("no network\nat all")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(RunError, match=r"^model.pretrained: .*test_resnet.*no network at all.*model.weights=FILE"):
        built("test_resnet", pretrained=True)
    with pytest.raises(ConfigError, match=r"^model.name: timm has no 'resnet19'; the nearest are .*resnet18"):
        built("resnet19")
    with pytest.raises(ConfigError, match=r"^model.name: timm has no weights 'resnet18.mine'; there are resnet18\."):
        built("resnet18.mine")
    with pytest.raises(ConfigError, match=r"^model.pretrained: timm has no weights for resnet50_mlp; .*=FILE"):
        built("resnet50_mlp", pretrained=True)
    with pytest.raises(ConfigError, match=r"^model: timm's test_resnet cannot take \(3, 16, 16\) and .*colour"):
        built("test_resnet", options={"colour": 1})
    with pytest.raises(ConfigError, match=r"^model: timm's test_convnext cannot take \(3, 16, 16\): .*Kernel size"):
        built("test_convnext")


def test_without_timm_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^model: timm is not installed; .*healsg\[timm\]") as caught:
        Timm().check(SMALL)
    assert "\n" not in str(caught.value)
