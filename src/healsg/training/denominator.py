"""The denominator of a criterion: the number of samples, or whatever else its mean is divided by.

A criterion is a module called with ``(output, target)`` that returns a scalar. Most are means in which each sample
counts alike, so that accumulated batches, processes and the batches of an evaluation are weighted by their numbers of
samples. The others declare their denominator:

* ``nn.CrossEntropyLoss`` and ``nn.NLLLoss`` of class indices skip ``ignore_index`` and divide by the sum of the
  targets' class weights. With class probabilities they divide by the number of samples.
* A user's criterion may have a method ``denominator(output, target)`` that returns a number or 0-dimensional tensor.
* A sum of means with different denominators, such as Dice over samples plus cross entropy over the pixels that are not
  ignored, may have a method ``means(output, target)`` that returns a ``Loss`` of several terms.
* A loss that is no mean over samples, such as Dice summed over the whole batch, sets ``mean_over_samples = False``. It
  is computed for each batch on each process, and these values are averaged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.training.step import Loss, Mean

_BY_CLASS = (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward)


def mean_over_samples(criterion: Any) -> bool:
    """Whether a criterion is a mean to which each sample contributes independently of the others.

    It is what the criterion declares as ``mean_over_samples``. Otherwise ``reduction`` must be ``mean``, and MONAI's
    ``batch``, which sums over the samples before dividing, must not be set.
    """
    declared = getattr(criterion, "mean_over_samples", None)
    if declared is not None:
        return bool(declared)
    return getattr(criterion, "reduction", "mean") == "mean" and getattr(criterion, "batch", False) is not True


def weighs_classes(criterion: Any) -> bool:
    """Whether a criterion divides by the class weights of the targets that are not ignored, as two of torch's do.

    A subclass with a ``forward`` of its own declares it as ``divides_as_torch``.
    """
    own = getattr(type(criterion), "forward", None) in _BY_CLASS or getattr(criterion, "divides_as_torch", False)
    return own and criterion.reduction == "mean"


def ignored(criterion: Any, target: Tensor) -> Tensor | None:
    """(N, ...) bool: which class indices a criterion ignores; None where targets are probabilities or none can be."""
    if target.is_floating_point() or not weighs_classes(criterion):
        return None
    left_out: Tensor = target == criterion.ignore_index
    return left_out


def counts_alike(criterion: Any, targets: Tensor | None) -> bool:
    """Whether every sample counts alike, so that the number of samples is the denominator.

    Args:
        criterion: the criterion.
        targets: the targets of all samples; None where they are not known.
    """
    if not counts_alike_if_nonnegative(criterion):
        return False
    if not weighs_classes(criterion):
        return True
    if targets is None:
        return False
    return targets.is_floating_point() or not bool((targets == criterion.ignore_index).any())


def counts_alike_if_nonnegative(criterion: Any) -> bool:
    """The same for targets of which none is negative (``step.none_negative``): the ignored index may be negative."""
    if getattr(criterion, "denominator", None) is not None or getattr(criterion, "means", None) is not None:
        return False
    if not weighs_classes(criterion):
        return True
    # torch refuses class probabilities together with an ignore_index
    return criterion.weight is None and bool(criterion.ignore_index < 0)


def loss_over(criterion: Any, output: Tensor, target: Tensor, classes: Tensor | None = None) -> Loss:
    """``criterion(output, target)`` with its denominator; value and denominator are 0 where every target is ignored.

    Args:
        criterion: the criterion.
        output: the network's output.
        target: the target, as the criterion takes it.
        classes: the class indices from which label smoothing or mixing made ``target`` (class probabilities). The loss
            is then divided by the class weights of these indices, as torch's own label smoothing does.
    """
    given = target if classes is None else classes
    means = getattr(criterion, "means", None)
    if means is not None:
        several: Loss = means(output, target)
        return several
    own = getattr(criterion, "denominator", None)
    if own is not None:
        count = own(output, given)
        value = criterion(output, target)
        return Mean(torch.where(count > 0, value, 0.0) if isinstance(count, Tensor) else value, count)
    if given.is_floating_point() or not weighs_classes(criterion):
        return Mean(criterion(output, target))
    given = given.long()  # masks are held in bytes
    target = target if target.is_floating_point() else target.long()
    value = _sum(criterion, output, target)
    if criterion.weight is None:
        total = (given != criterion.ignore_index).sum()
        value = value / total.clamp(min=1)
    else:
        left_out = given == criterion.ignore_index
        total = criterion.weight[given.masked_fill(left_out, 0)].masked_fill(left_out, 0.0).sum()
        value = value / torch.where(total > 0, total, 1)  # weights of classes may be less than 1
    pixels = given[0].numel()  # dividing by it expresses the denominator in samples, whatever their size
    return Mean(value, total if pixels == 1 else total.to(value.dtype) / pixels)


def _sum(criterion: Any, output: Tensor, target: Tensor) -> Tensor:
    """The criterion with ``reduction="sum"``: the numerator of its mean."""
    if isinstance(criterion, nn.NLLLoss):
        return F.nll_loss(output, target, criterion.weight, ignore_index=criterion.ignore_index, reduction="sum")
    ignore_index = -100 if target.is_floating_point() else criterion.ignore_index
    smoothing = criterion.label_smoothing
    return F.cross_entropy(
        output, target, criterion.weight, ignore_index=ignore_index, reduction="sum", label_smoothing=smoothing
    )
