"""Invented volumes and pictures with masks, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SIDES = ((18, 20, 12), (24, 18, 14), (20, 22, 16))


def scan(number: int, labels: tuple[int, ...] = (0, 1, 2)) -> tuple[Any, Any, Any]:
    """A noisy volume (X, Y, Z) of int16 with a bright box of each label, its mask, and its affine, which differs among
    volumes in orientation and spacing."""
    random, sides = np.random.default_rng(number), SIDES[number % 3]
    mask = np.zeros(sides, np.uint8)
    for place, label in enumerate(labels[1:]):
        low = [int(random.integers(1, side // 3)) + place * side // 2 for side in sides]
        box = tuple(slice(first, first + side // 3) for first, side in zip(low, sides, strict=True))
        mask[box] = label
    order = np.searchsorted(labels, mask)
    image = (order * 300 + random.normal(0, 20, sides)).astype(np.int16)
    affine = np.diag([(-1) ** number * 0.9, 0.8, 1.5 + number % 2, 1.0])
    affine[:3, 3] = random.normal(0, 20, 3).round(2)
    return image, mask, affine


def write_scans(folder: Path, cases: int = 6, kind: str = ".nii.gz", labels: tuple[int, ...] = (0, 1, 2)) -> Path:
    """``images/`` and ``labels/`` of NIfTI files, and ``list.json``, a MONAI list of them."""
    import nibabel

    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(cases):
        image, mask, affine = scan(number, labels)
        for name, array in (("images", image), ("labels", mask)):
            nibabel.Nifti1Image(array, affine).to_filename(folder / name / f"case{number}{kind}")
        entries.append({"image": f"images/case{number}{kind}", "label": f"labels/case{number}{kind}"})
    (folder / "list.json").write_text(json.dumps({"train": entries[:-2], "val": entries[-2:-1], "test": entries[-1:]}))
    return folder


def write_nnunet(folder: Path, cases: int = 4) -> Path:
    """nnU-Net's raw layout with one channel and one fold."""
    import nibabel

    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        image, mask, affine = scan(number)
        nibabel.Nifti1Image(image, affine).to_filename(folder / "imagesTr" / f"case{number}_0000.nii.gz")
        nibabel.Nifti1Image(mask, affine).to_filename(folder / "labelsTr" / f"case{number}.nii.gz")
    said = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "box": 1, "bar": 2}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(said))
    return folder


def write_acdc(folder: Path, patients: tuple[int, ...] = (99, 38, 50, 100, 28, 85, 11, 13)) -> Path:
    """The challenge's layout: two phases of each patient, with the file of all phases that is none of them."""
    import nibabel

    for number in patients:
        place = folder / "training" / f"patient{number:03}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: NOR\n")
        for frame in (1, 12):
            image, mask, affine = scan(number + frame, (0, 1, 2, 3))
            name = f"patient{number:03}_frame{frame:02}"
            nibabel.Nifti1Image(image, affine).to_filename(place / f"{name}.nii.gz")
            nibabel.Nifti1Image(mask, affine).to_filename(place / f"{name}_gt.nii.gz")
        nibabel.Nifti1Image(image, affine).to_filename(place / f"patient{number:03}_4d.nii.gz")
    return folder


def write_left_atrium(folder: Path, train: int = 18, test: int = 2) -> Path:
    """UA-MT's lists and scans."""
    import h5py

    names = [f"{number:02}SCAN" for number in range(train + test)]
    for part, inside in (("train", names[:train]), ("test", names[train:])):
        (folder / "2018LA_Seg_Training Set").mkdir(parents=True, exist_ok=True)
        (folder / f"{part}.list").write_text("\n".join(inside) + "\n")
    for number, name in enumerate(names):
        image, mask, _ = scan(number, (0, 1))
        place = folder / "2018LA_Seg_Training Set" / name
        place.mkdir(exist_ok=True)
        with h5py.File(place / "mri_norm2.h5", "w") as file:
            file["image"], file["label"] = (image / 300).astype(np.float32), mask
    return folder


def write_hippocampus(folder: Path, cases: int = 6) -> Path:
    """MSD's layout: dataset.json, training images with masks, test images without."""
    write_scans(folder, cases)
    for name in ("images", "labels"):
        (folder / name).rename(folder / f"{name}Tr")
    entries = [
        {"image": f"./imagesTr/case{number}.nii.gz", "label": f"./labelsTr/case{number}.nii.gz"}
        for number in range(cases)
    ]
    said = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    said |= {"numTraining": cases - 1, "training": entries[1:], "test": [entries[0]["image"]]}
    (folder / "dataset.json").write_text(json.dumps(said))
    return folder


def write_btcv(folder: Path, cases: int = 6) -> Path:
    """The layout of the abdomen's training scans: img/img0001.nii.gz and label/label0001.nii.gz."""
    write_scans(folder, cases)
    for name, new in (("images", "img"), ("labels", "label")):
        (folder / name).rename(folder / new)
        for number in range(cases):
            (folder / new / f"case{number}.nii.gz").rename(folder / new / f"{new}{number:04}.nii.gz")
    return folder


def write_pictures(folder: Path, cases: int = 6, foreground: int = 255) -> Path:
    """``images/`` of JPEG and ``masks/`` of PNG, of unlike sizes."""
    from PIL import Image

    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        random = np.random.default_rng(number)
        height, width = 40 + number, 52
        mask = np.zeros((height, width), np.uint8)
        row, column = (int(random.integers(4, 20)) for _ in range(2))
        mask[row : row + 16, column : column + 20] = foreground
        image = random.integers(0, 60, (height, width, 3)) + 120 * (mask > 0)[..., None]
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"p{number}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"p{number}.png")
    return folder
