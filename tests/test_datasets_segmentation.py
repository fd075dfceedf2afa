"""Sets of images and volumes with masks: made on the spot, in folders and in lists; what they refuse; the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fake_volumes
from healsg import TaskTrainer
from healsg.build import build_task
from healsg.data.base import Needs
from healsg.data.case import Case
from healsg.data.info import DataInfo
from healsg.data.patches import padding
from healsg.data.source import About, DatasetSource
from healsg.datasets.nifti import Nifti
from healsg.datasets.seg2d import Seg2D
from healsg.datasets.segmentation import Segmentation
from healsg.errors import ConfigError, DataError, HealsgError
from healsg.evaluation.sliding_window import Windows

SMALL = ["runner=debug", "runner.steps=2", "quiet=true", "model=unet", "model.width=4"]
MADE = ["data.train=6", "data.test=2", "data.batch_size=2", "data.val_fraction=0.34"]


def trained(*overrides: str) -> dict[str, Any]:
    """The last line of the metrics of a small run."""
    result = TaskTrainer.compose(*SMALL, *overrides).train()
    assert result["status"] == "finished"
    lines = (Path(result["folder"]) / "metrics.jsonl").read_text().splitlines()
    last: dict[str, Any] = json.loads(lines[-1])
    return last


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
    return fake_volumes.write_scans(tmp_path / "scans")


@pytest.mark.parametrize("name", ["shapes2d", "shapes3d", "tubes3d", "digits_seg"])
def test_drawn_sets_train_and_are_measured_by_case(name: str) -> None:
    last = trained(f"data={name}", *MADE)
    assert {"test/dice", "test/iou", "test/loss"} <= set(last)
    assert 0 <= last["test/dice"] <= 1


def data_of(*overrides: str) -> Any:
    """The ``TaskData`` of a task, whose samples are not read yet."""
    return build_task(TaskTrainer.compose(*SMALL, *overrides).composed).task_data


def test_volumes_of_a_folder_come_in_one_orientation_and_spacing(scans: Path) -> None:
    data = data_of("data=nifti", f"data.folder={scans}", "data.spacing=[1,1,2]", "data.patch=[16,16,8]")
    source = data.read("train")
    assert len(source) == 6
    assert data.info.class_names == ("0", "1", "2")
    for number, case in enumerate(source.about.cases):
        assert (case.name, Path(case.path).name) == (f"case{number}", f"case{number}.nii.gz")
        np.testing.assert_allclose(case.spacing, (1, 1, 2), rtol=0.1)
        batch = source.fetch(torch.tensor([number]))
        image, mask = batch["input"][0], batch["target"][0]
        assert image.shape[1:] == mask.shape
        assert abs(float(image.mean())) < 1e-3
        means = [float(image[0][mask == label].mean()) for label in (0, 1, 2)]
        assert means[0] < means[1] < means[2], "image and mask go through the same steps"
    trained("data=nifti", f"data.folder={scans}", "data.patch=[16,16,8]", "data.val_fraction=0.34", "data.cache=true")


def test_a_list_says_the_splits_and_nnunets_layout_the_labels(scans: Path, tmp_path: Path) -> None:
    data = data_of("data=decathlon", f"data.list={scans}/list.json", "data.patch=[16,16,8]")
    assert [len(data.read(part)) for part in ("train", "val", "test")] == [4, 1, 1]
    trained("data=decathlon", f"data.list={scans}/list.json", "data.patch=[16,16,8]")
    raw = fake_volumes.write_nnunet(tmp_path / "raw")
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["case0", "case1", "case2"], "val": ["case3"]}]))
    data = data_of("data=nnunet_raw", f"data.folder={raw}", "data.nnunet_fold=0", "data.patch=[16,16,8]")
    assert data.info.class_names == ("background", "box", "bar")
    assert [case.name for case in data.read("val").about.cases] == ["case3"]


def test_labels_need_not_be_consecutive(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
    folder = fake_volumes.write_scans(tmp_path / "odd", 3, labels=(0, 4, 7))
    data = data_of("data=nifti", f"data.folder={folder}", "data.patch=[8,8,8]")
    assert data.info.class_names == ("0", "4", "7")
    assert data.read("train").fetch(torch.tensor([0]))["target"].unique().tolist() == [0, 1, 2]
    made = np.array([[[[0, 1, 2]]]], np.uint8)
    assert data.preparation.restored(made).ravel().tolist() == [0, 4, 7]


def test_other_masks_are_read_by_the_labels_that_weights_were_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
    first = fake_volumes.write_scans(tmp_path / "first", 3, labels=(0, 4, 7))
    other = fake_volumes.write_scans(tmp_path / "other", 2, labels=(0, 7))
    saved = data_of("data=nifti", f"data.folder={first}", "data.patch=[8,8,8]").info
    data = data_of("data=nifti", f"data.folder={other}", "data.patch=[8,8,8]").restored(saved)
    assert data.read("train").fetch(torch.tensor([0]))["target"].unique().tolist() == [0, 2]
    assert data.info.class_names == saved.class_names
    with pytest.raises(DataError, match="the weights were trained on"):
        data_of("data=nifti", f"data.folder={other}", "data.classes=[a,b]", "data.patch=[8,8,8]").restored(saved)
    pictures = data_of("data=seg2d", f"data.folder={fake_volumes.write_pictures(tmp_path / 'pictures')}")
    told = {**pictures.info.preprocessing, "labels": [0, 128, 255]}
    info = replace(pictures.info, num_classes=3, class_names=("0", "128", "255"), preprocessing=told)
    assert pictures.restored(info).mapping == {0: 0, 128: 1, 255: 2}


@pytest.mark.parametrize("spacing", [None, (1.3, 1.1, 1.0)])
def test_a_prediction_lies_in_the_space_of_its_file(spacing: Any, scans: Path) -> None:
    """A network that knows the answer by the intensity: the mask comes back voxel for voxel, or nearly so if
    resampled."""
    from healsg.datasets.volumes.cases import Preparation, segmented
    from healsg.datasets.volumes.files import read_image, read_mask, write_volume

    preparation = Preparation(spacing, intensity="none", mapping={0: 0, 5: 1, 9: 2})
    for number in range(3):
        image = read_image([scans / "images" / f"case{number}.nii.gz"])
        truth = read_mask(scans / "labels" / f"case{number}.nii.gz").array

        def by_intensity(batch: torch.Tensor) -> torch.Tensor:
            return torch.cat([-((batch - 300 * label) ** 2) / 90000 for label in range(3)], dim=1)

        made = segmented(by_intensity, image, preparation, Windows((10, 10, 8)))
        assert made.shape == truth.shape
        wanted = np.array([0, 5, 9])[truth]
        if spacing is None:
            np.testing.assert_array_equal(made, wanted)
        else:
            assert (made == wanted).mean() > 0.9
        out = scans / f"out{number}.nii.gz"
        write_volume(out, made, image)
        assert np.array_equal(read_mask(out).geometry.affine, image.geometry.affine)


def test_larger_images_are_predicted_in_windows() -> None:
    from healsg.data.info import DataInfo
    from healsg.evaluation.sliding_window import full_output
    from healsg.models.unet import UNet

    model, info = UNet(width=4, windows="monai", mirror=True), DataInfo((1, 16, 16), 3, "segmentation")
    network = model.build(info).eval()
    batch = torch.randn(2, 1, 40, 29)
    with torch.no_grad():
        found = model.predict(network, {"input": batch})
        wanted = [full_output(network, image, Windows((16, 16), "monai", mirror=(0, 1))) for image in batch]
        plain = UNet(width=4).predict(network, {"input": batch[..., :16, :16]})
        torch.testing.assert_close(plain, network(batch[..., :16, :16]))
    torch.testing.assert_close(found, torch.stack(wanted))


def test_pictures_with_masks_of_0_and_255(tmp_path: Path) -> None:
    folder = fake_volumes.write_pictures(tmp_path / "pictures")
    data = data_of("data=seg2d", f"data.folder={folder}", "data.image_size=32")
    assert data.info.class_names == ("0", "255")
    source = data.read("train")
    batch = source.fetch(torch.tensor([0, 5]))
    assert batch["input"].shape == (2, 3, 32, 32)
    for image, mask in zip(batch["input"].float(), batch["target"], strict=True):
        assert mask.unique().tolist() == [0, 1]
        assert image[:, mask == 1].mean() > image[:, mask == 0].mean() + 60
    trained("data=seg2d", f"data.folder={folder}", "data.image_size=32", "data.batch_size=2", "data.val_fraction=0.34")


def spoiled(folder: Path, how: str) -> None:
    """A folder of scans with one fault."""
    import nibabel

    image, mask, affine = fake_volumes.scan(1)
    label, scan = folder / "labels" / "case1.nii.gz", folder / "images" / "case1.nii.gz"
    if how == "shape":
        nibabel.Nifti1Image(mask[:-1], affine).to_filename(label)
    elif how == "label":
        nibabel.Nifti1Image(mask + 5, affine).to_filename(label)
    elif how == "truncated":
        scan.write_bytes(scan.read_bytes()[:900])
    elif how == "elsewhere":
        nibabel.Nifti1Image(mask, affine @ np.diag([-1, 1, 1, 1])).to_filename(label)
    else:
        broken = image.astype(np.float32)
        broken[0, 0, 0] = np.nan
        nibabel.Nifti1Image(broken, affine).to_filename(scan)


FAULTS = {
    "shape": "labels/case1.nii.gz: the mask has the shape",
    "label": "labels/case1.nii.gz: holds the label 5",
    "truncated": "images/case1.nii.gz: cannot be read",
    "elsewhere": "labels/case1.nii.gz: the mask lies",
    "nan": "images/case1.nii.gz: 1 of its numbers",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_faulty_file_stops_a_run_by_its_name(how: str, scans: Path) -> None:
    spoiled(scans, how)
    settings = ["data=nifti", f"data.folder={scans}", "data.classes=[nothing,box,bar]", "data.patch=[16,16,8]"]
    with pytest.raises(HealsgError, match=FAULTS[how]) as caught:
        trained(*settings, "data.val_fraction=0.34", "runner.steps=6")
    assert "\n" not in str(caught.value)


def test_a_patch_may_be_larger_than_a_case_and_a_line_says_so(scans: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = ["data=nifti", f"data.folder={scans}", "data.patch=[32,32,32]", "data.val_fraction=0.34"]
    trained(*settings)
    with caplog.at_level("INFO", logger="healsg"):
        data_of(*settings).loaders(Needs())
    (told,) = [record.getMessage() for record in caplog.records if "data.patch" in record.getMessage()]
    assert "4 of 4 training cases are smaller along an axis than [32, 32, 32] and padded with zeros" in told
    assert f"{scans}/images/case" in told
    assert told.endswith("; up to [18, 18, 12] pads none")


class UnlikeSquares(Segmentation):
    """A set of one's own that does not tell the shapes of its cases, of which every third is small."""

    def described(self) -> DataInfo:
        return DataInfo((1, 8, 8), 2)

    def read(self, part: str) -> DatasetSource | None:
        sides = [6 if number % 3 == 0 else 12 for number in range(12)] if part == "train" else [12]
        squares = [(torch.ones(1, side, side), torch.ones(side, side, dtype=torch.uint8)) for side in sides]
        return DatasetSource(squares, about=About([Case(f"square{number}") for number in range(len(sides))]))

    def transform(self, view: str, split: str) -> Any:
        return None


