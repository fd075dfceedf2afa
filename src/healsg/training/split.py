"""What depends on how the batch of an update is split over processes and accumulated micro-batches.

Everything else is the same to rounding for any number of both. A method declares the exceptions in
``local_to_process`` and ``local_to_micro_batch``, from which the list in docs/methods.md and the lines at the start of
a run are generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from healsg.training.collectives import BATCH_NORMS, SYNCED
from healsg.training.parallel import Parallel


class Declares(Protocol):
    """A method, or its class."""

    @property
    def local_to_process(self) -> Mapping[str, str]: ...

    @property
    def local_to_micro_batch(self) -> Mapping[str, str]: ...


def local_lines(method: Declares, model: nn.Module, parallel: Parallel, accumulate: int) -> list[str]:
    """The lines about these exceptions at the start of a run; none if the batch is not split.

    Args:
        method: the method.
        model: the network.
        parallel: the processes.
        accumulate: micro-batches per update.
    """
    lines = []
    trained = [module for module in model.modules() if module.training]
    synced = any(isinstance(module, SYNCED) for module in trained)
    norm = any(isinstance(module, BATCH_NORMS) and not isinstance(module, SYNCED) for module in trained)
    if parallel.several:
        lines += [f"local to each process: {text}" for text in method.local_to_process.values()]
        if norm:
            way = "runner.sync_batchnorm=true takes them over the batch of all"
            lines.append(f"local to each process: BatchNorm's statistics; {way}")
    if accumulate > 1:
        lines += [f"local to each micro-batch: {text}" for text in method.local_to_micro_batch.values()]
        if norm or synced:
            lines.append("local to each micro-batch: BatchNorm's statistics")
    return lines


def table(methods: Mapping[str, Declares]) -> list[str]:
    """The table of docs/methods.md: a row for each method, by the name of its option, that declares an exception."""
    rows = ["| method | local to each process | local to each accumulated micro-batch |", "|---|---|---|"]
    for name, method in methods.items():
        cells = ["; ".join(local.values()) for local in (method.local_to_process, method.local_to_micro_batch)]
        if any(cells):
            rows.append(f"| `{name}` | {cells[0]} | {cells[1]} |")
    return rows
