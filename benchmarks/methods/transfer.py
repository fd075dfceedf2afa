"""Transfer: a network is pretrained on five digits and then trained on the other five with 25 labels.

The pretrained weights come from a HEALSg run; the baseline starts from random weights.
"""

from __future__ import annotations

from typing import Any

from benchmarks.methods.experiment import COMMON, Experiment, grid

FIRST = (*COMMON, "+data.digits=first", "method.optimizer.lr=3e-3", "data.augment=light", "runner.steps=300")
SECOND = (*COMMON, "+data.digits=second", "data.labels=25", "data.batch_size=25", "data.augment=light")
SETTING = "25 labels of the digits 5 to 9; weights of 300 updates on the digits 0 to 4"
STEPS = grid(runner__steps=(50, 200))


def started(name: str, **tuned: tuple[Any, ...]) -> Experiment:
    """From the first digits' weights to the second digits."""
    method = (*SECOND, f"method={name}", "init_from=runs/{0}")
    return Experiment(name, SETTING, (SECOND,), (FIRST, method), STEPS, grid(**tuned))


EXPERIMENTS: tuple[Experiment, ...] = (
    started("finetune", runner__steps=(50, 200)),
    started("lora", runner__steps=(50, 200)),
    started("linear_probe", runner__steps=(50, 200)),
)
