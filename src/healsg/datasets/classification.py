"""Classification: base of all data sets whose samples have a class, several labels or numbers."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from healsg.data import splits
from healsg.data.base import Needs, case_numbers
from healsg.data.loader import Loader
from healsg.data.source import Source
from healsg.datasets.labelled import LabelledData
from healsg.datasets.published.files import log
from healsg.datasets.targets.matrix import read_matrix
from healsg.datasets.targets.names import shown
from healsg.datasets.targets.relabelled import relabelled
from healsg.errors import ConfigError, DataError
from healsg.types import Count, Excludes, Range, Share

LISTED_CLASSES = 100
"""Most classes for which ``run.json`` lists all counts; with more it has the smallest and the largest count."""


class Classification(LabelledData):
    """Labelled samples, split and thinned in this order, by pure functions of ``split_seed``:

    1. the published parts; 2. ``fold``, or else ``val_fraction``, holds out validation samples, with ``group`` whole
    groups of them; 3. ``imbalance`` makes the rest a long tail; 4. ``label_noise`` replaces labels of these; those of
    val and test stay unchanged; 5. ``labels``, ``labels_per_class`` or ``fraction`` say how many keep their labels: the
    stream ``labelled``. The
       stream ``unlabelled`` is all samples after step 3, and the set's own unlabelled ones;
    6. ``balanced`` repeats labelled samples of the smaller classes.

    Args:
        labels_per_class: number of training samples of each class that keep their labels.
        imbalance: samples of the largest class, the first, over those of the smallest, the last; exponential between.
        label_noise: the share of training labels that is replaced, each by another class drawn uniformly; or a file
            (.csv, .json, .npy) with a transition matrix, whose row i holds the probabilities of the new class for class
            i.
        balanced: sample all classes equally often, by repeating samples of smaller ones.
        common: the arguments of LabelledData.
    """

    repeatable = True

    def __init__(
        self,
        labels_per_class: Annotated[Count, Excludes("labels"), Excludes("fraction")] | None = None,
        imbalance: Annotated[float, Range(low=1)] | None = None,
        label_noise: Share | str = 0.0,
        balanced: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.labels_per_class = labels_per_class
        self.imbalance = imbalance
        self.label_noise = label_noise
        self.balanced = balanced
        for key in ("labels", "fraction"):
            if labels_per_class is not None and getattr(self, key) is not None:
                raise ConfigError(
                    f"data.labels_per_class: data.{key} says already how many labels are kept; leave one out"
                )

    def check_options(self) -> None:
        super().check_options()
        info, labels = self.info, self.labels
        keys = ("labels", "labels_per_class", "fraction", "imbalance", "label_noise", "balanced")
        given = [key for key in keys if getattr(self, key)]
        if given and info.kind != "multiclass":
            raise ConfigError(f"data.{given[0]}: needs one class a sample, and these are {info.kind} targets")
        if labels is not None and labels < info.num_classes:
            raise ConfigError(f"data.labels: {labels} for {info.num_classes} classes; give each at least one")
        if (self.imbalance or self.label_noise) and info.num_classes < 2:
            raise ConfigError(f"data.{'imbalance' if self.imbalance else 'label_noise'}: there is one class only")

    def explain_single_class(self) -> str:
        """The error message for a training part with a single class."""
        return f"data: {type(self).__name__}: the training part has one class alone; two are needed to tell apart"

    def loaders(self, needs: Needs) -> dict[str, Loader]:
        info = self.info
        if info.kind == "multiclass" and info.num_classes == 1 and "labelled" in needs.streams:
            raise DataError(self.explain_single_class())
        return super().loaders(needs)

    def thinned(self, train: Source) -> Source:
        if not self.imbalance:
            return train
        targets = self.layers_of(train, "imbalance")
        counts = self.count_layers(targets)
        amounts = splits.long_tail(counts, self.imbalance)
        if int(counts.min()) == 0 or int(amounts.max()) < 0.5 * self.imbalance * int(amounts.min()):
            sizes = f"classes of {int(counts.min())} to {int(counts.max())} samples"
            raise ConfigError(f"data.imbalance: {self.imbalance:g} cannot be had of {sizes}; set less")
        chosen = splits.choose(targets, amounts, self.split_seed, "imbalance")
        self.record_draw(chosen)
        return train.subset(chosen)

    def labelled_anew(self, train: Source) -> Source:
        if not self.label_noise:
            return train
        targets = self._noisy(self.layers_of(train, "label_noise"))
        self.record_draw(targets)
        return relabelled(train, targets)

    def _noisy(self, targets: Tensor) -> Tensor:
        classes = self.info.num_classes
        if isinstance(self.label_noise, str):
            matrix = read_matrix(self.label_noise, classes, (self.start, self.root))
            return splits.confuse_labels(targets, matrix, self.split_seed)
        return splits.flip_labels(targets, self.label_noise, classes, self.split_seed)

    def label_amounts(self, train: Source) -> Tensor | None:
        each = self.labels_per_class
        if each is None:
            return super().label_amounts(train)
        counts = self.count_layers(splits.of_cases(self.layers_of(train, "labels_per_class"), case_numbers(train)))
        if each > int(counts.min()):
            raise ConfigError(f"data.labels_per_class: {each}, but class {int(counts.argmin())} has {counts.min()}")
        return torch.full_like(counts, each)

    def label_facts(self, train: Source) -> dict[str, Any]:
        if train.targets is None or train.targets.dim() != 1 or train.targets.is_floating_point():
            return {}
        counts = self.count_layers(train.targets.cpu())
        self._report_empty(counts)
        if len(counts) <= LISTED_CLASSES:
            return {"labelled_per_class": counts.tolist()}
        return {"labelled_per_class": {"least": int(counts.min()), "most": int(counts.max())}}

    def _report_empty(self, counts: Tensor) -> None:
        """Warn about classes without a labelled training sample, which cannot be learned."""
        names = self.info.class_names
        empty = [names[label] if names else str(label) for label in (counts == 0).nonzero().flatten().tolist()]
        if empty:
            log.warning(
                "data: %d of %d classes have no training sample left: %s; a smaller data.val_fraction holds out fewer",
                *(len(empty), len(counts), shown(empty)),
            )

    def streams(self, needs: Needs, train: Source) -> dict[str, Source]:
        if self.balanced and "labelled" not in needs.streams:
            raise ConfigError("data.balanced: the method learns without labels; leave it out")
        streams = super().streams(needs, train)
        if self.balanced:
            chosen = splits.balance(self.layers_of(train, "balanced"), self.split_seed)
            streams["labelled"] = train.subset(chosen)
        return streams

    def layers_of(self, source: Source, key: str) -> Tensor:
        """(N,) int64 the class of each sample. Raises DataError if a sample does not have exactly one class."""
        targets = source.targets
        if targets is None or targets.dim() != 1 or targets.is_floating_point():
            raise DataError(f"data.{key}: {type(self).__name__} does not tell one class a sample; leave it out")
        return targets.cpu().long()

    def count_layers(self, layers: Tensor) -> Tensor:
        """(C,) how many samples each class has."""
        return torch.bincount(layers.long(), minlength=self.info.num_classes)
