"""Monitor: which number decides what is best, and what the best was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from healsg.errors import ConfigError
from healsg.method import TaskMethod

if TYPE_CHECKING:
    from healsg.task import BasicTask

Mode = Literal["auto", "max", "min"]

Directions = Mapping[str, bool | None]
"""By name of a metric whether more of it is better; None where it does not say."""

PREFERRED = ("acc", "dice", "iou")
"""What ``auto`` looks for on val, before the loss: the name and, of these, that more is better."""


def directions(task: BasicTask) -> dict[str, bool | None]:
    """What the loss, the metrics of a task and the numbers of its method's own evaluation say of themselves."""
    metrics = task.task_model.metrics(task.info)
    declared = {name: getattr(metric, "higher_is_better", None) for name, metric in metrics.items()}
    return {"loss": False, **declared, **task.task_method.higher_is_better}


class Monitor:
    """Watches one number of each epoch.

    Args:
        name: its name in ``metrics.jsonl``; ``auto`` is ``val/acc``, ``val/dice`` or ``val/iou``, else ``val/loss``.
        mode: whether more (``max``) or less (``min``) is better; ``auto`` is what the metric says of itself.
    """

    def __init__(self, name: str, mode: Mode) -> None:
        self.name, self.mode = name, mode
        self.best: dict[str, Any] | None = None

    def check(self, task: BasicTask) -> None:
        """Refuse a name that no epoch will measure, before data are read where that can be told, and one of which it
        is not known whether more is better. Raises ConfigError."""
        from healsg.task import BasicTask

        own = type(task).run_epoch is not BasicTask.run_epoch
        replaced = own or type(task.task_method).evaluate is not TaskMethod.evaluate
        later = not task.loaders and task.info is None  # known only once the task has made its loaders
        if not (replaced or later or self.name in ("auto", "lr")):
            metrics = ("loss", *task.task_model.metrics(task.info)) if "val" in (task.loaders or ["val"]) else ()
            measured = ["train/loss", *(f"val/{metric}" for metric in metrics)]
            if self.name.partition(".")[0] not in measured and not self.name.startswith("train/"):
                raise ConfigError(f"runner.monitor: {self.name} is not measured; there is {', '.join(measured)}")
        known = directions(task)
        likely = next((name for name in PREFERRED if name in known), "loss")
        self._sign(f"val/{likely}" if self.name == "auto" else self.name, known)

    def resolve(self, numbers: Mapping[str, Any], known: Directions) -> tuple[str, int]:
        """The watched name, and +1 where more is better, -1 where less is.

        Raises ConfigError for a wrong name, and where it is not known what is better.
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
        """Take in an epoch's numbers; whether they are the best so far. Between equals the lower ``val/loss`` is.

        A number that is not finite is never the best.
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
