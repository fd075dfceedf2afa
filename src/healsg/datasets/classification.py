"""Classification: what all data sets of labelled samples offer: folds, groups, few, noisy, unequal or no labels."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

import torch
from torch import Tensor

from healsg.data import splits
from healsg.data.base import Needs, TaskData, case_numbers
from healsg.data.cache import hold
from healsg.data.loader import Loader
from healsg.data.source import Source
from healsg.data.splits import stratified_split
from healsg.datasets.files import log
from healsg.datasets.labels import alike, shown
from healsg.datasets.matrix import read_matrix
from healsg.datasets.sources import relabelled, unlabelled
from healsg.errors import ConfigError, DataError
from healsg.types import Count, Range, Share

LISTED_CLASSES = 100
"""Classes up to which ``run.json`` lists all counts; with more it has the smallest and the largest count."""


class Classification(TaskData):
    """Labelled samples, split and thinned in this order, by pure functions of ``split_seed``:

    1. the published parts;
    2. ``fold``, or else ``val_fraction``, holds out validation samples, with ``group`` whole groups of them;
    3. ``imbalance`` makes the rest a long tail;
    4. ``label_noise`` replaces labels of these; those of val and test stay as they are;
    5. ``labels``, ``labels_per_class`` or ``fraction`` say how many keep their labels: the stream ``labelled``. The
       stream ``unlabelled`` is all samples after step 3, and the set's own unlabelled ones;
    6. ``balanced`` repeats labelled samples of the smaller classes.

    Args:
        labels: training samples that keep their labels, stratified by class, at least one of each.
        labels_per_class: the same, as so many of each class.
        fraction: the same, as a share of the training samples.
        fold: such as ``2/5``: of five stratified folds of the training part the second is for validation.
        group: the name of groups (patients, scenes) of which none lies on two sides; what there is, the set tells.
        imbalance: samples of the largest class, the first, over those of the smallest, the last; exponential between.
        label_noise: the share of training labels that is replaced, each by another class chosen evenly; or a file
            (.csv, .json, .npy) with a matrix whose row i says what becomes of class i, and adds up to 1.
        balanced: draw all classes equally often, by repeating samples of the smaller ones.
        in_memory: read each sample once, and hold them all as tensors; refused where they would not fit.
        cache: the same in files below ``root``/cache that are mapped into memory, and found again by the next run.
        common: the arguments of TaskData.
    """

    repeatable = True

    def __init__(
        self,
        labels: Count | None = None,
        labels_per_class: Count | None = None,
        fraction: Annotated[float, Range(low=0, high=1, open_low=True)] | None = None,
        fold: str | None = None,
        group: str | None = None,
        imbalance: Annotated[float, Range(low=1)] | None = None,
        label_noise: Share | str = 0.0,
        balanced: bool = False,
        in_memory: bool = False,
        cache: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.labels = labels
        self.labels_per_class = labels_per_class
        self.fraction = fraction
        self.fold, self.group = read_fold(fold), group
        self.imbalance = imbalance
        self.label_noise = label_noise
        self.balanced = balanced
        self.in_memory, self.cache = in_memory, cache
        self._pool: Source | None = None
        self._facts: dict[str, Any] = {}
        self._drawn: list[bytes] = []
        """What ``splits`` chose, in order; ``split_digest`` is its hash."""
        given = [key for key in ("labels", "labels_per_class", "fraction") if getattr(self, key) is not None]
        if given[1:]:
            raise ConfigError(f"data.{given[1]}: data.{given[0]} says already how many labels are kept; leave one out")
        if (in_memory or cache) and self.reading.on_error == "skip":
            key = "in_memory" if in_memory else "cache"
            raise ConfigError(f"data.{key}: takes no broken samples; data.on_error=raise names them, to be removed")
        if in_memory and cache:
            raise ConfigError("data.cache: data.in_memory holds the samples already; leave one out")
        if group and not (self.fold or self.val_fraction):
            raise ConfigError("data.group: nothing is held out by groups; set data.val_fraction or data.fold")

    def groups(self, name: str, part: str = "train") -> Tensor | None:
        """(N,) int64 for the samples of ``part``, as ``read`` gives them: samples of one group have the same number.

        None where ``part`` has no such numbers. Raises ConfigError where the set has no groups of that ``name``.
        """
        raise ConfigError(f"data.group: {type(self).__name__} knows no groups, {name!r} neither; leave it out")

    @property
    def val_is_test(self) -> bool:
        return self.fold is None and super().val_is_test

    def check_options(self) -> None:
        """Refuse what contradicts itself or the set, before samples are read. Raises ConfigError."""
        for key in ("fold", "group"):
            if getattr(self, key) and self.has_val:
                raise ConfigError(f"data.{key}: the set has a validation part of its own; leave it out")
        if self.group and type(self).groups is Classification.groups:
            self.groups(self.group)
        info, labels = self.info, self.labels
        keys = ("labels", "labels_per_class", "fraction", "imbalance", "label_noise", "balanced")
        given = [key for key in keys if getattr(self, key)]
        if info.placed:  # whole cases keep their labels
            given = [key for key in given if key not in ("labels", "fraction")]
        if given and info.kind != "multiclass":
            raise ConfigError(f"data.{given[0]}: needs one class a sample, and these are {info.kind} targets")
        if labels is not None and labels < info.num_classes and not info.placed:
            raise ConfigError(f"data.labels: {labels} for {info.num_classes} classes; give each at least one")
        if (self.imbalance or self.label_noise) and info.num_classes < 2:
            raise ConfigError(f"data.{'imbalance' if self.imbalance else 'label_noise'}: there is one class only")

    def stored(self, part: str) -> Source | None:
        source = super().stored(part)
        if source is None or not (self.in_memory or self.cache):
            return source
        folder = self.root / "cache" if self.cache else None
        return hold(source, part, self.workers, self.reading, folder, self.info.placed)

    def explain_single_class(self) -> str:
        """The message where the training part has one class, and nothing to tell apart."""
        return f"data: {type(self).__name__}: the training part has one class alone; two are needed to tell apart"

    def loaders(self, needs: Needs) -> dict[str, Loader]:
        info = self.info
        if info.kind == "multiclass" and info.num_classes == 1 and "labelled" in needs.streams:
            raise DataError(self.explain_single_class())
        for names in alike(info.class_names):
            log.warning("data: the classes %s differ only in how they are written; are they one class?", shown(names))
        return super().loaders(needs)

    def splits(self) -> dict[str, Source]:
        self.check_options()
        self._drawn = []
        parts = super().splits()
        parts["train"] = self._label(self._thin(parts["train"]))
        for split, source in parts.items():  # also where the set comes split, so that nothing was drawn
            self._drawn.append(f"{split} {len(source)}".encode())
            if source.targets is not None:
                self._seen(source.targets.cpu())
        self._facts["split_digest"] = hashlib.sha256(b"".join(self._drawn)).hexdigest()
        return parts

    def hold_out(self, train: Source) -> tuple[Source, Source | None]:
        if not (self.fold or self.val_fraction):
            return train, None
        layers, cases = splits.strata(self.strata(train)), case_numbers(train)
        by_case = self._held_groups(layers, self.group) if self.group else None
        held = splits.in_cases(self._held_cases, layers, cases) if by_case is None else by_case
        self._seen(held)
        return train.subset((~held).nonzero().flatten()), train.subset(held.nonzero().flatten())

    def _held_cases(self, layers: Tensor) -> Tensor:
        """The indices of the cases that ``fold`` or ``val_fraction`` holds out, of their (C,) layers."""
        if not self.fold:
            return stratified_split(layers, self.val_fraction, self.split_seed)[1]
        number, folds = self.fold
        if folds > len(layers):
            raise ConfigError(f"data.fold: {folds} folds of {len(layers)} samples; take fewer")
        return (splits.fold_of(layers, folds, self.split_seed) == number - 1).nonzero().flatten()

    def _held_groups(self, layers: Tensor, name: str) -> Tensor:
        """(N,) whether a sample's group is held out. Raises DataError where the published parts share a group."""
        groups, tested = self.groups(name), self.groups(name, "test")
        if groups is None or len(groups) != len(layers):
            raise DataError(f"data.group: {name} is not known of each training sample")
        if tested is not None and bool(torch.isin(groups, tested).any()):
            raise DataError(f"data.group: a {name} of the test part is in the training part too; the set is split so")
        number, folds = self.fold or (2, 0)
        shares = [1 / folds] * folds if self.fold else [1 - self.val_fraction, self.val_fraction]
        if (found := len(set(groups.tolist()))) < len(shares):
            raise DataError(f"data.group: {found} {name} groups cannot lie on {len(shares)} sides")
        return splits.side_of(layers, groups, shares, self.split_seed) == number - 1

    def _thin(self, train: Source) -> Source:
        if self.imbalance:
            targets = self._classes(train, "imbalance")
            counts = self._counts(targets)
            amounts = splits.long_tail(counts, self.imbalance)
            if int(counts.min()) == 0 or int(amounts.max()) < 0.5 * self.imbalance * int(amounts.min()):
                detail = (
                    f"{self.imbalance:g} cannot be had of classes of {int(counts.min())} to {int(counts.max())} samples"
                )
                raise ConfigError(f"data.imbalance: {detail}; set less")
            chosen = splits.choose(targets, amounts, self.split_seed, "imbalance")
            self._seen(chosen)
            train = train.subset(chosen)
        return train

    def _label(self, train: Source) -> Source:
        """The samples that keep their labels, with the labels they have then."""
        self._pool = train
        if self.label_noise:
            targets = self._noisy(self._classes(train, "label_noise"))
            self._seen(targets)
            train = relabelled(train, targets)
        if (amounts := self._amounts(train)) is not None:
            kept = splits.in_cases(
                lambda layers: splits.choose(layers, amounts, self.split_seed, "labels"),
                self._classes(train, "labels"),
                case_numbers(train),
            )
            chosen = kept.nonzero().flatten()
            self._seen(chosen)
            train = train.subset(chosen)
        self._facts = {"labelled": len(train), "unlabelled": len(self._pool)}
        if (cases := case_numbers(train)) is not None:
            self._facts["labelled_cases"] = int(cases.max()) + 1
        if train.targets is not None and train.targets.dim() == 1 and not train.targets.is_floating_point():
            counts = self._counts(train.targets.cpu())
            few = len(counts) <= LISTED_CLASSES
            summary = {"least": int(counts.min()), "most": int(counts.max())}
            self._facts["labelled_per_class"] = counts.tolist() if few else summary
            self._report_empty(counts)
        return train

    def _report_empty(self, counts: Tensor) -> None:
        """Say which classes have no labelled training sample, so that none of them can be learned."""
        names = self.info.class_names
        empty = [names[label] if names else str(label) for label in (counts == 0).nonzero().flatten().tolist()]
        if empty:
            log.warning(
                "data: %d of %d classes have no training sample left: %s; a smaller data.val_fraction holds out fewer",
                *(len(empty), len(counts), shown(empty)),
            )

    def _noisy(self, targets: Tensor) -> Tensor:
        classes = self.info.num_classes
        if isinstance(self.label_noise, str):
            matrix = read_matrix(self.label_noise, classes, (self.start, self.root))
            return splits.confuse_labels(targets, matrix, self.split_seed)
        return splits.flip_labels(targets, self.label_noise, classes, self.split_seed)

    def _amounts(self, train: Source) -> Tensor | None:
        """(C,) samples, or cases, of each class that keep their labels; None where all do.

        Raises ConfigError for too many.
        """
        if self.labels is None and self.labels_per_class is None and self.fraction is None:
            return None
        layers = splits.of_cases(self._classes(train, "labels"), case_numbers(train))
        counts = self._counts(layers)
        each = self.labels_per_class
        there = len(layers)
        if each is not None:
            if each > int(counts.min()):
                raise ConfigError(f"data.labels_per_class: {each}, but class {int(counts.argmin())} has {counts.min()}")
            return torch.full_like(counts, each)
        wanted = self.labels or max(1, round((self.fraction or 0.0) * there))
        if wanted > there:
            raise ConfigError(f"data.labels: {wanted}, but there are {there} training samples")
        if wanted < (classes := int((counts > 0).sum())):
            raise ConfigError(
                f"data.fraction: {wanted} of {there} samples for {classes} classes; give each at least one"
            )
        return splits.allot(counts, wanted, at_least=1)

    def streams(self, needs: Needs, train: Source) -> dict[str, Source]:
        others = {name: views for name, views in needs.streams.items() if name != "unlabelled"}
        streams = super().streams(Needs(streams=others), train)
        if self.balanced and "labelled" not in needs.streams:
            raise ConfigError("data.balanced: the method learns without labels; leave it out")
        if self.balanced:
            chosen = splits.balance(self._classes(train, "balanced"), self.split_seed)
            streams["labelled"] = train.subset(chosen)
        if "unlabelled" in needs.streams:
            pool, more = train if self._pool is None else self._pool, self.stored("unlabelled")
            streams["unlabelled"] = unlabelled(pool, more)
            if more is None and "labelled" in needs.streams and len(train) == len(pool):
                log.warning(
                    "data: every training sample keeps its label: the method's unlabelled samples are the same ones; "
                    "data.labels=N leaves N their labels"
                )
        self._pool = None  # a second copy, once the samples lie on a device
        return streams

    def facts(self) -> dict[str, Any]:
        return {"samples": self._facts}

    def _classes(self, source: Source, key: str) -> Tensor:
        targets = source.targets
        if targets is None or targets.dim() != 1 or targets.is_floating_point():
            raise DataError(f"data.{key}: {type(self).__name__} does not tell one class a sample; leave it out")
        return targets.cpu().long()

    def _counts(self, targets: Tensor) -> Tensor:
        return torch.bincount(targets.long(), minlength=self.info.num_classes)

    def _seen(self, chosen: Tensor) -> None:
        self._drawn.append(chosen.numpy().tobytes())


def read_fold(text: str | None) -> tuple[int, int] | None:
    """``2/5`` as (2, 5). Raises ConfigError for what is no fold."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    number, folds = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= folds or folds < 2:
        raise ConfigError(f"data.fold: {text!r} is no fold; 2/5 is the second of five")
    return number, folds
