"""Volumes: read and written in the scanner's space, prepared and brought back, and fifteen kinds of bad input."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from healsg.datasets.volumes import files as volumes
from healsg.datasets.volumes import lists, space
from healsg.errors import ConfigError, DataError

nib: Any = pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
REASON = "SimpleITK is not installed: pip install 'healsg[seg]'"
needs_sitk = pytest.mark.skipif(importlib.util.find_spec("SimpleITK") is None, reason=REASON)
KINDS = [kind if kind in volumes.NIFTI else pytest.param(kind, marks=needs_sitk) for kind in volumes.EXTENSIONS]


def itk() -> Any:
    return pytest.importorskip("SimpleITK", reason=REASON)


SHAPE = (7, 6, 5)
STRAIGHT = np.diag([0.8, 0.8, 3.3, 1.0])


def oblique(signs: tuple[float, float, float] = (1, 1, 1)) -> Any:
    """An affine turned about an axis of no meaning, with voxels of three sizes."""
    axis, angle = np.array([0.6, 0.36, 0.7143]), 0.4
    axis = axis / np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    affine = np.eye(4)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine[:3, :3] = turn * np.array(signs) * np.array([0.7421875, 0.8, 3.3])
    affine[:3, 3] = [-91.3, 12.25, 7.1]
    return affine


def numbers(*shape: int, dtype: Any = np.int16, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def write(path: Path, array: Any, affine: Any = STRAIGHT, **header: Any) -> Path:
    """A file as others write it: (X, Y, Z) or (X, Y, Z, C)."""
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        for key, value in header.items():
            image.header[key] = value
        image.to_filename(path)
        return path
    sitk = itk()
    vector = array.ndim == 4
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0, 3) if vector else array.T), vector)
    lps = volumes.LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


# --- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1)], ids=["RAS", "LPS"])
def test_a_mask_goes_back_voxel_for_voxel(kind: str, dtype: Any, channels: int, signs: Any, tmp_path: Path) -> None:
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    path = write(tmp_path / f"image{kind}", numbers(*shape, dtype=dtype), oblique(signs))
    image = volumes.read_volume(path)
    assert image.array.shape == (channels, *SHAPE)
    stored = numbers(*shape, dtype=dtype)
    np.testing.assert_array_equal(image.array, stored[None] if channels == 1 else np.moveaxis(stored, -1, 0))
    np.testing.assert_allclose(image.geometry.affine, oblique(signs), atol=1e-5)
    np.testing.assert_allclose(image.geometry.spacing, (0.7421875, 0.8, 3.3), rtol=1e-6)
    assert space.axis_codes(image.geometry.affine) == ("RAS" if signs[0] > 0 else "LPS")
    mask = numbers(1, *SHAPE, dtype=np.uint8, seed=1)
    out = tmp_path / f"mask{kind}"
    volumes.write_volume(out, mask, image)
    written = volumes.read_mask(out)
    np.testing.assert_array_equal(written.array, mask)
    assert written.array.dtype == np.uint8
    assert np.array_equal(written.geometry.affine, image.geometry.affine), "bit for bit"
    volumes.require_same_space(image, written)
    if kind in volumes.NIFTI:
        old, new = image.geometry.header, written.geometry.header
        for key in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "quatern_b", "qoffset_x", "xyzt_units"):
            assert np.array_equal(old[key], new[key]), key
    assert sorted(entry.name for entry in tmp_path.iterdir() if "tmp" in entry.name) == []


def test_other_libraries_find_the_mask_where_the_image_is(tmp_path: Path) -> None:
    """SimpleITK reads both, NIfTI files too."""
    sitk = itk()
    for kind in (".nii.gz", ".mha"):
        image = volumes.read_volume(write(tmp_path / f"image{kind}", numbers(*SHAPE), oblique()))
        volumes.write_volume(tmp_path / f"mask{kind}", numbers(*SHAPE, dtype=np.uint8), image)
        first, second = (sitk.ReadImage(str(tmp_path / f"{name}{kind}")) for name in ("image", "mask"))
        for part in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert getattr(first, part)() == getattr(second, part)()


def test_another_kind_of_file_keeps_the_place(tmp_path: Path) -> None:
    image = volumes.read_volume(write(tmp_path / "image.mha", numbers(*SHAPE), oblique()))
    volumes.write_volume(tmp_path / "mask.nii.gz", numbers(*SHAPE, dtype=np.uint8), image)
    volumes.require_same_space(image, volumes.read_mask(tmp_path / "mask.nii.gz"))
    back = volumes.read_volume(tmp_path / "mask.nii.gz")
    volumes.write_volume(tmp_path / "again.nrrd", back.array, back)
    volumes.require_same_space(image, volumes.read_mask(tmp_path / "again.nrrd"))


def test_the_same_mask_is_the_same_file(tmp_path: Path) -> None:
    image = volumes.read_volume(write(tmp_path / "image.nii.gz", numbers(*SHAPE)))
    files = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for file in files:
        volumes.write_volume(file, numbers(*SHAPE, dtype=np.uint8), image)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no space left")

    paths = [write(tmp_path / f"image{kind}", numbers(*SHAPE)) for kind in (".nii.gz", ".mha")]
    monkeypatch.setattr(itk(), "WriteImage", failing)
    monkeypatch.setattr(nib.Nifti1Image, "to_stream", failing)
    for path in paths:
        before = path.read_bytes()
        with pytest.raises((OSError, RuntimeError), match="no space left"):
            volumes.write_volume(path, numbers(*SHAPE, dtype=np.uint8), volumes.read_volume(path))
        assert path.read_bytes() == before
        assert not list(tmp_path.glob(".*"))


# --- the common space ------------------------------------------------------------------------------------------------

ORIENTATIONS = list(itertools.product([1, -1], repeat=3))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", ORIENTATIONS[::3])
def test_every_orientation_is_turned_and_turned_back(order: Any, signs: Any) -> None:
    affine = np.eye(4)
    affine[:3, :3] = oblique(signs)[:3, :3][:, order]
    affine[:3, 3] = [3, -5, 8]
    array = numbers(2, *SHAPE)
    turn = space.to_ras(affine)
    shown, moved = space.turned(array, turn), space.turned_affine(affine, turn, SHAPE)
    reference = nib.as_closest_canonical(nib.Nifti1Image(np.moveaxis(array, 0, -1), affine))
    np.testing.assert_array_equal(shown, np.moveaxis(np.asarray(reference.dataobj), -1, 0))
    np.testing.assert_allclose(moved, reference.affine, atol=1e-12)
    assert space.axis_codes(moved) == "RAS"
    assert space.axis_codes(affine) == "".join(nib.aff2axcodes(affine))
    np.testing.assert_array_equal(space.turned(shown, turn.back), array)


def test_a_point_keeps_its_place_through_all_steps() -> None:
    """A bright blob's centre in millimetres, before and after turning, cropping and resampling."""
    affine, array = oblique((-1, 1, -1)), np.zeros((1, 24, 20, 16), np.float32)
    array[0, 8:14, 5:11, 4:10] = 1
    steps = space.steps_for(array, affine, spacing=(0.5, 0.5, 1.1), above=0.5, margin=3)
    made = space.prepared(array, steps)
    np.testing.assert_allclose(volumes.spacing_of(steps.affine), (0.5, 0.5, 1.1), rtol=0.1)

    def centre(values: Any, place: Any) -> Any:
        weights = values[0].ravel()
        grid = np.indices(values.shape[1:]).reshape(3, -1)
        return place[:3, :3] @ ((grid * weights).sum(axis=1) / weights.sum()) + place[:3, 3]

    np.testing.assert_allclose(centre(made, steps.affine), centre(array, affine), atol=1e-2)


