"""Semi-supervised segmentation: mean teacher, cross pseudo supervision and FixMatch on masks, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from healsg import TaskTrainer
from healsg.build import build_task
from healsg.data.base import Needs
from healsg.errors import ConfigError
from healsg.methods.consistency import finest, forward_together, inside, masked_mean, mean_over
from healsg.training.step import Samples, TrainBatch
from test_equal_steps import EQUAL, difference, run_all

CONF = str(Path(__file__).parent / "dense_conf")

METHODS = {
    "mean_teacher": ["method=mean_teacher", "method.view=strong", "method.ramp=0", "method.ema=0.9"],
    "cps": ["method=cps"],
    "fixmatch": ["method=fixmatch", "method.unlabelled_ratio=1", "method.threshold=0.3"],
}

VOLUMES = [
    *["data=shapes3d", "data.train=6", "data.test=2", "data.labels=2", "data.size=12", "data.patch=[16,8,8]"],
    *["data.workers=0", "data.samples_per_epoch=4", "model=unet", "model.width=2", "model.stages=2"],
]


def blobs(*settings: str) -> TaskTrainer:
    options = ["data=blobs", "model=pixels", "trusted=[dense_data]", "data.labels=4", "data.batch_size=4", "quiet=true"]
    return TaskTrainer.compose(*options, *settings, config_dir=CONF)


def stepped(task: Any) -> tuple[Any, dict[str, Any]]:
    """A built task's first batch and what its step gives."""
    task.build()
    task.model.train()
    batch = next(iter(task.train_loader))
    return batch, task.task_method.train_step(task, batch)


@pytest.mark.parametrize("method", METHODS)
def test_unlabelled_patches_of_volumes_are_learned_from_under_deep_supervision(method: str) -> None:
    task = build_task(TaskTrainer.compose(*VOLUMES, *METHODS[method], "runner.steps=2", "quiet=true").composed)
    batch, logs = stepped(task)
    unlabelled = batch["unlabelled"]
    known = inside(unlabelled)
    assert known is not None
    assert 0 < known.float().mean() < 1, "a case of 12 voxels is padded to 16"
    padding = unlabelled["weak"][:, 0][~known]
    assert bool((padding == padding[0]).all())
    assert float(logs["unlabelled"].value.detach()) > 0
    logs["loss"].value.backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_what_lies_outside_of_an_unlabelled_case_gives_no_gradient(method: str) -> None:
    task: Any = build_task(TaskTrainer.compose(*VOLUMES, *METHODS[method], "runner.steps=2", "quiet=true").composed)
    outputs = list[torch.Tensor]()

    def keep(module: Any, inputs: Any, output: Any) -> None:
        for one in output if isinstance(output, tuple) else (output,):
            outputs.append(finest(one))
            outputs[-1].retain_grad()

    task.build()
    task.model.register_forward_hook(keep)
    task.model.train()
    batch = next(iter(task.train_loader))
    task.task_method.train_step(task, batch)["loss"].value.backward()
    known = inside(batch["unlabelled"])
    assert known is not None
    for output in outputs:
        assert output.grad is not None
        views = output.grad[len(batch["labelled"]["input"]) :].movedim(1, -1).split(len(known))
        assert not any(view[~known].any() for view in views)
        assert any(view[known].any() for view in views)


@pytest.mark.parametrize(
    "method", ["cps", *(pytest.param(name, marks=pytest.mark.soak) for name in ("mean_teacher", "fixmatch"))]
)
def test_a_run_on_masks_goes_on_bit_for_bit(method: str) -> None:
    settings = [*METHODS[method], "data.patch=[8,8]", "data.flip=true", "data.augment=strong", "runner.epochs=2"]
    whole = blobs(*settings, "name=whole").train()
    assert blobs(*settings, "name=cut", "runner.max_time=0").train()["status"] == "stopped"
    again = TaskTrainer.load("cut", "trusted=[dense_data]", "runner.max_time=null")
    assert again.train()["digest"] == whole["digest"]


def test_padding_counts_in_no_mean_and_each_sample_weighs_alike() -> None:
    losses = torch.arange(16.0).view(2, 2, 4)
    counted = torch.zeros(2, 2, 4, dtype=torch.bool)
    counted[0, 0] = True
    counted[1] = True
    batch: Any = TrainBatch({}, Samples(2))
    found = mean_over(losses, batch, counted)
    assert float(found.value) == (1.5 + 11.5) / 2
    assert found.over is batch.samples
    assert float(masked_mean(losses, losses > 2, batch, counted).value) == (0.75 + 11.5) / 2
    assert float(mean_over(losses, batch, torch.zeros_like(counted)).value) == 0.0
    assert mean_over(losses, batch).over is batch.samples


