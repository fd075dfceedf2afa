"""Snapshot: what a checkpoint copies of a task, and how much of that the writing thread may copy.

Buffers, the schedule, the method's memory and the counters may change with the next forward pass and are copied as a
save begins. Weights and the optimizer's state stay as they are until the next update. On a CPU, where copying keeps the
loop, they are left to the thread, and the loop waits for it before that update (``Watcher.snapshot_done``). Copied at
once they would block the loop for 0.12 to 0.19 of the time of ``torch.save`` (benchmarks/saving.py).
"""

from __future__ import annotations

from typing import Any

from healsg.parts import declares
from healsg.protocols import Task
from healsg.runs import checkpoint
from healsg.torch_private import saved_buffers


class Snapshot:
    """The state of a task as its checkpoints hold it.

    Args:
        task: what is trained; it is built.
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
        """Their names, and where each is found, since a forward pass may put another tensor in its place."""

    def begin(self) -> dict[str, Any]:
        """What is copied as a save begins: the whole state or, where the copy overlaps, what may soon change."""
        if not self.overlaps:
            return self.task.state_dict()
        return self.task.state_between_updates() | {"buffers": {name: held[key] for name, held, key in self._buffers}}

    def complete(self, files: dict[str, Any]) -> dict[str, Any]:
        """Give the file ``last`` its weights and optimizer state, and ``best`` the weights where it has none."""
        last = files["last"]
        if self.overlaps:
            own = self.task.model.state_dict()
            whole = own | last["buffers"]  # of which some may be None: a buffer that is not there
            weights = checkpoint.like(own, {name: value for name, value in whole.items() if value is not None})
            last = {key: value for key, value in last.items() if key != "buffers"}
            last |= {"model": weights, "optimizer": self.task.optimizer.state_dict()}
        files = files | {"last": last}
        if "best" in files:
            files["best"] = {"model": last["model"]} | files["best"]
        return files


def weights_rest(task: Task) -> bool:
    """Whether weights and optimizer state surely stay as they are from one update to the next, on a CPU.

    The classes of the model, the method and the runner declare it, each in its own body. On a GPU copies wait for
    nothing in any case.
    """
    if (
        task.device.type != "cpu"
        or task.runner.parallel.shards
        or any(map(task.replaces, ("build_model", "state_dict", "run_epoch")))
    ):
        return False
    parts = (task.task_model, task.task_method, task.runner)
    return all(declares(part, "leaves_weights") for part in parts) and not task.task_method.replaces("step")
