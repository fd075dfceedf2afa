"""Meter: the epoch's running means, kept on the device and read only when asked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from healsg import distributed
from healsg.errors import NotFiniteError, RunError


class Meter:
    """Means of the named scalars of training steps, weighted by their counts.

    ``add`` keeps references to device scalars; ``flush`` reads them all in one transfer and folds them in, step by step
    in double precision, so that the sums are the same bits wherever a save or a log line happened to flush.
    """

    def __init__(self) -> None:
        self.pending: list[dict[str, Any]] = []
        self.window: dict[str, float] = {}
        self.window_count = 0.0
        self.clear()

    def clear(self) -> None:
        """Forget the epoch; what the next line of steps shows goes on."""
        self.sums: dict[str, float] = {}
        self.count = 0.0

    def add(self, logs: dict[str, Any]) -> None:
        """Remember one step: its scalars (0-dimensional tensors) and its ``count``, the weight of its batch."""
        self.pending.append({k: v.detach() if isinstance(v, Tensor) else v for k, v in logs.items()})

    def flush(self) -> None:
        """Fold in what is pending: the one place of the training pass that waits for the device."""
        if not self.pending:
            return
        names = [name for name in self.pending[0] if name != "count"]
        if odd := next((logs for logs in self.pending if logs.keys() != self.pending[0].keys()), None):
            raise RunError(f"train_step returned {', '.join(self.pending[0])}, now {', '.join(odd)}; keep one set")
        read = _read if self.pending[0]["loss"].is_cpu and not distributed.launched() else _read_together
        rows = read([[logs[name] for name in [*names, "count"]] for logs in self.pending])
        self.pending.clear()
        for *row, count in rows:
            for name, value in zip(names, row, strict=True):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.window[name] = self.window.get(name, 0.0) + value
            self.count += count
            self.window_count += count
        if not math.isfinite(self.sums["loss"]):
            losses = [row[names.index("loss")] for row in rows]
            place = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
            raise NotFiniteError(f"train/loss ({losses[place] / rows[place][-1]})", len(rows) - 1 - place)

    def recent(self) -> dict[str, float]:
        """The means since the last call: what a log line of steps shows."""
        self.flush()
        means = {name: total / self.window_count for name, total in self.window.items() if self.window_count}
        self.window, self.window_count = {}, 0.0
        return means

    def finish(self) -> dict[str, float]:
        """The means of the whole epoch, also after a resume in its middle."""
        self.flush()
        return {name: total / self.count for name, total in self.sums.items() if self.count}

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        return {"sums": dict(self.sums), "window": dict(self.window), "count": self.count, "recent": self.window_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pending.clear()
        self.sums, self.window = dict(state["sums"]), dict(state["window"])
        self.count, self.window_count = state["count"], state["recent"]


def _read(rows: list[list[Any]]) -> list[list[float]]:
    """Rows of scalars, each with its count at the end, as numbers times their count."""
    numbers = ((map(float, values), float(count)) for *values, count in rows)
    return [[*(value * count if count > 0 else 0.0 for value in values), count] for values, count in numbers]


def _read_together(rows: list[list[Any]]) -> list[list[float]]:
    """The same of scalars on a device, in one transfer and its widest type, summed over processes."""
    device = next(cell.device for cell in rows[0] if isinstance(cell, Tensor))
    widest = torch.float32 if device.type == "mps" else torch.float64
    cells = [torch.as_tensor(cell, dtype=widest, device=device) for row in rows for cell in row]
    table = torch.stack(cells).view(len(rows), len(rows[0]))
    counts = table[:, -1:].clone()
    table[:, :-1] = torch.where(counts > 0, table[:, :-1] * counts, 0.0)
    return distributed.sum_tensor(table).tolist()
