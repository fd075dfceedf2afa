"""Robustness: accuracy under PGD of 20 steps within 0.15 of full intensity, and without an attack."""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, Experiment

SETTING = "all labels, light augmentation, eps 0.15, 800 updates"
PLAIN = (*COMMON, "data.augment=light", "runner.steps=800")
WITHIN = ("method.eps=0.15", "method.eval_steps=20")
BASELINE = ((*PLAIN, "method=pgd", *WITHIN, "method.steps=1", "method.step_size=1e-6", "method.random_start=false"),)
PGD = ((*PLAIN, "method=pgd", *WITHIN, "method.steps=3", "method.step_size=0.45"),)
FGSM = ((*PLAIN, "method=fgsm", *WITHIN),)
TRADES = ((*PLAIN, "method=trades", *WITHIN, "method.steps=3", "method.step_size=0.45", "method.beta=3"),)
ROBUST = "test/robust_acc"
NOTE = "accuracy under PGD-20; the baseline's attack in training is a millionth of eps"

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("pgd", SETTING, BASELINE, PGD, gain=20.0, measure=ROBUST, note=NOTE),
    Experiment("pgd_clean", SETTING, BASELINE, PGD, least=96.5, note="accuracy without an attack"),
    Experiment("fgsm", SETTING, BASELINE, FGSM, measure=ROBUST, note=NOTE),
    Experiment("fgsm_clean", SETTING, BASELINE, FGSM, note="accuracy without an attack"),
    Experiment("trades", SETTING, BASELINE, TRADES, measure=ROBUST, note=NOTE),
    Experiment("trades_clean", SETTING, BASELINE, TRADES, note="accuracy without an attack"),
)
