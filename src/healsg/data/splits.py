"""Which samples are held out, kept, relabelled: pure functions of the samples' classes and a seed.

Every function takes (N,) int64 class indices and returns sorted int64 indices, or labels, on the CPU. Sampling is
stratified by class, and takes the first samples of a permutation of the class, so that a smaller selection is a subset
of a larger one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from healsg.seeding import generator, mix


def in_cases(choose: Callable[[Tensor], Tensor], layers: Tensor, cases: Tensor | None) -> Tensor:
    """(N,) bool: which samples are chosen if whole cases are, such as volumes whose slices are the samples.

    Args:
        choose: from the (C,) strata of the cases to the indices of the chosen cases.
        layers: (N,) int64, the stratum of each sample; that of a case is the stratum of its first sample.
        cases: (N,) int64, the case of each sample, 0 to C - 1 in order of occurrence; None if each sample is a case.
    """
    count = len(layers) if cases is None else int(cases.max()) + 1
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[choose(of_cases(layers, cases))] = True
    return chosen if cases is None else chosen[cases]


def of_cases(values: Tensor, cases: Tensor | None) -> Tensor:
    """(C,) the value of each case's first sample, of (N,) ``values``."""
    if cases is None:
        return values
    first = torch.full((int(cases.max()) + 1,), len(cases))
    first.scatter_reduce_(0, cases, torch.arange(len(cases)), "amin")
    return values[first]


def allot(counts: Tensor, total: int, at_least: int = 0) -> Tensor:
    """Distribute ``total`` over classes in proportion to ``counts``, by the largest remainder method.

    Args:
        counts: (C,) samples of each class.
        total: at most their sum.
        at_least: the minimum for each class that has that many samples.

    Returns:
        (C,) int64 amounts that add up to ``total``; each differs from its exact share by less than one, except for
        ``at_least``.
    """
    exact = counts.double() * total / counts.sum().clamp(min=1)
    amounts = exact.floor().long()
    missing = total - int(amounts.sum())
    amounts[(exact - amounts).argsort(descending=True, stable=True)[:missing]] += 1
    for label in ((amounts < at_least) & (counts >= at_least)).nonzero().flatten().tolist():
        while amounts[label] < at_least:
            amounts[label] += 1
            amounts[amounts.argmax()] -= 1
    return amounts


def choose(targets: Tensor, amounts: Tensor, seed: int, purpose: str) -> Tensor:
    """The sorted indices of ``amounts[k]`` random samples of each class ``k``."""
    chosen = [members(targets, label, seed, purpose)[:amount] for label, amount in enumerate(amounts.tolist())]
    return torch.cat(chosen).sort().values


def members(targets: Tensor, label: int, seed: int, purpose: str) -> Tensor:
    """The indices of the samples of class ``label``, in random order."""
    found = (targets == label).nonzero().flatten()
    return found[torch.randperm(len(found), generator=generator(seed, purpose, label))]


def fold_of(targets: Tensor, folds: int, seed: int) -> Tensor:
    """(N,) the fold of each sample, 0 to ``folds - 1``, stratified by class.

    The sizes of folds differ by at most one sample, and so do the numbers of samples of each class in them.
    """
    labels = torch.unique(targets).tolist()
    order = torch.cat([members(targets, label, seed, "fold") for label in labels])
    fold = torch.empty_like(targets)
    fold[order] = torch.arange(len(order)) % folds
    return fold


def side_of(targets: Tensor, groups: Tensor, shares: list[float], seed: int) -> Tensor:
    """(N,) the part that each sample is assigned to, such that no group is split and each part has about its share of
    each class.

    Groups are assigned from the largest to the smallest, in random order among equal sizes, each to the part whose
    class counts come closest to their desired values by it. No part stays empty if there are at least as many groups
    as parts.

    Args:
        targets: (N,) classes.
        groups: (N,) int64, any numbers.
        shares: the share of each part; they add up to 1.
        seed: of the order of groups of the same size.
    """
    _, group = torch.unique(groups, return_inverse=True)
    _, label = torch.unique(targets, return_inverse=True)
    table = torch.zeros(int(group.max()) + 1, int(label.max()) + 1, dtype=torch.float64)  # samples by group and class
    table.index_put_((group, label), torch.ones(len(group), dtype=torch.float64), accumulate=True)
    desired = torch.tensor(shares, dtype=torch.float64).unsqueeze(1) * table.sum(0)
    shuffled = torch.randperm(len(table), generator=generator(seed, "groups"))
    order = shuffled[table.sum(1)[shuffled].argsort(descending=True, stable=True)]
    filled = torch.zeros_like(desired)
    side = torch.zeros(len(table), dtype=torch.int64)
    for done, number in enumerate(order.tolist()):
        # The change of sum((filled - desired)**2 / class size) if the group is added to each of the parts.
        cost = ((2 * (filled - desired) + table[number]) * table[number] / table.sum(0)).sum(1)
        empty = filled.sum(1) == 0
        if len(order) - done <= int(empty.sum()):  # the remaining groups are needed for the empty parts
            cost[~empty] = torch.inf
        side[number] = cost.argmin()
        filled[side[number]] += table[number]
    return side[group]


