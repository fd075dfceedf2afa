"""Embeddings of all processes as one batch, with gradient, for losses over the global batch."""

from __future__ import annotations

from torch import Tensor

from healsg import distributed


def gather(local: Tensor, rows: int | None = None) -> Tensor:
    """The rows of all processes, by rank, as one batch, through which gradients flow; see ``Parallel.gather_rows``.

    Args:
        local: (n, ...), the rows of this process; n may differ from process to process.
        rows: how many of them are used, from the first on; all by default.
    """
    return distributed.processes().gather_rows(local, rows)
