"""HEALSg: a training framework for deep learning that is driven by configuration.

The names below are imported when they are first used, so that ``import healsg`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from healsg.callbacks import Callback as Callback
    from healsg.config.schema import TaskConfig as TaskConfig
    from healsg.data.base import DataInfo as DataInfo
    from healsg.data.base import Needs as Needs
    from healsg.data.base import TaskData as TaskData
    from healsg.data.source import DatasetSource as DatasetSource
    from healsg.data.source import TensorSource as TensorSource
    from healsg.method import TaskMethod as TaskMethod
    from healsg.metric import Metric as Metric
    from healsg.model import Network as Network
    from healsg.model import TaskModel as TaskModel
    from healsg.runner import TaskRunner as TaskRunner
    from healsg.runs.logger import Logger as Logger
    from healsg.task import BasicTask as BasicTask
    from healsg.trainer import TaskTrainer as TaskTrainer

_HOMES = {
    "BasicTask": "task",
    "Callback": "callbacks",
    "DataInfo": "data",
    "DatasetSource": "data.source",
    "Metric": "metric",
    "Logger": "runs.logger",
    "Needs": "data",
    "Network": "model",
    "TaskConfig": "config.schema",
    "TaskData": "data",
    "TaskMethod": "method",
    "TaskModel": "model",
    "TaskRunner": "runner",
    "TaskTrainer": "trainer",
    "TensorSource": "data.source",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'healsg' has no attribute {name!r}")
    return getattr(import_module(f"healsg.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