def split_off(layers: Tensor, share: float, seed: int, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """The indices of the training samples, and of the ``share`` that becomes the test part; groups are not split."""
    seed = mix(seed, "test")
    if groups is None:
        return stratified_split(layers, share, seed)
    is_test = side_of(layers, groups, [1 - share, share], seed) == 1
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()


def long_tail(counts: Tensor, imbalance: float) -> Tensor:
    """(C,) amounts ``n_k = n_max * imbalance**(-k / (C - 1))`` (Cui et al. 2019, arXiv 1901.05555, section 5).

    Classes get smaller in their order; ``n_max`` is as large as the ``counts`` of all classes allow. Amounts are
    rounded down, to at least 1.
    """
    decay = imbalance ** -(torch.arange(len(counts), dtype=torch.float64) / max(1, len(counts) - 1))
    largest = ((counts + 1 - 1e-6) / decay).min().clamp(max=float(counts[0]))
    return (largest * decay + 1e-9).floor().long().clamp(min=1)


def flip_labels(targets: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """The labels with exactly ``round(share * N)`` of them replaced by another class, sampled uniformly."""
    counts = torch.bincount(targets, minlength=classes)
    chosen = choose(targets, allot(counts, round(share * len(targets))), seed, "noise")
    step = torch.randint(1, classes, (len(chosen),), generator=generator(seed, "noisy labels"))
    noisy = targets.clone()
    noisy[chosen] = (targets[chosen] + step) % classes
    return noisy


def confuse_labels(targets: Tensor, matrix: Tensor, seed: int) -> Tensor:
    """Labels with class ``i`` replaced by ``j`` for the share ``matrix[i, j]`` of its samples (largest remainder).

    Args:
        targets: (N,) classes.
        matrix: (C, C), each row of which adds up to 1.
        seed: selects the samples.
    """
    noisy = targets.clone()
    for label, row in enumerate(matrix):
        index = members(targets, label, seed, "noise")
        noisy[index] = torch.repeat_interleave(torch.arange(len(row)), allot(row, len(index)))
    return noisy


def balance(targets: Tensor, seed: int) -> Tensor:
    """Indices with repetitions, such that every class that has samples occurs as often as the largest one.

    All samples of a class occur equally often, up to one.
    """
    labels, counts = torch.unique(targets, return_counts=True)
    largest = int(counts.max())
    repeated = []
    for label in labels.tolist():
        index = members(targets, label, seed, "balanced")
        repeated.append(index.repeat(-(-largest // len(index)))[:largest])
    return torch.cat(repeated).sort().values


def strata(targets: Tensor) -> Tensor:
    """(N,) int64 strata for splits: the classes, the combinations of labels (those with fewer than ten samples form one
    stratum), or the deciles of a number, of the first one if there are several.

    Args:
        targets: (N,) class indices, (N, K) labels, or (N,) or (N, K) floating-point numbers.
    """
    if targets.dim() > 1 and targets.is_floating_point() and not bool(((targets == 0) | (targets == 1)).all()):
        targets = targets[:, 0]
    if targets.dim() > 1:
        _, layers, counts = torch.unique(targets, dim=0, return_inverse=True, return_counts=True)
        return torch.where(counts[layers] < 10, len(counts), layers)
    if targets.is_floating_point():
        return targets.argsort(stable=True).argsort() * 10 // max(1, len(targets))
    return targets


def stratified_split(targets: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split samples in two, stratified by class, as a pure function of ``seed``.

    Args:
        targets: (N,) class indices.
        fraction: the share of the second part; its size is ``round(fraction * N)``, distributed over the classes by
            the largest remainder method, so that it differs by less than one sample from the exact share of each class.

    Returns:
        The sorted indices of the first and of the second part.
    """
    classes, counts = torch.unique(targets, return_counts=True)
    exact = counts.double() * fraction
    share = exact.floor().long()
    missing = round(fraction * len(targets)) - int(share.sum())
    remainder = exact - share
    share[remainder.argsort(descending=True, stable=True)[:missing]] += 1
    held = []
    for label, amount in zip(classes.tolist(), share.tolist(), strict=True):
        members = (targets == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "split", int(label)))
        held.append(members[order[:amount]])
    second = torch.cat(held).sort().values
    first = torch.ones(len(targets), dtype=torch.bool)
    first[second] = False
    return first.nonzero().flatten(), second
