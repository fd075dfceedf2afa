"""Confident learning: which labels are likely wrong, by out-of-fold probabilities (Northcutt et al. 2021, arXiv
1911.00068, JAIR 70)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def thresholds(labels: Array, probabilities: Array) -> Array:
    """(C,) the mean probability of each class over the samples that are labelled with it; 1 for a class without any.

    Args:
        labels: (N,) the given class indices.
        probabilities: (N, C), each predicted by a network that was not trained on the sample.
    """
    classes = probabilities.shape[1]
    of_label = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, of_label, classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


def confident_classes(labels: Array, probabilities: Array) -> Array:
    """(N,) the class that each sample is confidently predicted as: the most probable of the classes whose probability
    reaches their threshold; -1 if none does. The arguments are those of ``thresholds``."""
    reached = probabilities >= thresholds(labels, probabilities) - 1e-9
    chosen = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), chosen, -1)


def joint_counts(labels: Array, probabilities: Array) -> Array:
    """(C, C) the estimated number of samples with each label (row) that are of each class (column).

    These are the counts of confident classes (the paper's confident joint), scaled such that each row adds up to the
    number of samples with its label. The arguments are those of ``thresholds``.
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

    The paper's pruning by noise rate: of the samples with label ``i``, the estimated number that are of class ``j`` is
    selected, namely those whose probability of ``j`` exceeds that of ``i`` the most. The arguments are those of
    ``thresholds``.
    """
    joint = joint_counts(labels, probabilities)
    wrong = np.zeros(len(labels), bool)
    for label in range(len(joint)):
        labelled = np.flatnonzero(labels == label)
        for other in range(len(joint)):
            margins = probabilities[labelled, other] - probabilities[labelled, label]
            count = round(joint[label, other]) if other != label else 0
            largest = np.argsort(-margins, kind="stable")[:count]
            wrong[labelled[largest[margins[largest] > 0]]] = True
    index = np.flatnonzero(wrong)
    return index[np.argsort(probabilities[index, labels[index]], kind="stable")]
