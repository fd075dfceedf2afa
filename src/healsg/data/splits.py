"""Which samples are held out, kept, relabelled: pure functions of the samples' classes and a seed.

Every function takes (N,) int64 class indices and gives sorted (N,) or shorter int64 indices, or labels, on the CPU.
Samples are drawn class by class, so that each class gives its share (stratified), and from a permutation of the class,
so that of two amounts the smaller is a part of the larger.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from healsg.seeding import generator, mix


def in_cases(choose: Callable[[Tensor], Tensor], layers: Tensor, cases: Tensor | None) -> Tensor:
    """(N,) bool: which samples are chosen where whole cases are, such as volumes of which samples are slices.

    Args:
        choose: from the (C,) layers of cases to the indices of those chosen.
        layers: (N,) int64, by which samples are shared evenly; a case has that of its first sample.
        cases: (N,) int64, the case of each sample, 0 to C - 1 in the order in which they come; None where each is one.
    """
    count = len(layers) if cases is None else int(cases.max()) + 1
    held = torch.zeros(count, dtype=torch.bool)
    held[choose(of_cases(layers, cases))] = True
    return held if cases is None else held[cases]


def of_cases(values: Tensor, cases: Tensor | None) -> Tensor:
    """(C,) what the first sample of each case has of (N,) ``values``."""
    if cases is None:
        return values
    first = torch.full((int(cases.max()) + 1,), len(cases))
    first.scatter_reduce_(0, cases, torch.arange(len(cases)), "amin")
    return values[first]


def allot(counts: Tensor, total: int, at_least: int = 0) -> Tensor:
    """Deal ``total`` to classes in proportion to ``counts`` by the largest remainder.

    Args:
        counts: (C,) samples of each class.
        total: at most their sum.
        at_least: what each class that has a sample gets before the others get more.

    Returns:
        (C,) int64 amounts that add up to ``total``; each within one of its exact share but for ``at_least``.
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
    """(N,) the fold of each sample, 0 to ``folds - 1``.

    Folds differ by at most one sample, as do the samples of a class in them.
    """
    labels = torch.unique(targets).tolist()
    order = torch.cat([members(targets, label, seed, "fold") for label in labels])
    fold = torch.empty_like(targets)
    fold[order] = torch.arange(len(order)) % folds
    return fold


def side_of(targets: Tensor, groups: Tensor, shares: list[float], seed: int) -> Tensor:
    """(N,) the side of each sample, such that no group is on two sides and each side has about its share of each class.

    The groups are assigned from the largest to the smallest, equal ones in random order, each to the side whose class
    counts it brings nearest to their targets. No side stays empty if there are at least as many groups as sides.

    Args:
        targets: (N,) classes.
        groups: (N,) int64, any numbers.
        shares: of each side; they add up to 1.
        seed: of the order of groups of one size.
    """
    _, group = torch.unique(groups, return_inverse=True)
    _, label = torch.unique(targets, return_inverse=True)
    table = torch.zeros(int(group.max()) + 1, int(label.max()) + 1, dtype=torch.float64)
    table.index_put_((group, label), torch.ones(len(group), dtype=torch.float64), accumulate=True)
    wanted = torch.tensor(shares, dtype=torch.float64).unsqueeze(1) * table.sum(0)
    shuffled = torch.randperm(len(table), generator=generator(seed, "groups"))
    order = shuffled[table.sum(1)[shuffled].argsort(descending=True, stable=True)]
    filled, side = torch.zeros_like(wanted), torch.zeros(len(table), dtype=torch.int64)
    for place, one in enumerate(order.tolist()):
        cost = ((2 * (filled - wanted) + table[one]) * table[one] / table.sum(0)).sum(1)
        empty = filled.sum(1) == 0
        if len(order) - place <= int(empty.sum()):  # as many groups are left as sides are empty
            cost[~empty] = torch.inf
        side[one] = cost.argmin()
        filled[side[one]] += table[one]
    return side[group]


def split_off(layers: Tensor, share: float, seed: int, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """The samples that stay for training and the ``share`` that becomes the test part, of ``groups`` whole ones."""
    seed = mix(seed, "test")
    if groups is None:
        return stratified_split(layers, share, seed)
    tested = side_of(layers, groups, [1 - share, share], seed) == 1
    return (~tested).nonzero().flatten(), tested.nonzero().flatten()


def long_tail(counts: Tensor, imbalance: float) -> Tensor:
    """(C,) amounts ``n_k = n_max * imbalance**(-k / (C - 1))`` (Cui et al. 2019, arXiv 1901.05555, section 5).

    Classes shrink in their order; ``n_max`` is as large as every class's count in ``counts`` allows. Rounded down, at
    least 1.
    """
    falls = imbalance ** -(torch.arange(len(counts), dtype=torch.float64) / max(1, len(counts) - 1))
    largest = ((counts + 1 - 1e-6) / falls).min().clamp(max=float(counts[0]))
    return (largest * falls + 1e-9).floor().long().clamp(min=1)


def flip_labels(targets: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """The labels with exactly ``round(share * N)`` of them replaced, each by another class chosen evenly."""
    counts = torch.bincount(targets, minlength=classes)
    chosen = choose(targets, allot(counts, round(share * len(targets))), seed, "noise")
    step = torch.randint(1, classes, (len(chosen),), generator=generator(seed, "noisy labels"))
    noisy = targets.clone()
    noisy[chosen] = (targets[chosen] + step) % classes
    return noisy


def confuse_labels(targets: Tensor, matrix: Tensor, seed: int) -> Tensor:
    """The labels of class ``i`` replaced by ``j`` for the share ``matrix[i, j]`` of its samples, by largest remainder.

    Args:
        targets: (N,) classes.
        matrix: (C, C), each row of which adds up to 1.
        seed: which samples.
    """
    noisy = targets.clone()
    for label, row in enumerate(matrix):
        found = members(targets, label, seed, "noise")
        noisy[found] = torch.repeat_interleave(torch.arange(len(row)), allot(row, len(found)))
    return noisy


def balance(targets: Tensor, seed: int) -> Tensor:
    """Indices with repeats, so that every class that has samples comes as often as the largest.

    All samples of a class come equally often, up to one.
    """
    labels, counts = torch.unique(targets, return_counts=True)
    most, repeated = int(counts.max()), []
    for label in labels.tolist():
        found = members(targets, label, seed, "balanced")
        repeated.append(found.repeat(-(-most // len(found)))[:most])
    return torch.cat(repeated).sort().values


def strata(targets: Tensor) -> Tensor:
    """(N,) int64 layers to be shared evenly: the classes, the combinations of labels (those of fewer than ten samples
    as one), or tenths of a number's range, of several numbers the first one's.

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
    """Split samples in two so that every class gives up the same share, as a pure function of ``seed``.

    Args:
        targets: (N,) class indices.
        fraction: the share of the second part; its size is ``round(fraction * N)``, divided among the classes by the
            largest remainder, so that it differs by less than one sample from the exact share in every class.

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
