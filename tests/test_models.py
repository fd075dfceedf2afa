"""Networks: shapes, features, published sizes, and the refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

from healsg.data.base import DataInfo
from healsg.errors import ConfigError, RunError
from healsg.model import Network, TaskModel
from healsg.models.cnn import CNN
from healsg.models.mlp import MLP
from healsg.models.resnet import ResNet
from healsg.models.torchvision import Torchvision

CONF = Path(__file__).parents[1] / "conf" / "model"
DIGITS = DataInfo((1, 8, 8), 10)
SMALL = DataInfo((3, 32, 32), 7)


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("model", "info"),
    [
        (MLP(), DataInfo((13,), 3)),
        (MLP(width=8, depth=0), DIGITS),
        (MLP(width=16, depth=3, dropout=0.1), DIGITS),
        (CNN(), DIGITS),
        (CNN(dropout=0.2), DataInfo((1, 28, 28), 10)),
        (CNN(width=4), DataInfo((3, 9, 33), 5)),
        (ResNet(width=4), DataInfo((2, 16, 16), 5)),
        (ResNet(depth=50, width=4, stem="large"), SMALL),
        (ResNet(depth=34, width=4), DataInfo((1, 8, 16, 16), 3)),
        (ResNet(depth=18, width=4, stem="large", dim=3), DataInfo((1, 8, 16, 16), 3)),
    ],
)
def test_output_is_the_head_of_the_features_and_learns(model: TaskModel, info: DataInfo) -> None:
    torch.manual_seed(0)
    model.check(info)
    network = model.build(info)
    assert isinstance(network, Network)
    inputs, targets = torch.randn(6, *info.input_shape), torch.arange(6) % info.num_classes
    network.eval()
    features = network(inputs, features=True)
    assert features.shape == (6, network.num_features)
    assert torch.equal(network(inputs), network.head(features))
    assert network(inputs).shape == (6, info.num_classes)
    network.train()
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=0.01), []
    for _ in range(15):
        loss = model.criterion(info)(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None for weight in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.8 * losses[0]


def test_mlp_by_default_is_64_128_10() -> None:
    network = MLP().build(DIGITS)
    shapes = [tuple(weight.shape) for weight in network.parameters()]
    assert shapes == [(128, 64), (128,), (10, 128), (10,)]
    assert sum(isinstance(module, nn.ReLU) for module in network.modules()) == 1


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet_is_that_of_torchvision(depth: Any) -> None:
    from torchvision import models

    torch.manual_seed(0)
    theirs = models.get_model(f"resnet{depth}").eval()
    ours = ResNet(depth=depth).build(DataInfo((3, 224, 224), 1000)).eval()
    assert count(ours) == count(theirs)
    for module in theirs.modules():  # statistics that tell a wrong order
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    given = theirs.state_dict()
    ours.load_state_dict(dict(zip(ours.state_dict(), given.values(), strict=True)))
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-4, atol=1e-4)


def test_resnet_stem_follows_the_size() -> None:
    def kernel(size: int, stem: Any = "auto") -> int:
        network: Any = ResNet(width=4, stem=stem).build(DataInfo((3, size, size), 10))
        return int(network.stem[0].kernel_size[0])

    assert [kernel(32), kernel(63), kernel(64), kernel(32, "large"), kernel(64, "small")] == [3, 3, 7, 7, 3]


def test_zero_init_makes_blocks_the_identity() -> None:
    inputs = torch.rand(2, 8, 6, 6)
    for zero in (True, False):
        network: Any = ResNet(width=8, zero_init_residual=zero).build(SMALL)
        assert torch.equal(network.stages[0](inputs), inputs) is zero


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (CNN(), (13,), "model=mlp"),
        (CNN(), (1, 7, 8), "8x8"),
        (CNN(), (1, 8, 8, 8), "height"),
        (ResNet(), (13,), "model=mlp"),
        (ResNet(dim=3), (3, 32, 32), "model.dim=null"),
        (Torchvision(), (1, 32, 32), "model=resnet"),
        (Torchvision(), (13,), "model=mlp"),
    ],
)
def test_unfit_data_are_refused_in_one_line(model: TaskModel, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        model.check(DataInfo(shape, 10))
    assert str(caught.value).startswith("model: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [
        ("resnet18", 32, 512),
        ("squeezenet1_1", 32, 0),
        ("mobilenet_v3_small", 32, 1024),
        ("efficientnet_b0", 32, 1280),
        ("convnext_tiny", 32, 768),
        ("densenet121", 32, 1024),
        ("vit_b_32", 64, 768),
        ("swin_t", 32, 768),
        ("shufflenet_v2_x0_5", 32, 1024),
        ("googlenet", 32, 1024),
    ],
)
def test_torchvision_families(name: str, size: int, features: int) -> None:
    info = DataInfo((3, size, size), 7)
    model = Torchvision(name)
    model.check(info)
    network: Any = model.build(info)
    assert network.training
    inputs = torch.randn(2, *info.input_shape)
    assert network(inputs).shape == (2, 7)
    assert network.num_features == features
    if features:
        assert network(inputs, features=True).shape == (2, features)
    else:
        with pytest.raises(ConfigError, match="no features"):
            network(inputs, features=True)
    state = {key.removeprefix("body.") for key in network.state_dict()}
    assert len(state) == len(network.state_dict())


def test_torchvision_refuses_unknown_names_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^model.name: .*'resnet19'.*resnet18"):
        Torchvision("resnet19").check(SMALL)
    with pytest.raises(ConfigError, match=r"^model.weights: .*IMAGENET1K_V1"):
        Torchvision("resnet18", weights="IMAGENET1K").check(SMALL)


def test_torchvision_refuses_sizes_and_options_before_training() -> None:
    with pytest.raises(ConfigError, match=r"^model: torchvision's alexnet cannot take \(3, 32, 32\)"):
        Torchvision("alexnet").build(SMALL)
    with pytest.raises(ConfigError, match="colour"):
        Torchvision("resnet18", options={"colour": 1}).build(SMALL)
    with pytest.raises(ConfigError, match="indivisible"):
        Torchvision("vit_b_32").build(DataInfo((3, 40, 40), 7))


def test_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    model = Torchvision("shufflenet_v2_x0_5", weights="DEFAULT")
    with pytest.raises(RunError, match=r"^model.weights: .*no network.*put the file at") as caught:
        model.build(SMALL)
    file = Path(str(caught.value).rsplit(" ", 1)[1])
    assert tmp_path in file.parents

    given = models.get_model("shufflenet_v2_x0_5").state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(given, file)
    same, other = (model.build(DataInfo((3, 32, 32), classes)) for classes in (1000, 7))
    assert torch.equal(same.state_dict()["head.weight"], given["fc.weight"])
    assert torch.equal(other.state_dict()["body.conv1.0.weight"], given["conv1.0.weight"])
    assert other.state_dict()["head.weight"].shape == (7, 1024)

    torch.save({"fc.weight": given["fc.weight"]}, file)
    with pytest.raises(RunError, match="damaged"):
        model.build(SMALL)
