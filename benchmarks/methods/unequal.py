"""Unequal classes: from 120 samples of the class 0 to 2 of the class 9."""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment

SETTING = "120 to 2 samples a class, light augmentation, 400 updates"
UNEQUAL = (*COMMON, "data.imbalance=60", "data.augment=light", "runner.steps=400")
ADJUSTED = ((*UNEQUAL, "method=logit_adjustment"),)
RAREST = "recall:7,8,9"

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("logit_adjustment", SETTING, (UNEQUAL,), ADJUSTED, gain=1.5),
    Experiment(
        "logit_adjustment_rarest",
        SETTING,
        (UNEQUAL,),
        ADJUSTED,
        gain=5.0,
        measure=RAREST,
        note="recall of the rarest three classes",
    ),
    Experiment("class_balanced", SETTING, (UNEQUAL,), ((*UNEQUAL, "method=class_balanced"),)),
    Experiment("ldam_drw", SETTING, (UNEQUAL,), ((*UNEQUAL, "method=ldam_drw"),)),
    Experiment("focal", SETTING, (UNEQUAL,), ((*UNEQUAL, "method=focal"),)),
    Experiment("balanced_sampling", SETTING, (UNEQUAL,), ((*UNEQUAL, "data.balanced=true"),)),
)