def test_masks_come_back_exactly_where_the_spacing_stays() -> None:
    array = numbers(1, 12, 9, 7, dtype=np.uint8)
    array[:, :3] = 0
    for affine in (oblique((-1, -1, 1)), oblique()[[1, 2, 0, 3]]):
        steps = space.steps_for(array, affine, above=0, margin=1)
        np.testing.assert_array_equal(steps.backward(steps.forward(array)), array)
        finer = space.steps_for(array, affine, spacing=[side / 2 for side in volumes.spacing_of(affine)], above=0)
        finer_shape = tuple(2 * (high - low) for low, high in finer.box)
        assert finer.new_shape == finer_shape if steps.turn.order == (0, 1, 2) else True
        np.testing.assert_array_equal(steps.backward(steps.forward(array)), array)


def test_scores_are_interpolated_before_the_largest_is_taken() -> None:
    scores = torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    for new_shape in ((13, 9, 11), (4, 5, 3), (6, 5, 4)):
        whole = F.interpolate(scores[None].double(), new_shape, mode="trilinear", align_corners=False)[0]
        found = np.concatenate([labels for _, labels in space.labels_at(scores, new_shape)])
        sure = whole.topk(2, dim=0).values.diff(dim=0).abs()[0] > 1e-4
        np.testing.assert_array_equal(found[sure.numpy()], whole.argmax(dim=0)[sure].numpy())


