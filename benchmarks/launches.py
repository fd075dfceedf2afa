"""Operator calls of a training step, which on a GPU are kernel launches: the optimizers, EMA and SAM beside plain SGD.

    python -m benchmarks.launches

A ResNet-18 on random images of CIFAR's shape, fp32, on the CPU; a step in the middle of a run. Every call that reaches
a kernel is counted (``TorchDispatchMode``, under autograd); views, which launch nothing, are not. A list operator
(``_foreach_``, ``_fused_``) is one call: on a GPU it is one launch, or a few for many tensors.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bars import Bar, keep
from healsg import TaskTrainer
from healsg.runner import TaskRunner

BARS = {"sgd, ema": 1.3, "sam": 2.2}
"""Calls as multiples of plain SGD's."""

COMMON = ["data=synthetic", "data.shape=[3,32,32]", "data.train=64", "data.test=8", "data.val_fraction=0.1"]
COMMON += ["data.batch_size=8", "model=resnet", "runner.steps=4", "runner.device=cpu", "quiet=true", "fresh=true"]

SETTINGS = {
    "sgd": ["method=sgd"],
    "sgd, ema": ["method=sgd", "method.ema=0.99"],
    "adamw": ["method=adamw"],
    "lion": ["method=adamw", "method/optimizer=lion"],
    "muon": ["method=adamw", "method/optimizer=muon"],
    "sam": ["method=sam", "method/optimizer=sgd"],
}


class Calls(TorchDispatchMode):
    """Counts the operators that compute, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.namespace == "aten":
            self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def calls_of(name: str, options: list[str]) -> Counter[str]:
    """The calls from the beginning of the third step of a run to that of the fourth, the loader's among them."""
    step, calls = TaskRunner.step, Calls()

    def counted(self: TaskRunner, *arguments: Any) -> Any:
        if self.step_count == 2:
            calls.__enter__()
        elif self.step_count == 3:
            calls.__exit__(None, None, None)
        return step(self, *arguments)

    TaskRunner.step = counted  # type: ignore[method-assign, assignment]
    try:
        TaskTrainer.compose(*COMMON, *options, f"name={name.replace(', ', '-')}").train()
    finally:
        TaskRunner.step = step  # type: ignore[method-assign]
    return calls.found


def main() -> None:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        torch.set_num_threads(1)
        plain = 0
        conditions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, no GPU"
        print(conditions)
        bars = []
        for name, options in SETTINGS.items():
            found = calls_of(name, options)
            total = found.total()
            plain = plain or total
            share = total / plain
            bars.append(Bar("W15", f"operator calls a step, {name}, x plain SGD", share, share, share, BARS.get(name)))
            bar = f", bar {BARS[name]}" if name in BARS else ""
            most = ", ".join(f"{key} {count}" for key, count in found.most_common(5))
            print(f"{name:10} {total:5d} calls a step, {total / plain:.2f} x plain SGD{bar}  ({most})")
    os.chdir(before)
    keep("python -m benchmarks.launches", conditions, bars)


if __name__ == "__main__":
    main()
