"""The program for volumes of an export: where it writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from healsg.exporting.volumes import Scan, mask_of, refused


def test_no_mask_takes_the_place_of_a_volume_or_of_another_mask(tmp_path: Path) -> None:
    one, two = tmp_path / "p1/t1.nii.gz", tmp_path / "p2/t1.nii.gz"
    assert "take the place" in refused([one], tmp_path / "p1")
    assert "have the name" in refused([one, two], tmp_path / "masks")
    assert refused([one], tmp_path / "masks") == ""


def test_what_was_cropped_away_has_the_label_of_the_first_class() -> None:
    """Which need not be 0, as where the files of the training have other labels for the background."""
    values = np.zeros((1, 5, 5, 5), np.float32)
    values[:, 1:4, 1:4, 1:4] = 1
    about = {"preprocessing": {"orient": False, "crop": 0.5, "intensity": "none", "labels": [3, 4]}, "written": []}

    def scores(seen: Any) -> Any:
        return np.concatenate([1 - seen, seen])

    made = mask_of(Scan(values, np.eye(4), None), about, scores, lambda found, _: found.argmax(axis=0) + 3)
    assert np.array_equal(made, 3 + values[0])
