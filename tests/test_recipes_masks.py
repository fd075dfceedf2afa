"""The recipes on masks: their data in the layout in which it is published, who keeps a mask, and what is dealt."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import fake_volumes
from healsg import TaskTrainer
from healsg.build import build_task
from healsg.cli import main
from healsg.config.compose import Composer
from healsg.data.case import Case
from healsg.datasets.acdc import Acdc
from healsg.errors import ConfigError, DataError

pytest.importorskip("nibabel", reason="volumes need nibabel: an extra of healsg")

WRITERS = {
    "acdc_cps_3": lambda: fake_volumes.write_acdc(Path("data/ACDC")),
    "acdc_nnunet": lambda: fake_volumes.write_acdc(Path("data/ACDC")),
    "hippocampus_nnunet": lambda: fake_volumes.write_hippocampus(Path("data/Task04_Hippocampus")),
    "btcv_nnunet": lambda: fake_volumes.write_btcv(Path("data/Abdomen/RawData/Training")),
    "left_atrium_mean_teacher_16": lambda: fake_volumes.write_left_atrium(Path("data/UA-MT/data")),
}
"""One of each layout, below ``data.root``, as its recipe finds it."""


FIRST = torch.zeros(1, dtype=torch.int64)


def ready(name: str) -> None:
    """Write the data of a recipe; skip where its package is not installed."""
    if name.startswith("left_atrium"):
        for package in ("h5py", "monai"):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed: an extra of healsg")
    WRITERS[name]()


def loaders(*settings: str) -> dict[str, Any]:
    task = build_task(Composer().compose(list(settings)))
    return task.task_data.loaders(task.task_method.needs)


def cases(source: Any) -> list[Case]:
    """The cases of a source, once each."""
    return list({case.name: case for case in source.about.cases}.values())


@pytest.fixture
def tiny_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let patches of the recipes' sizes be cut from written cases that are far smaller than the real ones."""
    monkeypatch.setattr("healsg.data.patches.ROUNDING", 256)


@pytest.mark.usefixtures("tiny_cases")
@pytest.mark.parametrize("name", [name for name in WRITERS if not name.startswith("left_atrium")])
def test_a_recipe_finds_its_data_and_deals_its_patches(name: str) -> None:
    ready(name)
    composed = Composer().compose([f"recipe={name}"])
    task = build_task(composed)
    found = task.task_data.loaders(task.task_method.needs)
    patch = composed.values["data"]["patch"]
    for source in found["train"].sources.values():
        assert list(source.fetch(FIRST)["input"].shape) == [1, 1, *patch]
    assert {"train", "val"} <= set(found)
    assert ("test" in found) == ("nnunet" not in name)


@pytest.mark.usefixtures("tiny_cases")
def test_the_first_patients_of_the_list_keep_their_masks() -> None:
    ready("acdc_cps_3")
    found = loaders("recipe=acdc_cps_3", "data.samples_per_epoch=null", "data.batch_size=2")
    labelled, pool = (cases(found["train"].sources[name]) for name in ("labelled", "unlabelled"))
    assert [case.name for case in labelled] == [
        f"patient{number:03}_frame{frame:02}" for number in (99, 38, 50) for frame in (1, 12)
    ]
    assert {case.group for case in pool} == {"patient099", "patient038", "patient050", "patient100"}
    assert {case.group for case in cases(found["val"].sources["labelled"])} == {"patient028", "patient085"}
    assert {case.group for case in cases(found["test"].sources["labelled"])} == {"patient011", "patient013"}
    with pytest.raises(DataError, match=r"patient021: there is no such patient, whose masks data\.labels keeps$"):
        loaders("recipe=acdc_cps_7", "data.batch_size=2")
    with pytest.raises(ConfigError, match=r"^data\.labels: 71; parts=ssl4mis trains on 70 patients$"):
        loaders("recipe=acdc_cps_3", "data.labels=71")


def test_the_first_scans_of_the_list_keep_their_masks(caplog: pytest.LogCaptureFixture) -> None:
    ready("left_atrium_mean_teacher_16")
    part = ["data=left_atrium", "data.folder=UA-MT/data", "data.val_fraction=0", "data.labels=16"]
    teacher = ["model=unet", "method=mean_teacher", "method.view=strong", "data.batch_size=2"]
    with pytest.raises(
        DataError, match=r"data\.patch: \[112, 112, 80\] has 112 along axis 0, and the largest training"
    ):
        loaders(*part, *teacher)
    with caplog.at_level("INFO", logger="healsg"):
        found = loaders(*part, *teacher, "data.patch=[32,32,16]")
    (told,) = [record.getMessage() for record in caplog.records if "data.patch" in record.getMessage()]
    assert "18 of 18 training cases are smaller along an axis than [32, 32, 16] and padded" in told
    assert "00SCAN/mri_norm2.h5 (" in told
    labelled, pool = (found["train"].sources[name] for name in ("labelled", "unlabelled"))
    assert [case.name for case in cases(labelled)] == [f"{number:02}SCAN" for number in range(16)]
    assert len(cases(pool)) == 18
    assert list(labelled.fetch(FIRST)["input"].shape) == [1, 1, 32, 32, 16]
    Path("data/UA-MT/data/2018LA_Seg_Training Set/00SCAN/mri_norm2.h5").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"00SCAN/mri_norm2\.h5: cannot be read, it is cut short or damaged"):
        labelled.fetch(FIRST)


SMALL = ["data.patch=[16,16,8]", "model.strides=[1,2]", "model.kernels=null", "model.width=4", "data.workers=0"]
VNET = ["data.patch=[16,16,16]", "model.overlap=0"]


@pytest.mark.soak
@pytest.mark.parametrize("name", [*WRITERS, "acdc_cps_7", "left_atrium_mean_teacher_8"])
def test_every_recipe_on_masks_trains_and_has_its_number(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "acdc_cps_7":
        fake_volumes.write_acdc(Path("data/ACDC"), (99, 38, 50, 100, 58, 21, 49, 20, 28, 11))
    else:
        ready(name.replace("_8", "_16"))
    small = [*(VNET if name.startswith("left") else SMALL), "data.samples_per_epoch=null", "data.batch_size=2"]
    short = ["runner.steps=2", "runner.limit_batches=2", "runner.eval_every=1", "runner.threads=1", "quiet=true"]
    assert main(["reproduce", name, *small, *short]) in (0, 1)
    assert f": {'val' if 'nnunet' in name else 'test'}/dice " in capsys.readouterr().out.splitlines()[-1]
    assert TaskTrainer.load(f"runs/reproduce-{name}-0").predictor()


def test_published_parts_of_acdc_hold_out_whole_patients() -> None:
    assert Acdc("acdc", parts="published").group == "patient"
    assert Acdc("acdc", parts="published", val_fraction=0.0).group is None
    assert Acdc("acdc").group is None
