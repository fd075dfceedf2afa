"""BestTracker: which number decides which epoch is the best, and the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from healsg.errors import ConfigError

Mode = Literal["auto", "max", "min"]

Directions = Mapping[str, bool | None]
"""By name of a metric whether more of it is better; None where it does not say."""

PREFERRED = ("dice", "iou", "acc")
"""What ``auto`` looks for on val, before the loss: the name and, of these, that more is better."""


class BestTracker:
    """Finds the best epoch by one number, the monitored one (``runner.monitor``).

    Args:
        name: of that number in ``metrics.jsonl``; ``auto`` is ``val/dice``, ``val/iou`` or ``val/acc``, else
            ``val/loss``.
        mode: whether more (``max``) or less (``min``) is better; ``auto`` is what the metric says of itself.
    """

    def __init__(self, name: str, mode: Mode) -> None:
        self.name = name
        self.mode = mode
        self.best: dict[str, Any] | None = None

    def check(self, measured: Sequence[str] | None, known: Directions) -> None:
        """Refuse a name that no epoch will measure, and one of which it is not known whether more is better.

        Args:
            measured: the names that an epoch will measure; None where that is known only afterwards.
            known: see ``Directions``.

        Raises:
            ConfigError: the name is refused.
        """
        free = self.name in ("auto", "lr") or self.name.startswith("train/")
        if measured is not None and not free and self.name.partition(".")[0] not in measured:
            raise ConfigError(f"runner.monitor: {self.name} is not measured; there is {', '.join(measured)}")
        likely = next((name for name in PREFERRED if name in known), "loss")
        self._sign(f"val/{likely}" if self.name == "auto" else self.name, known)

    def resolve(self, numbers: Mapping[str, Any], known: Directions) -> tuple[str, int]:
        """The name of the monitored number, and +1 where more of it is better, -1 where less is.

        Raises ConfigError where it was not measured, and where it is not known whether more is better.
        """
        name = self.name
        if name == "auto":
            name = next((key for key in (*(f"val/{one}" for one in PREFERRED), "val/loss") if key in numbers), "")
        elif name not in numbers and any(key.startswith(name.split("/")[0] + "/") for key in numbers):
            measured = ", ".join(key for key in numbers if "/" in key)
            raise ConfigError(f"runner.monitor: {name} is not measured; there is {measured}")
        if isinstance(numbers.get(name), list):
            raise ConfigError(f"runner.monitor: {name} is a list of numbers; watch one that is a single number")
        return name, self._sign(name, known) if name else 1

    def _sign(self, name: str, known: Directions) -> int:
        if self.mode != "auto":
            return 1 if self.mode == "max" else -1
        metric = name.rpartition("/")[2]
        metric = metric if metric in known else metric.partition(".")[0]  # one of several numbers of a metric
        more = known.get(metric)
        if metric not in known and self.name == "auto":
            more = metric in PREFERRED  # a number of the task's own; this meaning of the name is documented
        if more is None:
            ways = "set runner.mode=max or runner.mode=min, or higher_is_better in the metric's class"
            raise ConfigError(f"runner.monitor: {name} does not say whether more of it is better; {ways}")
        return 1 if more else -1

    def better(self, numbers: Mapping[str, Any], known: Directions) -> bool:
        """Compare an epoch's numbers with the best so far, and keep them where they are better.

        Of equal ones the lower ``val/loss`` is better. A number that is not finite is never the best.
        """
        name, sign = self.resolve(numbers, known)
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
