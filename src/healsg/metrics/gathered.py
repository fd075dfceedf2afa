"""Metrics whose state does not add: every sample's numbers are kept until the end of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from healsg.metric import Metric


class Gathered(Metric):
    """Keeps ``rows`` of every batch on the device and hands all of them, of all processes, to ``value``.

    That takes memory: for exact AUROC 8 bytes a sample and class.
    """

    def rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, ...] | None:
        """What is kept of a batch: tensors of N rows; None where the metric does not apply."""
        raise NotImplementedError

    def value(self, state: Any) -> Any:
        """The metric from the tensors of ``rows``, joined over all samples, on the CPU."""
        raise NotImplementedError

    def update(self, output: Tensor, target: Tensor) -> None:
        kept = self.rows(output, target)
        if kept is not None:
            self.state = [*(self.state or []), kept]

    def packed(self) -> tuple[Tensor, ...]:
        return tuple(torch.cat(column).cpu() for column in zip(*self.state, strict=True))

    def of(self, states: Sequence[tuple[Tensor, ...]]) -> Any:
        return self.value(tuple(torch.cat(column) for column in zip(*states, strict=True)))
