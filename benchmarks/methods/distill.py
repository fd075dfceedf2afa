"""Distillation: a student of width 4 learns from a teacher of width 16 that was trained on all labels."""

from __future__ import annotations

from typing import Any

from benchmarks.methods.experiment import COMMON, Experiment, grid

TEACHER = (*COMMON, "method.optimizer.lr=3e-3", "data.augment=light", "runner.steps=300")
STUDENT = (*COMMON, "model.width=4", "data.augment=light", "data.labels=100", "data.batch_size=50")
STEPS = grid(runner__steps=(150, 300))
NOTE = "every batch also holds four unlabelled images for each labelled one; the baseline has none"


def taught(name: str, *settings: str, note: str = "", **tuned: tuple[Any, ...]) -> Experiment:
    """The teacher's run, then the student's, with two values of one setting of the method's own."""
    told = "100 labels, light augmentation, 300 updates (baseline 150 or 300)"
    method = (*STUDENT, "method.teacher={0}", f"method={name}", "runner.steps=300", *settings)
    return Experiment(name, told, (STUDENT,), (TEACHER, method), STEPS, grid(**tuned), note=note)


EXPERIMENTS: tuple[Experiment, ...] = (
    taught("kd", "method.unlabelled_ratio=4", note=NOTE, method__temperature=(2, 4)),
    taught("dkd", "method.temperature=2", method__beta=(2, 8)),
    taught("fitnet", "method.temperature=2", method__hints=(0.1, 0.3)),
    taught("attention_transfer", method__weight=(10, 100)),
    taught("crd", "method.negatives=64", method__weight=(0.1, 0.8)),
)
