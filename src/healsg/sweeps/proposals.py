"""Search: what proposes the trials of a search, as a pure function of the space and of the rounds before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from healsg.sweeps.space import Space, Value

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Args:
        number: from 0 on; also the name of its folder.
        parameters: its values by key.
        status: ``finished``, ``failed``, or ``open`` where its run has yet to end.
        value: of the objective, where it is finished.
    """

    number: int
    parameters: Mapping[str, Value]
    status: Literal["finished", "failed", "open"] = "open"
    value: float | None = None


class Search(ABC):
    """Proposes trials in rounds.

    Args:
        trials: runs in all; None for as many as there are.
        rungs, factor: of synchronous successive halving (Jamieson and Talwalkar 2016). All trials are trained to the
            first rung; of ``factor`` trials at a rung one goes on, to ``factor`` times the epochs. At the last rung a
            run is at its end. With one rung all are trained to it.
        batch: trials of a round. They are proposed from what the rounds before it have found, and from nothing else, so
            that neither the number of workers nor the order in which they end changes a trial.
    """

    def __init__(self, trials: int | None, batch: int, rungs: int = 1, factor: int = 3) -> None:
        self.trials = trials
        self.batch = batch
        self.rungs = rungs
        self.factor = factor

    def check(self, space: Space) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse a space that cannot be searched, before anything is started. Raises ConfigError."""

    @abstractmethod
    def count(self, space: Space) -> int:
        """How many trials there are."""

    @abstractmethod
    def propose(self, space: Space, number: int, before: Sequence[Trial], mode: Mode) -> dict[str, Value]:
        """The values of one trial.

        Args:
            space: what is searched over.
            number: of the trial.
            before: all trials of a lower number; those of its own round count as open, whatever has become of them.
            mode: whether more (``max``) or less (``min``) of the objective is better.
        """

    def settings(self) -> dict[str, object]:
        """What must be the same where a search goes on, by key."""
        halving = {"search.rungs": self.rungs, "search.factor": self.factor} if self.rungs > 1 else {}
        return {"search": type(self).__name__, "search.batch": self.batch, **halving}

    def pauses(self, epochs: int) -> list[int | None]:
        """For each rung the epoch at which a run of so many epochs pauses there; None at the last one, its end."""
        return [epochs // self.factor ** (self.rungs - 1 - rung) for rung in range(self.rungs - 1)] + [None]
