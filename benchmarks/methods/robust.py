"""\
Robustness: accuracy under a PGD attack of 20 steps (L-infinity, eps = 0.15 of full intensity), and without an attack.
"""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment, grid

SETTING = "all labels, light augmentation, eps 0.15, 400 updates"
PLAIN = (*COMMON, "data.augment=light", "runner.steps=400")
WITHIN = ("method.eps=0.15", "method.eval_steps=20")
BASELINE = ((*PLAIN, "method=pgd", *WITHIN, "method.steps=1", "method.step_size=1e-6", "method.random_start=false"),)
ROBUST = "test/robust_acc"
NOTE = (
    "accuracy under PGD-20; "
    "the attack in the training of the baseline moves inputs by a millionth of eps, in effect not at all"
)
RATES = grid()


def rows(name: str, *settings: str) -> tuple[Experiment, Experiment]:
    """A method under an attack and without one; each row chooses its own learning rate."""
    method = ((*PLAIN, f"method={name}", *WITHIN, *settings),)
    clean = "accuracy without an attack, which adversarial training reduces"
    return (
        Experiment(name, SETTING, BASELINE, method, RATES, RATES, ROBUST, NOTE),
        Experiment(f"{name}_clean", SETTING, BASELINE, method, RATES, RATES, note=clean),
    )


EXPERIMENTS: tuple[Experiment, ...] = (
    *rows("pgd", "method.steps=3", "method.step_size=0.45"),
    *rows("fgsm"),
    *rows("trades", "method.steps=3", "method.step_size=0.45", "method.beta=3"),
)
