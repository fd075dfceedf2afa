"""``healsg check``: all that is wrong with a data set is told before a run, and the parts are tried together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fake_volumes
from healsg.cli import main
from healsg.commands.check.findings import misspelt

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """What ``healsg check --json`` prints, and its status as ``status``."""

    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        status = main(["check", *arguments, "--json"])
        out, err = capsys.readouterr()
        assert out, err
        found: dict[str, Any] = json.loads(out)
        return found | {"status": status}

    return run


def picture(path: Path, seed: int, *shape: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(values).save(path, **options)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Pictures as people have them: broken ones, four kinds of pixels, copies, an empty class, a misspelt one."""
    folder = tmp_path / "Bilder füchse"
    for number, name in enumerate(("katze", "hunde", "füchse", "hunds")):
        for place in range(8):
            picture(folder / "train" / name / f"{place}.png", 10 * number + place, 20, 24, 3)
            picture(folder / "val" / name / f"{place}.png", 1000 + 10 * number + place, 20, 24, 3)
    picture(folder / "train/katze/alpha.png", 1, 20, 20, 4)
    picture(folder / "train/katze/grey.png", 2, 20, 20)
    Image.fromarray(np.full((20, 20), 60000, np.uint16)).save(folder / "train/katze/deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(folder / "train/hunde/turned.jpg", 3, 20, 30, 3, exif=turned)
    (folder / "train/hunde/broken.jpg").write_bytes(b"no picture")
    (folder / "val/katze/empty.png").write_bytes(b"")
    (folder / "val/katze/copy.png").write_bytes((folder / "train/katze/0.png").read_bytes())
    (folder / "train/nothing").mkdir()
    (folder / "train/nothing/.DS_Store").write_bytes(b"x")
    return folder


def test_a_messy_folder_is_told_whole(check: Check, messy: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = check("data=imagefolder", f"data.folder='{messy}'", "data.image_size=18", "model=cnn", f"--page={page}")
    assert found["status"] == 1
    assert found["fatal"] is True
    assert {Path(one["sample"]).name for one in found["bad"]} == {"broken.jpg", "empty.png"}
    assert found["splits"]["train"]["classes"] == {"füchse": 8, "hunde": 9, "hunds": 8, "katze": 11, "nothing": 0}
    assert found["splits"]["val"]["unreadable"] == 1
    assert set(found["pictures"]["modes"]) == {"RGB", "RGBA", "L", "I;16"}
    assert found["pictures"]["bits"]["16"] == 1
    assert found["pictures"]["orientations"]["6"] == 1
    assert [{Path(one["sample"]).name for one in group} for group in found["duplicates"]] == [{"0.png", "copy.png"}]
    told = [f"{one['level']} {one['message']}" for one in found["findings"]]
    assert any("fatal" in text and "nothing: no pictures in it" in text for text in told)
    assert any("'hunde'" in text and "'hunds'" in text and "nearly the same name" in text for text in told)
    assert found["task"]["step"]["loss"] > 0, "the parts are tried on what can be read"
    assert found["command"].startswith("healsg train data=imagefolder 'data.folder=")
    text = page.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert "data:image/jpeg;base64," in text
    assert "broken.jpg" in text
    assert "<script" not in text
    assert "http" not in text


OWN = """
import torch
from healsg import DataInfo, TaskData
from healsg.data.source import DatasetSource

ODD = {3: (torch.zeros(8), None), 4: (None, 1), 5: {"input": torch.zeros(8)}}


class Own(TaskData):
    info = DataInfo(input_shape=(8,), num_classes=2)

    def read(self, part):
        if part == "val":
            return None
        odd = ODD if part == "train" else {}
        inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(len(odd)))
        rows = [{"input": input, "target": number % 2} for number, input in enumerate(inputs)]
        return DatasetSource([odd.get(number, row) for number, row in enumerate(rows)])
"""


def test_own_samples_that_lack_something_are_listed(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("own_rows.py").write_text(OWN)
    folder = Path("conf/data")
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("_target_: own_rows.Own\nval_fraction: 0.0\nbatch_size: 2\n")
    found = check("data=own", "model=mlp")
    assert {row["sample"]: row["reason"] for row in found["bad"]} == {
        "sample 3 of list": "its target is None, and no tensor or number",
        "sample 4 of list": "its input is None, and no tensor or number",
    }
    fatal = [finding["message"] for finding in found["findings"] if finding["level"] == "fatal"]
    assert "train: 1 hold input alone, the others input, target: 'sample 5 of list'" in fatal


def test_samples_that_are_left_out_are_not_fatal(check: Check, messy: Path) -> None:
    (messy / "train/nothing/.DS_Store").unlink()
    (messy / "train/nothing").rmdir()
    found = check(
        *("data=imagefolder", f"data.folder='{messy}'", "data.image_size=18", "model=cnn", "data.on_error=skip")
    )
    assert found["status"] == 0
    assert len(found["bad"]) == 2


def test_parts_that_do_not_fit_are_told_beside_the_data(check: Check, tmp_path: Path) -> None:
    rows = [f"{number}.5,1,{'' if number == 3 else number % 7},x{number % 2}" for number in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["a,same,c,label", *rows]))
    found = check("data=csv", f"data.file={tmp_path / 't.csv'}", "model=cnn")
    told = {one["subject"]: one for one in found["findings"]}
    assert told["parts"]["level"] == "fatal"
    assert "model=mlp" in told["parts"]["message"]
    assert "'same'" in told["columns"]["message"] or "c 1" in told["columns"]["message"]
    assert found["splits"]["train"]["missing"].get("c", 0) + found["splits"]["val"].get("missing", {}).get("c", 0) == 1
    assert found["status"] == 1


def test_masks_are_counted_by_pixel(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["data=shapes2d", "model=unet", "model.width=4", "model.stages=2", "data.val_fraction=0.2"]
    found = check(*options)
    assert found["status"] == 0, found["findings"]
    shares = found["splits"]["train"]["pixels"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    assert min(shares.values()) > 0


def test_volumes_are_told_by_their_place_their_intensities_and_their_smallest_structures(
    check: Check, tmp_path: Path
) -> None:
    nibabel = pytest.importorskip("nibabel", reason="volumes need nibabel: an extra of healsg")
    fake_volumes.write_scans(tmp_path / "scans", 7)
    bright = tmp_path / "scans/images/case6.nii.gz"
    image = nibabel.load(bright)
    nibabel.Nifti1Image(np.asarray(image.dataobj) * 7 + 900, image.affine).to_filename(bright)
    dotted = tmp_path / "scans/labels/case2.nii.gz"
    mask = nibabel.load(dotted)
    labels = np.asarray(mask.dataobj).copy()
    labels[0, 0, 0] = 2
    nibabel.Nifti1Image(labels, mask.affine).to_filename(dotted)
    deep = tmp_path / "scans/labels/case4.nii.gz"
    mask = nibabel.load(deep)
    nibabel.Nifti1Image(np.asarray(mask.dataobj)[..., None], mask.affine).to_filename(deep)
    page = tmp_path / "page.html"
    data = ["data=nifti", f"data.folder={tmp_path}/scans", "data.patch=[20,8,8]", "data.val_fraction=0.3"]
    found = check(*data, "data.spacing=[1,1,0]", "model=unet", "model.width=2", "model.stages=2", f"--page={page}")
    assert found["status"] == 0, found["findings"]
    told = [f"{one['level']} {one['subject']}: {one['message']}" for one in found["findings"]]
    for words in (
        ("warning geometry: spacing along axis 2 is 1.5 to 2.5 mm; data.spacing gives all one",),
        ("note geometry: orientations differ, and all are turned to RAS: RAS (4), LAS (3)",),
        ("warning masks: label 2: 1 structures are smaller than a voxel of data.spacing", "case2.nii.gz"),
        ("warning intensities: ", "case6.nii.gz"),
        ("note geometry: stored as 4D with one channel, and taken as 3D: ", "labels/case4.nii.gz"),
        ("note data.patch: ", "smaller along an axis than [20, 8, 8] and padded with zeros", "case"),
    ):
        assert any(all(word in text for word in words) for text in told), told
    assert {one["case"] for one in found["volumes"]} == {f"case{number}" for number in range(7)}
    assert {tuple(one["shape"]) for one in found["volumes"]} == set(fake_volumes.SIDES)
    assert "<h2>Volumes</h2>" in page.read_text()


def test_a_sound_set_ends_with_the_command_to_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "data=digits", "model=mlp"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "train with: healsg train data=digits model=mlp"
    assert main(["check", "data=imagefolder", "data.folder=nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("hunde", "hunds", "katze"), [("hunde", "hunds")]),
        (("cats", "Cats", "dogs"), [("cats", "Cats")]),
        (("class1", "class2", "type_a", "type_b"), []),
        (("benign", "bengin"), [("benign", "bengin")]),
        (("pear", "peach", "plum"), []),
    ],
)
def test_names_that_differ_in_a_letter_are_misspelt(names: tuple[str, ...], wanted: list[tuple[str, ...]]) -> None:
    assert misspelt(names) == wanted
