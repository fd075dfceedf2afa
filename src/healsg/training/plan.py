"""The length of a run as it was planned, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """Made once, from the train loader and the runner's settings.

    Args:
        length: micro-batches an epoch.
        accumulate: micro-batches an update.
        total_steps: updates of the run.
        batch_size: samples of a full micro-batch over all processes; 1 where the loader does not say.
        least: rows with which the network can be trained; BatchNorm needs two.
        seed, shared_seed: of what a training step draws, of this process by itself and of all alike.
    """

    length: int = 0
    accumulate: int = 1
    total_steps: int = 0
    batch_size: float = 1.0
    least: int = 1
    seed: int = 0
    shared_seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch; the last one may have fewer micro-batches."""
        return -(-self.length // self.accumulate)

    def closes(self, batch: int) -> bool:
        """Whether micro-batch number ``batch`` of an epoch, from 1, is the last one of its update."""
        return batch % self.accumulate == 0 or batch == self.length

    def last_batch(self, position: Position) -> int:
        """The micro-batch with which the current epoch ends: the run may end within it."""
        return min(self.length, position.batch + (self.total_steps - position.step) * self.accumulate)

    def max_epoch(self, position: Position) -> int:
        """Epochs of the run. An epoch that ended early, with a run that goes on longer now, adds one."""
        if not self.length:
            return position.epoch
        begun = position.step - -(-position.batch // self.accumulate)  # updates before the current epoch
        return position.epoch - (begun - self.total_steps) // self.steps_per_epoch


@dataclass
class Position:
    """How far a run is: the only counters there are.

    Args:
        epoch: epochs that are complete.
        step: updates that were made.
        batch: micro-batches of the current epoch that were taken.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0

    def take_batch(self) -> None:
        self.batch += 1

    def count_update(self) -> None:
        self.step += 1

    def end_epoch(self) -> None:
        self.epoch += 1
        self.batch = 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, "position": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.step = state["step"]
        self.batch = state["position"]
