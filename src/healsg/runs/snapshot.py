"""Snapshot: the state of a task that a checkpoint copies, and the part of it that the writing thread may copy.

Buffers, the schedule, the method's state and the counters may change with the next forward pass and are copied when a
save starts. Weights and the optimizer's state stay constant until the next update. On a CPU, where copying blocks the
loop, the thread copies them, and the loop waits for it before that update (``Watcher.snapshot_done``). Copying them
immediately would block the loop for 0.12 to 0.19 of the time of ``torch.save`` (benchmarks/saving.py).
"""

from __future__ import annotations

from typing import Any

from healsg.parts import declares
from healsg.protocols import Task
from healsg.runs import checkpoint
from healsg.torch_private import saved_buffers


class Snapshot:
    """The state of a task for its checkpoints.

    Args:
        task: the trained task, after its assembly.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.overlaps = weights_rest(task)
        """Whether weights and the optimizer's state are copied by the writing thread."""
        self.weights = list(task.model.parameters()) if self.overlaps else []
        self._buffers = [
            (f"{name}.{key}".removeprefix("."), held, key)
            for name, module in task.model.named_modules(remove_duplicate=False)
            if self.overlaps
            for held, key in saved_buffers(module)
        ]
        """The names of the buffers, and the dict and key of each, since a forward pass may replace the tensor."""

    def begin(self) -> dict[str, Any]:
        """The state to copy when a save starts: all of it or, if the copy overlaps, the part that may change soon."""
        if not self.overlaps:
            return self.task.state_dict()
        return self.task.state_between_updates() | {"buffers": {name: held[key] for name, held, key in self._buffers}}

    def complete(self, files: dict[str, Any]) -> dict[str, Any]:
        """Add weights and optimizer state to the file ``last``, and the weights to ``best`` if it has none."""
        last = files["last"]
        if self.overlaps:
            current = self.task.model.state_dict()
            merged = current | last["buffers"]  # a buffer may be None
            weights = checkpoint.like(current, {name: value for name, value in merged.items() if value is not None})
            last = {key: value for key, value in last.items() if key != "buffers"}
            last |= {"model": weights, "optimizer": self.task.optimizer.state_dict()}
        files = files | {"last": last}
        if "best" in files:
            files["best"] = {"model": last["model"]} | files["best"]
        return files


def weights_rest(task: Task) -> bool:
    """Whether it is certain that weights and optimizer state are constant between two updates, on a CPU.

    The classes of the model, the method and the runner declare it, each in its own body. On a GPU copies are
    asynchronous anyway.
    """
    if task.device.type != "cpu" or task.runner.parallel.shards:
        return False
    if task.custom_network or task.custom_epoch or task.custom_state or task.task_method.custom_step:
        return False
    parts = (task.task_model, task.task_method, task.runner)
    return all(declares(part, "leaves_weights") for part in parts)
