"""U-Nets and MONAI's networks: shapes, sizes, deep supervision, and what they refuse."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from healsg.data.info import DataInfo
from healsg.errors import ConfigError
from healsg.evaluation.evaluator import evaluating
from healsg.losses.segmentation import DeepSupervision, Dice, DiceCrossEntropy, Focal
from healsg.models.monai import Monai
from healsg.models.resenc_unet import ResEncUNet
from healsg.models.smp import Smp
from healsg.models.torchvision_seg import TorchvisionSegmentation
from healsg.models.unet import UNet, usual_strides
from healsg.runs import weights

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


def test_windows_of_a_volume_are_not_unfolded_in_evaluation() -> None:
    """torch alone would unfold each window, which takes 27 times the memory; see ``OneVolumeConvolutions``."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("torch is without oneDNN")
    data, model = info(1, 16, 16, 16), UNet(width=4)
    torch.manual_seed(0)
    network = model.build(data)
    volume = torch.randn(1, 1, 16, 24, 16)
    with evaluating(network), torch.no_grad(), torch.autograd.profiler.profile() as profile:
        output = model.predict(network, {"input": volume})
    operators = {event.key: event.count for event in profile.key_averages()}
    assert operators["aten::slow_conv3d"] == 2, "two windows, each through the head's 1 x 1 x 1 convolution"
    with torch.no_grad():
        torch.testing.assert_close(output, model.predict(network.eval(), {"input": volume}), rtol=1e-4, atol=1e-5)


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
    "SwinUNETR": ({"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}, (1, 64, 64)),
    "MedNeXt": ({"init_filters": 4, "encoder_expansion_ratio": 2, "deep_supervision": True}, (1, 32, 32)),
    "VNet": ({}, (1, 16, 16, 16)),
}


@needs_monai
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_monai_learn_and_predict(name: str) -> None:
    if "UNETR" in name:
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


# --- those of smp and torchvision -------------------------------------------------------------------------------------

needs_smp = pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None, reason="pip install 'healsg[smp]'"
)
LRASPP = "lraspp_mobilenet_v3_large"


@needs_smp
def test_architectures_and_encoders_of_smp_by_name(tmp_path: Path) -> None:
    data = info(1, 32, 32)
    model = Smp("Unet", "resnet18", options={"decoder_channels": [16, 8, 8, 4, 4]})
    model.check(data)
    network: Any = model.build(data)
    batch = torch.randn(2, 1, 32, 32)
    model.criterion(data)(network(batch), torch.randint(0, 3, (2, 32, 32))).backward()
    assert all(value.grad is not None for value in network.parameters())
    assert network.eval()(batch).shape == (2, 3, 32, 32)
    torch.save(network.body.encoder.state_dict(), tmp_path / "encoder.pt")
    other: Any = Smp("FPN", "resnet18", weights=str(tmp_path / "encoder.pt")).build(info(3, 32, 32))
    assert torch.equal(other.body.encoder.layer1[0].conv1.weight, network.body.encoder.layer1[0].conv1.weight)
    mean = other.body.encoder.conv1.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(mean, network.body.encoder.conv1.weight)