def test_labels_are_resampled_exactly() -> None:
    large = np.full((1, 4, 4, 4), 2**24 + 1)
    assert set(space.resampled_labels(large, (7, 3, 5)).ravel().tolist()) == {2**24 + 1}
    given = np.arange(5)[None, :, None, None]
    assert space.resampled_labels(given, (3, 1, 1)).ravel().tolist() == [0, 2, 4]
    assert space.resampled_labels(given, (10, 1, 1)).ravel().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_intensities() -> None:
    array = np.array([[[[-1000, -200, 50, 300, 900]]]], np.int16)
    np.testing.assert_allclose(space.windowed(array, -200, 300), [[[[0, 0, 0.5, 1, 1]]]])
    drawn = np.random.default_rng(0).normal(40, 7, (2, 9, 9, 9)).astype(np.float32)
    scored = space.z_scored(drawn)
    np.testing.assert_allclose([scored.mean(), scored.std()], [0, 1], atol=1e-4)
    inside = drawn[0] > 40
    assert abs(space.z_scored(drawn, inside)[0][inside].mean()) < 1e-4
    assert space.percentile_window(np.arange(1001.0))[:2] == (5.0, 995.0)
    assert space.foreground(np.zeros((1, 3, 4, 5))) == ((0, 3), (0, 4), (0, 5))


# --- bad input -------------------------------------------------------------------------------------------------------


def truncated(folder: Path) -> Any:
    path = write(folder / "a.nii.gz", numbers(30, 30, 30))
    path.write_bytes(path.read_bytes()[:5000])
    return lambda: volumes.read_volume(path)


def no_header(folder: Path) -> Any:
    path = folder / "a.nii"
    path.write_bytes(b"no header at all" * 40)
    return lambda: volumes.read_volume(path)


def broken_mha(folder: Path) -> Any:
    path = write(folder / "a.mha", numbers(20, 20, 20))
    path.write_bytes(path.read_bytes()[:3000])
    return lambda: volumes.read_volume(path)


def two_forms(folder: Path) -> Any:
    image = nib.Nifti1Image(numbers(*SHAPE), STRAIGHT)
    image.set_qform(oblique(), 1)
    image.set_sform(STRAIGHT, 1)
    image.to_filename(folder / "a.nii")
    assert np.array_equal(volumes.read_geometry(folder / "a.nii", "sform").affine.round(4), STRAIGHT.round(4))
    assert volumes.corner_distance(volumes.read_geometry(folder / "a.nii", "qform").affine, oblique(), SHAPE) < 1e-3
    return lambda: volumes.read_volume(folder / "a.nii")


def patched(path: Path, place: int, *values: float) -> Path:
    """A NIfTI file whose header holds other float32 numbers at a byte."""
    content, raw = bytearray(path.read_bytes()), np.array(values, np.float32).tobytes()
    content[place : place + len(raw)] = raw
    path.write_bytes(bytes(content))
    return path


def flat(folder: Path) -> Any:
    path = patched(write(folder / "a.nii", numbers(*SHAPE)), 296, 0, 0, 0, 0)  # srow_y
    return lambda: volumes.read_volume(path)


def scaled_mask(folder: Path) -> Any:
    path = patched(write(folder / "a.nii", numbers(*SHAPE)), 112, 1 / 255)  # scl_slope
    return lambda: volumes.read_mask(path)


def with_nan(folder: Path) -> Any:
    array = numbers(*SHAPE, dtype=np.float32)
    array[0, 0, 0] = np.nan
    path = write(folder / "a.nii", array)
    return lambda: volumes.read_image([path])


def pair_of(folder: Path, array: Any, affine: Any = STRAIGHT) -> Any:
    image = volumes.read_volume(write(folder / "image.nii", numbers(*SHAPE)))
    mask = volumes.read_mask(write(folder / "a.nii", array, affine))
    return lambda: volumes.require_same_space(image, mask)


def mask_of(array: Any, labels: Any = None) -> Any:
    def make(folder: Path) -> Any:
        path = write(folder / "a.nii", array)
        return lambda: volumes.read_mask(path, labels)

    return make


def another_shape_to_write(folder: Path) -> Any:
    image = volumes.read_volume(write(folder / "image.nii", numbers(*SHAPE)))
    return lambda: volumes.write_volume(folder / "a.nii", numbers(3, 3, 3), image)