def test_padding_is_said_of_a_set_that_does_not_tell_the_shapes_of_its_cases(caplog: pytest.LogCaptureFixture) -> None:
    data = UnlikeSquares(patch=[8, 40], val_fraction=0.0)
    with caplog.at_level("INFO", logger="healsg"):
        data.streams(Needs(), data.read("train"))
    (told,) = [record.getMessage() for record in caplog.records if "data.patch" in record.getMessage()]
    assert told.startswith(
        "data.patch: 8 of 8 training cases that were looked at are smaller along an axis than [8, 40]"
    )
    assert "square0 (6 x 6), square1 (12 x 12), square3 (6 x 6) and 5 more" in told
    whole = padding([data.read("train")], (8, 8), read=None)
    assert whole.startswith("4 of 12 training cases are smaller along an axis than [8, 8]")
    assert whole.endswith("square0 (6 x 6), square3 (6 x 6), square6 (6 x 6) and 1 more; up to [6, 6] pads none")


def test_a_patch_that_every_case_would_only_pad_is_refused(scans: Path, tmp_path: Path) -> None:
    largest = r"axis 1, and the largest training case is .*case2.nii.gz \(20 x 22 x 16\); give at most 32"
    with pytest.raises(DataError, match=rf"data.patch: \[16, 40, 16\] has 40 along {largest}") as caught:
        data_of("data=nifti", f"data.folder={scans}", "data.patch=[16,40,16]").loaders(Needs())
    assert "\n" not in str(caught.value)
    folder = fake_volumes.write_pictures(tmp_path / "pictures")
    for settings in (["data=seg2d", f"data.folder={folder}", "data.image_size=32"], ["data=shapes2d", "data.size=32"]):
        with pytest.raises(DataError, match=r"data.patch: .* \(32 x 32\); give at most 32"):
            data_of(*settings, "data.patch=[64,64]").loaders(Needs())


