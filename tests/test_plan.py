"""``healsg plan``: nnU-Net's own plans, a YAML that trains, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fake_volumes
from healsg import TaskTrainer
from healsg.build import build_task
from healsg.cli import main
from healsg.models.planning import planned
from healsg.models.resenc_unet import ResEncUNet
from healsg.models.unet import PyramidModel, UNet

CASES: dict[str, Any] = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text())["fingerprints"]
"""Made by ``python -m benchmarks.segmentation.nnunet_plans``."""

PLANNERS: dict[str, tuple[PyramidModel, float]] = {
    "plain": (UNet(), 8),
    "plain_10": (UNet(), 10),
    "M": (ResEncUNet(preset="M"), 8),
    "L": (ResEncUNet(preset="L"), 24),
}


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", CASES)
def test_plans_are_those_of_nnunet(name: str, planner: str) -> None:
    facts = CASES[name]
    wanted = facts["plans"][planner]
    model, memory = PLANNERS[planner]
    axes = len(wanted["spacing"])  # nnU-Net's are the slices first, ours the slices last

    def ours(entry: list[Any]) -> tuple[Any, ...]:
        return tuple(entry[-axes:][::-1])

    outputs = facts["labels"]
    found = planned(
        [ours(spacing) for spacing in facts["spacings"]],
        [ours(shape) for shape in facts["shapes"]],
        lambda one: model.values(model.laid_out(one.strides, one.kernels), one.patch, outputs),
        model.budget,
        memory,
    )
    back = [axes - 1 - axis for axis in (wanted["transpose"] if axes == 3 else range(axes))]

    def nnunets(entry: Any) -> list[Any]:
        return [entry[axis] for axis in back]

    assert nnunets(found.spacing) == pytest.approx(wanted["spacing"])
    assert nnunets(found.topology.patch) == wanted["patch"]
    assert found.batch == wanted["batch"]
    assert [nnunets(entry) for entry in found.topology.strides] == wanted["strides"]
    assert [nnunets(entry) for entry in found.topology.kernels] == wanted["kernels"]
    assert list(model.laid_out(found.topology.strides, found.topology.kernels).channels) == wanted["features"]


# --- the command -----------------------------------------------------------------------------------------------------


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What ``healsg plan`` prints."""
    assert main(["plan", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with ``scans/``, ``pictures/`` and ``my/recipe/``."""
    pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
    monkeypatch.chdir(tmp_path)
    fake_volumes.write_scans(tmp_path / "scans")
    fake_volumes.write_pictures(tmp_path / "pictures")
    return tmp_path


def test_a_plan_is_a_recipe_and_a_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model.width=4", "runner=debug", "runner.steps=1", "quiet=true"]
    answer = json.loads(told(["data=nifti", "data.folder=scans", "--memory=10", "--json", "model.width=4"], capsys))
    assert answer["spacing"] == [0.9, 0.8, 2.0], "along the axes that volumes have after orient"
    assert answer["patch"] == [20, 20, 14]
    program, command, *arguments = shlex.split(answer["command"])
    assert (program, command) == ("healsg", "train")
    values = TaskTrainer.compose(*arguments, *small).composed.values
    assert (values["data"]["patch"], values["model"]["strides"]) == (answer["patch"], answer["strides"])
    told(["data=nifti", "data.folder=scans", "model.width=4", "--out", "my/recipe/scans.yaml"], capsys)
    trainer = TaskTrainer.compose("recipe=scans", *small, config_dir="my")
    assert trainer.composed.values["data"]["patch"] == answer["patch"]
    assert trainer.train()["status"] == "finished"


def test_pictures_are_planned_and_what_is_given_is_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(["data=seg2d", "data.folder=pictures", "model=resenc_unet_l", "data.channels=1"], capsys)
    values = yaml.safe_load(text)
    assert values["data"]["image_size"] == 48, "42 rounded up to what the strides divide"
    assert values["data"]["patch"] is None
    assert values["data"]["channels"] == 1
    text = told(["data=nifti", "data.folder=scans", "data.spacing=[1,1,3]", "data.intensity=none"], capsys)
    values = yaml.safe_load(text)
    assert values["data"]["spacing"] == [1.0, 1.0, 3.0]
    assert values["data"]["intensity"] == "none"


def test_a_ct_gets_a_window_and_empty_surroundings_are_cut_away(place: Path) -> None:
    import nibabel

    for path in (place / "scans/images").iterdir():
        image = nibabel.load(path)
        array = np.asarray(image.dataobj) - 1000
        array[0, 0, 0] = -1024
        nibabel.Nifti1Image(array, image.affine).to_filename(path)
    survey = data_of("scans").survey()
    assert survey.settings["intensity"][0] == "window"
    low, high = survey.settings["window"][0]
    assert -800 < low < -600 < -450 < high < -350, "boxes of 300 and 600 above -1000"
    for path in (place / "scans/images").iterdir():
        image = nibabel.load(path)
        array = np.asarray(image.dataobj).clip(-500) + 500
        nibabel.Nifti1Image(array, image.affine).to_filename(path)
    survey = data_of("scans").survey()
    assert survey.settings["crop"][0] == 0
    assert survey.shapes[0] < fake_volumes.SIDES[0]
    assert survey.settings["intensity"][0] == "zscore"


def data_of(folder: str) -> Any:
    return build_task(TaskTrainer.compose("data=nifti", f"data.folder={folder}", "model=unet").composed).task_data


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=digits"], "data: digits has no masks"),
        (["data=shapes2d", "model=cnn"], "model: cnn has no stages"),
        (["data=shapes2d", "--memory", "much"], "--memory: much"),
        (["data=shapes2d", "data.train=2", "--memory=0.0001"], "--memory: 0.0001 GB does not hold"),
        (["data=shapes2d", "--out", "plan.json"], "--out: plan.json is no .yaml file"),
        (["data=shapes2d", "--otu", "plan.yaml"], "--otu: there is no such option; did you mean --out"),
    ],
)
def test_a_wrong_plan_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
