"""Attacks on images within a maximum norm, and accuracy under them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.evaluation.evaluator import EvalEpoch, collect, evaluating
from healsg.metric import Accuracy
from healsg.training.device import both

if TYPE_CHECKING:
    from healsg.protocols import Task


EVAL_SIZE = 0.25
"""The size of a step of the attack in evaluation, as a share of the radius: 2/255 of the usual 8/255."""


def ascend(
    loss: Callable[[Tensor], Tensor],
    input: Tensor,
    begin: Tensor,
    radius: Tensor,
    bounds: tuple[Tensor, Tensor],
    steps: int,
    size: float,
) -> Tensor:
    """Projected gradient ascent on the signs of the gradient (Madry et al. 2018, arXiv 1706.06083, section 2.1).

    Args:
        loss: of inputs, a scalar.
        input: (N, C, ...), the inputs that are attacked.
        begin: the first point of the ascent, of the same shape.
        radius: (C, 1, ...), the largest change of a value.
        bounds: (C, 1, ...), the smallest and the largest valid value.
        steps: number of gradient steps.
        size: of a step, as a share of ``radius``.
    """

    def within(attacked: Tensor) -> Tensor:
        return attacked.clamp(input - radius, input + radius).clamp(*bounds)

    attacked = within(begin).detach()
    for _ in range(steps):
        attacked.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(attacked), attacked)
        attacked = within(attacked.detach() + size * radius * gradient.sign())
    return attacked


class Attack(nn.Module):
    """An attack whose radius is given in the units of the raw image, where 0 is black and 1 full intensity.

    Args:
        eps: the radius.
        steps, size: see ``ascend``.
        random_start: begin at a uniformly random point within the radius.
    """

    unit: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, eps: float, steps: int, size: float, random_start: bool) -> None:
        super().__init__()
        self.eps = eps
        self.steps = steps
        self.size = size
        self.random_start = random_start

    def setup(self, task: Task) -> None:
        """Find the raw image's unit and bounds in normalised inputs, ``(image - mean) / std``.

        Raises ConfigError if the data do not say how they are normalised.
        """
        method = type(task.task_method).__name__
        transform: Any = task.task_data.transform("input", "val") if task.info else None
        mean = getattr(transform, "mean", None)
        std = getattr(transform, "std", None)
        if task.info is None or mean is None or std is None:
            data = type(task.task_data).__name__ if task.info else "a task with loaders of its own"
            raise ConfigError(
                f"method: {method} needs to know how images are normalised, and {data} does not define mean and std"
            )
        shape = (-1, *[1] * (len(task.info.input_shape) - 1))
        means, stds = (torch.tensor(values, dtype=torch.float64).view(shape) for values in (mean, std))
        for name, value in {"unit": 1 / stds, "low": -means / stds, "high": (1 - means) / stds}.items():
            self.register_buffer(name, value.float(), persistent=False)

    def start(self, input: Tensor, drawn: Tensor) -> Tensor:
        """Where the ascent begins, from uniform numbers of the inputs' shape; at the inputs without a random start."""
        return input + self.eps * self.unit * (2 * drawn.to(input.dtype) - 1) if self.random_start else input

    def forward(self, loss: Callable[[Tensor], Tensor], input: Tensor, begin: Tensor | None = None) -> Tensor:
        """The attacked inputs, of the same shape; ``begin`` may say where the ascent begins."""
        radius = self.eps * self.unit
        if begin is None:
            begin = self.start(input, torch.rand_like(input)) if self.random_start else input
        return ascend(loss, input, begin, radius, (self.low, self.high), self.steps, self.size)

    def context(self, task: Task, model: nn.Module, train_mode: bool = False) -> contextlib.AbstractContextManager[Any]:
        """The context of an attack on ``model``: evaluation mode unless ``train_mode``, and the run's precision except
        fp16, in which the gradient of an image underflows without a loss scale."""
        setup = task.runner.device_setup
        full_precision = torch.autocast(task.device.type, enabled=False)
        mode = contextlib.nullcontext() if train_mode else evaluating(model)
        return both(mode, full_precision if setup.scaler else setup.autocast())

    def measure(self, task: Task, split: str) -> dict[str, float]:
        """The default metrics of a split, and ``robust_acc``, the accuracy under this attack."""
        numbers = EvalEpoch(task, split).measure()
        if not self.steps:
            return numbers
        metric = Accuracy()
        model = task.task_method.eval_model(task)
        predict = task.task_model.predict
        with self.context(task, model):
            for batch in task.runner.eval_batches(task, split):
                target = batch["target"]
                attacked = self(lambda x, y=target: F.cross_entropy(predict(model, {"input": x}), y), batch["input"])
                with torch.no_grad():
                    metric.update(predict(model, {"input": attacked}).float(), target)
        return numbers | collect({"robust_acc": metric})
