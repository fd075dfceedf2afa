"""Optimizers, and techniques added to supervised training, against AdamW."""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment, Grid, grid

SETTING = "100 labels, no augmentation; 100 or 300 updates"
FEW = (*COMMON, "data.labels=100", "data.augment=none", "data.batch_size=50")
STEPS = grid(runner__steps=(100, 300))


def stacked(name: str, *method: str, rates: Grid = STEPS, note: str = "") -> Experiment:
    """Something that stacks on AdamW, or stands in its place."""
    return Experiment(name, SETTING, (FEW,), ((*FEW, *method),), STEPS, rates, note=note)


EXPERIMENTS: tuple[Experiment, ...] = (
    stacked("sgd", "method=sgd", rates=grid(("0.1", "0.3"), runner__steps=(100, 300))),
    stacked("muon", "method=muon", rates=grid(("0.02", "0.05"), runner__steps=(100, 300))),
    stacked("sam", "method=sam", "method.rho=0.1", note="two gradients per update"),
    stacked("schedule_free", "method=schedule_free"),
    stacked("mixup", "method.mixup=0.4"),
    stacked("cutmix", "method.cutmix=1"),
    stacked("random_erasing", "method.random_erasing=0.5"),
    stacked("label_smoothing", "method.label_smoothing=0.1"),
    stacked("ema", "method.ema=0.98"),
    stacked("swa", "method.swa=0.5"),
)
