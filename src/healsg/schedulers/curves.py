"""Learning-rate curves: a factor of the optimizer's learning rate as a pure function of the progress of the run."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Annotated, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from healsg.errors import ConfigError
from healsg.types import Fraction, NonNegative, Positive, Range, Share

WARMUP_FROM = 0.01
"""The factor at which a warm-up begins."""

TOLERANCE = 1e-9
"""What a milestone may lie above the progress and still count as passed: fractions are not exact."""


def linear(start: float, end: float, share: float) -> float:
    """Linear interpolation from ``start`` to ``end``; ``share`` in 0..1."""
    return start + (end - start) * share


def half_cosine(start: float, end: float, share: float) -> float:
    """Cosine interpolation from ``start`` to ``end``; ``share`` in 0..1."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class Schedule:
    """A curve applied to an optimizer: each group's ``lr`` is its ``initial_lr`` times the curve's factor.

    The factor at progress 0 applies at once; ``step`` is called after each update, or after each epoch where
    ``interval`` is ``epoch``. Update ``k``, counted from 0, runs at progress ``k / total_steps``.

    Args:
        curve: gives the factor.
        optimizer: whose groups are set.
        total_steps: updates of the whole run.
        steps_per_epoch: updates of an epoch.
    """

    draws_only_from_torch = True
    needs_metric = False

    def __init__(self, curve: Curve, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> None:
        self.curve = curve
        self.optimizer = optimizer
        self.interval = curve.interval
        self.stride = (steps_per_epoch if self.interval == "epoch" else 1, max(1, total_steps))
        self.count = 0
        self._apply()

    def step(self) -> None:
        """Advance by one update, or by one epoch."""
        self.count += 1
        self._apply()

    def _apply(self) -> None:
        updates, total = self.stride
        factor = self.curve.factor(min(1.0, self.count * updates / total))
        for group in self.optimizer.param_groups:
            if "initial_lr" not in group:
                group["initial_lr"] = float(group["lr"])
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["initial_lr"] * factor)
            else:
                group["lr"] = group["initial_lr"] * factor

    def state_dict(self) -> dict[str, int]:
        """How many updates, or epochs, have been counted."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Load a saved count; the length of the run stays that of this run."""
        self.count = state["count"]
        self._apply()


