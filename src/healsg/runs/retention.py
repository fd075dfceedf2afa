"""Which epochs keep a checkpoint of their own, beside ``last.pt``, ``previous.pt`` and ``best.pt``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_NAME = re.compile(r"epoch_(\d{4,})\.pt")


class Retention:
    """Every n-th epoch, and the k best ones: a function of the epochs' lines, so that a resumed run keeps the same.

    Args:
        every: epochs between two that are kept; None keeps none for their number.
        best: how many of the best epochs are kept; None keeps none for their value.
    """

    def __init__(self, every: int | None, best: int | None) -> None:
        self.every = every
        self.best = best
        self.ranks: dict[int, tuple[float, float]] = {}
        """By epoch, what it is ordered by: the lower, the better; infinite where nothing finite was monitored."""

    @property
    def active(self) -> bool:
        """Whether any epoch is to keep a file."""
        return bool(self.every or self.best)

    def add(self, epoch: int, value: Any, sign: int, loss: Any) -> None:
        """An epoch has ended with this monitored ``value``, of which more is better where ``sign`` is 1; of equal ones
        the one with the lower ``val/loss``, and then the earlier one, is better."""
        number = float(value) if isinstance(value, (int, float)) and math.isfinite(value) else -sign * math.inf
        tie = float(loss) if isinstance(loss, (int, float)) and math.isfinite(loss) else math.inf
        self.ranks[epoch] = (-sign * number, tie)

    def wanted(self) -> list[int]:
        """The epochs so far that are to have a file."""
        found = {epoch for epoch in self.ranks if self.every and epoch % self.every == 0}
        finite = [epoch for epoch, (rank, _) in self.ranks.items() if math.isfinite(rank)]
        found.update(sorted(finite, key=lambda epoch: (self.ranks[epoch], epoch))[: self.best or 0])
        return sorted(found)


def file_of(folder: Path, epoch: int) -> Path:
    """The checkpoint of an epoch."""
    return folder / f"epoch_{epoch:04}.pt"


def others(folder: Path, wanted: Iterable[int]) -> list[Path]:
    """The checkpoints of epochs that are not ``wanted``; no other file is among them."""
    kept = set(wanted)
    found = ((path, _NAME.fullmatch(path.name)) for path in folder.iterdir())
    return [path for path, match in found if match and int(match[1]) not in kept]


def described(folder: Path, wanted: Iterable[int], values: Mapping[int, Any]) -> list[dict[str, Any]]:
    """What ``run.json`` says of the checkpoints of epochs that are there."""
    files = [(epoch, file_of(folder, epoch)) for epoch in wanted]
    return [
        {"file": f"{folder.name}/{path.name}", "epoch": epoch, "value": values.get(epoch)}
        for epoch, path in files
        if path.exists()
    ]
