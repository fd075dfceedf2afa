"""\
Noisy labels: 40 % of the training labels are wrong, uniformly over the classes, or 35 % of each class are labelled as
the next digit.

The baseline is cross entropy. Its number of updates is tuned too, so that a gain is not merely the effect of early
stopping.
"""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment, grid

NOISES = {
    "": ("40 % of the labels wrong, evenly; no augmentation", ("data.label_noise=0.4", "data.augment=none")),
    "_asymmetric": (
        "35 % of each class labelled as the next one; light augmentation",
        ("data.label_noise=next.csv", "data.augment=light"),
    ),
}
"""``next.csv`` is written by ``benchmarks.methods`` into the folder in which it runs."""

STEPS = grid(("3e-3", "1e-2"), runner__steps=(100, 400))


def experiment(name: str, noise: str, *settings: str) -> Experiment:
    """A method on one kind of noise."""
    setting, data = NOISES[noise]
    noisy = (*COMMON, *data)
    learned = (*noisy, f"method={name}", *settings)
    return Experiment(f"{name}{noise}", f"{setting}; 100 or 400 updates", (noisy,), (learned,), STEPS, STEPS)


EXPERIMENTS: tuple[Experiment, ...] = (
    *(experiment(name, noise) for noise in NOISES for name in ("elr", "gce")),
    experiment("dividemix", ""),
    experiment("dividemix", "_asymmetric", "method.confidence_penalty=1"),
    experiment("coteaching", ""),
    experiment("coteaching", "_asymmetric", "method.noise=0.35"),
)