class Curve:
    """A curve over the run, after an optional warm-up. A subclass gives ``shape``.

    Args:
        warmup: the share of the run over which the factor rises linearly from 0.01 to 1.
        interval: whether the factor moves with each update, or is held for an epoch.
    """

    def __init__(self, warmup: Share = 0.0, interval: Literal["update", "epoch"] = "update") -> None:
        self.warmup, self.interval = warmup, interval

    def shape(self, progress: float) -> float:
        """The factor after the warm-up, a function of ``progress``, the share of the whole run, which draws nothing."""
        raise NotImplementedError

    def rest(self, progress: float) -> float:
        """The progress through what follows the warm-up, in 0..1."""
        return (progress - self.warmup) / (1 - self.warmup)

    def factor(self, progress: float) -> float:
        """The factor of the learning rate at ``progress`` of the run, in 0..1."""
        if progress < self.warmup:
            return linear(WARMUP_FROM, 1.0, progress / self.warmup)
        return self.shape(progress)

    def build(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> Schedule:
        """Apply the curve to ``optimizer`` for a run of ``total_steps`` updates."""
        return Schedule(self, optimizer, total_steps, steps_per_epoch)


class Constant(Curve):
    """A constant learning rate."""

    def shape(self, progress: float) -> float:
        return 1.0


class Step(Curve):
    """The factor is multiplied by ``gamma`` each time another share of the run has passed.

    Args:
        every: that share of the run.
        gamma: multiplier of the factor.
        common: see ``Curve``.
    """

    def __init__(self, every: Positive = 0.3, gamma: NonNegative = 0.1, **common: Any) -> None:
        super().__init__(**common)
        self.every, self.gamma = every, gamma

    def shape(self, progress: float) -> float:
        return float(self.gamma ** math.floor(progress / self.every + TOLERANCE))


class MultiStep(Curve):
    """The factor is multiplied by ``gamma`` at each milestone.

    Args:
        milestones: shares of the run, each in 0..1; a half and three quarters where it is None.
        gamma: multiplier of the factor.
        common: see ``Curve``.

    Raises:
        ConfigError: a milestone does not lie in 0..1.
    """

    def __init__(self, milestones: list[Fraction] | None = None, gamma: NonNegative = 0.1, **common: Any) -> None:
        super().__init__(**common)
        self.milestones = sorted((0.5, 0.75) if milestones is None else milestones)
        self.gamma = gamma
        if wrong := [milestone for milestone in self.milestones if not 0 <= milestone <= 1]:
            raise ConfigError(
                f"method.scheduler.milestones: {wrong[0]:g} does not lie in 0..1; milestones are shares of the run"
            )

    def shape(self, progress: float) -> float:
        return float(self.gamma ** bisect_right(self.milestones, progress + TOLERANCE))


class Cosine(Curve):
    """Cosine annealing from 1 to ``final`` (Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts).

    Args:
        final: the factor at the end of the run.
        common: see ``Curve``.
    """

    def __init__(self, final: Fraction = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.final = final

    def shape(self, progress: float) -> float:
        return half_cosine(1.0, self.final, self.rest(progress))


class CosineArc(Curve):
    """The first part of half a cosine, ``cos(pi * arc * progress)``, which ends above zero (Sohn et al. 2020, arXiv
    2001.07685, section 2.3, with 7/16 of it).

    Args:
        arc: the arc of the cosine, as a multiple of pi, up to 0.5, where the factor reaches zero.
        common: see ``Curve``.

    Raises:
        ConfigError: ``arc`` is above 0.5, so that the learning rate would become negative.
    """

    def __init__(self, arc: Annotated[float, Range(low=0, high=0.5)] = 0.4375, **common: Any) -> None:
        super().__init__(**common)
        self.arc = arc
        if arc > 0.5:
            raise ConfigError(f"method.scheduler.arc: {arc:g}, but beyond 0.5 the learning rate is negative")

    def shape(self, progress: float) -> float:
        return math.cos(math.pi * self.arc * self.rest(progress))


class OneCycle(Curve):
    """One cycle: up to the optimizer's learning rate and down to almost zero (Smith and Topin 2017, arXiv 1708.07120).

    Args:
        rise: the share of the run in which the factor rises to 1.
        start_factor: the factor at the beginning.
        final: the factor at the end of the run; by default that of torch's OneCycleLR, 1 / (25 * 10,000).
        anneal: cosine or linear interpolation.
        common: see ``Curve``.
    """

    def __init__(
        self,
        rise: Share = 0.3,
        start_factor: Fraction = 0.04,
        final: Fraction = 4e-6,
        anneal: Literal["cosine", "linear"] = "cosine",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.rise = rise
        self.start_factor = start_factor
        self.final = final
        self.anneal = anneal

    def shape(self, progress: float) -> float:
        between = half_cosine if self.anneal == "cosine" else linear
        share = self.rest(progress)
        if share < self.rise:
            return between(self.start_factor, 1.0, share / self.rise)
        return between(1.0, self.final, (share - self.rise) / (1 - self.rise))


class Poly(Curve):
    """``(1 - progress) ** power``, common in segmentation (Chen et al. 2016, arXiv 1606.00915, section 4.1.2).

    Args:
        power: the exponent; 1 is linear decay to zero.
        common: see ``Curve``.
    """

    def __init__(self, power: Positive = 0.9, **common: Any) -> None:
        super().__init__(**common)
        self.power = power

    def shape(self, progress: float) -> float:
        return float(max(0.0, 1 - self.rest(progress)) ** self.power)
