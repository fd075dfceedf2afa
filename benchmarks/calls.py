"""Python and C calls a training step: HEALSg as a user has it, a bare loop over a DataLoader, a tight one over tensors.

    python benchmarks/calls.py

An MLP 64-128-10 on scikit-learn's digits, batch 64, AdamW. Calls are counted by ``sys.setprofile`` over ten whole
epochs in the middle of a run, for HEALSg with evaluation, logging and the saves that fall into them.
"""

import os
import sys
import tempfile
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader

from bare import digits, network

EPOCHS = 10


def counted(run: Callable[[], int]) -> float:
    """Calls of Python and C functions a step, ``run`` returning the number of its steps."""
    calls = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        steps = run()
    finally:
        sys.setprofile(None)
    return calls / steps


def bare_epochs(epochs: int, tight: bool) -> Callable[[], int]:
    """Training alone, without evaluation and saving."""
    torch.manual_seed(0)
    train, *_ = digits()
    loader = DataLoader(train, batch_size=64, shuffle=True)
    model, criterion = network("mlp"), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    input, target = train.tensors

    def step(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = criterion(model(input), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def run() -> int:
        steps = 0
        for _ in range(epochs):
            if tight:
                order = torch.randperm(len(target))
                losses = [step(input[part], target[part]) for part in order.split(64)]
            else:
                losses = [step(*batch) for batch in loader]
            float(torch.stack(losses).mean())
            steps += len(losses)
        return steps

    return run


def ours(**changes: object) -> float:
    """A whole run through the Python door, counted from its second epoch to the one before the last."""
    from healsg import TaskTrainer
    from healsg.runner import TaskRunner

    options = ["model=mlp", f"runner.epochs={EPOCHS + 2}", "quiet=true", *(f"{k}={v}" for k, v in changes.items())]
    trainer, end_epoch, seen = TaskTrainer.compose(*options), TaskRunner.end_epoch, {"calls": 0, "steps": 0}

    def profile(frame: object, event: str, argument: object) -> None:
        seen["calls"] += event in ("call", "c_call")

    def watched(self: TaskRunner, *arguments: object) -> None:
        end_epoch(self, *arguments)
        if self.epoch == 1:
            seen["begin"] = self.step_count
            sys.setprofile(profile)
        elif self.epoch == EPOCHS + 1:
            sys.setprofile(None)
            seen["steps"] = self.step_count - seen["begin"]

    TaskRunner.end_epoch = watched
    try:
        trainer.train()
    finally:
        TaskRunner.end_epoch = end_epoch
    return seen["calls"] / seen["steps"]


def main() -> None:
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    for tight in (False, True):
        bare_epochs(1, tight)()
        print(f"{'tight loop over tensors' if tight else 'bare loop over a DataLoader':48}", end="")
        print(f"{counted(bare_epochs(EPOCHS, tight)):8.1f} calls a step")
    print(f"{'healsg: training, evaluation, saving, logging':48}{ours():8.1f} calls a step")
    plain = {"data.shift": 0}
    print(f"{'healsg: the same without augmentation':48}{ours(**plain):8.1f} calls a step")


if __name__ == "__main__":
    main()
