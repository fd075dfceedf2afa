"""What a criterion is a mean over: samples, or what it divides by in their place.

A criterion is a module called with ``(output, target)`` that returns a scalar. Most are means in which each sample
counts alike; accumulated batches, processes and batches of an evaluation are then weighed by their samples. Others say
what they divide by:

* ``nn.CrossEntropyLoss`` and ``nn.NLLLoss`` of class indices leave ``ignore_index`` out and divide by the sum of the
  targets' class weights. With class probabilities they divide by the number of samples.
* A criterion of one's own may have ``denominator(output, target)``, a number or 0-dimensional tensor.
* A sum of means over unlike things, such as Dice over samples and cross entropy over pixels that are not ignored, may
  have ``means(output, target)``, a ``Loss`` of several terms.
* What is no mean over samples at all, such as a Dice loss over the whole batch, has ``mean_over_samples = False``:
  each batch of each process has a loss of its own, and these are averaged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.training.step import Loss, Mean

_BY_CLASS = (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward)


def mean_over_samples(criterion: Any) -> bool:
    """Whether a criterion is a mean to which each sample contributes by itself: what it declares, else what its
    ``reduction`` says; MONAI's ``batch=True`` joins the samples of a batch before anything is divided."""
    declared = getattr(criterion, "mean_over_samples", None)
    if declared is not None:
        return bool(declared)
    return getattr(criterion, "reduction", "mean") == "mean" and getattr(criterion, "batch", False) is not True


def weighs_classes(criterion: Any) -> bool:
    """Whether a criterion is one of torch's that divide by the class weights of the targets that are not ignored, or a
    subclass that declares that it does so too (``divides_as_torch``)."""
    own = getattr(type(criterion), "forward", None) in _BY_CLASS or getattr(criterion, "divides_as_torch", False)
    return own and criterion.reduction == "mean"


def ignored(criterion: Any, target: Tensor) -> Tensor | None:
    """(N, ...) which of the class indices a criterion leaves out; None for targets of another kind."""
    if target.is_floating_point() or not weighs_classes(criterion):
        return None
    left_out: Tensor = target == criterion.ignore_index
    return left_out


def counts_alike(criterion: Any, targets: Tensor | None) -> bool:
    """Whether all samples count alike, so that nothing has to be counted.

    Args:
        targets: all targets that there are; None where they are not known.
    """
    if getattr(criterion, "denominator", None) is not None or getattr(criterion, "means", None) is not None:
        return False
    if not weighs_classes(criterion):
        return True
    if criterion.weight is not None or criterion.ignore_index >= 0 or targets is None:
        return False  # torch takes class probabilities with an ignored class not at all
    return targets.is_floating_point() or not bool((targets == criterion.ignore_index).any())


def loss_over(criterion: Any, output: Tensor, target: Tensor, classes: Tensor | None = None) -> Loss:
    """``criterion(output, target)`` with what it is a mean over; 0 over 0 where every target is ignored.

    Args:
        target: what the criterion takes.
        classes: the class indices from which ``target``, class probabilities, was made by smoothing or mixing. The
            loss is then divided by what it would be divided by for these, as torch's own label smoothing is.
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
    left_out = ignored(criterion, given)
    if left_out is None:
        return Mean(criterion(output, target))
    given = given.long()  # masks are held in bytes
    target = target if target.is_floating_point() else target.long()
    if criterion.weight is None:
        total = (~left_out).sum()
    else:
        total = criterion.weight[given.masked_fill(left_out, 0)].masked_fill(left_out, 0.0).sum()
    value = _sum(criterion, output, target) / torch.where(total > 0, total, 1)
    places = given[0].numel()  # of a sample, so that the count is in samples whatever their size
    return Mean(value, total if places == 1 else total.to(value.dtype) / places)


def _sum(criterion: Any, output: Tensor, target: Tensor) -> Tensor:
    """The sum of which the criterion is the mean."""
    if isinstance(criterion, nn.NLLLoss):
        return F.nll_loss(output, target, criterion.weight, ignore_index=criterion.ignore_index, reduction="sum")
    ignore_index = -100 if target.is_floating_point() else criterion.ignore_index
    smoothing = criterion.label_smoothing
    return F.cross_entropy(
        output, target, criterion.weight, ignore_index=ignore_index, reduction="sum", label_smoothing=smoothing
    )
