"""Five clinical cases (CT and MR, as NRRD) out of the source distribution of pyradiomics, where it lies at
``HEALSG_PYRADIOMICS`` (``pip download --no-binary pyradiomics --no-deps pyradiomics``): a check, and the way there and
back. Nothing of it is a part of this repository."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from healsg.cli import main
from healsg.datasets.volumes.files import read_geometry, read_image, read_mask, require_same_space, write_volume
from healsg.datasets.volumes.space import prepared, steps_for

CASES = ("brain1", "brain2", "breast1", "lung1", "lung2")


@pytest.fixture
def clinical() -> Path:
    """``images/`` and ``labels/`` of the five cases."""
    pytest.importorskip("SimpleITK", reason="NRRD needs SimpleITK: an extra of healsg")
    source = os.environ.get("HEALSG_PYRADIOMICS", "")
    if not Path(source).is_file():
        pytest.skip("HEALSG_PYRADIOMICS names no source distribution of pyradiomics")
    folder = Path("clinical")
    with tarfile.open(source) as archive:
        for member in archive.getmembers():
            name = Path(member.name).name
            for case in CASES:
                for kind, inner in (("image", "images"), ("label", "labels")):
                    content = archive.extractfile(member) if name == f"{case}_{kind}.nrrd" else None
                    if content is not None:
                        (folder / inner).mkdir(parents=True, exist_ok=True)
                        (folder / inner / f"{case}.nrrd").write_bytes(content.read())
    return folder


def test_masks_of_clinical_cases_go_there_and_back(clinical: Path) -> None:
    spacings = set()
    for case in CASES:
        image = read_image([clinical / "images" / f"{case}.nrrd"])
        mask = read_mask(clinical / "labels" / f"{case}.nrrd")
        require_same_space(image, mask)
        steps = steps_for(image.array, image.geometry.affine, orient=True)
        common = steps.forward(mask.array)
        assert common.shape == prepared(image.array, steps).shape
        back = steps.backward(common)
        assert np.array_equal(back, mask.array), case
        for kind in (".nrrd", ".mha", ".nii.gz"):
            written = Path(f"{case}{kind}")
            write_volume(written, back, image)
            again = read_mask(written)
            assert np.array_equal(again.array, mask.array), written
            own, there = image.geometry.affine, again.geometry.affine
            assert np.array_equal(own, there) if kind == ".nrrd" else np.allclose(own, there, atol=1e-4), written
        spacings.add(tuple(round(side, 2) for side in read_geometry(clinical / "images" / f"{case}.nrrd").spacing))
    assert (0.78, 0.78, 6.5) in spacings


def test_clinical_cases_are_checked(clinical: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data=nifti", f"data.folder={clinical}", "data.val_fraction=0.2", "data.patch=[32,32,8]"]
    status = main(["check", *data, "model=unet", "model.width=2", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert status == 0, answer["findings"]
    assert sum(one["samples"] for one in answer["splits"].values()) == len(CASES)
