"""A trainer of one job of several: data that the job before it has read, by the same settings, are not read again."""

from __future__ import annotations

from typing import Any

from healsg.config.schema import Composed
from healsg.data.source import Source, TensorSource
from healsg.parts import declares
from healsg.runs.folder import RunFolder
from healsg.task import BasicTask
from healsg.trainer import TaskTrainer

LARGEST = 1 << 30
"""Bytes of samples that are kept in memory from one job to the next."""


def lend(kept: dict[str, Any], task: BasicTask, node: Any) -> None:
    """Let a task have the data set of the one before it, where the settings are the same and the set is repeatable.

    Another one may draw from the global generators as it reads, and these are each job's own.

    Args:
        kept: ``node`` and ``data`` of the task before it, if there was one; and then of this one.
        task: just made.
        node: its settings of ``data``.
    """
    own = task.task_data
    if not declares(own, "repeatable"):
        return
    if kept.get("node") == node and type(kept["data"]) is type(own):
        kept["data"].reading = own.reading
        task.task_data = kept["data"]
        return
    kept |= {"node": node, "data": own}
    _remember(own)


def _remember(data: Any) -> None:
    """Let a data set read each part once."""
    read, parts = data.stored, dict[str, Source | None]()

    def stored(part: str) -> Source | None:
        if part in parts:
            return parts[part]
        source: Source | None = read(part)
        if _size([*parts.values(), source]) <= LARGEST:
            parts[part] = source
        return source

    data.stored = stored


def _size(sources: list[Source | None]) -> int:
    """Bytes in memory; what is read sample by sample holds none."""
    return sum(source.input.nbytes + source.target.nbytes for source in sources if isinstance(source, TensorSource))


class JobTrainer(TaskTrainer):
    """``TaskTrainer`` of a job that may take over the data of the one before it.

    Args:
        composed: the checked configuration.
        folder: of the job.
        kept: see ``lend``; None where jobs share nothing.
    """

    def __init__(self, composed: Composed, folder: RunFolder, kept: dict[str, Any] | None = None) -> None:
        super().__init__(composed, folder=folder)
        self.kept = kept

    def make_task(self) -> BasicTask:
        task = super().make_task()
        if self.kept is not None:
            lend(self.kept, task, self.composed.values["data"])
        return task
