"""Noisy labels: two in five training labels are wrong, symmetrically."""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment

SETTING = "40 % of the labels wrong, no augmentation, 500 updates"
NOISY = (*COMMON, "data.label_noise=0.4", "data.augment=none", "runner.steps=500")

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("elr", SETTING, (NOISY,), ((*NOISY, "method=elr"),), gain=8.0),
    Experiment("coteaching", SETTING, (NOISY,), ((*NOISY, "method=coteaching"),), gain=8.0),
    Experiment("gce", SETTING, (NOISY,), ((*NOISY, "method=gce"),), gain=4.0),
)
