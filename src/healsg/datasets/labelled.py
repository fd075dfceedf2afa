"""Base of data sets of labelled samples of any target: folds, groups, few labels, caching."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

import torch
from torch import Tensor

from healsg.data import splits
from healsg.data.base import Needs, TaskData, case_numbers
from healsg.data.cache import cached
from healsg.data.loader import Loader
from healsg.data.source import Source
from healsg.data.splits import stratified_split
from healsg.datasets.published.files import log
from healsg.datasets.targets.names import alike, shown
from healsg.datasets.targets.relabelled import unlabelled
from healsg.errors import ConfigError, DataError
from healsg.parts import defines
from healsg.types import Count, Excludes, Range


class LabelledData(TaskData):
    """Labelled samples, split in this order, by pure functions of ``split_seed``:

    1. the published parts;
    2. ``fold``, or else ``val_fraction``, holds out validation samples, with ``group`` whole groups of them;
    3. ``thinned`` leaves some of the rest out, such as for a long tail;
    4. ``labels`` or ``fraction`` say how many of these keep their labels: the stream ``labelled``. The stream
       ``unlabelled`` is all samples after step 3, and the set's own unlabelled ones.

    Where samples are parts of cases, whole cases are held out and keep their labels.

    Args:
        labels: training samples that keep their labels, stratified, at least one of each class.
        fraction: likewise, as a share of the training samples.
        fold: cross-validation, such as ``2/5``: validate on the second of five stratified folds of the training part.
        group: the name of groups (patients, scenes) that are not split between parts; the data set defines the names.
        in_memory: read each sample once and keep all as tensors in memory; an error if they do not fit.
        cache: cache the decoded samples in memory-mapped files below ``root``/cache, which later runs reuse.
        common: the arguments of TaskData.
    """

    repeatable = True

    def __init__(
        self,
        labels: Count | None = None,
        fraction: Annotated[float, Range(low=0, high=1, open_low=True), Excludes("labels")] | None = None,
        fold: str | None = None,
        group: str | None = None,
        in_memory: bool = False,
        cache: Annotated[bool, Excludes("in_memory")] = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.labels, self.fraction = labels, fraction
        self.fold, self.group = read_fold(fold), group
        self.in_memory, self.cache = in_memory, cache
        self._pool: Source | None = None
        """The training samples with and without labels, from ``splits`` to ``streams``."""
        self._facts: dict[str, Any] = {}
        self._drawn: list[bytes] = []
        """The choices of ``splits``, in order; ``split_digest`` is their hash."""
        if labels is not None and fraction is not None:
            raise ConfigError("data.fraction: data.labels says already how many labels are kept; leave one out")
        if (in_memory or cache) and self.reading.on_error == "skip":
            key = "in_memory" if in_memory else "cache"
            raise ConfigError(f"data.{key}: takes no broken samples; data.on_error=raise names them, to be removed")
        if in_memory and cache:
            raise ConfigError("data.cache: data.in_memory holds the samples already; leave one out")
        if group and not (self.fold or self.val_fraction):
            raise ConfigError("data.group: nothing is held out by groups; set data.val_fraction or data.fold")

    def groups(self, name: str, part: str = "train") -> Tensor | None:
        """(N,) int64 for the samples of ``part``, as ``read`` gives them: samples of one group have the same number.

        None if ``part`` has no such numbers. Raises ConfigError if the set has no groups of that ``name``.
        """
        raise ConfigError(f"data.group: {type(self).__name__} knows no groups, {name!r} neither; leave it out")

    @property
    def val_is_test(self) -> bool:
        return self.fold is None and super().val_is_test

    def check_options(self) -> None:
        """Refuse settings that contradict each other or the set, before samples are read. Raises ConfigError."""
        for key in ("fold", "group"):
            if getattr(self, key) and self.has_val:
                raise ConfigError(f"data.{key}: the set has a validation part of its own; leave it out")
        if self.group and not defines(self, LabelledData, "groups"):
            self.groups(self.group)  # raises the error now, and not once the samples are read

    def stored(self, part: str) -> Source | None:
        source = super().stored(part)
        if source is None or not (self.in_memory or self.cache):
            return source
        folder = self.root / "cache" if self.cache else None
        return cached(source, part, self.workers, self.reading, folder, self.info.dense)

    def thinned(self, train: Source) -> Source:
        """The training samples to use, of those that are not held out: by default all of them."""
        return train

    def labelled_anew(self, train: Source) -> Source:
        """The training samples with the labels used in training: by default their own."""
        return train

    def layers_of(self, source: Source, key: str) -> Tensor:
        """(N,) int64 a number from 0 on for each sample, of which ``labels`` keeps a share each: here its stratum.

        Raises DataError, naming ``data.key``, if there is none.
        """
        numbers: Tensor = torch.unique(self.strata(source), return_inverse=True)[1]
        return numbers

    def count_layers(self, layers: Tensor) -> Tensor:
        """How many samples or cases each of the layers has."""
        return torch.bincount(layers.long())

    def label_facts(self, train: Source) -> dict[str, Any]:
        """Facts of the labelled samples for ``run.json``, in addition to their number."""
        return {}

    def loaders(self, needs: Needs) -> dict[str, Loader]:
        for names in alike(self.info.class_names):
            log.warning("data: the classes %s differ only in how they are written; are they one class?", shown(names))
        return super().loaders(needs)

    def splits(self) -> dict[str, Source]:
        self.check_options()
        self._drawn = []
        parts = super().splits()
        self._pool = self.thinned(parts["train"])
        parts["train"] = self._keeping_labels(self.labelled_anew(self._pool))
        self._facts = {"labelled": len(parts["train"]), "unlabelled": len(self._pool)}
        if (cases := case_numbers(parts["train"])) is not None:
            self._facts["labelled_cases"] = int(cases.max()) + 1
        self._facts |= self.label_facts(parts["train"])
        for split, source in parts.items():  # also for a published split, where nothing was drawn
            self._drawn.append(f"{split} {len(source)}".encode())
            if source.targets is not None:
                self.record_draw(source.targets.cpu())
        self._facts["split_digest"] = hashlib.sha256(b"".join(self._drawn)).hexdigest()
        return parts

    def record_draw(self, chosen: Tensor) -> None:
        """Add the draw to ``split_digest``."""
        self._drawn.append(chosen.numpy().tobytes())

    def hold_out(self, train: Source) -> tuple[Source, Source | None]:
        if not (self.fold or self.val_fraction):
            return train, None
        layers, cases = splits.strata(self.strata(train)), case_numbers(train)
        by_case = self._held_groups(layers, self.group) if self.group else None
        held = splits.in_cases(self._held_cases, layers, cases) if by_case is None else by_case
        self.record_draw(held)
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
        """(N,) whether a sample's group is held out. Raises DataError if the published parts share a group."""
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

    def _keeping_labels(self, train: Source) -> Source:
        """The samples that keep their labels."""
        if (amounts := self.label_amounts(train)) is None:
            return train
        kept = splits.in_cases(
            lambda layers: splits.choose(layers, amounts, self.split_seed, "labels"),
            self.layers_of(train, "labels"),
            case_numbers(train),
        )
        chosen = kept.nonzero().flatten()
        self.record_draw(chosen)
        return train.subset(chosen)

    def label_amounts(self, train: Source) -> Tensor | None:
        """(L,) samples, or cases, of each of the layers that keep their labels; None if all do.

        Raises ConfigError for too many, or too few to give each one.
        """
        if self.labels is None and self.fraction is None:
            return None
        layers = splits.of_cases(self.layers_of(train, "labels"), case_numbers(train))
        counts = self.count_layers(layers)
        there = len(layers)
        amount = self.labels or max(1, round((self.fraction or 0.0) * there))
        if amount > there:
            raise ConfigError(f"data.labels: {amount}, but there are {there} training samples")
        if amount < (classes := int((counts > 0).sum())):
            raise ConfigError(
                f"data.fraction: {amount} of {there} samples for {classes} classes; give each at least one"
            )
        return splits.allot(counts, amount, at_least=1)

    def streams(self, needs: Needs, train: Source) -> dict[str, Source]:
        others = {name: views for name, views in needs.streams.items() if name != "unlabelled"}
        streams = super().streams(Needs(streams=others), train)
        if "unlabelled" in needs.streams:
            pool, more = train if self._pool is None else self._pool, self.source_of("unlabelled")
            streams["unlabelled"] = unlabelled(pool, more)
            if more is None and "labelled" in needs.streams and len(train) == len(pool):
                log.warning(
                    "data: every training sample keeps its label: the method's unlabelled samples are the same ones; "
                    "data.labels=N leaves N their labels"
                )
        self._pool = None  # a second copy, once the samples are on a device
        return streams

    def facts(self) -> dict[str, Any]:
        return {"samples": self._facts}


def read_fold(text: str | None) -> tuple[int, int] | None:
    """``2/5`` as (2, 5). Raises ConfigError for what is no fold."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    number, folds = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= folds or folds < 2:
        raise ConfigError(f"data.fold: {text!r} is no fold; 2/5 is the second of five")
    return number, folds
