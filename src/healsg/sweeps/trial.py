"""Before a stack is trained: whether its network can be stacked, gives the same numbers so, and gains anything."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from healsg.config import Composed, build_task, one_line
from healsg.errors import ConfigError
from healsg.sweeps.fitting import INSTEAD
from healsg.sweeps.sharing import lend
from healsg.sweeps.stack import Stack
from healsg.task import BasicTask

SECONDS, STEPS = 1.0, 7
"""What measuring a way of training may take, and the steps at most."""

TOLERANCE = 0.05
"""Of the first update, relative to its size: rounding is far below, and what a stack leaves out far above."""


def try_out(jobs: list[Composed], kept: dict[str, Any]) -> str:
    """Take a few steps of one of the jobs alone and of as many copies of it as there are jobs, as one stack.

    Args:
        jobs: those that are to be stacked; nothing of them is written.
        kept: takes what has been read of the data, for the jobs themselves.

    Returns:
        A line that says what a step of all takes in either way.

    Raises:
        ConfigError: the network cannot be stacked, or is another one then.
    """
    chosen = max(jobs, key=lambda job: float(job.values["method"].get("label_smoothing", 0.0)))
    task = build_task(chosen)
    lend(kept, task, chosen.values["data"])
    task.build()
    task.build_training()
    check(task)
    batch, rows = next(iter(task.train_loader.batches(0)))
    task.runner.rows, task.runner.closing = rows, True
    batch = task.runner.place.move(batch)
    task.net.train()
    copies = [_copy(task) for _ in jobs]
    many = [batch[key].expand(len(jobs), *batch[key].shape).contiguous() for key in ("input", "target")]
    try:
        stack = Stack(copies)
        before = _weights(task)
        stack.step(*many)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError) as error:
        raise ConfigError(
            f"sweep=vectorised: the network cannot be stacked ({one_line(error)[:200]}); {INSTEAD}"
        ) from error
    task.task_method.step(task, batch)
    _compare(before, _weights(task), _weights(copies[0]))
    together = _seconds(task.device, lambda: stack.step(*many))
    alone = len(jobs) * _seconds(task.device, lambda: task.task_method.step(task, batch))
    gain = alone / together
    told = f"{len(jobs)} jobs as one stack: a step of all takes {1e3 * together:.3g} ms, one after the other "
    told += f"{1e3 * alone:.3g} ms: {gain:.1f} times as fast"
    return told if gain > 1 else f"{told}; sweep=serial is the faster way here, and vectorised was asked for"


def check(task: BasicTask) -> None:
    """Refuse what a stack cannot do for each job as it would be alone. Raises ConfigError."""
    for name, module in task.model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ConfigError(
                f"sweep=vectorised: the network has dropout ({name}), which in a stack cannot follow each job's own "
                f"seed; {INSTEAD}"
            )
    if any(isinstance(group["lr"], Tensor) for group in task.optimizer.param_groups):
        raise ConfigError(f"sweep=vectorised: method.optimizer.lr is a tensor; {INSTEAD}")


def _copy(task: BasicTask) -> BasicTask:
    """The same task with a network and an optimizer of its own."""
    twin = copy.copy(task)
    twin.model = copy.deepcopy(task.model)
    twin.optimizer = twin.build_optimizer()
    twin.optimizer.load_state_dict(task.optimizer.state_dict())  # the schedule has set its rates
    return twin


def _weights(task: BasicTask) -> dict[str, Tensor]:
    state = {**dict(task.model.named_parameters()), **dict(task.model.named_buffers())}
    return {name: value.detach().double().clone() for name, value in state.items()}


def _compare(before: dict[str, Tensor], alone: dict[str, Tensor], stacked: dict[str, Tensor]) -> None:
    """Raises ConfigError where the first update moves the network otherwise in a stack than it does alone."""
    for name, start in before.items():
        moved, wrong = (alone[name] - start).norm(), (alone[name] - stacked[name]).norm()
        if wrong > TOLERANCE * moved + 1e-6 * (1 + start.norm()):
            raise ConfigError(
                f"sweep=vectorised: an update moves {name} otherwise in a stack than alone, so that the network cannot "
                f"be stacked; {INSTEAD}"
            )


def _seconds(device: torch.device, step: Callable[[], Any]) -> float:
    """The least of some measurements of a step, after one that is not counted."""
    found, end = [], time.monotonic() + SECONDS
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
        if time.monotonic() > end:
            break
    return min(found[1:] or found)
