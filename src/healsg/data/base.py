"""TaskData: which examples, in which splits; its ``info`` is what is known about them before any file is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from healsg.data.case import numbered
from healsg.data.fingerprint import Fingerprint, of_source
from healsg.data.info import DataInfo as DataInfo
from healsg.data.info import differing_classes
from healsg.data.loader import Loader, Transform
from healsg.data.masks import checked
from healsg.data.source import Batch, DatasetSource, Reading, Source, TensorSource
from healsg.data.splits import in_cases, stratified_split
from healsg.errors import ConfigError, DataError
from healsg.parts import copied, undefined
from healsg.paths import current_folder
from healsg.seeding import Draw, mix
from healsg.types import Count, Natural, NonNegative, Share

PROBED, TRIES = 8, 3
"""Samples whose views are compared before a run, and epochs whose draws are tried."""


@dataclass(frozen=True)
class Needs:
    """The data that a method needs: by stream, the views of each sample.

    ``Needs()`` is one stream of ``input`` and ``target``. With several streams a batch is a dict of such dicts.
    ``ratio`` is the size of a stream's batch as a multiple of ``data.batch_size``, by default 1. ``settings`` holds by
    view the settings that differ from the transform's; the transform must then be ``Adjustable``.
    """

    streams: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"labelled": ("input",)})
    ratio: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def flat(self) -> bool:
        """Whether a batch is one dict, not a dict of streams."""
        return list(self.streams) == ["labelled"]


@runtime_checkable
class Adjustable(Protocol):
    """A transform whose settings a method can change."""

    def adjusted(self, **settings: float) -> Transform: ...


@runtime_checkable
class Described(Protocol):
    """A transform that describes its preprocessing in evaluation as plain values; see ``DataInfo.preprocessing``."""

    def described(self) -> dict[str, Any]: ...


class TaskData:
    """A data set: its parts, its splits, its transforms. A subclass defines ``info``, ``read`` and ``transform``.

    Args:
        root: the folder that holds, or receives, the files of all data sets.
        batch_size: samples per forward pass, over all processes. An evaluation of small samples in memory takes up to
            eight times as many.
        workers: loader processes for data that are not in memory.
        val_fraction: the share of the training part that is used for validation if the set has no validation part,
            stratified by class; 0 uses the test part, as papers on CIFAR do.
        split_seed: the seed that selects these samples.
        drop_last: drop the samples at the end of an epoch that do not fill a whole update.
        on_error: ``raise`` stops at a sample that cannot be read, ``skip`` leaves it out of its batch. A training batch
            with too few readable samples is replaced by the first batch of the epoch that has enough.
        max_errors: different samples that may be skipped before the run stops.
        timeout: seconds without a batch from a loader process after which the run stops; 0 waits forever.
        prefetch: batches that each loader process keeps ready, at most 64.
        eval_batch_size: samples per forward pass of an evaluation, e.g. 1 for whole volumes of different sizes; with
            several processes each evaluates whole batches in turn. None is ``batch_size``, with each batch sharded.
        mirror: an https address that is tried first for published files, by their names. They are verified by the
            published size and checksum, as any download is.
    """

    repeatable: ClassVar[bool] = False
    """Whether reading uses no global random generator, so that the next job of a sweep may reuse what was read with the
    same settings. Each class declares this itself; an inherited value is ignored."""

    required: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "info": (),
        "read": ("stored", "source_of", "splits", "loaders"),
    }
    """What a subclass has to define. The methods beside a name are those that lead to its call: a subclass that
    overrides one of them need not define it."""

    constructed = False
    """Whether the constructor has been called, as that of a subclass has to."""

    def __init__(
        self,
        root: str = "data",
        batch_size: Count = 128,
        workers: Natural = 0,
        val_fraction: Share = 0.1,
        split_seed: Natural = 0,
        drop_last: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        max_errors: Natural = 100,
        timeout: NonNegative = 600.0,
        prefetch: Count = 2,
        eval_batch_size: Count | None = None,
        mirror: str | None = None,
    ) -> None:
        self.constructed = True
        if mirror is not None and not mirror.startswith("https://"):
            raise ConfigError(f"data.mirror: {mirror} is no https address, such as https://mirror.example/data/")
        if mirror is not None and "@" in mirror.removeprefix("https://").partition("/")[0]:
            raise ConfigError("data.mirror: an address with a user and a password cannot be opened; leave them out")
        self.mirror = mirror
        self.start = current_folder()
        """The directory that relative paths in the settings refer to, even if a task changes the current one later."""
        self.root = self.start / Path(root).expanduser()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.drop_last = drop_last
        self.reading = Reading(on_error, max_errors, timeout, prefetch)
        self.fingerprints: dict[str, Fingerprint] = {}
        """The files or tensors that each part was read from; see ``healsg.data.fingerprint``."""
        self.target_scale: dict[str, list[float]] = {}
        """For a regression, ``target_mean`` and ``target_std`` of the training samples, once they are split."""
        self._kept: dict[str, Source | None] = {}
        self._keeps = 0
        """The most bytes of samples that ``source_of`` keeps in memory; 0 keeps none."""

    @property
    def info(self) -> DataInfo:
        """What is known before the samples are read."""
        raise undefined("data", self, "info")

    def fitted(self) -> DataInfo:
        """``info`` with the preprocessing of evaluation, including what was fitted on the training samples.

        It is called after ``loaders`` has read them, and its result is saved with the weights.
        """
        transform = self.transform("input", "test")
        described: dict[str, Any] = transform.described() if isinstance(transform, Described) else {}
        return replace(self.info, preprocessing={**self.info.preprocessing, **described, **self.target_scale})

    def restored(self, saved: DataInfo) -> TaskData:
        """This data set with the classes and the fitted preprocessing of weights that were trained before.

        Args:
            saved: the result of ``fitted`` when the weights were trained.

        Raises:
            DataError: the classes differ, or their order does and this data set cannot change it.
        """
        if differing := differing_classes(saved, self.info):
            raise DataError(f"data: the weights were trained on {differing}")
        return self

    def read(self, part: str) -> Source | None:
        """The samples of ``train``, ``val`` or ``test`` as the set is published; None if it has no such part."""
        raise undefined("data", self, "read")

    def keep_parts(self, size: int) -> None:
        """Read each part once, up to ``size`` bytes in memory, for the next jobs of a sweep."""
        self._keeps = size

    def for_next_job(self) -> Self:
        """This data set for another job with the same settings: with the parts that were read, and a new record of
        unreadable samples."""
        return copied(self, {"reading": self.reading.anew()})

    def as_new(self, **changed: Any) -> Self:
        """A copy with changed attributes, and without cached properties and kept parts."""
        members = [member for kind in type(self).__mro__ for member in vars(kind).items()]
        cached = [name for name, value in members if isinstance(value, cached_property)]
        return copied(self, {"_kept": {}, **changed}, cached)

    def source_of(self, name: str) -> Source | None:
        """``stored`` of ``train``, ``val``, ``test`` or ``unlabelled``, kept in memory as ``keep_parts`` allows."""
        if name in self._kept:
            return self._kept[name]
        source = self.stored(name)
        if self._keeps and _size([*self._kept.values(), source]) <= self._keeps:
            self._kept[name] = source
        return source

    def stored(self, part: str) -> Source | None:
        """``read``, held in memory or in a cache if configured; also records the fingerprint of what was read."""
        source = self.read(part)
        if source is None:
            return None
        _require_source(source, f"{type(self).__name__}.read({part!r})")
        self.fingerprints[part] = of_source(source)
        return checked(source, self.info) if self.info.dense else source

    def sampled(self, source: Source) -> Source:
        """The training samples of a stream: those of ``source``, or patches of them."""
        return source

    def strata(self, source: Source) -> Tensor:
        """(N,) int64 stratum of each sample, for stratified splits: as the data set gives them, else the classes. All
        samples are in one stratum if targets are masks and the set gives none.

        Raises DataError if the classes are not known.
        """
        strata = source.about.strata if isinstance(source, (TensorSource, DatasetSource)) else None
        if strata is not None:
            return strata.cpu()
        if self.info.dense:
            return torch.zeros(len(source), dtype=torch.int64)
        if source.targets is None:
            raise DataError(f"{type(self).__name__}: data.val_fraction needs a class for each sample; set it to 0")
        return source.targets.cpu()

    def transform(self, view: str, split: str) -> Transform | None:
        """The transform from stored samples to ``view`` (``input``, ``weak``, ``strong``, ``view1``, ...) of ``split``.

        None leaves the samples as they are stored.
        """
        return None

    def splits(self) -> dict[str, Source]:
        """``train``, ``val`` and, if the set has one, ``test``."""
        train = self.source_of("train")
        val = self.source_of("val")
        test = self.source_of("test")
        if train is None or not len(train):
            raise DataError(f"{type(self).__name__}: the training part is empty")
        if val is None:
            train, val = self.hold_out(train)
        if self.info.kind == "regression" and train.targets is not None:
            self.target_scale = scale_of(train.targets)
        parts = {"train": train, "val": val if val is not None else test, "test": test}
        for split, source in parts.items():
            if source is not None and not len(source):
                way = "; a larger one leaves some" if split == "val" and self.val_fraction > 0 else ""
                raise DataError(f"data: the {split} part has no samples; data.val_fraction is {self.val_fraction}{way}")
        return {split: source for split, source in parts.items() if source is not None}

    def hold_out(self, train: Source) -> tuple[Source, Source | None]:
        """Split off the validation samples from the training samples; None if ``val_fraction`` is 0."""
        if not self.val_fraction:
            return train, None
        held_out = in_cases(
            lambda layers: stratified_split(layers, self.val_fraction, self.split_seed)[1],
            self.strata(train),
            case_numbers(train),
        )
        return train.subset((~held_out).nonzero().flatten()), train.subset(held_out.nonzero().flatten())

    def facts(self) -> dict[str, Any]:
        """Facts about the samples for ``run.json``, once they are split."""
        return {}

    @property
    def val_is_test(self) -> bool:
        """Whether the test part is also used for validation; recorded in ``run.json``."""
        return self.val_fraction == 0 and not self.has_val and self.has_test

    @property
    def has_val(self) -> bool:
        """Whether the set comes with a validation part."""
        return False

    @property
    def has_test(self) -> bool:
        """Whether the set comes with a test part."""
        return True

    def streams(self, needs: Needs, train: Source) -> dict[str, Source]:
        """The training samples of each stream that a method needs; a set with unlabelled samples overrides this."""
        if missing := set(needs.streams) - {"labelled"}:
            names = ", ".join(sorted(missing))
            raise ConfigError(f"data: {type(self).__name__} has no {names} samples; the method needs them")
        return {"labelled": train}

    def evaluation_loader(self, split: str) -> Loader:
        """The samples of one split, once each in their order, without randomness.

        If the training part is not available, a split that is a part of its own is read by itself.

        Raises:
            ConfigError: there is no such split.
            DataError: the samples cannot be read.
        """
        try:
            loaders = self.loaders(Needs())
        except DataError:
            source = self.source_of(split) if split != "train" else None
            if source is None or not len(source):
                raise
            return self._loader({"labelled": source}, Needs(), split)
        if split not in loaders:
            raise ConfigError(f"split: {split} is not one of {', '.join(loaders)}")
        return loaders[split].evaluation_view()

    def loaders(self, needs: Needs) -> dict[str, Loader]:
        """One loader per split; that of ``train`` yields the streams and views in ``needs``.

        If these do not include ``labelled``, the split ``bank`` holds the labelled training samples, once each and
        without augmentation, e.g. for a nearest-neighbour evaluation.
        """
        splits, loaders = self.splits(), {}
        if "labelled" not in needs.streams:
            splits["bank"] = splits["train"]
        for split, source in splits.items():
            training = split == "train"
            wanted = needs.streams if training else {"labelled": ("input",)}
            sources = self.streams(needs, source) if training else {"labelled": source}
            chosen = {stream: self.sampled(sources[stream]) if training else sources[stream] for stream in wanted}
            loaders[split] = self._loader(chosen, needs if training else Needs(), split)
        return loaders

    def _loader(self, sources: dict[str, Source], needs: Needs, split: str) -> Loader:
        """The loader of one split, after a check of its views."""
        training = split == "train"
        views = {stream: {view: self._view(view, split, needs) for view in needs.streams[stream]} for stream in sources}
        for stream, transforms in views.items():
            self._check_views(sources[stream], transforms)
        return Loader(
            sources,
            views,
            self.batch_size if training else self.eval_batch_size or self.batch_size,
            shuffle=training,
            drop_last=training and self.drop_last,
            workers=self.workers,
            flat=needs.flat,
            ratio=needs.ratio,
            reading=self.reading,
            eval_batch_size=self.eval_batch_size,
            spatial_targets=self.info.dense,
            whole_batches=not training and self.eval_batch_size is not None,
        )

    def _view(self, view: str, split: str, needs: Needs) -> Transform | None:
        """The transform of a view with the method's settings. Raises ConfigError if it has no settings."""
        transform: Any = self.transform(view, split)
        if not (settings := needs.settings.get(view)):
            return transform  # type: ignore[no-any-return]
        if not isinstance(transform, Adjustable):
            detail = f"{', '.join(settings)} are of crops and colours, which these samples' {view} has not"
            raise ConfigError(f"method: {detail}; leave them out")
        adjusted: Transform = transform.adjusted(**settings)
        return adjusted

    def _check_views(self, source: Source, transforms: Mapping[str, Transform | None]) -> None:
        """Raise ConfigError if two views of a sample are always identical, so that comparing them is useless.

        The first samples are read and transformed as in ``TRIES`` epochs.
        """
        views = list(transforms)
        if len(views) < 2:
            return
        raw: Batch = {}
        if any(transforms.values()):
            index = torch.arange(min(PROBED, len(source)))
            raw = source.fetch(index, self.reading) if isinstance(source, DatasetSource) else source.fetch(index)
            if "input" not in raw:  # none of them can be read
                return
        for first, second in pairwise(views):
            if same_views(raw, (first, transforms[first]), (second, transforms[second]), self.info.dense):
                way = "images take theirs from healsg.transforms.views, numbers from data.noise above 0"
                detail = f"{first} and {second} of each sample are the same, and the method compares them"
                raise ConfigError(
                    f"data: {type(self).__name__}: {detail}; let its transform change them at random ({way})"
                )


