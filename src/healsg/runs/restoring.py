"""Reading a run's checkpoints back: the state that it continues from, and the weights that are evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from healsg.errors import RunError
from healsg.protocols import Task
from healsg.runs import binding, checkpoint
from healsg.runs.acquire import has_trained
from healsg.runs.folder import RunFolder


def resumable(folder: RunFolder) -> tuple[Path, dict[str, Any] | None]:
    """The file and the state that a run continues from; the state is None for a new run. Raises RunError."""
    path, state = folder.last_checkpoint()
    if state is not None and not has_trained(folder) and not step_and_best(path, state)[0]:
        return path, None  # left by a run that ended before its first update
    return path, state


def step_and_best(path: Path, state: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """The update at which a run's state was saved, and its best epoch. Raises RunError if it is no state of a run."""
    runner = state.get("runner")
    step = runner.get("step") if isinstance(runner, dict) else None
    monitor = runner.get("monitor") if isinstance(runner, dict) else None
    best = monitor.get("best") if isinstance(monitor, dict) else None
    if type(step) is not int or not (best is None or isinstance(best, dict)):
        raise RunError(f"{path}: holds weights, but not the state of a run")
    return step, best


def weights_state(folder: RunFolder, which: str) -> dict[str, Any]:
    """The content of the checkpoint with the ``best`` or ``last`` weights of a run. Raises RunError."""
    if which == "best":
        best = checkpoint.load(folder.best)
        run = folder.record.get("id")
        if isinstance(run, str) and (text := binding.foreign(best.get(binding.KEY), run)):
            raise RunError(f"{folder.best}: {text}")
        return best
    state = folder.last_state()
    if state is None:
        only_best = folder.record.get("status") == "finished" and folder.best.is_file()
        reason = "kept its best weights alone (runner.keep_last)" if only_best else "has no checkpoint yet"
        raise RunError(f"{folder.shown}: {reason}")
    return state


def restore_weights(task: Task, state: dict[str, Any], which: str) -> None:
    """Load the weights of a checkpoint, ``best`` or ``last``, into the evaluated network."""
    if which == "best":
        task.task_method.eval_model(task).load_state_dict(state["model"])
        return
    task.model.load_state_dict(state["model"])
    task.task_method.load_state_dict(state["method"])
