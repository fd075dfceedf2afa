"""Monitor: which number decides what is best, and what the best was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from healsg.errors import ConfigError
from healsg.method import TaskMethod

if TYPE_CHECKING:
    from healsg.task import BasicTask

Mode = Literal["auto", "max", "min"]


class Monitor:
    """Watches one number of each epoch.

    Args:
        name: its name in ``metrics.jsonl``; ``auto`` is ``val/acc`` or ``val/dice``, else ``val/loss``.
        mode: whether more (``max``) or less (``min``) is better; ``auto`` goes by the name.
    """

    def __init__(self, name: str, mode: Mode) -> None:
        self.name, self.mode = name, mode
        self.best: dict[str, Any] | None = None

    def check(self, task: BasicTask) -> None:
        """Refuse a name that no epoch will measure, before data are read where that can be told. Raises ConfigError."""
        from healsg.task import BasicTask

        own = type(task).run_epoch is not BasicTask.run_epoch
        if own or type(task.task_method).evaluate is not TaskMethod.evaluate or self.name in ("auto", "lr"):
            return
        if not task.loaders and task.info is None:
            return  # known only once the task has made its loaders
        metrics = ("loss", *task.task_model.metrics(task.info)) if "val" in (task.loaders or ["val"]) else ()
        measured = ["train/loss", *(f"val/{metric}" for metric in metrics)]
        if self.name not in measured and not self.name.startswith("train/"):
            raise ConfigError(f"runner.monitor: {self.name} is not measured; there is {', '.join(measured)}")

    def resolve(self, numbers: dict[str, Any]) -> tuple[str, int]:
        """The watched name, and +1 where more is better, -1 where less is. Raises ConfigError for a wrong name."""
        name = self.name
        if name == "auto":
            name = next((key for key in ("val/acc", "val/dice", "val/loss") if key in numbers), "")
        elif name not in numbers and any(key.startswith(name.split("/")[0] + "/") for key in numbers):
            measured = ", ".join(key for key in numbers if "/" in key)
            raise ConfigError(f"runner.monitor: {name} is not measured; there is {measured}")
        less = name.endswith(("loss", "mae", "rmse", "ece")) if self.mode == "auto" else self.mode == "min"
        return name, -1 if less else 1

    def better(self, numbers: dict[str, Any]) -> bool:
        """Take in an epoch's numbers; whether they are the best so far. Between equals the lower ``val/loss`` is."""
        name, sign = self.resolve(numbers)
        value = numbers.get(name)
        if value is None or value != value:
            return False
        if self.best is not None:
            before = self.best["value"], self.best["metrics"].get("val/loss", 0.0)
            if (sign * value, -numbers.get("val/loss", 0.0)) <= (sign * before[0], -before[1]):
                return False
        self.best = {"monitor": name, "value": value, "epoch": numbers["epoch"], "step": numbers["step"]}
        self.best |= {"metrics": {key: number for key, number in numbers.items() if "/" in key}}
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
