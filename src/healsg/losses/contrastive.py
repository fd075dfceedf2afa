"""Contrastive losses: a view must be closer to the other view of its sample than to other samples. Pure functions of
(N, D) embeddings, which are normalised here; they return a loss for each sample, of which the mean is minimised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """(2N,) normalised temperature-scaled cross entropy of SimCLR (Chen et al. 2020, arXiv 2002.05709, equation 1):
    each of the 2N views classifies which of the 2N - 1 others is the second view of its sample.

    Args:
        first, second: (N, D), the two views of the same samples.
        temperature: of the cosine similarities.
    """
    views = F.normalize(torch.cat([first, second]), dim=1)
    scores = views @ views.T / temperature
    index = torch.arange(len(views), device=views.device)
    scores = scores.masked_fill(index[:, None] == index, float("-inf"))
    return F.cross_entropy(scores, index.roll(len(first)), reduction="none")


def queue_contrast(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """(N,) InfoNCE of MoCo (He et al. 2020, arXiv 1911.05722, equation 1): each query is classified between its key and
    the keys of earlier batches.

    Args:
        query, key: (N, D), two views of the same samples; no gradient goes into the key.
        queue: (K, D), normalised keys of other samples.
        temperature: of the cosine similarities.
    """
    query, key = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1)
    own = (query * key).sum(dim=1, keepdim=True)
    scores = torch.cat([own, query @ queue.to(query.dtype).T], dim=1) / temperature
    return -scores.log_softmax(dim=1)[:, 0]
