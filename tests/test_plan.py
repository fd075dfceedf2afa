"""``healsg plan``: nnU-Net's own plans, a YAML that trains, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from healsg.models.planning import planned
from healsg.models.resenc_unet import ResEncUNet
from healsg.models.unet import PyramidModel, UNet

CASES: dict[str, Any] = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text())["fingerprints"]
"""Made by ``python -m benchmarks.segmentation.nnunet_plans``."""

PLANNERS: dict[str, tuple[PyramidModel, float]] = {
    "plain": (UNet(), 8),
    "plain_10": (UNet(), 10),
    "M": (ResEncUNet(preset="M"), 8),
    "L": (ResEncUNet(preset="L"), 24),
}


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", CASES)
def test_plans_are_those_of_nnunet(name: str, planner: str) -> None:
    facts = CASES[name]
    wanted = facts["plans"][planner]
    model, memory = PLANNERS[planner]
    axes = len(wanted["spacing"])  # nnU-Net's are the slices first, ours the slices last

    def ours(entry: list[Any]) -> tuple[Any, ...]:
        return tuple(entry[-axes:][::-1])

    outputs = facts["labels"]
    found = planned(
        [ours(spacing) for spacing in facts["spacings"]],
        [ours(shape) for shape in facts["shapes"]],
        lambda one: model.values(model.laid_out(one.strides, one.kernels), one.patch, outputs),
        model.budget,
        memory,
    )
    back = [axes - 1 - axis for axis in (wanted["transpose"] if axes == 3 else range(axes))]

    def nnunets(entry: Any) -> list[Any]:
        return [entry[axis] for axis in back]

    assert nnunets(found.spacing) == pytest.approx(wanted["spacing"])
    assert nnunets(found.topology.patch) == wanted["patch"]
    assert found.batch == wanted["batch"]
    assert [nnunets(entry) for entry in found.topology.strides] == wanted["strides"]
    assert [nnunets(entry) for entry in found.topology.kernels] == wanted["kernels"]
    assert list(model.laid_out(found.topology.strides, found.topology.kernels).channels) == wanted["features"]