def test_outputs_of_several_resolutions_and_networks_are_split_by_batch() -> None:
    def network(input: torch.Tensor) -> Any:
        return ([input, input[:, :1]], [input + 1, input[:, :1] + 1])

    first, second = forward_together(network, torch.zeros(2, 3), torch.ones(1, 3))  # type: ignore[arg-type]
    assert [len(part) for one in first for part in one] == [2, 2, 2, 2]
    assert float(second[1][1]) == 2.0


def test_strong_and_weak_views_of_a_volume_lie_voxel_on_voxel() -> None:
    data = TaskTrainer.compose(*VOLUMES, "method=fixmatch").composed
    task = build_task(data)
    needs = Needs({"labelled": ("input",), "unlabelled": ("weak", "strong")})
    loader = task.task_data.loaders(needs)["train"]
    differ = False
    for place in range(2):
        batch = loader.batch(0, place)[0]["unlabelled"]
        weak, strong = batch["weak"].flatten(), batch["strong"].flatten()
        assert float(torch.corrcoef(torch.stack([weak, strong]))[0, 1].abs()) > 0.5
        differ = differ or not torch.equal(weak, strong)
    assert differ


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method=flexmatch"], "method: FlexMatch learns one class a sample; mean_teacher, cps and fixmatch"),
        (["method=cps", "data.regions={whole: [1, 2], bar: [2]}"], r"data\.regions: CrossPseudoSupervision needs one"),
        (["method=cps", "method.layer_decay=0.5"], r"method\.layer_decay: cross pseudo supervision trains two"),
    ],
)
def test_what_cannot_be_done_for_masks_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        blobs(*settings).train()


def test_a_view_that_is_moved_by_itself_is_refused() -> None:
    settings = [*VOLUMES, "data.augment=nnunet", "method=mean_teacher", "quiet=true"]
    with pytest.raises(ConfigError, match=r"data\.augment: MeanTeacher compares the views .* set method\.view=strong"):
        TaskTrainer.compose(*settings).train()


def test_cross_pseudo_supervision_learns_classes_too() -> None:
    options = ["data=digits", "data.labels=40", "model=mlp", "model.width=8", "method=cps", "runner.steps=3"]
    result = TaskTrainer.compose(*options, "quiet=true").train()
    assert result["status"] == "finished"


# --- several processes -----------------------------------------------------------------------------------------------

STEPS = [
    *["runner.precision=fp64", "runner.log_every=100", "quiet=true", "data.samples_per_epoch=10"],
    *["data.train=8", "data.labels=3", "data.flip=true", "data.in_memory=true", "runner.channels_last=false"],
    *["method/optimizer=sgd", "method.optimizer.lr=0.01"],
]
"""The last batch of an epoch has 4 of 6 patches, which 3 processes share unevenly; cases are padded. Biases before an
InstanceNorm have no gradient but rounding errors, which AdamW would make steps of."""

ACTS = {
    "mean_teacher": METHODS["mean_teacher"],
    "cps": ["method=cps", "method.ramp=0"],
    "fixmatch": ["method=fixmatch", "method.unlabelled_ratio=2", "method.threshold=0.55"],
}
"""Settings under which each term acts from the first update on, on a part of the pixels."""


def equal_settings(method: str, accumulate: int, steps: int) -> list[str]:
    size = [f"data.batch_size={6 // accumulate}", f"runner.accumulate={accumulate}", f"runner.steps={steps}"]
    return [*VOLUMES, *STEPS, *ACTS[method], *size]


def test_two_processes_take_the_step_of_one_on_masks() -> None:
    for world in (1, 2):
        run_all({"fixmatch-1": equal_settings("fixmatch", 1, 4)}, world)
    assert difference("1-fixmatch-1", "2-fixmatch-1") < EQUAL


@pytest.mark.soak
def test_any_processes_and_micro_batches_take_the_same_step_on_masks() -> None:
    for world in (1, 2, 3):
        run_all({f"{method}-{parts}": equal_settings(method, parts, 20) for method in ACTS for parts in (1, 2)}, world)
    for method in ACTS:
        gaps = {
            f"{world}x{parts}": difference(f"1-{method}-1", f"{world}-{method}-{parts}")
            for world in (1, 2, 3)
            for parts in (1, 2)
        }
        print(method, {name: f"{gap:.1e}" for name, gap in gaps.items()})
        assert max(gaps.values()) < EQUAL, (method, gaps)
