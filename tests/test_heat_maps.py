"""Heat maps: where a network looked lies where alone it could learn something, and is drawn beside the predictions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from healsg.data.info import DataInfo
from healsg.errors import ConfigError
from healsg.evaluation.heat_maps import GradCam, explainer_of
from healsg.models.cnn import CNN
from healsg.models.mlp import MLP
from healsg.models.resnet import ResNet
from healsg.models.vit import ViT

INFO = DataInfo(input_shape=(3, 16, 16), num_classes=3, kind="multiclass", class_names=("red", "green", "blue"))


def planted(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Grey noise with a patch that is red, green or blue: pictures, classes, and where the patches are."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(count, 1, 16, 16, generator=generator).repeat(1, 3, 1, 1) * 0.5
    classes = torch.arange(count) % 3
    inside = torch.zeros(count, 16, 16, dtype=torch.bool)
    for number, (row, column) in enumerate(torch.randint(0, 3, (count, 2), generator=generator) * 4):
        inside[number, row : row + 4, column : column + 4] = True
        pictures[number, classes[number], row : row + 4, column : column + 4] += 1.5
    return pictures - 0.25, classes, inside


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


NETWORKS = {
    "convolutional": convolutional,
    "class token": lambda: ViT(depth=1, width=16, heads=2).build(INFO),
    "mean of tokens": lambda: ViT(depth=1, width=16, heads=2, pooling="mean").build(INFO),
}


@pytest.mark.parametrize(
    "name", ["convolutional", pytest.param("class token", marks=pytest.mark.soak), "mean of tokens"]
)
def test_the_map_lies_on_the_patch_that_alone_tells_the_class(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[name]()
        optimizer = torch.optim.AdamW(network.parameters(), 0.01)
        for step in range(40):
            pictures, classes, _ = planted(32, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pictures), classes).backward()
            optimizer.step()
    network.eval().requires_grad_(False)
    pictures, classes, inside = planted(32, 1000)
    assert (network(pictures).argmax(1) == classes).float().mean() > 0.9
    heat = explainer_of(network, network, pictures[:2])(pictures, classes)
    assert heat.shape == inside.shape
    assert float(heat.max()) == 1
    around = nn.functional.max_pool2d(inside[:, None].float(), 5, 1, 2)[:, 0]  # a cell of the map reaches further
    share = (heat * around).sum((1, 2)) / heat.sum((1, 2)).clamp(min=1e-9)
    assert share.mean() > 0.7


@pytest.mark.parametrize("compact", [False, True])
def test_the_feature_map_is_the_last_one_before_pooling(compact: bool) -> None:
    network = (CNN(width=4) if compact else ResNet(width=4)).build(INFO).eval()
    pictures = torch.randn(2, 3, 16, 16)
    found = explainer_of(network, network, pictures)
    assert isinstance(found, GradCam)
    seen: list[Tensor] = []
    with found.module.register_forward_hook(lambda module, arguments, output: seen.append(output)):
        network(pictures)
    assert seen[-1].shape[1] == network.num_features


def test_a_perceptron_has_no_map() -> None:
    network = MLP().build(INFO).eval()
    with pytest.raises(ConfigError, match=r"--explain: .* has no feature map"):
        explainer_of(network, network, torch.randn(2, 3, 16, 16))
