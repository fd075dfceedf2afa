"""U-Nets and MONAI's networks: shapes, sizes, deep supervision, and what they refuse."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from healsg.data.info import DataInfo
from healsg.errors import ConfigError
from healsg.losses.segmentation import DeepSupervision, Dice, DiceCrossEntropy
from healsg.models.monai import Monai
from healsg.models.resenc_unet import ResEncUNet
from healsg.models.unet import UNet, usual_strides

needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="pip install 'healsg[seg]'")


def info(*shape: int, classes: int = 3, kind: str = "segmentation") -> DataInfo:
    return DataInfo(shape, classes, kind)


def number(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


SMALL: dict[str, Any] = {
    "unet": lambda **more: UNet(width=4, **more),
    "resenc": lambda **more: ResEncUNet(width=4, blocks=more.pop("blocks", None), **more),
}


@pytest.mark.parametrize("shape", [(2, 33, 26), (1, 32, 25, 16)])
@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns_from_outputs_of_all_resolutions(name: str, shape: tuple[int, ...]) -> None:
    data = info(*shape)
    model = SMALL[name]()
    model.check(data)
    torch.manual_seed(0)
    network: Any = model.build(data)
    batch = torch.randn(2, *shape)
    outputs = network(batch)
    stages = len(network.encoder)
    assert isinstance(outputs, list)
    assert len(outputs) == stages - 2
    assert outputs[0].shape == (2, 3, *shape[1:])
    target = torch.randint(0, 3, (2, *shape[1:]))
    criterion = model.criterion(data)
    assert isinstance(criterion, DeepSupervision)
    criterion(outputs, target).backward()
    unused = [key for key, value in network.named_parameters() if value.grad is None]
    assert not unused, "which several processes could not train"
    alone = network.eval()(batch)
    assert isinstance(alone, Tensor)
    assert alone.shape == (2, 3, *shape[1:])
    assert network(batch, features=True).shape == (2, network.num_features)


def test_a_finer_output_alone() -> None:
    model = UNet(width=4, deep_supervision=False, loss=Dice())
    network: Any = model.build(info(1, 32, 32))
    assert isinstance(network(torch.randn(2, 1, 32, 32)), Tensor)
    assert isinstance(model.criterion(info(1, 32, 32)), Dice)


def test_sizes_are_those_that_nnunet_publishes() -> None:
    """MSD hippocampus 3d_fullres, counted layer by layer from its plan: widths 32, 64, 128, 256, kernels 3, strides 2;
    and outputs at two resolutions, where nnU-Net has a third one without weight."""
    network = UNet().build(info(1, 40, 56, 40))
    widths, before, wanted = (32, 64, 128, 256), 1, 0
    for width in widths:
        wanted += 27 * before * width + width + 2 * width + 27 * width * width + width + 2 * width
        before = width
    for place in (2, 1, 0):
        below, own = widths[place + 1], widths[place]
        wanted += 8 * below * own + own
        wanted += 27 * 2 * own * own + own + 2 * own + 27 * own * own + own + 2 * own
    wanted += 3 * 32 + 3 + 3 * 64 + 3
    assert number(network) == wanted


def test_strides_wait_for_the_longer_axes() -> None:
    assert usual_strides((32, 32, 8)) == [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)]
    assert usual_strides((256, 256)) == [(1, 1), *[(2, 2)] * 6]
    assert usual_strides((8, 8)) == [(1, 1), (2, 2)]


def test_given_strides_and_kernels_are_taken() -> None:
    model = UNet(width=4, strides=[1, [2, 2, 1], 2], kernels=[[3, 3, 1], 3, 3])
    data = info(1, 16, 16, 8)
    model.check(data)
    network: Any = model.build(data)
    maps = network.maps(torch.randn(1, 1, 16, 16, 8))
    assert [tuple(one.shape[2:]) for one in maps] == [(16, 16, 8), (8, 8, 8), (4, 4, 4)]
    assert network.encoder[0][0][0].kernel_size == (3, 3, 1)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (UNet(), info(1, 32, 32, kind="multiclass"), "an output for each pixel"),
        (UNet(), info(7), "images"),
        (UNet(dim=3), info(1, 32, 32), "model.dim"),
        (UNet(strides=[1, 2, 2, 2, 2, 2]), info(1, 32, 32), "one pixel"),
        (UNet(strides=[2, 2]), info(1, 32, 32), "model.strides"),
        (UNet(strides=[1, [2, 2]]), info(1, 32, 32, 32), "model.strides"),
        (UNet(strides=[1, 2], stages=3), info(1, 32, 32), "model.stages"),
        (UNet(stages=6), info(1, 16, 16), "model.stages"),
        (UNet(kernels=[2, 2], strides=[1, 2]), info(1, 32, 32), "model.kernels"),
        (ResEncUNet(blocks=[1, 2]), info(1, 32, 32), "model.blocks"),
        (UNet(), info(1, 3, 3), "two stages"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(model: Any, data: DataInfo, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        model.check(data)
    assert "\n" not in str(caught.value)


# --- MONAI's ---------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": ({"channels": [4, 8], "strides": [2], "norm": "batch"}, (2, 16, 16)),
    "SegResNet": ({"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, (1, 16, 16, 16)),
    "DynUNet": ({"filters": [4, 8, 16, 32], "deep_supervision": True, "deep_supr_num": 2}, (1, 16, 16, 16)),
    "SegResNetDS": ({"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2}, (1, 16, 16, 16)),
    "BasicUNetPlusPlus": ({"features": [4, 4, 8, 8, 8, 4], "deep_supervision": True}, (1, 32, 32)),
    "UNETR": ({"hidden_size": 12, "mlp_dim": 16, "num_heads": 2, "feature_size": 4}, (1, 16, 16, 16)),
    "MedNeXt": ({"init_filters": 4, "encoder_expansion_ratio": 2, "deep_supervision": True}, (1, 32, 32)),
    "VNet": ({}, (1, 16, 16, 16)),
}


@needs_monai
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_monai_learn_and_predict(name: str) -> None:
    if name == "UNETR":
        pytest.importorskip("einops", reason="einops is not installed: pip install 'healsg[seg]'")
    options, shape = NETWORKS[name]
    model, data = Monai(name, options), info(*shape)
    model.check(data)
    network: Any = model.build(data)
    batch, target = torch.randn(2, *shape), torch.randint(0, 3, (2, *shape[1:]))
    outputs = network(batch)
    assert isinstance(outputs, list) == ("deep_supervision" in options or "dsdepth" in options)
    model.criterion(data)(outputs, target).backward()
    assert network.eval()(batch).shape == (2, 3, *shape[1:])


@needs_monai
def test_classifiers_of_monai_have_a_head() -> None:
    model, data = (
        Monai("DenseNet121", {"init_features": 8, "growth_rate": 4, "block_config": [1, 1]}),
        info(1, 16, 16, 16, kind="multiclass", classes=5),
    )
    model.check(data)
    network: Any = model.build(data)
    batch = torch.randn(2, 1, 16, 16, 16)
    hidden = network(batch, features=True)
    assert hidden.shape == (2, network.num_features)
    assert network.head.out_features == 5
    assert not isinstance(model.criterion(data), DeepSupervision)


@needs_monai
@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (Monai("SegResnet"), info(1, 16, 16), "model.name: MONAI has no 'SegResnet'; the nearest are SegResNet"),
        (Monai("UNet", {"chanels": [4]}), info(1, 16, 16), "model.options.chanels: .*channels"),
        (Monai("AHNet", {"layers": ()}), info(5), "images"),
        (Monai("Generator"), info(1, 16, 16), "model.options.latent_shape"),
    ],
)
def test_names_and_options_that_monai_does_not_have(model: Monai, data: DataInfo, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model.check(data)


@needs_monai
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_sizes_that_a_network_of_monai_cannot_take_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model: MONAI.s VNet cannot take .1, 17, 16, 16") as caught:
        Monai("VNet").build(info(1, 17, 16, 16))
    assert "\n" not in str(caught.value)


def test_without_monai_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'healsg\[seg\]'"):
        Monai().check(info(1, 16, 16))


def test_the_data_say_what_is_ignored_and_which_regions_there_are() -> None:
    regions = {"whole": (1, 2, 3), "core": (2, 3)}
    told = DataInfo((1, 8, 8), 2, "segmentation", ignore=255, regions=regions)
    criterion: Any = UNet(deep_supervision=False).criterion(told)
    assert isinstance(criterion, DiceCrossEntropy)
    assert [(part.ignore, part.regions) for part in criterion.parts.values()] == [(255, [(1, 2, 3), (2, 3)])] * 2
