"""Masks as pictures: truth, prediction and errors in colour, of images and of volumes, in reports and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from healsg import TaskTrainer
from healsg.cli import main
from healsg.data.case import Case
from healsg.data.info import DataInfo
from healsg.loggers.mask_panels import ADDED, CELL, ERRORS, MISSED, OTHER, RIGHT, errors, panel, telling_plane
from healsg.loggers.samples import SampleCollector

CONF = str(Path(__file__).parent / "dense_conf")


def shows(cell: Any, code: int) -> bool:
    """Whether some pixel of a cell has the hue of an error, half over black."""
    return bool((np.abs(cell.astype(int) - np.array(ERRORS[code]) // 2).max(axis=-1) <= 2).any())


def test_each_kind_of_error_has_its_code() -> None:
    truth = np.array([[0, 1, 2, 0, 1, 255]])
    found = np.array([[0, 1, 1, 2, 0, 1]])
    assert errors(truth, found, 255).tolist() == [[0, RIGHT, OTHER, ADDED, MISSED, 0]]


def test_an_image_is_shown_with_its_masks_and_errors() -> None:
    truth, found = np.zeros((2, 8, 8), np.uint8)
    truth[:4] = 1
    found[2:] = 1
    made = panel(np.zeros((3, 8, 8), np.uint8), truth, found)
    assert made is not None
    assert made.shape == (CELL[2], 4 * CELL[2], 3)
    image, mask, prediction, wrong = np.split(made, 4, axis=1)
    assert image.max() == 0
    assert not np.array_equal(mask, prediction)
    assert [shows(wrong, code) for code in (RIGHT, OTHER, ADDED, MISSED)] == [True, False, True, True]


def test_a_volume_is_shown_in_the_planes_of_its_errors_and_in_projections() -> None:
    truth, found = np.zeros((2, 10, 12, 6), np.uint8)
    truth[2:5, 3:6, 1:3] = 1
    found[2:5, 3:6, 1:3] = 1
    found[8, 10, 5] = 1
    codes = errors(truth, found)
    assert [telling_plane(codes, axis) for axis in range(3)] == [8, 10, 5]
    assert telling_plane(np.zeros((4, 4, 5)), 2) == 2
    made = panel(np.zeros((1, 10, 12, 6)), truth, found, spacing=(1.0, 1.0, 3.0))
    assert made is not None
    assert made.shape == (6 * CELL[3], 4 * CELL[3], 3)
    for row, cells in enumerate(np.split(made, 6)):
        wrong = np.split(cells, 4, axis=1)[3]
        assert shows(wrong, ADDED)
        assert shows(wrong, RIGHT) == (row >= 3), "the box lies in no plane of the error, and in all projections"


def test_regions_and_unlike_volumes_are_collected() -> None:
    info = DataInfo((1, 6, 6, 6), 2, "segmentation", ("whole", "core"), regions={"whole": (1, 2), "core": (2,)})
    collector = SampleCollector(info)
    for number, side in enumerate((6, 8)):
        target = torch.zeros(1, side, 6, 6, dtype=torch.uint8)
        target[:, :3] = 1
        target[:, 0] = 2
        output = torch.full((1, 2, side, 6, 6), -1.0)
        output[:, 0, : 3 - number] = 1.0
        output[:, 1, 0] = 1.0
        case = Case(f"case{number}", spacing=(1.0, 1.0, 2.0))
        collector.see(output, {"input": torch.rand(1, 1, side, 6, 6), "target": target, "case": [case]})
    collector.finish("test", None)
    assert [one["name"] for one in collector.found["masks"]] == ["case1", "case0"]
    assert [one["dice"] for one in collector.found["masks"]] == [pytest.approx(0.9), 1.0]
    assert all(one["jpeg"] for one in collector.found["masks"])


def test_eval_writes_a_page_with_the_worst_cases(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["data=blobs", "model=pixels", "trusted=[dense_data]", "runner.steps=2", "quiet=true", "name=own"]
    TaskTrainer.compose(*options, config_dir=CONF).train()
    assert main(["eval", "own", "--page", "own.html", "trusted=[dense_data]"]) == 0
    page = Path("own.html").read_text()
    assert page.count("<img ") == 6
    assert page.index("Masks with the lowest Dice") < page.index("Cases, the worst first")
    assert "test0" in page
    assert "own: test, best weights" in page
    capsys.readouterr()
    assert main(["eval", "own", "--page", "nowhere/own.html"]) == 2
    assert capsys.readouterr().err == ("error: --page: there is no folder nowhere\n")
