"""Targets, losses, thresholds and weights of semi-supervised methods, as pure functions.

``output`` is (N, C) logits; ``probabilities`` (N, C) are predictions, and ``confidence`` (N,) their largest values.
Losses are returned for each sample, (N,), in at least float32, unless a function says otherwise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from healsg.losses.classification import log_softmax

# --- targets ---------------------------------------------------------------------------------------------------------


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """``p_j^(1/T) / sum_k p_k^(1/T)``, of lower entropy for T below 1 (MixMatch, arXiv 1905.02249, equation 7)."""
    powers = (probabilities / probabilities.amax(dim=1, keepdim=True)) ** (1.0 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def align(probabilities: Tensor, marginal: Tensor, target: Tensor) -> Tensor:
    """Distribution alignment (ReMixMatch, arXiv 1911.09785; to the uniform distribution in SoftMatch, arXiv
    2301.10921): predictions scaled from the mean ``marginal`` (C,) to the mean ``target`` (C,) and normalised again."""
    scaled = probabilities * (target / marginal.clamp(min=1e-12)).to(probabilities.dtype)
    return scaled / scaled.sum(dim=1, keepdim=True)


def histogram(classes: Tensor, number: int, chosen: Tensor | None = None) -> Tensor:
    """(C,) int64: how often each of the ``number`` classes occurs in ``classes`` (N,), where ``chosen`` (N,) is true or
    None. Negative entries are not counted."""
    hits = classes[:, None] == torch.arange(number, device=classes.device)
    return (hits if chosen is None else hits & chosen[:, None]).sum(dim=0)


# --- losses ----------------------------------------------------------------------------------------------------------


def hard_cross_entropy(output: Tensor, label: Tensor) -> Tensor:
    """``- log p_label`` for class indices ``label`` (N,)."""
    return -log_softmax(output).gather(1, label[:, None]).squeeze(1)


def squared_distance(output: Tensor, probabilities: Tensor) -> Tensor:
    """``mean_j (softmax(output)_j - p_j)^2``: the Brier score by class (Mean Teacher, arXiv 1703.01780, section 2;
    MixMatch, arXiv 1905.02249, equation 4)."""
    return (log_softmax(output).exp() - probabilities).square().mean(dim=1)


def fairness(strong: Tensor, selected: Tensor, marginal: Tensor, counts: Tensor) -> Tensor:
    """A scalar: ``sum_j a_j log b_j``, with ``a`` the marginal over the histogram and ``b`` the same of the selected
    samples of this batch, each of sum 1: FreeMatch's self-adaptive fairness (arXiv 2205.07246).

    A class that none of the selected has is left out of ``b``; the loss is 0 where no sample is selected.

    Args:
        strong: (N, C) probabilities of the strong views, which get the gradient.
        selected: (N,) bool, the samples whose weak views are confident enough.
        marginal, counts: (C,) moving averages of the weak views' predictions and of the histogram of their classes.
    """
    chosen = histogram(strong.argmax(dim=1), strong.shape[1], selected).to(strong.dtype)
    scaled = (strong * selected[:, None]).sum(dim=0) * torch.where(chosen > 0, 1.0 / chosen.clamp(min=1.0), 0.0)
    batch = scaled / scaled.sum().clamp(min=1e-12)
    expected = torch.where(counts > 0, marginal / counts.clamp(min=1e-12), 0.0).to(strong.dtype)
    expected = expected / expected.sum()
    return torch.where(selected.any(), (expected * (batch + 1e-12).log()).sum(), 0.0)


# --- which samples count, and how much -------------------------------------------------------------------------------


def curriculum_thresholds(remembered: Tensor, number: int, threshold: float) -> Tensor:
    """(C,) thresholds ``M(b_c) * threshold`` with ``M(b) = b / (2 - b)`` and ``b_c`` the confident samples of a class
    over those of the largest or, while more of them are unused, over the unused (FlexMatch, arXiv 2110.08263, with its
    warm-up and its convex mapping).

    Args:
        remembered: (samples,) the class that each unlabelled sample had when it was confident last, -1 for none yet.
        number: classes.
        threshold: of a class that is learned best.
    """
    learned = histogram(remembered, number)
    unused = len(remembered) - learned.sum()
    status = learned.to(torch.float32) / torch.maximum(learned.max(), unused)
    return status / (2.0 - status) * threshold


def class_thresholds(marginal: Tensor, threshold: Tensor) -> Tensor:
    """(C,) ``p_c / max p * t``: the overall threshold, lower for classes predicted less (FreeMatch, arXiv
    2205.07246)."""
    return marginal / marginal.max() * threshold


def truncated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor, deviations: float) -> Tensor:
    """(N,) weights: 1 above the mean, below it ``exp(-(c - mean)^2 / (2 variance / deviations^2))`` (SoftMatch, arXiv
    2301.10921; ``deviations`` are 2 in the authors' code)."""
    below = (confidence - mean.to(confidence.dtype)).clamp(max=0.0)
    return torch.exp(-below.square() * (deviations**2 / (2.0 * variance.to(confidence.dtype).clamp(min=1e-12))))


def signal_threshold(schedule: str, progress: float, classes: int) -> float:
    """The probability of the right class from which a labelled sample no longer counts, rising from 1/C to 1: training
    signal annealing (UDA, arXiv 1904.12848, section 3.2), ``linear``, ``log`` or ``exp``."""
    scale = 5.0
    released = {
        "linear": progress,
        "log": 1.0 - math.exp(-progress * scale),
        "exp": math.exp((progress - 1.0) * scale),
    }[schedule]
    return released * (1.0 - 1.0 / classes) + 1.0 / classes


# --- how a weight grows, over the share of the run that is over -------------------------------------------------------


def linear_ramp(progress: float, start: float, full: float) -> float:
    """0 until ``start``, 1 from ``full`` on, a straight line between (Pseudo-Label, Lee 2013, equation 16)."""
    return 1.0 if progress >= full else max(0.0, (progress - start) / (full - start))


def sigmoid_ramp(progress: float, full: float) -> float:
    """``exp(-5 (1 - progress / full)^2)``, 1 from ``full`` on (Mean Teacher, arXiv 1703.01780, appendix B)."""
    return 1.0 if progress >= full else math.exp(-5.0 * (1.0 - progress / full) ** 2)