def _require_source(source: Any, name: str) -> None:
    """Raise DataError for samples that are no ``Source``.

    Args:
        source: the result of ``read``.
        name: the name of that call, for the message.
    """
    if not hasattr(source, "fetch") or not hasattr(source, "subset"):
        way = "return TensorSource(input, target), or DatasetSource(dataset)"
        raise DataError(f"{name}: returned {type(source).__name__}; {way}")
    if isinstance(source, TensorSource):
        held = next((part for part in (source.input, source.target) if not isinstance(part, Tensor)), None)
        if held is not None:
            way = "torch.from_numpy makes a tensor of an array"
            raise DataError(f"{name}: TensorSource holds {type(held).__name__}, not tensors; {way}")


def _size(sources: Sequence[Source | None]) -> int:
    """The size of the samples in memory, in bytes; a source that reads its samples one by one holds none."""
    return sum(source.input.nbytes + source.target.nbytes for source in sources if isinstance(source, TensorSource))


def same_views(
    raw: Batch, first: tuple[str, Transform | None], second: tuple[str, Transform | None], spatial_targets: bool = False
) -> bool:
    """Whether two views of the samples in ``raw`` never differ.

    Args:
        raw: the samples as they are stored.
        first, second: the name and the transform of each view.
        spatial_targets: whether the views share one geometric draw, which the targets follow.
    """
    if first[1] is None and second[1] is None:
        return True
    index = raw["index"]
    for epoch in range(TRIES):
        inputs = []
        for name, transform in (first, second):
            shared = Draw(mix(0, "views", epoch), index, mix(0, "views"), epoch) if spatial_targets else None
            draw = Draw(mix(0, "views", name, epoch), index, mix(0, "views", name), epoch, shared)
            inputs.append(transform(raw, draw)["input"] if transform else raw["input"])
        if inputs[0].shape != inputs[1].shape or not torch.equal(inputs[0], inputs[1]):
            return False
    return True


def scale_of(targets: Tensor) -> dict[str, list[float]]:
    """``target_mean`` and ``target_std`` of (N,) or (N, K) targets; the deviation of a constant one is set to 1."""
    numbers = targets.reshape(len(targets), -1).double().cpu()
    mean, std = numbers.mean(dim=0), numbers.std(dim=0, correction=0)
    varies = (numbers != numbers[0]).any(dim=0) & (std > 0)
    return {"target_mean": mean.tolist(), "target_std": torch.where(varies, std, 1.0).tolist()}


def case_numbers(source: Source) -> Tensor | None:
    """(N,) the number of each sample's case; None if every sample is a case of its own."""
    cases = source.about.cases if isinstance(source, (TensorSource, DatasetSource)) else None
    return None if cases is None else numbered(cases)


class KnownData(TaskData):
    """The data set that a checkpoint's weights were trained on, without samples.

    Args:
        info: the saved ``DataInfo``.
    """

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        self.known = info

    @property
    def info(self) -> DataInfo:
        return self.known

    def read(self, part: str) -> Source | None:
        raise DataError(f"data: the {part} part is not read where only the network of a run is wanted")