def test_torchvisions_networks_have_a_second_output_where_it_is_wanted(tmp_path: Path) -> None:
    data = info(3, 32, 32)
    name = "deeplabv3_mobilenet_v3_large"
    model = TorchvisionSegmentation(name, aux=True)
    model.check(data)
    network: Any = model.build(data)
    batch = torch.randn(2, 3, 32, 32)
    outputs = network(batch)
    assert [tuple(one.shape) for one in outputs] == [(2, 3, 32, 32)] * 2
    assert isinstance(model.criterion(data), DeepSupervision)
    assert network.heads == ("body.classifier.4.", "body.aux_classifier.4.")
    torch.save(network.body.state_dict(), tmp_path / "weights.pt")
    again = TorchvisionSegmentation(name, weights=str(tmp_path / "weights.pt")).build(info(3, 32, 32, classes=5))
    assert isinstance(again(batch), Tensor), "without the second output"
    assert again(batch).shape == (2, 5, 32, 32)
    own = again.state_dict()["body.backbone.4.block.0.0.weight"]
    assert torch.equal(own, network.state_dict()["body.backbone.4.block.0.0.weight"])


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (lambda: Smp("Unett"), info(1, 32, 32), "model.name: smp has no 'Unett'; the nearest are Unet"),
        (lambda: Smp(encoder="resnet19"), info(1, 32, 32), "model.encoder: smp has no 'resnet19'"),
        (lambda: Smp(weights="gone.pt"), info(1, 32, 32), "model.weights: there is no file gone.pt"),
        (lambda: Smp(), info(1, 32, 32, 32), "takes images"),
        (lambda: TorchvisionSegmentation("fcn"), info(3, 32, 32), "model.name: torchvision has no 'fcn'"),
        (lambda: TorchvisionSegmentation(), info(1, 32, 32), r"take images \(3, height, width\)"),
        (lambda: TorchvisionSegmentation(LRASPP, aux=True), info(3, 32, 32), "model.aux"),
        (lambda: TorchvisionSegmentation(weights="BEST"), info(3, 32, 32), "model.weights: torchvision has no 'BEST'"),
        (lambda: TorchvisionSegmentation(), info(3, 32, 32, kind="multiclass"), "an output for each pixel"),
    ],
)
def test_what_smp_and_torchvision_do_not_have_is_refused(model: Any, data: DataInfo, words: str) -> None:
    made = model()
    if isinstance(made, Smp):
        pytest.importorskip("segmentation_models_pytorch", reason="pip install 'healsg[smp]'")
    with pytest.raises(ConfigError, match=words) as caught:
        made.check(data)
    assert "\n" not in str(caught.value)


def test_without_smp_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'healsg\[smp\]'"):
        Smp().check(info(1, 16, 16))


# --- init_from -------------------------------------------------------------------------------------------------------


def test_weights_for_other_channels_are_adapted_and_those_of_other_classes_left_out(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.manual_seed(0)
    first: Any = UNet(width=4).build(info(1, 32, 32, classes=3))
    torch.save(first.state_dict(), file)
    other: Any = UNet(width=4).build(info(2, 32, 32, classes=5))
    report, _ = weights.initialise(other, file, info(2, 32, 32, classes=5))
    kernels = [network.encoder[0][0][0].weight for network in (first, other)]
    torch.testing.assert_close(kernels[1].sum(dim=1, keepdim=True), kernels[0])
    assert torch.equal(first.encoder[1][0][0].weight, other.encoder[1][0][0].weight)
    assert "1 adapted to other input channels (encoder.0.0.0.weight)" in report
    assert "of another shape (" in report
    assert "head.weight" in report


def test_outputs_of_all_resolutions_belong_to_the_classes(tmp_path: Path) -> None:
    from healsg.runs.weights import head_prefixes

    network = UNet(width=4).build(info(1, 32, 32))
    names = [name for name in network.state_dict() if name.startswith(head_prefixes(network, 3))]
    assert names == ["decoder.others.0.weight", "decoder.others.0.bias", "head.weight", "head.bias"]


def test_the_data_say_what_is_ignored_and_which_regions_there_are() -> None:
    regions = {"whole": (1, 2, 3), "core": (2, 3)}
    told = DataInfo((1, 8, 8), 2, "segmentation", ignore=255, regions=regions)
    criterion: Any = UNet(deep_supervision=False).criterion(told)
    assert isinstance(criterion, DiceCrossEntropy)
    chosen: Any = UNet(deep_supervision=False, loss=Focal()).criterion(told)
    assert (chosen.ignore, chosen.regions, chosen.gamma) == (255, [(1, 2, 3), (2, 3)], 2.0)
    own: Any = UNet(deep_supervision=False, loss=Focal(ignore=7)).criterion(told)
    assert own.ignore == 7
    assert [(part.ignore, part.regions) for part in criterion.parts.values()] == [(255, [(1, 2, 3), (2, 3)])] * 2
