"""Supervised training, its optimizers, and what stacks on it."""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment

LIGHT = (*COMMON, "data.augment=light", "runner.steps=400")
SETTING = "100 labels, no augmentation, 300 updates"
FEW = (*COMMON, "data.labels=100", "data.augment=none", "data.batch_size=50", "runner.steps=300")


def stacked(name: str, *method: str) -> Experiment:
    """Something that stacks on AdamW, or stands in its place."""
    return Experiment(name, SETTING, (FEW,), ((*FEW, *method),))


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("supervised", "all labels, light augmentation, 400 updates", (), (LIGHT,), least=99.2),
    Experiment(
        "muon",
        f"{SETTING}; the baseline is SGD",
        ((*FEW, "method=sgd", "method.optimizer.lr=0.3"),),
        ((*FEW, "method=muon", "method.optimizer.lr=0.05"),),
        gain=1.0,
        note="both learning rates are the best of a grid on seeds 0 to 2",
    ),
    stacked("sam", "method=sam", "method.rho=0.1"),
    stacked("schedule_free", "method=schedule_free"),
    stacked("mixup", "method.mixup=0.4"),
    stacked("cutmix", "method.cutmix=1"),
    stacked("random_erasing", "method.random_erasing=0.5"),
    stacked("label_smoothing", "method.label_smoothing=0.1"),
    stacked("ema", "method.ema=0.98"),
    stacked("swa", "method.swa=0.5"),
)
