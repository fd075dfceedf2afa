"""What nnU-Net's own planners say of six invented fingerprints: the figures that ``tests/test_plan.py`` compares with.

    pip install nnunetv2==2.8.1
    python -m benchmarks.segmentation.nnunet_plans

writes ``tests/nnunet_plans.json``: the fingerprints, and for each planner (the default one with 8 and 10 GB, presets M
and L) patch, batch, spacing, strides and kernels. Axes are in nnU-Net's order, the slices first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parents[2] / "tests/nnunet_plans.json"

PLANNERS: dict[str, tuple[str, str, float]] = {
    "plain": ("default_experiment_planner", "ExperimentPlanner", 8),
    "plain_10": ("default_experiment_planner", "ExperimentPlanner", 10),
    "M": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncM", 8),
    "L": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncL", 24),
}
"""By name the module, the class and the memory in GB."""


def fingerprints() -> dict[str, dict[str, Any]]:
    """By name: channels, labels, and the spacing and shape of each case."""
    random = np.random.default_rng(0)

    def made(
        cases: int, spacing: list[float], spread: list[float], shape: list[int], vary: list[int], **facts: Any
    ) -> dict[str, Any]:
        spacings, shapes = [], []
        for _ in range(cases):
            factor = random.uniform(1 - np.asarray(spread), 1 + np.asarray(spread))
            spacings.append((np.asarray(spacing) * factor).round(3).tolist())
            shapes.append((np.asarray(shape) + random.integers(-np.asarray(vary), np.asarray(vary) + 1)).tolist())
        return {**facts, "spacings": spacings, "shapes": shapes}

    ct, mr = {"channels": ["CT"], "labels": 3}, {"channels": ["MRI"], "labels": 3}
    return {
        "isotropic CT": made(60, [0.8, 0.75, 0.75], [0.2, 0.1, 0.1], [420, 512, 512], [80, 0, 0], **ct),
        "anisotropic CT": made(40, [5.0, 0.78, 0.78], [0.3, 0.1, 0.1], [60, 512, 512], [20, 0, 0], **ct),
        "MR of the hippocampus": made(260, [1.0, 1.0, 1.0], [0, 0, 0], [36, 50, 35], [4, 6, 4], **mr),
        "MR of the prostate": made(
            32, [0.62, 0.62, 3.6], [0.05, 0.05, 0.1], [320, 319, 20], [20, 20, 4], channels=["T2", "ADC"], labels=3
        ),
        "MR of the heart": made(
            100, [9.0, 1.5, 1.5], [0.3, 0.1, 0.1], [9, 237, 208], [2, 30, 30], channels=["ED", "ES"], labels=4
        ),
        "pictures": made(80, [999, 1, 1], [0, 0, 0], [1, 480, 512], [0, 60, 80], channels=["R", "G", "B"], labels=2),
    }


def planned(facts: dict[str, Any], planner: str, folder: Path) -> dict[str, Any]:
    """The configuration of one planner that HEALSg plans too: ``3d_fullres``, or ``2d`` of pictures."""
    from importlib import import_module

    raw, preprocessed = folder / "raw/Dataset001_Made", folder / "preprocessed/Dataset001_Made"
    for path in (raw, preprocessed):
        shutil.rmtree(path, ignore_errors=True)  # nnU-Net keeps configurations of plans that lie there
        path.mkdir(parents=True)
    names = [f"case{number:04}" for number in range(len(facts["shapes"]))]
    files = {name: {"images": [f"{name}.nii.gz"], "label": f"{name}_seg.nii.gz"} for name in names}
    said = {
        "channel_names": {str(place): name for place, name in enumerate(facts["channels"])},
        "labels": {"background": 0} | {f"class{label}": label for label in range(1, facts["labels"])},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
        "dataset": files,
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    (raw / "dataset.json").write_text(json.dumps(said))
    print_of = {
        "spacings": facts["spacings"],
        "shapes_after_crop": facts["shapes"],
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {},
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(print_of))
    module, kind, memory = PLANNERS[planner]
    place = f"nnunetv2.experiment_planning.experiment_planners.{module}"
    with contextlib.redirect_stdout(io.StringIO()):
        plans = getattr(import_module(place), kind)(1, gpu_memory_target_in_gb=memory).plan_experiment()
    configurations = plans["configurations"]
    own = configurations.get("3d_fullres", configurations["2d"])
    arguments = own["architecture"]["arch_kwargs"]
    return {
        "transpose": plans["transpose_forward"],
        "low_resolution": "3d_lowres" in configurations,
        "spacing": own["spacing"],
        "patch": own["patch_size"],
        "batch": own["batch_size"],
        "strides": arguments["strides"],
        "kernels": arguments["kernel_sizes"],
        "features": arguments["features_per_stage"],
        "blocks": arguments.get("n_blocks_per_stage"),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(Path(made) / name)
        found = {}
        for name, facts in fingerprints().items():
            plans = {planner: planned(facts, planner, Path(made)) for planner in PLANNERS}
            found[name] = facts | {"plans": plans}
    content = {"nnunetv2": version("nnunetv2"), "fingerprints": found}
    OUT.write_text(json.dumps(content, default=lambda number: number.item()) + "\n")


if __name__ == "__main__":
    main()