def test_volumes_with_a_last_axis_of_one_are_taken_as_3d_and_a_line_says_so(
    scans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nibabel = pytest.importorskip("nibabel")
    for path in (scans / "images" / "case1.nii.gz", scans / "labels" / "case3.nii.gz"):
        image = nibabel.load(path)
        nibabel.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine).to_filename(path)
    with caplog.at_level("INFO", logger="healsg"):
        data = data_of("data=nifti", f"data.folder={scans}", "data.patch=[8,8,8]")
        data.loaders(Needs())
    (told,) = [record.getMessage() for record in caplog.records if "4D" in record.getMessage()]
    first = "2 files are stored as 4D with one channel, and taken as 3D, such as"
    assert told == f"data: {first} {scans}/images/case1.nii.gz"
    assert data.read("train").fetch(torch.tensor([1]))["input"].shape[1:] == (1, *fake_volumes.SIDES[1])


def test_sets_without_foreground_are_refused(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
    folder = fake_volumes.write_scans(tmp_path / "empty", 2)
    for path in (folder / "labels").iterdir():
        image = nibabel.load(path)
        nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine).to_filename(path)
    with pytest.raises(DataError, match="no mask holds a foreground label"):
        trained("data=nifti", f"data.folder={folder}")


@pytest.mark.parametrize("kind", [Nifti, Seg2D])
@pytest.mark.parametrize(
    ("mapping", "ignore", "words"),
    [
        ({0: 0, 255: 2}, None, r"maps to \[0, 2\]"),
        ({0: 1, 255: 2}, None, r"maps to \[1, 2\]"),
        ({0: -1, 255: 0}, None, r"maps to \[-1, 0\]"),
        ({0: 255}, 255, r"maps to \[\]"),
        ({"road": 0}, None, "'road' is no label"),
    ],
)
def test_a_mapping_with_a_gap_is_refused_before_a_mask_is_read(
    kind: Any, mapping: Any, ignore: int | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^data.mapping: {words}"):
        kind(folder="nowhere", mapping=mapping, ignore=ignore)
    kind(folder="nowhere", mapping={0: 0, 1: 1, 2: 1, 9: 255}, ignore=255)
