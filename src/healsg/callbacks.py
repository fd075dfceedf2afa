"""Callbacks observe a run: they receive each epoch's metrics and may ask it to stop. They change nothing else."""

from __future__ import annotations

import math
from typing import Any

from healsg.types import Count, NonNegative


class Callback:
    """Receives the metrics of every epoch."""

    def on_epoch_end(self, numbers: dict[str, Any], monitor: str, sign: int) -> str | None:
        """Called at the end of every epoch; returns the reason to stop after it, or None.

        Args:
            numbers: the epoch's line in ``metrics.jsonl``.
            monitor: the name of the monitored metric.
            sign: +1 if a higher value of it is better, -1 if a lower one is.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class EarlyStopping(Callback):
    """Stop when the monitored metric has not improved for ``patience`` evaluations.

    Args:
        patience: evaluations without improvement after which the run stops.
        min_delta: the smallest change that counts as an improvement.
    """

    def __init__(self, patience: Count = 10, min_delta: NonNegative = 0.0) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best = -math.inf
        self.waited = 0

    def on_epoch_end(self, numbers: dict[str, Any], monitor: str, sign: int) -> str | None:
        if monitor not in numbers:
            return None
        value = sign * numbers[monitor]
        if value > self.best + self.min_delta:
            self.best = value
            self.waited = 0
        else:
            self.waited += 1
        if self.waited < self.patience:
            return None
        return f"{monitor} has not got better for {self.waited} evaluations"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        self.waited = state["waited"]
