"""Embeddings of all processes as one batch, with gradient, for losses over a whole batch."""

from __future__ import annotations

from torch import Tensor

from healsg import distributed


def gather(own: Tensor, rows: int | None = None) -> Tensor:
    """The rows of all processes, by rank, as one batch, through which gradients flow; see ``Parallel.gather_rows``.

    Args:
        own: (n, ...), the rows of this process; n may differ from process to process.
        rows: how many of them count, the first ones; all by default.
    """
    return distributed.processes().gather_rows(own, rows)
