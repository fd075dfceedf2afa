"""Confident learning: which labels are likely wrong, by out-of-fold probabilities (Northcutt et al. 2021, arXiv
1911.00068, JAIR 70)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def thresholds(labels: Array, probabilities: Array) -> Array:
    """(C,) the mean probability of each class over the samples that are labelled with it; 1 of a class without any.

    Args:
        labels: (N,) class indices, as they are given.
        probabilities: (N, C), each of a network that was not trained on the sample.
    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, own, classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


def confident_classes(labels: Array, probabilities: Array) -> Array:
    """(N,) the class of which each sample is confidently one: the most probable of those whose probability reaches
    their threshold; -1 where none does. The arguments are those of ``thresholds``."""
    reached = probabilities >= thresholds(labels, probabilities) - 1e-9
    chosen = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), chosen, -1)


def joint_counts(labels: Array, probabilities: Array) -> Array:
    """(C, C) how many samples with each label (row) are estimated to be of each class (column).

    The counts of those that are confidently of a class (the paper's confident joint), scaled such that each row adds
    up to the samples with its label. The arguments are those of ``thresholds``.
    """
    classes = probabilities.shape[1]
    confident = confident_classes(labels, probabilities)
    known = confident >= 0
    joint = np.bincount(labels[known] * classes + confident[known], minlength=classes**2).reshape(classes, classes)
    sums = joint.sum(axis=1, keepdims=True)
    counts = np.bincount(labels, minlength=classes)[:, None]
    scaled: Array = np.where(sums > 0, joint * counts / np.maximum(sums, 1), np.diag(counts[:, 0]))
    return scaled


def candidates(labels: Array, probabilities: Array) -> Array:
    """The indices of samples whose labels are likely wrong, the least probable label first.

    The paper's pruning by noise rate: of the samples with label ``i``, as many as are estimated to be of class ``j``
    are taken for it, those whose probability of ``j`` exceeds that of ``i`` the most. The arguments are those of
    ``thresholds``.
    """
    joint = joint_counts(labels, probabilities)
    wrong = np.zeros(len(labels), bool)
    for label in range(len(joint)):
        own = np.flatnonzero(labels == label)
        for other in range(len(joint)):
            margins = probabilities[own, other] - probabilities[own, label]
            most = round(joint[label, other]) if other != label else 0
            first = np.argsort(-margins, kind="stable")[:most]
            wrong[own[first[margins[first] > 0]]] = True
    found = np.flatnonzero(wrong)
    return found[np.argsort(probabilities[found, labels[found]], kind="stable")]
