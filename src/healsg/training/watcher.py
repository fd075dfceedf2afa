"""What the training loop tells whoever keeps a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from healsg.task import BasicTask


class Watcher:
    """What the loop tells whoever keeps a run. This one does nothing; a run's ``Checkpointer`` saves, logs, stops."""

    def snapshot_done(self) -> None:
        """Weights and memory are about to change: wait for what still copies them."""

    def updated(self, task: BasicTask) -> None:
        """An update was made."""

    def evaluating(self, task: BasicTask) -> None:
        """A batch of an evaluation is done."""

    def end_epoch(self, task: BasicTask, numbers: dict[str, Any], best: bool) -> None:
        """An epoch is complete; ``numbers`` are its line."""
