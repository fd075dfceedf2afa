"""The planned length of a run, and its position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """The length of a run; computed once, from the train loader and the runner's settings.

    Args:
        length: micro-batches per epoch.
        accumulate: micro-batches per update.
        total_steps: updates of the run.
        batch_size: samples of a full micro-batch over all processes; 1 if the loader does not define it.
        min_rows: the fewest samples per batch that the network can be trained with; BatchNorm needs two.
        seed, shared_seed: seeds of the random numbers in a training step: of this process, and shared by all processes.
    """

    length: int = 0
    accumulate: int = 1
    total_steps: int = 0
    batch_size: float = 1.0
    min_rows: int = 1
    seed: int = 0
    shared_seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch; the last one may have fewer micro-batches."""
        return -(-self.length // self.accumulate)

    def closes(self, batch: int) -> bool:
        """Whether micro-batch number ``batch`` of an epoch, from 1, is the last one of its update."""
        return batch % self.accumulate == 0 or batch == self.length

    def last_batch(self, position: Position) -> int:
        """The last micro-batch of the current epoch; the run may end before the epoch does."""
        return min(self.length, position.batch + (self.total_steps - position.step) * self.accumulate)

    def max_epoch(self, position: Position) -> int:
        """Epochs of the run. If a finished run that ended within an epoch is extended, there is one more."""
        if not self.length:
            return position.epoch
        return position.epoch - (position.epoch_start - self.total_steps) // self.steps_per_epoch


@dataclass
class Position:
    """The position of a run; there are no other counters.

    Args:
        epoch: completed epochs.
        step: updates made.
        batch: micro-batches of the current epoch that have been used, with the one that a step is working on.
        epoch_start: updates made before the current epoch. It is not saved, since it follows from the others wherever
            a run is saved, which is between two updates.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    epoch_start: int = 0

    def take_batch(self) -> None:
        self.batch += 1

    def count_update(self) -> None:
        self.step += 1

    def end_epoch(self) -> None:
        self.epoch += 1
        self.batch = 0
        self.epoch_start = self.step

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, "position": self.batch}

    def load_state_dict(self, state: dict[str, Any], accumulate: int) -> None:
        """Load a saved position; ``accumulate`` is the number of micro-batches per update."""
        self.epoch = state["epoch"]
        self.step = state["step"]
        self.batch = state["position"]
        self.epoch_start = self.step - -(-self.batch // accumulate)
