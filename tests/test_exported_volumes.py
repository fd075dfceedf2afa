"""The program for volumes of an export: where it writes nothing."""

from __future__ import annotations

from pathlib import Path

from healsg.exporting.volumes import refused


def test_no_mask_takes_the_place_of_a_volume_or_of_another_mask(tmp_path: Path) -> None:
    one, two = tmp_path / "p1/t1.nii.gz", tmp_path / "p2/t1.nii.gz"
    assert "take the place" in refused([one], tmp_path / "p1")
    assert "have the name" in refused([one, two], tmp_path / "masks")
    assert refused([one], tmp_path / "masks") == ""
