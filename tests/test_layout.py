"""``runner.channels_last=auto``: which memory format a network gets, and that training and evaluation agree on it."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import nn

from healsg.training.device import DeviceSetup
from healsg.training.layout import prefers_channels_last
from healsg.training.parallel import Parallel
from helpers import Program, healsg, trained, trainer


def flat(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *between, nn.Conv2d(8, 8, 3), nn.Flatten())


VOLUMES = nn.Sequential(nn.Conv3d(1, 8, 3), nn.InstanceNorm3d(8), nn.Conv3d(8, 8, 3))
DEPTHWISE = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8))


@pytest.mark.parametrize(
    ("network", "device", "reduced", "wanted"),
    [
        (flat(nn.BatchNorm2d(8)), "cpu", False, True),
        (flat(nn.BatchNorm2d(8)), "cpu", True, True),
        (flat(nn.InstanceNorm2d(8)), "cpu", False, False),
        (VOLUMES, "cpu", False, True),
        (DEPTHWISE, "cpu", False, True),
        (DEPTHWISE, "cpu", True, False),
        (nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)), "cpu", False, False),
        (nn.Linear(8, 8), "cpu", False, False),
        (flat(nn.BatchNorm2d(8)), "cuda", False, False),
        (flat(nn.BatchNorm2d(8)), "cuda", True, True),
        (VOLUMES, "cuda", True, False),
        (flat(nn.BatchNorm2d(8)), "mps", True, False),
    ],
)
def test_the_format_follows_from_layers_device_and_precision(
    network: nn.Module, device: str, reduced: bool, wanted: bool
) -> None:
    assert prefers_channels_last(network, device, reduced) is wanted
    assert prefers_channels_last(network, device, reduced, threads=2) is (wanted and device != "cpu")


@pytest.mark.parametrize(("setting", "last"), [("auto", True), ("true", True), ("false", False)])
def test_weights_have_the_format_in_training_and_in_prediction(setting: str, last: bool) -> None:
    run = trainer("model=cnn", "runner.threads=1", "runner.steps=2", f"runner.channels_last={setting}", "name=run")
    run.train()
    for network in (run.task.model, run.predictor().network):
        weights = [weight for weight in network.parameters() if weight.dim() == 4 and min(weight.shape[1:]) > 1]
        assert weights
        assert all(weight.is_contiguous(memory_format=torch.channels_last) is last for weight in weights)


def test_volumes_have_the_format_and_their_masks_do_not() -> None:
    task = trained(
        "runner.threads=1",
        *(
            "data=shapes3d",
            "data.train=3",
            "data.val=1",
            "data.test=1",
            "model=unet",
            "model.width=4",
            "model.stages=2",
        ),
        *("runner.steps=1", "name=run"),
    )
    setup = task.runner.device_setup
    moved = setup.move({"input": torch.rand(2, 3, 8, 8, 8), "target": torch.zeros(2, 8, 8, 8, dtype=torch.int64)})
    assert moved["input"].is_contiguous(memory_format=torch.channels_last_3d)
    assert moved["target"].is_contiguous()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep their ways")
def test_memory_that_a_step_frees_is_not_cleared_anew_for_the_next() -> None:
    import resource

    DeviceSetup("cpu", "fp32", "auto", False, Parallel()).keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10_000_000)  # 40 MB, of 10,000 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(faults() for _ in range(4)) < 1000


@pytest.mark.soak
def test_two_processes_with_heads_of_one_voxel_warn_of_nothing(process: Program) -> None:
    sizes = ["data.train=4", "data.val=1", "data.test=1", "model=unet", "model.width=4", "model.stages=2"]
    options = ["runner.channels_last=true", "runner.processes=2", "runner.device=cpu", "runner.threads=1"]
    done = process(healsg("train", "data=shapes3d", *sizes, *options, "runner.steps=2", "name=run"))
    assert done.returncode == 0, done.stderr
    assert "strides" not in done.stdout + done.stderr
