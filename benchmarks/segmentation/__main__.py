"""Test Dice over seeds, of settings that were chosen on the validation part.

    python -m benchmarks.segmentation [names] [--seeds 0,1,2] [--wheels DIR] [--val] [key=value ...]

Names are ``digits``, ``shapes``, ``tissue`` and ``nuclei``. The last two need the wheels of nilearn and stardist in
``--wheels`` (``pip download --no-deps nilearn stardist``) and are left out without them. ``--val`` shows the validation
Dice, by which settings are chosen, in the place of the test Dice. One thread. All of them, without ``--val`` and
overrides, are written to ``results/segmentation.txt``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.segmentation.material import write_nuclei, write_shapes, write_tissue

UNET = ["model=unet", "model.width=8", "method=adamw", "method.optimizer.lr=1e-2", "runner.threads=1", "quiet=true"]

VOLUMES = ["data=nifti", "data.patch=[32,32,32]", "data.workers=0", "data.in_memory=true"]

SETTINGS: dict[str, list[str]] = {
    "digits": ["data=digits_seg", "data.train=400", "data.batch_size=8", "runner.steps=150", "runner.eval_every=10"],
    "nuclei": [
        *["data=seg2d", "data.image_size=256", "data.channels=1", "data.patch=[128,128]", "data.batch_size=4"],
        *["data.workers=0", "data.in_memory=true", "data.samples_per_epoch=220", "runner.steps=55"],
    ],
    "shapes": [*VOLUMES, "data.batch_size=2", "data.samples_per_epoch=560", "runner.steps=280"],
    "tissue": [*VOLUMES, "data.batch_size=4", "data.samples_per_epoch=672", "runner.steps=168"],
}
"""One training epoch, so that the validation part is looked at once, at the end."""

SEEDS = {"digits": "0,1,2,3,4"}


def material(name: str, folder: Path, wheels: Path | None) -> list[str] | None:
    """Write the data of a measurement, and give the settings that name them; None where its wheel is not there."""
    if name == "digits":
        return []
    if name == "shapes":
        write_shapes(folder)
        return [f"data.folder={folder}"]
    package, write = {"tissue": ("nilearn", write_tissue), "nuclei": ("stardist", write_nuclei)}[name]
    found = sorted(wheels.glob(f"{package}-*.whl")) if wheels else []
    if not found:
        print(f"{name}: left out, there is no wheel of {package} (--wheels)")
        return None
    write(folder, found[-1])
    return [f"data.folder={folder}"]


def measured(settings: list[str], val: bool) -> tuple[float, float]:
    """The Dice of one run, and its CPU seconds."""
    from healsg import TaskTrainer

    began = time.process_time()
    trainer = TaskTrainer.compose(*settings)
    result = trainer.train()
    dice = trainer.evaluate("val")["dice"] if val else result["test"]["test/dice"]
    return dice, time.process_time() - began


def line_of(name: str, seeds: list[int], dice: list[float], seconds: list[float]) -> str:
    spread = f" std {statistics.stdev(dice):.4f}" if len(dice) > 1 else ""
    each = ", ".join(f"{value:.4f}" for value in dice)
    told = f"{statistics.mean(seconds):.0f} CPU s a run"
    return f"{name}: Dice mean {statistics.mean(dice):.4f}{spread} (seeds {seeds}: {each}), {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds")
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--val", action="store_true")
    given = parser.parse_intermixed_args()
    names = [name for name in given.names if "=" not in name] or list(SETTINGS)
    overrides = [name for name in given.names if "=" in name]
    wheels = given.wheels.absolute() if given.wheels else None
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        before = Path.cwd()
        os.chdir(temporary)
        try:
            for name in names:
                more = material(name, Path(temporary) / name, wheels)
                if more is None:
                    continue
                seeds = [int(seed) for seed in (given.seeds or SEEDS.get(name, "0,1,2")).split(",")]
                runs: list[Any] = []
                for seed in seeds:
                    settings = [*SETTINGS[name], *UNET, *more, *overrides, f"seed={seed}"]
                    runs.append(measured(settings, given.val))
                    print(name, f"seed={seed}", *(f"{number:.4f}" for number in runs[-1]), flush=True)
                lines.append(line_of(name, seeds, [dice for dice, _ in runs], [seconds for _, seconds in runs]))
        finally:
            os.chdir(before)
    print("\n".join(lines))
    if not given.val and not overrides and not given.names:
        _write(lines)


def _write(lines: list[str]) -> None:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    where = f"{versions}, {platform.machine()}, {os.cpu_count()} cores, one thread, no GPU"
    settings = [f"{name}: {' '.join([*own, *UNET])}" for name, own in SETTINGS.items()]
    command = "python -m benchmarks.segmentation --wheels DIR"
    text = "\n".join([command, where, "", *lines, "", "Settings, chosen on the validation part:", *settings, ""])
    (Path(__file__).parent.parent / "results" / "segmentation.txt").write_text(text)


if __name__ == "__main__":
    main()
