"""What would go wrong, or wait, on a GPU or on Apple's: runs on tensors that pretend to lie there (pretend_device)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from healsg import TaskTrainer
from healsg.errors import RunError
from healsg.evaluation.evaluator import EvalEpoch
from healsg.methods.supervised import Supervised
from healsg.optimizers.adam import AdamW
from healsg.optimizers.lion import Lion
from healsg.optimizers.muon import Muon
from healsg.optimizers.muon_sgd import MuonSGD
from healsg.optimizers.rmsprop import RMSprop
from healsg.optimizers.schedule_free import ScheduleFreeAdamW
from healsg.optimizers.sgd import SGD
from healsg.runner import TaskRunner
from healsg.runs.checkpointer import Checkpointer
from healsg.seeding import Draw
from healsg.task import BasicTask
from healsg.training.epoch import TrainEpoch
from healsg.training.step import Accumulator, Mean, MicroBatch, Samples
from healsg.transforms.views import ImageViews
from helpers import METHODS, REPOSITORY, beside, stopping_at
from pretend_device import PretendDevice

SHORT = ["quiet=true", "fresh=true", "runner.limit_batches=2", "runner.epochs=2", "data.batch_size=32"]
SHORT += ["runner.log_every=1000", "runner.channels_last=false"]  # auto chooses by the type of the device
CNN = ["model=cnn", "model.width=4"]
REGIONS = [(TaskRunner, "step", "step"), (TrainEpoch, "run", "train"), (EvalEpoch, "run", "eval")]
REGIONS += [(Checkpointer, "save", "save"), (BasicTask, "build", "build")]
CHOSEN = ["adamw", "sam", "mean_teacher", "fixmatch", "simclr", "dino", "kd"]
"""The methods of every run of the tests; ``-m soak`` takes all."""

OPTIMIZERS = sorted(path.stem for path in (REPOSITORY / "conf/method/optimizer").glob("*.yaml"))


@contextlib.contextmanager
def regions(device: PretendDevice) -> Iterator[None]:
    """Let the device know which part of a run it is in."""
    with contextlib.ExitStack() as stack:
        for home, name, region in REGIONS:
            usual = getattr(home, name)

            def call(*arguments: Any, usual: Any = usual, region: str = region, **options: Any) -> Any:
                with device.region(region):
                    return usual(*arguments, **options)

            stack.enter_context(mock.patch.object(home, name, call))
        yield


def pretended(*options: str, kind: str = "cuda") -> tuple[PretendDevice, dict[str, Any]]:
    """A short run on a device of that kind that is not there, and its result."""
    device = PretendDevice(kind)
    device.stay_in("healsg")
    with device, regions(device):
        result = TaskTrainer.compose(*SHORT, *options, "name=pretended").train()
    assert device.launches["step"]  # it has seen something
    return device, result


def wrong(device: PretendDevice) -> list[str]:
    """What would fail, and what would wait in a training step."""
    return [*device.found("mixed", "generator", "layout", "float64"), *device.found("sync", region="step")]


def model_of(needed: list[str]) -> list[str]:
    """A small network of images, where the method does not say which it wants."""
    return [] if any(setting.startswith("model=") for setting in needed) else CNN


@pytest.mark.parametrize(
    "method", [name if name in CHOSEN else pytest.param(name, marks=pytest.mark.soak) for name in METHODS]
)
def test_a_method_mixes_no_devices_and_waits_for_nothing_in_a_step(method: str) -> None:
    needed = beside(method)
    options = [f"method={method}", *needed, *model_of(needed)]
    device, result = pretended(*options)
    assert wrong(device) == []
    plain = TaskTrainer.compose(*SHORT, *options, "name=plain", "runner.device=cpu").train()
    assert result["digest"] == plain["digest"]  # what was watched is what runs


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        (name, precision)
        if (precision == "fp16") or (name, precision) in (("adamw", "bf16"), ("adamw", "tf32"))
        else pytest.param(name, precision, marks=pytest.mark.soak)
        for name in OPTIMIZERS
        for precision in ("fp32", "tf32", "bf16", "fp16")
    ],
)
def test_an_optimizer_waits_for_nothing_in_any_precision(optimizer: str, precision: str) -> None:
    setting = f"method/optimizer={optimizer}"
    device, _ = pretended("method=supervised", setting, *CNN, f"runner.precision={precision}", "runner.clip_norm=1.0")
    assert wrong(device) == []


@pytest.mark.parametrize("optimizer", [AdamW, SGD, Lion, Muon, MuonSGD, RMSprop, ScheduleFreeAdamW])
def test_an_update_that_the_loss_scaler_skips_leaves_everything_as_it_was(optimizer: Any) -> None:
    """Weights and, by the updates that follow, state; what is scaled moves as what is not, up to rounding."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 2))
    images = [torch.rand(4, 1, 8, 8) for _ in range(4)]
    found = []
    for scaled in (False, True):
        own = copy.deepcopy(network)
        moved, scaler = optimizer(own.parameters()), torch.amp.GradScaler("cpu", init_scale=1024.0)
        for number, image in enumerate(images):
            if number in (0, 2) and not scaled:
                continue
            loss = own(image).square().mean() * (torch.inf if number in (0, 2) else 1.0)
            (scaler.scale(loss) if scaled else loss).backward()
            if scaled:
                scaler.step(moved)
                scaler.update()
            else:
                moved.step()
            moved.zero_grad()
        found.append(torch.cat([weight.detach().flatten() for weight in own.parameters()]))
    assert found[1].isfinite().all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


