"""Losses that make two views of a sample agree, without negative samples. Pure functions that return a loss for each
sample, of which the mean is minimised."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """(N,) ``1 - cos``, without a gradient into ``target``; both are (N, D).

    The loss of SimSiam is this less 1 (Chen and He 2021, arXiv 2011.10566, equation 1), that of BYOL twice this (Grill
    et al. 2020, arXiv 2006.07733, equation 2).
    """
    return 1.0 - F.cosine_similarity(prediction, target.detach(), dim=1)


def self_distillation(
    student: Tensor, teacher: Tensor, center: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """(N,) cross entropy of DINO, ``- sum_k P_t log P_s`` (Caron et al. 2021, arXiv 2104.14294, equation 2, with the
    teacher's output centred as in Algorithm 1), without a gradient into the teacher.

    Args:
        student, teacher: (N, K) logits of two different views of the same samples.
        center: (K,), subtracted from the teacher's logits.
        student_temperature, teacher_temperature: the temperatures of the logits.
    """
    target = ((teacher.detach() - center) / teacher_temperature).softmax(dim=1)
    return -(target * (student / student_temperature).log_softmax(dim=1)).sum(dim=1)
