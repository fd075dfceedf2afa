"""Losses of knowledge distillation, as pure functions.

``output`` and ``taught`` are (N, C) logits of the student and of its teacher, or (N, C, ...) feature maps of theirs.
Each function returns the losses of the samples, (N,), in at least float32, of which the mean is minimised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.losses.classification import divergence, log_softmax, wide

POOLS = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
"""By the number of axes of a map."""


def soft_targets(output: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(p(taught / T) || p(output / T))`` (Hinton et al. 2015, arXiv 1503.02531, section 2)."""
    return temperature**2 * divergence(wide(taught) / temperature, wide(output) / temperature)


def decoupled(output: Tensor, taught: Tensor, target: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """``T^2 (alpha TCKD + beta NCKD)``: the divergence of the binary distributions of the target class against all
    others, and that of the distributions over the other classes (Zhao et al. 2022, arXiv 2203.08679, equation 7).

    Args:
        output, taught: (N, C) logits.
        target: (N,) class indices.
        temperature: T, by which logits are divided.
        alpha, beta: the two parts' weights.
    """
    student, teacher = log_softmax(wide(output) / temperature), log_softmax(wide(taught) / temperature)
    others = torch.arange(output.shape[1] - 1, device=output.device).expand(len(output), -1)
    others = others + (others >= target.unsqueeze(1))
    binary, rest = [], []
    for scores in (student, teacher):
        other = scores.gather(1, others)
        binary.append(torch.stack([scores.gather(1, target.unsqueeze(1)).squeeze(1), other.logsumexp(dim=1)], dim=1))
        rest.append(other)
    return temperature**2 * (alpha * divergence(binary[1], binary[0]) + beta * divergence(rest[1], rest[0]))


def hint(output: Tensor, taught: Tensor) -> Tensor:
    """Half the mean squared difference of two feature maps (N, C, ...) with the same channels (Romero et al. 2015,
    arXiv 1412.6550, equation 3, with a mean instead of a sum over the values)."""
    student, teacher = same_size(wide(output), wide(taught))
    return 0.5 * (student - teacher).square().flatten(1).mean(dim=1)


def attention(output: Tensor, taught: Tensor) -> Tensor:
    """The mean squared difference of two attention maps: the mean square over the channels of maps (N, C, ...),
    normalised (Zagoruyko and Komodakis 2017, arXiv 1612.03928, section 3.1 with p = 2, as in their code)."""
    looks = [values.square().mean(dim=1).flatten(1) for values in same_size(wide(output), wide(taught))]
    student, teacher = (F.normalize(look, dim=1) for look in looks)
    return (student - teacher).square().mean(dim=1)


def noise_contrastive(scores: Tensor, constant: Tensor, samples: int) -> Tensor:
    """``- log h_0 - sum_{j > 0} log(1 - h_j)`` with ``h = p / (p + K / M)`` and ``p = e^score / constant`` (Tian et al.
    2020, arXiv 1910.10699, equations 17 to 19; Wu et al. 2018, arXiv 1805.01978, equations 5 to 8).

    Args:
        scores: (N, 1 + K) cosines divided by the temperature, the positive pairs first.
        constant: (), the normalisation of e^score to a probability over all samples.
        samples: M, the number of training samples.
    """
    drawn = scores.shape[1] - 1
    odds = scores - constant.log() - torch.log(torch.as_tensor(drawn / samples, dtype=scores.dtype))
    return F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(dim=1)


def same_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two feature maps (N, C, ...), average-pooled to the smaller size of both along each axis."""
    axes = first.dim() - 2
    smaller = [min(sizes) for sizes in zip(first.shape[2:], second.shape[2:], strict=True)]
    made = [
        values if list(values.shape[2:]) == smaller else POOLS[axes](values, smaller)  # type: ignore[arg-type]
        for values in (first, second)
    ]
    return made[0], made[1]
