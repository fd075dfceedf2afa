"""Instantiates the parts of a task from a checked configuration; only this module imports and calls targets."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from healsg.config import targets
from healsg.config.schema import Composed
from healsg.errors import ConfigError, one_line
from healsg.parts import require_constructed

if TYPE_CHECKING:
    from healsg.data.base import TaskData
    from healsg.data.info import DataInfo
    from healsg.runs.logger import Logger
    from healsg.task import BasicTask


def build_task(
    composed: Composed, data_info: DataInfo | None = None, samples: bool = True, data: TaskData | None = None
) -> BasicTask:
    """Instantiate the parts of a task, and the task itself.

    Args:
        composed: the checked configuration.
        data_info: the ``DataInfo`` of a checkpoint whose network is to be evaluated. The data set then takes classes
            and preprocessing from it, the training data may be missing, and the checks for training are skipped.
        samples: whether the task needs samples. If not, and ``data_info`` is given, the data set is not created.
        data: the data set, if it has been created already (``make_data``).

    Raises:
        ConfigError: a part cannot be made, or the parts do not fit each other.
        DataError: the data do not fit ``data_info``.
    """
    from omegaconf import OmegaConf

    from healsg.callbacks import Callback
    from healsg.data.base import KnownData, TaskData
    from healsg.method import TaskMethod
    from healsg.model import TaskModel
    from healsg.runner import TaskRunner
    from healsg.task import BasicTask

    values = composed.values
    _add_project_to_path(composed)
    kinds = {"data": TaskData, "model": TaskModel, "method": TaskMethod, "runner": TaskRunner}
    parts: dict[str, Any] = {} if data is None else {"data": data}
    if data_info is not None and not samples:
        parts["data"] = KnownData(data_info)
    parts |= {key: make(values[key], key, composed, kind) for key, kind in kinds.items() if key not in parts}
    if data_info is not None and samples:
        parts["data"] = parts["data"].restored(data_info)
    runner = parts.pop("runner")
    for name, callback in runner.callbacks.items():
        if not isinstance(callback, Callback):
            raise ConfigError(f"runner.callbacks.{name}._target_: {type(callback).__name__} is no Callback")
    config = OmegaConf.create(values)
    OmegaConf.set_readonly(config, True)
    factory = make(values["task"], "task", composed, BasicTask, partial=True)
    given = {"config": config, "runner": runner, **{f"task_{key}": part for key, part in parts.items()}}
    task = _make_task(factory, values["task"]["_target_"], given)
    assert isinstance(task, BasicTask)
    require_constructed(task, BasicTask)
    task.require_defined()
    if data_info is None:
        task.check()
    return task


def _make_task(factory: Callable[..., Any], target: str, given: dict[str, Any]) -> Any:
    """The task of its parts. Raises ConfigError if its class has a constructor that does not take them."""
    from hydra.utils import get_object

    try:
        inspect.signature(get_object(target)).bind(**given)
    except TypeError as error:
        way = "let it take *parts and **named and call super().__init__(*parts, **named)"
        raise ConfigError(f"task: {target}.__init__ cannot take the parts of a task ({error}); {way}") from error
    return factory(**given)


def make_data(composed: Composed) -> TaskData:
    """Instantiate only the data set of a checked configuration. Raises ConfigError."""
    from healsg.data.base import TaskData

    _add_project_to_path(composed)
    data = make(composed.values["data"], "data", composed, TaskData)
    assert isinstance(data, TaskData)
    return data


def _add_project_to_path(composed: Composed) -> None:
    """Append the user's project folders to ``sys.path`` if a target lies in one of their modules."""
    tops = {target.split(".")[0] for target in targets.targets_in(composed.values)}
    if any(module and module.file for module in (targets.find_module(top, composed.project) for top in tops)):
        sys.path += [str(folder) for folder in composed.project if str(folder) not in sys.path]


def make(node: dict[str, Any], key: str, composed: Composed, kind: type, partial: bool = False) -> Any:
    """Call the constructor that a checked node names.

    Args:
        node: a mapping with a ``_target_``.
        key: the node's key, for messages.
        composed: the configuration, for ``trusted`` and the project's folders.
        kind: the class that the result must be an instance of.
        partial: return a ``functools.partial`` of the constructor instead of calling it.

    Raises:
        ConfigError: the target is not a ``kind``, or rejects its arguments.
    """
    from hydra.errors import HydraException
    from hydra.utils import get_object, instantiate

    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{key}: names no part; give it a _target_")
    trusted = composed.values.get("trusted") or []
    try:
        for target in targets.targets_in(node):
            targets.verify_origin(get_object(target), target, trusted, composed.project)
        part = get_object(node["_target_"])
        if issubclass(part, kind) if inspect.isclass(part) else not partial:
            torchvision = any(str(target).startswith("torchvision.models.") for target in targets.targets_in(node))
            with weights_only() if torchvision else contextlib.nullcontext():
                instance = instantiate(node, _convert_="all", _partial_=partial, **_allow_list(node, instantiate))
            if partial:
                return instance
            if isinstance(instance, kind):
                require_constructed(instance, kind)
                return instance
        raise ConfigError(f"{key}._target_: {node['_target_']} is no {kind.__name__}")
    except ConfigError as error:
        raise ConfigError(str(error) if "." in str(error).split(":")[0] else f"{key}: {error}") from error
    except (HydraException, ImportError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or composed.values.get("debug"):
            raise
        cause = error.__cause__ or error
        if isinstance(cause, ConfigError):
            raise ConfigError(str(cause)) from error  # a new error, since the old one would become its own cause
        raise ConfigError(f"{key}: {node['_target_']} cannot be made: {one_line(cause)}") from error


def _allow_list(node: dict[str, Any], instantiate: Callable[..., Any]) -> dict[str, Any]:
    """The keyword argument by which Hydra 1.4 allows the targets of a checked node; empty for earlier versions."""
    if "_execution_whitelist_" not in inspect.signature(instantiate).parameters:
        return {}
    return {"_execution_whitelist_": list(targets.targets_in(node))}


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Force ``weights_only=True`` in every torch.load, even in libraries that pass False, as torchvision does."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def build_loggers(composed: Composed) -> dict[str, Logger]:
    """The loggers of a run by name: the configured ones, Weights & Biases, the report. Raises ConfigError."""
    values = composed.values
    nodes = {name: node for name, node in (values["logger"] or {}).items() if node is not None}
    from healsg.runs.logger import Logger

    loggers: dict[str, Logger] = {name: make(node, f"logger.{name}", composed, Logger) for name, node in nodes.items()}
    if values["use_wandb"]:
        loggers["wandb"] = leaf("wandb.Wandb")(**values["wandb"])
    return loggers | {"report": leaf("report.Report")()}


def leaf(path: str) -> Any:
    """Import a class of ``healsg.loggers`` by its path, such as ``wandb.Wandb``."""
    module, _, name = path.partition(".")
    return getattr(import_module(f"healsg.loggers.{module}"), name)
