"""BestTracker: the metric that decides which epoch is the best, and the best epoch so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from healsg.errors import ConfigError

Mode = Literal["auto", "max", "min"]

Directions = Mapping[str, bool | None]
"""For each metric, by name: whether a higher value is better; None if it does not declare it."""

PREFERRED = ("dice", "iou", "acc")
"""The metrics that ``auto`` prefers to the loss on val, in this order; a higher value is better."""


class BestTracker:
    """Finds the best epoch by one metric, the monitored one (``runner.monitor``).

    Args:
        name: its name in ``metrics.jsonl``; ``auto`` is ``val/dice``, ``val/iou`` or ``val/acc``, else ``val/loss``.
        mode: whether a higher (``max``) or lower (``min``) value is better; ``auto`` is what the metric declares.
    """

    def __init__(self, name: str, mode: Mode) -> None:
        self.name = name
        self.mode = mode
        self.best: dict[str, Any] | None = None

    def check(self, measured: Sequence[str] | None, directions: Directions) -> None:
        """Check that the epochs will measure the monitored metric and that it is known whether higher is better.

        Args:
            measured: the names that an epoch will measure; None if they are known only afterwards.
            directions: see ``Directions``.

        Raises:
            ConfigError: one of them is not the case.
        """
        always_allowed = self.name in ("auto", "lr") or self.name.startswith("train/")
        if measured is not None and not always_allowed and self.name.partition(".")[0] not in measured:
            raise ConfigError(f"runner.monitor: {self.name} is not measured; there is {', '.join(measured)}")
        likely = next((name for name in PREFERRED if name in directions), "loss")
        self._sign(f"val/{likely}" if self.name == "auto" else self.name, directions)

    def resolve(self, numbers: Mapping[str, Any], directions: Directions) -> tuple[str, int]:
        """The name of the monitored metric, and +1 if a higher value is better, -1 if a lower one is.

        Raises ConfigError if it was not measured, or if it is not known whether a higher value is better.
        """
        name = self.name
        if name == "auto":
            name = next((key for key in (*(f"val/{one}" for one in PREFERRED), "val/loss") if key in numbers), "")
        elif name not in numbers and any(key.startswith(name.split("/")[0] + "/") for key in numbers):
            measured = ", ".join(key for key in numbers if "/" in key)
            raise ConfigError(f"runner.monitor: {name} is not measured; there is {measured}")
        if isinstance(numbers.get(name), list):
            raise ConfigError(f"runner.monitor: {name} is a list of numbers; watch one that is a single number")
        return name, self._sign(name, directions) if name else 1

    def _sign(self, name: str, directions: Directions) -> int:
        if self.mode != "auto":
            return 1 if self.mode == "max" else -1
        metric = name.rpartition("/")[2]
        metric = metric if metric in directions else metric.partition(".")[0]  # one of several numbers of a metric
        higher_is_better = directions.get(metric)
        if metric not in directions and self.name == "auto":
            higher_is_better = metric in PREFERRED  # a number of the task's own; the docs define these names
        if higher_is_better is None:
            ways = "set runner.mode=max or runner.mode=min, or higher_is_better in the metric's class"
            raise ConfigError(f"runner.monitor: {name} does not say whether more of it is better; {ways}")
        return 1 if higher_is_better else -1

    def update(self, numbers: Mapping[str, Any], directions: Directions) -> bool:
        """Replace the best epoch so far if this one is better; returns whether it is.

        Ties are decided by the lower ``val/loss``. A value that is not finite is never the best.
        """
        name, sign = self.resolve(numbers, directions)
        value, loss = numbers.get(name), numbers.get("val/loss", 0.0)
        if value is None or not math.isfinite(value):
            return False
        if self.best is not None:
            before, loss_before = self.best["value"], self.best["metrics"].get("val/loss", 0.0)
            lower = loss < loss_before or (math.isnan(loss_before) and not math.isnan(loss))
            if sign * value < sign * before or (value == before and not lower):
                return False
        self.best = {"monitor": name, "value": value, "epoch": numbers["epoch"], "step": numbers["step"]}
        self.best |= {"metrics": {key: number for key, number in numbers.items() if "/" in key}}
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
