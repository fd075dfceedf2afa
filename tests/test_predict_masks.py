"""``healsg predict`` of segmentation runs: masks in the space, labels and kind of file of what they belong to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fake_volumes
from healsg import TaskTrainer
from healsg.cli import main
from healsg.datasets.new_samples.mask_files import scans_of
from healsg.datasets.segmentation import region_labels
from healsg.errors import DataError

TINY = ["model=unet", "model.width=4", "runner=debug", "runner.steps=2", "quiet=true", "data.val_fraction=0.34"]

Answer = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on volumes with the labels 0, 4 and 7, and one on pictures with masks of 0 and 255."""
    pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    fake_volumes.write_scans(Path("scans"), 3, labels=(0, 4, 7))
    fake_volumes.write_pictures(Path("pictures"))
    volumes = ["data=nifti", "data.folder=scans", "data.patch=[16,16,8]"]
    for seed in (0, 1):
        TaskTrainer.compose(*TINY, *volumes, f"seed={seed}", f"name=run{seed}").train()
    TaskTrainer.compose(*TINY, "data=seg2d", "data.folder=pictures", "data.image_size=32", "name=flat").train()
    os.chdir(before)
    return folder


@pytest.fixture
def asked(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Answer:
    """``healsg predict`` in a folder that has the runs; its status and what it prints."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["predict", *arguments])
        return (status, *capsys.readouterr())

    return run


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_masks_have_the_space_and_the_labels_of_their_files(asked: Answer) -> None:
    from healsg.datasets.volumes.files import read_geometry, read_mask

    status, out, told = asked("run0", "run1", "scans", "--out", "masks", "--tta", "flips", "--json")
    assert (status, told) == (0, "masks: 3 masks\n")
    lines = lines_of(out)
    assert [line["mask"] for line in lines] == [f"images/case{number}.nii.gz" for number in range(3)]
    for line in lines:
        made, own = read_mask(Path("masks", line["mask"])), read_geometry(Path("scans", line["mask"]))
        assert made.geometry.shape == own.shape
        assert made.geometry.affine.tobytes() == own.affine.tobytes()
        assert set(np.unique(made.array)) <= {0, 4, 7}
        assert sum(line["labels"].values()) == made.array.size


def test_a_mask_is_what_the_evaluation_predicts(asked: Answer) -> None:
    """The network's own prediction of the whole case in the common space, turned back."""
    from healsg.datasets.volumes.cases import preparation_of
    from healsg.datasets.volumes.files import read_image, read_mask

    assert asked("run0", "scans/images/case1.nii.gz", "--out", "masks")[0] == 0
    predictor = TaskTrainer.load("run0").predictor()
    preparation, image = preparation_of(predictor.info), read_image([Path("scans/images/case1.nii.gz")])
    steps = preparation.steps(image)
    scores = predictor.scores(torch.from_numpy(preparation.input(image, steps))[None])
    wanted = preparation.restored(steps.backward(scores.argmax(dim=1).numpy().astype(np.uint8)))
    np.testing.assert_array_equal(read_mask(Path("masks/case1.nii.gz")).array, wanted)


def test_a_killed_prediction_goes_on_and_other_weights_are_refused(
    asked: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from healsg.datasets.new_samples import segmenter

    whole = asked("run0", "scans", "--out", "whole")
    assert whole[0] == 0
    written: list[Path] = []
    real = segmenter.write_volume

    def write(path: Path, *given: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        real(path, *given)
        written.append(path)

    with monkeypatch.context() as patched:
        patched.setattr(segmenter, "write_volume", write)
        assert asked("run0", "scans", "--out", "cut")[0] != 0
    status, out, told = asked("run0", "scans", "--out", "cut", "--json")
    assert (status, told) == (0, "cut: 2 masks, 1 were there\n")
    assert [line["skipped"] for line in lines_of(out)] == [True, False, False]
    for path in Path("whole/images").iterdir():
        assert (Path("cut/images") / path.name).read_bytes() == path.read_bytes()
    for other in (["run1"], ["run0", "run1"]):
        status, _, told = asked(*other, "scans", "--out", "cut")
        assert status == 1
        assert "cut: its masks were written with" in told
    shutil.copytree("scans", "elsewhere")
    assert "is the mask of" in asked("run0", "elsewhere", "--out", "cut")[2]
    os.utime("scans/images/case0.nii.gz", (1, 1))
    assert asked("run0", "scans", "--out", "cut")[2] == "cut: 1 masks, 2 were there\n"


def test_cases_are_kept_at_the_end_and_shown_worst_first(asked: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    from healsg.evaluation.evaluator import worst_first

    Path("pictures/train").mkdir()
    for name in ("images", "masks"):
        Path("pictures", name).rename(Path("pictures/train", name))
    shutil.copytree("pictures/train", "pictures/test")
    data = ["data=seg2d", "data.folder=pictures", "data.image_size=32"]
    TaskTrainer.compose(*TINY, *data, "name=tested").train()
    kept = json.loads(Path("runs/tested/eval-test-best.json").read_text())
    assert list(kept["cases"]) == [f"p{number}" for number in range(6)]
    capsys.readouterr()
    assert main(["eval", "tested"]) == 0
    out, table = capsys.readouterr()
    assert json.loads(out) == kept
    dice = {name: numbers["dice"] for name, numbers in kept["cases"].items()}
    assert [line.split()[0] for line in table.splitlines()] == ["case", *sorted(dice, key=lambda name: dice[name])]
    assert worst_first({"a": {"dice": 0.5}, "b": {"dice": float("nan")}, "c": {"dice": 0.0}}) == ["c", "a", "b"]


def test_what_a_large_volume_takes_is_told_before(asked: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("healsg.commands.predict.masks.REPORTED", 0)
    status, _, told = asked("run0", "scans/images/case1.nii.gz", "--out", "masks")
    assert status == 0
    assert "case1.nii.gz: takes about " in told.splitlines()[0]


def test_a_damaged_file_is_told_and_the_others_are_predicted(asked: Answer) -> None:
    path = Path("scans/images/case1.nii.gz")
    path.write_bytes(path.read_bytes()[:900])
    status, out, told = asked("run0", "scans", "--out", "masks", "--json")
    assert status == 3
    assert told == "masks: 2 masks, 1 files cannot be read\n"
    assert "case1.nii.gz: cannot be read" in lines_of(out)[1]["error"]


def test_pictures_are_seen_whole_and_get_masks_of_their_size(asked: Answer) -> None:
    status, out, _ = asked("flat", "pictures", "--out", "masks", "--json", "--tta", "flips")
    assert status == 0
    for number, line in enumerate(lines_of(out)):
        assert line["mask"] == f"images/p{number}.png"
        mask = np.asarray(Image.open(Path("masks", line["mask"])))
        assert mask.shape == (40 + number, 52)
        assert set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run0", "scans"], "--out: masks are files"),
        (["run0", "scans", "--out", "p.csv"], "go into a folder"),
        (["run0", "scans", "--out", "masks", "--features"], "--features"),
        (["run0", "scans", "--out", "masks", "--tta", "shifts"], "--tta: shifts"),
        (["run0", "pictures", "--out", "masks"], "no volumes in it"),
        (["flat", "scans/images/case0.nii.gz", "--out", "masks"], "the network takes pictures"),
        (["run0", "flat", "scans", "--out", "masks"], "cannot be averaged"),
        (["run0", "scans/images", "--out", "scans/images"], "no volumes in it"),
        (["run0", "scans/images/case0.nii.gz", "--out", "scans/images"], "would take its place"),
    ],
)
def test_what_does_not_go_with_masks_is_refused(arguments: list[str], message: str, asked: Answer) -> None:
    status, _, told = asked(*arguments)
    assert status in (1, 2)
    assert message in told
    assert told.count("\n") == 1


def test_files_are_found_without_masks_and_channels_together(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a_seg.nii.gz", "b_seg.nii", "sub/images/c.mha", "sub/labels/c.mha", ".hidden.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(scan.mask) for scan in scans_of([str(tmp_path)], 1, True, tmp_path / "out")]
    assert found == ["sub/images/c.mha", "a.nii.gz", "b_seg.nii"]
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("x_0000.nii.gz", "x_0001.nii.gz", "y_0000.nii.gz", "y_0001.nii.gz"):
        (raw / name).touch()
    scans = scans_of([str(raw)], 2, True, tmp_path / "out")
    assert [(str(scan.mask), len(scan.files)) for scan in scans] == [("x.nii.gz", 2), ("y.nii.gz", 2)]
    (raw / "y_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="the network takes 2"):
        scans_of([str(raw)], 2, True, tmp_path / "out")


def test_regions_write_the_labels_that_they_alone_have() -> None:
    assert region_labels({"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}) == [(0, 1), (1, 2), (2, 3)]
    assert region_labels({"enhancing": (4,), "core": (1, 4), "whole": (1, 2, 4)}) == [(2, 2), (1, 1), (0, 4)]
    assert region_labels({"left": (1,), "right": (2,)}) == [(0, 1), (1, 2)]


KINDS = [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1)])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_mask_returns_voxel_for_voxel_into_an_oblique_space(
    kind: str, flips: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    """A network that knows the label by the intensity, on oblique anisotropic volumes, RAS and LPS, of two channels."""
    pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'healsg[seg]'")
    from healsg.datasets.volumes.cases import Preparation, segmented
    from healsg.datasets.volumes.files import Geometry, Volume, read_image, read_mask, write_volume
    from healsg.evaluation.sliding_window import Windows

    shape = (13, 11, 6)
    random = np.random.default_rng(3)
    truth = random.integers(0, 3, shape).astype(np.uint8)
    image = np.stack([truth * 100, random.integers(0, 50, shape)]).astype(dtype)
    turned = np.linalg.qr(np.eye(3) + 0.2 * random.normal(size=(3, 3)))[0]
    turned = turned * np.sign(np.diag(turned))  # each axis runs along its own, obliquely
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag(np.array([0.78, 0.78, 6.5]) * flips)
    affine[:3, 3] = random.normal(0, 90, 3)
    file = tmp_path / f"scan{kind}"
    write_volume(file, image, Volume(file, image, Geometry(shape, affine, 2, np.dtype(dtype), None)))
    read = read_image([file])
    np.testing.assert_allclose(read.geometry.affine, affine, atol=1e-4)
    assert read.geometry.channels == 2

    def by_intensity(batch: torch.Tensor) -> torch.Tensor:
        return torch.cat([-((batch[:, :1] - 100 * label) ** 2) for label in range(3)], dim=1)

    preparation = Preparation(intensity="none", mapping={0: 0, 5: 1, 300: 2})
    made = segmented(by_intensity, read, preparation, Windows((8, 8, 4)))
    out = tmp_path / f"mask{kind}"
    write_volume(out, made, read)
    back = read_mask(out)
    np.testing.assert_array_equal(back.array[0], np.array([0, 5, 300])[truth])
    assert back.geometry.affine.tobytes() == read.geometry.affine.tobytes()
    assert back.geometry.spacing == read.geometry.spacing
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no temporary file is left"


def test_a_volume_is_predicted_from_a_map_of_its_file(tmp_path: Path) -> None:
    """Of each kind of file the numbers are those that are read at once, and so is the mask, resampled and not."""
    pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'healsg[seg]'")
    from healsg.data.scratch import Scratch
    from healsg.datasets.volumes.cases import Preparation, segmented
    from healsg.datasets.volumes.files import Geometry, Volume, read_image, write_volume
    from healsg.datasets.volumes.mapped import mapped_image
    from healsg.evaluation.sliding_window import Windows

    random = np.random.default_rng(0)
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    files = []
    for kind in KINDS:
        for dtype, channels in (("int16", 1), ("float32", 1), ("uint8", 2)):
            image = (random.normal(size=(channels, 13, 11, 6)) * 40 + 100).astype(dtype)
            file = tmp_path / f"{dtype}{kind}"
            write_volume(
                file, image, Volume(file, image, Geometry(image.shape[1:], affine, channels, image.dtype, None))
            )
            files.append(file)
    for kind in (".mha", ".nrrd", ".mhd"):
        raw = tmp_path / f"raw{kind}"
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "int16.nrrd")), str(raw), useCompression=False)
        files.append(raw)
    for kind in (".nii", ".nii.gz"):
        import nibabel

        stored = nibabel.Nifti1Image(random.integers(-500, 500, (13, 11, 6)).astype(np.int16), affine)
        stored.header.set_slope_inter(0.37, 11.5)
        nibabel.save(stored, tmp_path / f"scaled{kind}")
        files.append(tmp_path / f"scaled{kind}")
    preparations = [
        Preparation(mapping={3: 0, 5: 1}),
        Preparation(spacing=(1.3, 1.7, 2.0), crop=90.0, mapping={3: 0, 5: 1}),
        Preparation(intensity="window", window=(50.0, 150.0), spacing=(1.0, 2.0, 2.0)),
    ]
    for place, file in enumerate(files):
        with Scratch(tmp_path) as scratch:
            read, mapped = read_image([file]), mapped_image([file], scratch.empty)
            np.testing.assert_array_equal(mapped.array, read.array, strict=True, err_msg=file.name)
            preparation = preparations[place % 3]
            given = (preparation, Windows((8, 8, 4)))
            made = segmented(by_sign, mapped, *given, empty=scratch.empty)
            np.testing.assert_array_equal(made, segmented(by_sign, read, *given), strict=True)
            assert len(np.unique(made)) == 2
            assert isinstance(made, np.memmap)


def by_sign(batch: torch.Tensor) -> torch.Tensor:
    """Scores of two classes: whether a number is above half."""
    return torch.cat([0.5 - batch[:, :1], batch[:, :1] - 0.5], dim=1)
