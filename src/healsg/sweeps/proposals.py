"""Search: proposes the trials of a search, as a pure function of the space and of the earlier rounds."""

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
        value: of the objective, if it is finished.
    """

    number: int
    parameters: Mapping[str, Value]
    status: Literal["finished", "failed", "open"] = "open"
    value: float | None = None


class Search(ABC):
    """Proposes trials in rounds.

    Args:
        trials: the total number of trials; None for all combinations.
        rungs, factor: of synchronous successive halving (Jamieson and Talwalkar 2016). All trials are trained to the
            first rung; one in ``factor`` trials at a rung continues, to ``factor`` times the epochs. The last rung is
            the end of the run. With one rung all trials are trained to the end.
        batch: trials of a round. They are proposed only from the results of earlier rounds, so that neither the number
            of workers nor the order in which they end changes a trial.
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
        """The settings that a continued search must not change, by key."""
        halving = {"search.rungs": self.rungs, "search.factor": self.factor} if self.rungs > 1 else {}
        return {"search": type(self).__name__, "search.batch": self.batch, **halving}

    def pauses(self, epochs: int) -> list[int | None]:
        """The epoch at which a run of this many epochs pauses for each rung; None at the last rung, the end of the
        run."""
        return [epochs // self.factor ** (self.rungs - 1 - rung) for rung in range(self.rungs - 1)] + [None]