def test_counts_that_lie_on_the_device_are_saved_and_loaded() -> None:
    options = ["quiet=true", "method=schedule_free", "model=mlp", "runner.device=cpu", "runner.precision=fp16"]
    options += ["runner.steps=8"]
    whole = TaskTrainer.compose(*options, "name=whole").train()
    with stopping_at(4):
        assert TaskTrainer.compose(*options, "name=cut").train()["status"] == "stopped"
    assert TaskTrainer.compose(*options, "name=cut").train()["digest"] == whole["digest"]


@pytest.mark.parametrize("augment", ["strong", "light"])
def test_apple_gpus_have_no_float64_and_need_none(augment: str) -> None:
    device, _ = pretended("method=adamw", *CNN, f"data.augment={augment}", kind="mps")
    assert wrong(device) == []


def test_the_views_of_simclr_need_no_float64() -> None:
    device = PretendDevice("mps")
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    views = ImageViews("strong", True, 4, [0.5] * 3, [0.2] * 3, size=64)
    with device:
        for name in ("view1", "strong", "input"):
            draw = Draw(1, torch.arange(3).to("mps"))
            views.of(name)({"input": images.to("mps")}, draw)
    assert device.found("float64", "mixed", "generator") == {}


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment", "autoaugment"])
def test_policies_of_torchvision_run_on_the_cpu(policy: str) -> None:
    """Sample by sample on the device, each of their operations would wait for it."""
    device, result = pretended("method=adamw", *CNN, f"data.augment={policy}")
    assert result["status"] == "finished"
    assert wrong(device) == []
    waits = [text for text in device.found("sync", region="train") if "training/meter.py" not in text]
    assert waits == []  # but for the scalars, read once an epoch


def test_pieces_of_a_batch_give_memory_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Supervised.train_step

    def train_step(self: Supervised, task: Any, batch: dict[str, Any]) -> dict[str, Any]:
        if len(batch["input"]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, task, batch)

    monkeypatch.setattr(Supervised, "train_step", train_step)
    device, result = pretended("method=adamw", *CNN, "runner.auto_accumulate=true")
    assert result["status"] == "finished"
    emptied = {text: times for text, times in device.found("sync", region="step").items() if "empty_cache" in text}
    assert sum(emptied.values()) == 1
    assert [text for text in device.found("sync", region="step") if "empty_cache" not in text] == []


def test_gradients_of_several_processes_are_weighed_without_waiting() -> None:
    with PretendDevice("cuda") as device:
        gradients = [torch.rand(3, device="cuda"), torch.rand(2, 2, device="cuda")]
        before = [gradient.clone() for gradient in gradients]
        accumulator = Accumulator(4.0)
        count = torch.full((), 3.0, device="cuda").double()  # a sum of class weights
        accumulator.weights(Mean(torch.zeros((), device="cuda"), count), MicroBatch(Samples(4), parts=2))
        accumulator.weigh(gradients, processes=2)
        assert device.found("sync", "mixed", "slow", "pageable") == {}
    for old, new in zip(before, gradients, strict=True):
        torch.testing.assert_close(new, old * (4.0 * 2 / 3.0))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out of memory at step 1"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "out of memory at step 1"),
        ("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)", "out of memory at step 1"),
        ("CUDA error: out of memory", "out of memory at step 1"),
        (
            "CUDA error: device-side assert triggered\nCompile with `DSA`",
            "kernel failed .* index out of",
        ),
        ("CUDA error: an illegal memory access was encountered", "kernel failed .* further jobs need a new one"),
    ],
)
def test_errors_of_a_device_are_explained(words: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_step(*_: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(Supervised, "train_step", train_step)
    with pytest.raises(RunError, match=answer):
        TaskTrainer.compose(*SHORT, "method=adamw", "model=mlp", "runner.device=cpu").train()
