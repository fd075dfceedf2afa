"""Contrastive losses: a sample's views are told apart from other samples. Pure functions of (N, D) embeddings of any
length, which are scaled to length 1 here; each gives the samples' own losses, whose mean is what is minimised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """(2N,) normalised temperature-scaled cross entropy of SimCLR (Chen et al. 2020, arXiv 2002.05709, equation 1):
    each of the 2N views finds its sample's other view among the 2N - 1 others.

    Args:
        first, second: (N, D), the two views of the same samples.
        temperature: what cosine similarities are divided by.
    """
    views = F.normalize(torch.cat([first, second]), dim=1)
    scores = views @ views.T / temperature
    place = torch.arange(len(views), device=views.device)
    scores = scores.masked_fill(place[:, None] == place, float("-inf"))
    return F.cross_entropy(scores, place.roll(len(first)), reduction="none")


def queue_contrast(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """(N,) InfoNCE of MoCo (He et al. 2020, arXiv 1911.05722, equation 1): each query finds its own key among those of
    earlier batches.

    Args:
        query, key: (N, D), two views of the same samples; no gradient goes into the key.
        queue: (K, D), keys of other samples, of length 1.
        temperature: what cosine similarities are divided by.
    """
    query, key = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1)
    own = (query * key).sum(dim=1, keepdim=True)
    scores = torch.cat([own, query @ queue.to(query.dtype).T], dim=1) / temperature
    return -scores.log_softmax(dim=1)[:, 0]