BAD: dict[str, tuple[Any, str]] = {
    "truncated nii.gz": (truncated, "cut short or damaged"),
    "unreadable header": (no_header, "cut short or damaged"),
    "truncated mha": (broken_mha, "cut short or damaged"),
    "sform against qform": (two_forms, "its sform and its qform place it .* voxels apart"),
    "no size of voxels": (flat, "affine is not invertible"),
    "scl_slope": (scaled_mask, "whole numbers, and this has .*scl_slope"),
    "NaN": (with_nan, "1 of its numbers are NaN"),
    "mask of another shape": (lambda folder: pair_of(folder, numbers(7, 6, 4)), r"shape \(7, 6, 4\), and its image"),
    "flipped affine": (
        lambda folder: pair_of(folder, numbers(*SHAPE), np.diag([-0.8, 0.8, 3.3, 1])),
        "voxels from its image image.nii; it is flipped",
    ),
    "label 7 of 4 classes": (mask_of(np.full(SHAPE, 7, np.uint8), range(4)), "label 7, and those known are 0, 1, 2, 3"),
    "0/255": (mask_of(np.eye(5, dtype=np.uint8)[None] * 255, [0, 1]), "label 255.*255 for the foreground"),
    "2D for 3D": (mask_of(numbers(7, 6)), "a volume is 3D"),
    "several channels in a mask": (mask_of(numbers(*SHAPE, 2)), "a mask has one channel, and this has 2"),
    "no such file": (lambda folder: lambda: volumes.read_volume(folder / "a.nii.gz"), "no such file"),
    "no volume": (lambda folder: lambda: volumes.read_volume(folder / "a.png"), "is no volume"),
    "another shape to write": (another_shape_to_write, "do not go into the space"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    make, words = BAD[name]
    broken = make(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        broken()
    text = str(caught.value)
    assert "\n" not in text
    assert str(tmp_path / "a.") in text


def test_one_channel_in_four_dimensions_is_taken_as_three(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", numbers(*SHAPE, 1))
    volume = volumes.read_mask(path)
    assert volume.array.shape == (1, *SHAPE)
    assert volume.geometry.remarks == (volumes.FLAT,)


def test_labels_are_kept_in_the_smallest_type_that_holds_them(tmp_path: Path) -> None:
    for high, kind in ((200, np.uint8), (300, np.int16), (2**24 + 1, np.int32)):
        path = write(tmp_path / "a.nii", np.full(SHAPE, high, np.int32))
        found = volumes.read_mask(path).array
        assert found.dtype == kind
        assert int(found.max()) == high


def test_without_the_extra_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes.importlib.util, "find_spec", lambda name: None)
    for kind, package in ((".nii", "nibabel"), (".mha", "SimpleITK")):
        with pytest.raises(ConfigError, match=rf"{package}; install it with: pip install 'healsg\[seg\]'"):
            volumes.read_geometry(tmp_path / f"a{kind}")


# --- which belong together -------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(b""))
    return folder


def test_folders_are_paired_by_name(tmp_path: Path) -> None:
    two = touch(
        tmp_path / "two", "images/b.nii.gz", "images/a.mha", "labels/a.nrrd", "labels/b_seg.nii.gz", "images/.c.nii"
    )
    assert [(case.name, case.label and case.label.name) for case in lists.paired(two)] == [
        ("a", "a.nrrd"),
        ("b", "b_seg.nii.gz"),
    ]
    one = touch(tmp_path / "one", "p.1.nii.gz", "p.1_seg.nii.gz", "notes.txt")
    (case,) = lists.paired(one)
    assert (case.name, case.images[0].name, case.label and case.label.name) == ("p.1", "p.1.nii.gz", "p.1_seg.nii.gz")
    assert len(lists.paired(touch(tmp_path / "alone", "a.nii", "b.nii"), masks=False)) == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "there is no volume in it"),
        (["images/a.nii"], "no folder of masks"),
        (["images/a.nii", "images/b.nii", "labels/b.nii"], "a.nii: has no mask of its name"),
        (["images/a.nii", "labels/a.nii", "labels/b.nii"], "b.nii: there is no image of its name"),
        (["images/a.nii", "images/a.mha", "labels/a.nii"], "has the same name"),
        (["a.nii"], "no masks"),
    ],
)
def test_folders_that_do_not_pair_are_refused(names: list[str], words: str, tmp_path: Path) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=words) as caught:
        lists.paired(tmp_path)
    assert str(tmp_path) in str(caught.value)


