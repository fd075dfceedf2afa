"""Reduce the learning rate when the monitored metric no longer improves."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from healsg.types import Natural, NonNegative, Share


class PlateauSchedule(ReduceLROnPlateau):
    """torch's ``ReduceLROnPlateau`` with the loop's interface of a schedule: ``step(value)`` after each epoch.

    Its state holds plain values, and loading it sets the learning rates it had reached.

    Args:
        optimizer: whose learning rates are reduced.
        follow: whether the monitor decides, at the first step, if the number should rise or fall.
        settings: those of ``ReduceLROnPlateau``.
    """

    interval = "epoch"
    needs_metric = True

    def __init__(self, optimizer: Optimizer, follow: bool = False, **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self.follow = follow

    def step(self, metrics: Any, sign: int = 0) -> None:  # type: ignore[override]
        """Process an epoch's value; ``sign`` is the monitor's, +1 where more is better, for ``mode: auto``."""
        if self.follow and sign and self.last_epoch == 0:
            self.mode = "max" if sign > 0 else "min"
            self.mode_worse = -math.inf * sign  # torch derives it from the mode, also when a state is loaded
            self.best = self.mode_worse
        super().step(metrics)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state."""
        super().load_state_dict(state_dict)
        for group, reached in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = float(reached)


class Plateau:
    """Multiply the learning rate by ``factor`` once the monitored number has not improved for ``patience`` epochs.

    Args:
        factor: multiplier of the learning rate.
        patience: epochs without improvement that are tolerated before a reduction.
        mode: whether the monitored number should rise (``max``) or fall (``min``); ``auto`` goes with the monitor.
        threshold: the least relative change that counts as an improvement.
        cooldown: epochs after a reduction before counting resumes.
        min_lr: the smallest learning rate.
    """

    def __init__(
        self,
        factor: Share = 0.1,
        patience: Natural = 5,
        mode: Literal["auto", "min", "max"] = "auto",
        threshold: NonNegative = 1e-4,
        cooldown: Natural = 0,
        min_lr: NonNegative = 0.0,
    ) -> None:
        self.follow = mode == "auto"
        self.settings: dict[str, Any] = {
            "factor": factor,
            "patience": patience,
            "mode": "min" if mode == "auto" else mode,
            "threshold": threshold,
            "cooldown": cooldown,
            "min_lr": min_lr,
        }

    def build(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> PlateauSchedule:
        """Apply it to ``optimizer``; the length of the run does not matter."""
        return PlateauSchedule(optimizer, self.follow, **self.settings)
