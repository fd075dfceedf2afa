"""``healsg check``: test by one real training step whether the parts of a task are compatible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg.build import build_task
from healsg.commands.check.findings import Finding
from healsg.config.schema import Composed
from healsg.data.info import DataInfo
from healsg.errors import HealsgError, one_line
from healsg.training.step import COUNT

if TYPE_CHECKING:
    from healsg.task import BasicTask


def tried(composed: Composed, info: DataInfo | None) -> tuple[dict[str, Any], list[Finding]]:
    """Build the task, and take one training step on a batch that can be read.

    Args:
        composed: the configuration.
        info: the classes to read the data with even though one of them is empty; None otherwise.

    Returns:
        Facts of the task as plain values, and its problems.
    """
    try:
        task = build_task(composed)
        task.build(data_info=info)
    except HealsgError as error:
        return {}, [Finding("fatal", "parts", one_line(error))]
    facts = described(task)
    try:
        facts["step"] = one_step(task)
        facts["saved"] = saved_bytes(task)
    except HealsgError as error:
        return facts, [Finding("fatal", "parts", one_line(error))]
    except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:  # from networks and losses
        return facts, [Finding("fatal", "parts", f"a training step fails: {type(error).__name__}: {one_line(error)}")]
    loss = facts["step"].get("loss")
    if loss is None or not math.isfinite(loss):
        return facts, [
            Finding("fatal", "parts", f"the loss of the first batch is {loss}; is data.mean, data.std right?")
        ]
    return facts, []


def one_step(task: BasicTask) -> dict[str, float]:
    """The scalars of the first training step, which updates the weights."""
    task.net.train()
    for batch, micro in task.runner.train_batches(task):
        scalars, _ = task.runner.step(task, batch, micro)
        values = {name: float(torch.as_tensor(value).detach()) for name, value in scalars.items() if _is_scalar(name)}
        return values | {"samples": micro.rows}
    return {}


def _is_scalar(name: str) -> bool:
    """Whether a scalar reported by a step is a value of the method, and not the count of such a value."""
    return name != "count" and not name.endswith(COUNT)


def described(task: BasicTask) -> dict[str, Any]:
    """Facts of a built task: parameters, optimizer, schedule, length, and what is left out."""
    parameters = list(task.model.named_parameters())
    learning = sum(value.numel() for _, value in parameters if value.requires_grad)
    frozen = [name for name, value in parameters if not value.requires_grad]
    parts: dict[str, int] = {}
    for name, value in parameters:
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + value.numel()
    info = task.info
    return {
        "device": str(task.device),
        "parameters": sum(value.numel() for _, value in parameters),
        "trained": learning,
        "frozen": frozen,
        "parts": parts,
        "optimizer": type(task.optimizer).__name__,
        "schedule": None if task.scheduler is None else type(task.scheduler).__name__,
        "criterion": type(task.criterion).__name__,
        "epochs": task.max_epoch,
        "updates": task.runner.total_steps,
        "monitor": task.runner.best_tracker.name,
        "left_out": {
            "samples": task.train_loader.left_out,
            "metrics": task.task_model.omissions(info) if info is not None else [],
        },
    }


def saved_bytes(task: BasicTask) -> dict[str, int]:
    """The sizes of a task's checkpoints, after one optimizer step, so that the optimizer's state exists."""
    best = _bytes(task.task_method.eval_model(task).state_dict())
    return {"best.pt": best, "last.pt": _bytes(task.state_dict())}


def _bytes(state: Any) -> int:
    """Bytes of the tensors in a state of nested dicts and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(_bytes, inner))


def read_safely(composed: Composed, broken: bool) -> Composed:
    """The same configuration for reading all samples: in this process, without caching.

    Args:
        composed: the configuration.
        broken: whether unreadable samples are skipped.
    """
    data = dict(composed.values["data"])
    changes: dict[str, Any] = {"workers": 0, "in_memory": False, "cache": False}
    if broken:
        changes |= {"on_error": "skip", "max_errors": 1 << 30}
    data |= {key: value for key, value in changes.items() if key in data}
    return replace(composed, values=composed.values | {"data": data})
