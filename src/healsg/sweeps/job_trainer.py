"""The trainer of one job of several, whose data may have been read by the job before."""

from __future__ import annotations

from healsg.build import build_task
from healsg.config.schema import Composed
from healsg.runs.folder import RunFolder
from healsg.sweeps.sharing import SharedData
from healsg.task import BasicTask
from healsg.trainer import TaskTrainer


class JobTrainer(TaskTrainer):
    """``TaskTrainer`` of a job that takes its data set from those of a sweep.

    Args:
        composed: the checked configuration.
        folder: of the job.
        shared: the cached data of earlier jobs; None without sharing.
    """

    def __init__(self, composed: Composed, folder: RunFolder, shared: SharedData | None = None) -> None:
        super().__init__(composed, folder=folder)
        self.shared = shared

    def make_task(self) -> BasicTask:
        return build_task(self.composed, data=None if self.shared is None else self.shared.of(self.composed))
