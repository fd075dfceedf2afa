"""Semi-supervised learning from few labelled samples and the remaining, unlabelled ones. The baseline uses only the
labelled samples.

Baseline and method have the same 40 labelled images in every batch, the same strong augmentation of them and as many
updates, and both evaluate an exponential moving average of the weights. The method's batches also hold three unlabelled
images for each labelled one.
"""

from __future__ import annotations

from typing import Any

from benchmarks.methods.experiment import COMMON, Experiment, grid

FEW = (*COMMON, "data.labels=40", "data.batch_size=40", "data.augment=strong", "method.ema=0.99")
STEPS = grid(runner__steps=(150, 300))


def experiment(name: str, **tuned: tuple[Any, ...]) -> Experiment:
    """A method on 40 labels, with two values of one setting of its own."""
    few = (*FEW, f"method={name}", "method.unlabelled_ratio=3", "runner.steps=300")
    baseline = (*FEW, "method=supervised")
    return Experiment(name, "40 labels, 300 updates (baseline 150 or 300)", (baseline,), (few,), STEPS, grid(**tuned))


EXPERIMENTS: tuple[Experiment, ...] = (
    experiment("fixmatch", method__threshold=(0.8, 0.95)),
    experiment("mean_teacher", method__unlabelled_weight=(10, 30)),
    experiment("flexmatch", method__threshold=(0.8, 0.95)),
    experiment("freematch", method__momentum=(0.97, 0.99)),
    experiment("softmatch", method__momentum=(0.97, 0.99)),
    experiment("uda", method__threshold=(0.6, 0.8)),
    experiment("pseudo_label", method__unlabelled_weight=(1, 3)),
    experiment("mixmatch", method__unlabelled_weight=(25, 75)),
)
