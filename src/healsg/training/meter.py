"""Meter: running means of an epoch, kept on the device and read only when they are shown or saved."""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from healsg.errors import NotFiniteError, RunError
from healsg.training import returned
from healsg.training.parallel import Parallel
from healsg.training.step import counts_of


class Meter:
    """Means of the named scalars of training steps, weighted by their counts (``step.reported``).

    ``add`` keeps references to device scalars; ``flush`` reads them all in one transfer and adds them up, step by step
    in double precision, so that the sums do not depend on when a save or a log line flushed.

    Args:
        parallel: the processes whose steps are averaged; None is a single one.
    """

    def __init__(self, parallel: Parallel | None = None) -> None:
        self.parallel = parallel or Parallel()
        self.pending: list[dict[str, Any]] = []
        self.sums: dict[str, float] = {}
        """The sums over the epoch, by name: of mean times count and, under ``count``, of the counts."""
        self.window: dict[str, float] = {}
        """The same since the last step line."""
        self._counts: dict[str, str] = {}
        """``counts_of`` the scalars of the last flush; kept, since their names hardly ever change."""
        self._names: list[str] = []
        """The names of the scalars of the last flush."""

    def clear(self) -> None:
        """Start a new epoch; the means of the next step line are not affected."""
        self.sums = {}

    def add(self, logs: dict[str, Any]) -> None:
        """Add a step: its scalars (0-dimensional tensors) and its ``count``, the weight of its batch."""
        self.pending.append({k: v.detach() if isinstance(v, Tensor) else v for k, v in logs.items()})

    def flush(self) -> None:
        """Read the pending scalars and add them up: the only place in the training pass that waits for the device."""
        if not self.pending:
            return
        steps, names = self.pending, self.pending[0].keys()
        for logs in steps:
            if logs.keys() != names:
                raise RunError(f"train_step returned {', '.join(names)}, now {', '.join(logs)}; return the same names")
        if self._names != [*names]:
            self._names = [*names]
            self._counts = counts_of(names)
        counts = self._counts
        try:
            columns = self._read(steps, counts)
        except (TypeError, ValueError, RuntimeError):  # raised again unless a value that is no scalar is the cause
            returned.explain_scalars(steps[0])
            raise
        steps.clear()
        for sums in (self.sums, self.window):
            for name, column in columns.items():  # sum() would round otherwise in newer versions of Python
                sums[name] = reduce(add, column, sums.get(name, 0.0))
        if not math.isfinite(self.sums["loss"]):
            losses = columns["loss"]
            step = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
            raise NotFiniteError(f"train/loss ({losses[step] / columns[counts['loss']][step]})", len(losses) - 1 - step)

    def _read(self, steps: list[dict[str, Any]], counts: dict[str, str]) -> dict[str, list[float]]:
        """By name one number per step: the scalars times their counts, and the counts, each summed over processes."""
        if not steps[0]["loss"].is_cpu:
            return self._read_together(steps, counts)
        columns = _weighted(steps, counts)
        if self.parallel.several:
            table = torch.tensor([*zip(*columns.values(), strict=True)], dtype=torch.float64)
            columns = dict(zip(columns, self.parallel.sum(table).t().tolist(), strict=True))
        return columns

    def _read_together(self, steps: list[dict[str, Any]], counts: dict[str, str]) -> dict[str, list[float]]:
        """The same for scalars on a device, in one transfer and in its widest floating-point type."""
        device, names = steps[0]["loss"].device, [*counts, *(name for name in steps[0] if name not in counts)]
        widest = torch.float32 if device.type == "mps" else torch.float64
        cells = [torch.as_tensor(logs[name], dtype=widest, device=device) for logs in steps for name in names]
        table = torch.stack(cells).view(len(steps), len(names))
        for column_index, count in enumerate(counts.values()):
            weights = table[:, names.index(count)]
            table[:, column_index] = torch.where(weights > 0, table[:, column_index] * weights, 0.0)
        return dict(zip(names, self.parallel.sum(table).t().tolist(), strict=True))

    def recent(self) -> dict[str, float]:
        """The means since the last call, for a step line."""
        self.flush()
        window, self.window = self.window, {}
        return _means(window)

    def finish(self) -> dict[str, float]:
        """The means of the whole epoch, including the part before a resume."""
        self.flush()
        return _means(self.sums)

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        return {"sums": dict(self.sums), "window": dict(self.window)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pending.clear()
        self.sums = dict(state["sums"])
        self.window = dict(state["window"])


def _means(sums: dict[str, float]) -> dict[str, float]:
    return {name: sums[name] / sums[count] for name, count in counts_of(sums).items() if sums[count]}


def _weighted(steps: list[dict[str, Any]], counts: dict[str, str]) -> dict[str, list[float]]:
    """By name one number per step: the scalars times their counts, and the counts themselves."""
    columns = {name: [float(logs[name]) for logs in steps] for name in steps[0]}
    for name, count in counts.items():
        pairs = zip(columns[name], columns[count], strict=True)
        columns[name] = [value * weight if weight > 0 else 0.0 for value, weight in pairs]
    return columns
