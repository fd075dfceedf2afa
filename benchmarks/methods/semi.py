"""Learning from few labels and the unlabelled rest, against the labelled samples alone.

Both sides have the same 40 labelled images in every batch, the same strong augmentation of them, as many updates, and
a moving average of the weights that is evaluated; the method's batches hold three unlabelled images for each labelled
one.
"""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment

FEW = (*COMMON, "data.labels=40", "data.batch_size=40", "data.augment=strong", "method.ema=0.999")


def experiment(name: str, *settings: str, gain: float | None = None, steps: int = 300, note: str = "") -> Experiment:
    """A method on 40 labels."""
    few = (*FEW, f"runner.steps={steps}")
    return Experiment(
        name,
        f"40 labels, {steps} updates",
        ((*few, "method=supervised"),),
        ((*few, f"method={name}", "method.unlabelled_ratio=3", *settings),),
        gain,
        note=note,
    )


EXPERIMENTS: tuple[Experiment, ...] = (
    experiment("fixmatch", "method.threshold=0.8", gain=2.5, steps=400),
    experiment("mean_teacher", "method.unlabelled_weight=30", gain=2.5, steps=500),
    experiment("flexmatch", "method.threshold=0.8"),
    experiment("freematch", "method.momentum=0.97"),
    experiment("softmatch", "method.momentum=0.97"),
    experiment("uda"),
    experiment("pseudo_label", "method.unlabelled_weight=1", note="Without a threshold, as in the paper."),
    experiment("mixmatch", "method.ramp=0.3"),
)
