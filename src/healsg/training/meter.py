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

    ``add`` keeps references to device scalars; ``flush`` reads them all in one transfer and folds them in, step by step
    in double precision, so that the sums are the same bits wherever a save or a log line happened to flush.

    Args:
        parallel: the processes whose steps are added up; one alone where it is None.
    """

    def __init__(self, parallel: Parallel | None = None) -> None:
        self.parallel = parallel or Parallel()
        self.pending: list[dict[str, Any]] = []
        self.sums: dict[str, float] = {}
        """Of the epoch, by name: the sum of mean times count and, under ``count``, that of the counts."""
        self.window: dict[str, float] = {}
        """The same since the last line of steps."""
        self._counts: dict[str, str] = {}
        """``counts_of`` the scalars that were folded in last, which hardly ever change."""
        self._names: list[str] = []
        """The names of these scalars."""

    def clear(self) -> None:
        """Forget the epoch; what the next line of steps shows goes on."""
        self.sums = {}

    def add(self, logs: dict[str, Any]) -> None:
        """Remember one step: its scalars (0-dimensional tensors) and its ``count``, the weight of its batch."""
        self.pending.append({k: v.detach() if isinstance(v, Tensor) else v for k, v in logs.items()})

    def flush(self) -> None:
        """Fold in what is pending: the one place of the training pass that waits for the device."""
        if not self.pending:
            return
        steps, names = self.pending, self.pending[0].keys()
        for logs in steps:
            if logs.keys() != names:
                raise RunError(f"train_step returned {', '.join(names)}, now {', '.join(logs)}; keep one set")
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
        """By name a number for each step: its scalars times their counts, and the counts, summed over processes."""
        if not steps[0]["loss"].is_cpu:
            return self._read_together(steps, counts)
        columns = _weighted(steps, counts)
        if self.parallel.several:
            table = torch.tensor([*zip(*columns.values(), strict=True)], dtype=torch.float64)
            columns = dict(zip(columns, self.parallel.sum(table).t().tolist(), strict=True))
        return columns

    def _read_together(self, steps: list[dict[str, Any]], counts: dict[str, str]) -> dict[str, list[float]]:
        """The same of scalars on a device, in one transfer and its widest type, summed over processes."""
        device, names = steps[0]["loss"].device, [*counts, *(name for name in steps[0] if name not in counts)]
        widest = torch.float32 if device.type == "mps" else torch.float64
        cells = [torch.as_tensor(logs[name], dtype=widest, device=device) for logs in steps for name in names]
        table = torch.stack(cells).view(len(steps), len(names))
        for column_index, count in enumerate(counts.values()):
            weights = table[:, names.index(count)]
            table[:, column_index] = torch.where(weights > 0, table[:, column_index] * weights, 0.0)
        return dict(zip(names, self.parallel.sum(table).t().tolist(), strict=True))

    def recent(self) -> dict[str, float]:
        """The means since the last call: what a log line of steps shows."""
        self.flush()
        window, self.window = self.window, {}
        return _means(window)

    def finish(self) -> dict[str, float]:
        """The means of the whole epoch, also after a resume in its middle."""
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
    """By name a number for each step: its scalars times their counts, and the counts themselves."""
    columns = {name: [float(logs[name]) for logs in steps] for name in steps[0]}
    for name, count in counts.items():
        pairs = zip(columns[name], columns[count], strict=True)
        columns[name] = [value * weight if weight > 0 else 0.0 for value, weight in pairs]
    return columns
