"""Distillation: a network of width 3 or 4 learns from one of width 16 that was trained on all labels."""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment, Stages

TEACHER = (*COMMON, "data.augment=light", "runner.steps=400")
STUDENT = (*COMMON, "model.width=3", "data.augment=light", "runner.steps=400")
FEW = (*STUDENT, "data.labels=40", "data.batch_size=40")
HUNDRED = "100 labels, light augmentation, 400 updates"
MORE = (*STUDENT, "model.width=4", "data.labels=100", "data.batch_size=50", "method.optimizer.lr=1e-2")
NOTE = "the student has width 3 and 700 parameters; the teacher, of width 16, was trained on all labels"


def taught(student: tuple[str, ...], *method: str) -> Stages:
    """The teacher's run, then the student's."""
    return TEACHER, (*student, "method.teacher={0}", *method)


def beside(name: str, first: str, *method: str) -> Experiment:
    """A method on 100 labels; ``first`` is what its defaults gave on all labels."""
    told = (
        f"the student has width 4; first measured with the defaults on all labels, width 3 and lr 3e-3: {first}; "
        "this setting was chosen after that, on seeds 0 to 2"
    )
    return Experiment(name, HUNDRED, (MORE,), taught(MORE, f"method={name}", *method), note=told)


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "kd",
        "40 labels and the unlabelled pool, light augmentation, 400 updates",
        (FEW,),
        taught(FEW, "method=kd", "method.temperature=2", "method.unlabelled_ratio=4"),
        gain=8.0,
        note=NOTE,
    ),
    beside("dkd", "-1.7 (beta 2)", "method.beta=2", "method.temperature=2"),
    beside("fitnet", "-15.3", "method.hints=0.2", "method.temperature=2"),
    beside("attention_transfer", "-60.8", "method.weight=10"),
    beside("crd", "-4.7", "method.weight=0.1", "method.negatives=64", "method.temperature=0.2"),
)
