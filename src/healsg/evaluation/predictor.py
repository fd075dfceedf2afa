"""The network of a run, made of its configuration and its checkpoint alone; no data set is needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from healsg.build import build_task
from healsg.config.schema import Composed
from healsg.data.info import DataInfo, saved_info
from healsg.errors import RunError, one_line
from healsg.runs.checkpointer import weights_state
from healsg.runs.folder import RunFolder
from healsg.task import BasicTask


def network_of_run(composed: Composed, info: DataInfo, state: dict[str, Any]) -> tuple[BasicTask, nn.Module]:
    """The task of a run without its data, and the network that its best weights are of, with these weights.

    Args:
        composed: the run's configuration.
        info: of the data that the weights were trained on.
        state: what ``best.pt`` holds.

    Returns:
        The task, whose loaders are not made, and the network on the CPU, in evaluation mode, without gradients.

    Raises:
        RunError: the weights do not fit, as where a method of one's own changes the network and has no ``evaluated``.
        ConfigError: a part cannot be made.
    """
    task = build_task(composed, info)
    task.task_model = task.starting_model(fresh_weights=False)
    with torch.random.fork_rng(devices=[]):
        own = type(task).build_model is not BasicTask.build_model
        network = task.task_method.evaluated(task.build_model() if own else task.task_model.build(info))
    try:
        network.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = one_line(error)[:200]
        raise RunError(f"the weights do not fit the network of {type(task.task_method).__name__}: {reason}") from error
    return task, network.eval().requires_grad_(False)


def best_of(folder: RunFolder) -> tuple[DataInfo | None, dict[str, Any]]:
    """What the best weights of a run mean, and the checkpoint that holds them. Raises RunError."""
    state = weights_state(folder, "best")
    try:
        return saved_info(state), state
    except RunError as error:
        raise RunError(f"{folder.best}: {error}") from error
