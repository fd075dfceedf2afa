"""Classification losses, as pure functions.

Throughout, ``output`` is (N, C, ...) logits and ``target`` (N, C, ...) class probabilities, which label smoothing,
mixup or ``smooth`` have made of class indices. Each function returns the losses of the samples, (N, ...), in at least
float32, of which the mean is minimised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from healsg.errors import ConfigError


def smooth(target: Tensor, output: Tensor, share: float = 0.0) -> Tensor:
    """Class probabilities of ``output``'s shape (N, C, ...) from indices (N, ...): ``share`` spread evenly over all
    classes, the rest on the target's own (Szegedy et al. 2016, arXiv 1512.00567, section 7).

    Targets that are not class indices (floating point, or of ``output``'s shape) are only converted in type.
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    if target.is_floating_point() or target.shape == output.shape:
        return target.to(dtype)
    even = share / output.shape[1]
    return torch.full_like(output, even, dtype=dtype).scatter_(1, target.long().unsqueeze(1), 1.0 - share + even)


def wide(output: Tensor) -> Tensor:
    """A network's output in at least float32, in which losses are computed."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def log_softmax(output: Tensor) -> Tensor:
    """The logarithm of the classes' probabilities, in at least float32."""
    return wide(output).log_softmax(dim=1)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """``- sum_j y_j log p_j``."""
    return -(target * log_softmax(output)).sum(dim=1)


def generalised_cross_entropy(output: Tensor, target: Tensor, q: float) -> Tensor:
    """``sum_j y_j (1 - p_j^q) / q``: the mean absolute error at 1, the cross entropy towards 0 (Zhang and Sabuncu 2018,
    arXiv 1805.07836)."""
    return (target * -torch.expm1(q * log_softmax(output))).sum(dim=1) / q


def focal(output: Tensor, target: Tensor, gamma: float) -> Tensor:
    """``- sum_j y_j (1 - p_j)^gamma log p_j`` (Lin et al. 2017, arXiv 1708.02002, equation 4, over softmax)."""
    log_p = log_softmax(output)
    doubt = -torch.expm1(log_p)
    return -(target * doubt.clamp(min=1e-12) ** gamma * log_p).sum(dim=1)


def early_learning(output: Tensor, remembered: Tensor) -> Tensor:
    """``log(1 - <p, t>)``, the regulariser of early-learning regularisation (Liu et al. 2020, arXiv 2007.00151);
    ``remembered`` (N, C) is the moving average t of the samples' own predictions."""
    clamped = log_softmax(output).exp().clamp(1e-4, 1.0 - 1e-4)
    return torch.log1p(-(clamped * remembered).sum(dim=1))


def divergence(output: Tensor, other: Tensor) -> Tensor:
    """``KL(p || q)`` of the class probabilities p of ``output`` and q of ``other``, both (N, C, ...) logits."""
    log_p, log_q = log_softmax(output), log_softmax(other)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


# --- unequal classes: functions of ``counts``, the (C,) numbers of training samples of each class --------------------


def priors(counts: Tensor) -> Tensor:
    """(C,) shares of the classes, float64; a class without samples counts as one with one."""
    some = counts.to(torch.float64).clamp(min=1.0)
    return some / some.sum()


def class_balanced_weights(counts: Tensor, beta: float) -> Tensor:
    """(C,) weights ``(1 - beta) / (1 - beta^n)``, the inverse of the effective number of samples, of mean 1 (Cui et al.
    2019, arXiv 1901.05555); float64."""
    effective = 1.0 - beta ** counts.to(torch.float64).clamp(min=1.0)
    weights = (1.0 - beta) / effective
    return weights * len(weights) / weights.sum()


def margins(counts: Tensor, largest: float) -> Tensor:
    """(C,) margins proportional to ``n^(-1/4)``, the largest of which is ``largest`` (Cao et al. 2019, arXiv
    1906.07413); float64."""
    raw = counts.to(torch.float64).clamp(min=1.0) ** -0.25
    return raw * (largest / raw.max())


def require_pixels(output: Tensor, target: Tensor) -> None:
    """Raises ConfigError if ``output`` is not (N, C, *spatial) for masks (N, *spatial), or for their probabilities.

    Which networks have an output for each pixel is not known before they have given one.
    """
    axes = target.dim() if target.is_floating_point() else target.dim() + 1
    if output.dim() != axes:
        shapes = f"outputs of shape {tuple(output.shape)}, and the targets are masks of shape {tuple(target.shape)}"
        raise ConfigError(f"model: it has {shapes}; one with an output for each pixel is model=unet")
