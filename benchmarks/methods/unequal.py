"""Imbalanced classes: a long tail from class 0, the most frequent, to class 9 with 2 samples."""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment, grid

SETTING = "classes of 70 down to 2 samples, light augmentation; 150 or 300 updates"
UNEQUAL = (*COMMON, "data.imbalance=35", "data.augment=light")
STEPS = grid(runner__steps=(150, 300))


def experiment(name: str, *method: str, measure: str = "test/acc", note: str = "") -> Experiment:
    """Something that minds the classes' sizes, against plain cross entropy."""
    return Experiment(name, SETTING, (UNEQUAL,), ((*UNEQUAL, *method),), STEPS, STEPS, measure, note)


EXPERIMENTS: tuple[Experiment, ...] = (
    experiment("logit_adjustment", "method=logit_adjustment"),
    experiment(
        "logit_adjustment_rarest",
        "method=logit_adjustment",
        measure="recall:7,8,9",
        note="recall of the rarest three classes",
    ),
    experiment(
        "logit_adjustment_after", "method=logit_adjustment", "method.when=after", note="the post-hoc adjustment"
    ),
    experiment("class_balanced", "method=class_balanced"),
    experiment("ldam_drw", "method=ldam_drw"),
    experiment("focal", "method=focal"),
    experiment("balanced_sampling", "data.balanced=true"),
)
