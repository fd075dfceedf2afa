"""Which epochs keep their own checkpoint, besides ``last.pt``, ``previous.pt`` and ``best.pt``."""

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
        every: epochs between two that are kept; None to keep none by number.
        best: how many of the best epochs are kept; None to keep none by value.
    """

    def __init__(self, every: int | None, best: int | None) -> None:
        self.every = every
        self.best = best
        self.ranks: dict[int, tuple[float, float]] = {}
        """The sort key of each epoch: lower is better; infinite if the monitored metric is missing or not finite."""

    @property
    def active(self) -> bool:
        """Whether any epoch may keep a file."""
        return bool(self.every or self.best)

    def add(self, epoch: int, value: Any, sign: int, loss: Any) -> None:
        """Add an epoch with its monitored ``value``; a higher one is better if ``sign`` is 1. Ties are decided by the
        lower ``val/loss``, then the earlier epoch."""
        number = float(value) if isinstance(value, (int, float)) and math.isfinite(value) else -sign * math.inf
        tie = float(loss) if isinstance(loss, (int, float)) and math.isfinite(loss) else math.inf
        self.ranks[epoch] = (-sign * number, tie)

    def kept_epochs(self) -> list[int]:
        """The epochs so far that keep a file."""
        epochs = {epoch for epoch in self.ranks if self.every and epoch % self.every == 0}
        finite = [epoch for epoch, (rank, _) in self.ranks.items() if math.isfinite(rank)]
        epochs.update(sorted(finite, key=lambda epoch: (self.ranks[epoch], epoch))[: self.best or 0])
        return sorted(epochs)


def file_of(folder: Path, epoch: int) -> Path:
    """The checkpoint of an epoch."""
    return folder / f"epoch_{epoch:04}.pt"


def others(folder: Path, epochs: Iterable[int]) -> list[Path]:
    """The checkpoints of epochs that are not ``epochs``; no other file is among them."""
    retained = set(epochs)
    found = ((path, _NAME.fullmatch(path.name)) for path in folder.iterdir())
    return [path for path, match in found if match and int(match[1]) not in retained]


def described(folder: Path, epochs: Iterable[int], values: Mapping[int, Any]) -> list[dict[str, Any]]:
    """The entries of ``run.json`` for the existing checkpoints of epochs."""
    files = [(epoch, file_of(folder, epoch)) for epoch in epochs]
    return [
        {"file": f"{folder.name}/{path.name}", "epoch": epoch, "value": values.get(epoch)}
        for epoch, path in files
        if path.exists()
    ]
