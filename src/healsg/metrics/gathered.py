"""Metrics whose state does not add up: every sample's values are stored until the end of the evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from healsg import distributed
from healsg.metric import Metric
from healsg.types import Count

log = logging.getLogger("healsg")

MIB = 2**20


class Gathered(Metric):
    """Stores ``rows`` of every batch on the device and passes all of them, from all processes, to ``value``.

    Args:
        max_mib: the memory limit in MiB, over all processes; beyond it the metric has no value, and a line is logged.
    """

    def __init__(self, max_mib: Count = 1024) -> None:
        super().__init__()
        self.max_mib = max_mib
        self.kept = 0
        """Bytes that this process keeps."""

    def rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, ...] | None:
        """What is kept of a batch: tensors of N rows; None if the metric does not apply."""
        raise NotImplementedError

    def value(self, state: Any) -> Any:
        """The metric from the tensors of ``rows``, joined over all samples, on the CPU."""
        raise NotImplementedError

    def is_full(self) -> bool:
        """Whether the memory limit was exceeded."""
        return self.kept > self.max_mib * MIB // distributed.processes().world

    def update(self, output: Tensor, target: Tensor) -> None:
        if self.is_full():
            return
        rows = self.rows(output, target)
        if rows is None:
            return
        self.kept += sum(column.numel() * column.element_size() for column in rows)
        self.state = [] if self.is_full() else [*(self.state or []), rows]
        if self.is_full():
            name = type(self).__name__
            log.warning("%s: its samples' scores exceed max_mib=%d, so that it has no value", name, self.max_mib)

    def packed(self) -> tuple[Tensor, ...] | None:
        """The stored rows, as tensors on the CPU; None if the memory limit was exceeded."""
        return None if self.is_full() else tuple(torch.cat(column).cpu() for column in zip(*self.state, strict=True))

    def of(self, states: Sequence[tuple[Tensor, ...] | None]) -> Any:
        state = self.joined(states)
        return math.nan if state is None else self.value(state)

    def joined(self, states: Sequence[tuple[Tensor, ...] | None]) -> tuple[Tensor, ...] | None:
        """The samples of all processes; None if one of them could not keep its own."""
        kept = [state for state in states if state is not None]
        if len(kept) < len(states):
            return None
        return tuple(torch.cat(column) for column in zip(*kept, strict=True))
