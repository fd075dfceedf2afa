"""Callbacks watch: they see each epoch's numbers and may ask a run to stop. They change nothing."""

from __future__ import annotations

import math
from typing import Any

from healsg.types import Count, NonNegative


class Callback:
    """Sees the numbers of every epoch."""

    def on_epoch_end(self, numbers: dict[str, Any], monitor: str, sign: int) -> str | None:
        """``numbers`` as in ``metrics.jsonl``; ``monitor`` names the watched one, ``sign`` is +1 where more is better.

        Returns the reason to stop after this epoch, or None.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class EarlyStopping(Callback):
    """Stop when the monitored number has not got better for a while.

    Args:
        patience: evaluations without improvement after which the run stops.
        min_delta: by how much a number must improve to count.
    """

    def __init__(self, patience: Count = 10, min_delta: NonNegative = 0.0) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best, self.waited = -math.inf, 0

    def on_epoch_end(self, numbers: dict[str, Any], monitor: str, sign: int) -> str | None:
        if monitor not in numbers:
            return None
        value = sign * numbers[monitor]
        if value > self.best + self.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited < self.patience:
            return None
        return f"{monitor} has not got better for {self.waited} evaluations"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