def listed(folder: Path, content: Any) -> Path:
    touch(folder, *(f"imagesTr/{name}.nii.gz" for name in "abcd"), *(f"labelsTr/{name}.nii.gz" for name in "abcd"))
    (folder / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "dataset.json"


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz", **more}


def test_lists_of_msd_and_of_monai(tmp_path: Path) -> None:
    msd = {"labels": {"0": "background", "1": "anterior"}, "modality": {"0": "MRI"}, "numTraining": 1}
    path = listed(tmp_path, {**msd, "training": [entry("a", fold=3)], "test": ["./imagesTr/d.nii.gz"]})
    found = lists.decathlon(path)
    assert [(case.name, case.split, dict(case.entry)) for case in found.cases] == [
        ("a", "train", {"fold": 3}),
        ("d", "test", {}),
    ]
    assert (dict(found.labels), found.channels) == ({0: "background", 1: "anterior"}, ("MRI",))
    several = {"image": ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz"], "label": "labelsTr/a.nii.gz"}
    path = listed(tmp_path, {"train": [several], "val": [entry("c")], "external": [entry("d")]})
    other = tmp_path / "elsewhere.json"
    other.write_text(path.read_text())
    found = lists.decathlon(other, tmp_path)
    assert [case.split for case in found.cases] == ["train", "val", "external"]
    assert len(found.cases[0].images) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ([], "holds no keys"),
        ({"training": []}, "lists no case"),
        ({"training": [{"label": "x"}]}, r"training\[0\] names no image"),
        ({"training": [{"image": "imagesTr/a.nii.gz"}]}, r"training\[0\] .* has no label"),
        ({"training": [entry("z")]}, r"training\[0\] names .*z.nii.gz, and there is no such file"),
        ({"training": [entry("a")], "validation": [entry("a")]}, "is listed twice, in train and in val"),
    ],
)
def test_lists_that_cannot_be_are_refused(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        lists.decathlon(listed(tmp_path, content))
    assert "dataset.json" in str(caught.value)


def raw(folder: Path, labels: Any, **more: Any) -> Path:
    names = [f"imagesTr/{case}_000{n}.nii.gz" for case in ("p1", "p2") for n in range(2)]
    touch(
        folder, *names, "labelsTr/p1.nii.gz", "labelsTr/p2.nii.gz", "imagesTs/q_0000.nii.gz", "imagesTs/q_0001.nii.gz"
    )
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_nnunets_raw_layout(tmp_path: Path) -> None:
    folder = raw(tmp_path, {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3})
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["p1"], "val": ["p2"]}]))
    found = lists.nnunet_raw(folder)
    assert [(case.name, case.split, len(case.images)) for case in found.cases] == [
        ("p1", "train", 2),
        ("p2", "train", 2),
        ("q", "test", 2),
    ]
    assert dict(found.regions) == {"whole": (1, 2), "core": (2,)}
    assert (found.ignore, found.channels, found.folds) == (3, ("T1", "T2"), ((("p1",), ("p2",)),))
    plain = lists.nnunet_raw(raw(tmp_path, {"background": 0, "liver": 1}))
    assert (dict(plain.labels), dict(plain.regions)) == ({0: "background", 1: "liver"}, {})


def test_a_raw_layout_that_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = raw(tmp_path, {"background": 0, "liver": "one"})
    with pytest.raises(DataError, match="the label 'liver' is 'one'"):
        lists.nnunet_raw(folder)
    raw(folder, {"background": 0, "liver": 1})
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["p1"], "val": ["p1"]}]))
    with pytest.raises(DataError, match="fold 0 has 'p1' on both sides"):
        lists.nnunet_raw(folder)
    (folder / "imagesTr/p1_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="p1: has no channel 0001"):
        lists.nnunet_raw(folder)


def test_files_of_one_name_are_cases_of_their_own_however_deep_they_lie(tmp_path: Path) -> None:
    entries = []
    for patient in ("p1", "p2"):
        (tmp_path / patient / "mr").mkdir(parents=True)
        for name in ("t1.nii.gz", "seg.nii.gz"):
            (tmp_path / patient / "mr" / name).touch()
        entries.append({"image": f"{patient}/mr/t1.nii.gz", "label": f"{patient}/mr/seg.nii.gz"})
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"training": entries}))
    assert [case.name for case in lists.decathlon(path).cases] == ["p1/mr/t1", "p2/mr/t1"]
