"""Where samples come from: tensors in memory, or a map-style data set read sample by sample."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate

from healsg.data.case import Case
from healsg.data.generators import generators_of
from healsg.data.joining import FIELDS, odd_one
from healsg.errors import DataError, HealsgError
from healsg.parts import copied
from healsg.seeding import Draw

log = logging.getLogger("healsg")

Batch = dict[str, Any]
Collate = Callable[[list[Any]], Any]
Check = Callable[[Batch, int], None]
"""Checks a sample, given with its index in its data set. Raises DataError, whose message may start with the file."""
Windows = Sequence[Sequence[float]]
"""For each sample the numbers in [0, 1) that select a part of it; the data set defines their meaning."""


@dataclass
class Reading:
    """The settings for reading a task's samples, and a record of the reading in this process.

    Args:
        on_error, max_errors, timeout, prefetch: the arguments of ``TaskData``.
    """

    on_error: Literal["raise", "skip"] = "raise"
    max_errors: int = 100
    timeout: float = 600.0
    prefetch: int = 2
    skipped: dict[tuple[int, int], str] = field(default_factory=dict)
    """The reasons why samples were skipped, by the id of their data set and their index."""
    broken: dict[int, tuple[int, str]] = field(default_factory=dict)
    """The samples of the last batch that could not be read: by position in the batch, their index and the message."""
    at: Any = field(default_factory=lambda: [0, -1, 0])
    """The sample that is being read: the number of the stream, the index in its data set, and the number of further
    samples in the same call. In a worker this is memory that its parent reads, to name the sample if the worker is
    lost."""
    remarks: dict[str, bool] = field(default_factory=dict)
    """Remarks about the files for the user, and whether each was logged."""
    sent: set[str] = field(default_factory=set)
    """The remarks that a worker has sent to its parent."""

    def of_loader(self, timeout: float, prefetch: int | None) -> Reading:
        """The same with a loader's own timeout and prefetch factor, if it has them."""
        return replace(self, timeout=timeout or self.timeout, prefetch=prefetch or self.prefetch)

    def anew(self) -> Reading:
        """The same settings, with nothing read so far."""
        return Reading(self.on_error, self.max_errors, self.timeout, self.prefetch)

    def begin(self, stream: int) -> None:
        """Called before a batch of stream number ``stream`` is read."""
        self.at[0] = stream
        self.broken = {}

    def begin_fetch(self) -> None:
        """Called before samples of the stream are read in one call."""
        self.broken = {}
        self.at[2] = 0

    def write_to(self, at: Any) -> None:
        """Record the sample that is being read in ``at`` from now on, memory that is shared with another process."""
        self.at = at

    def skip(self, sample: tuple[int, int], message: str) -> None:
        """Log, once, that a sample is skipped. Raises DataError if there are too many."""
        if sample not in self.skipped:
            self.skipped[sample] = message
            if len(self.skipped) > self.max_errors:
                raise DataError(f"data.max_errors: more than {self.max_errors} samples cannot be read; {message}")
            log.warning("left out: %s", message)

    def remark(self, text: str) -> None:
        """Record a data set's remark about a sample, e.g. its orientation, until it is logged."""
        self.remarks.setdefault(text, False)

    def new_remarks(self) -> list[str]:
        """The remarks since the last call, in this process."""
        found = [text for text in self.remarks if text not in self.sent]
        self.sent.update(found)
        return found

    def report(self, remarks: Sequence[str]) -> None:
        """Log each remark once; called in the run's own process."""
        for text in remarks:
            if not self.remarks.get(text):
                self.remarks[text] = True
                log.info("data: %s", text)


class Source(Protocol):
    """Samples by index. ``targets`` are the labels if they are known without reading the samples, as splits need."""

    @property
    def targets(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def fetch(self, index: Tensor, *, draw: Draw | None = None) -> Batch:
        """The batch of the samples at ``index`` ((N,) int64): ``input``, ``target`` and ``index``.

        Args:
            draw: the samples' random numbers in this epoch, e.g. for the position of a patch in a volume; None if
                nothing is random. A sample is then a pure function of (seed, epoch, index).
        """

    def subset(self, index: Tensor) -> Source:
        """Only the samples at ``index``, renumbered from 0."""


class Files:
    """The files of N samples, which may be a part of a data set.

    Args:
        paths: of all samples of the data set.
        indices: (N,) int64, the indices of the N samples; None for all.
    """

    def __init__(self, paths: Sequence[str], indices: Tensor | None = None) -> None:
        self.paths = paths
        self.indices = indices

    def __getitem__(self, index: int) -> str:
        return line(str(self.paths[index if self.indices is None else int(self.indices[index])]))

    def of(self, index: Tensor) -> Files:
        """The files of the samples at ``index``."""
        return Files(self.paths, index.cpu() if self.indices is None else self.indices[index.cpu()])


@dataclass(frozen=True)
class About:
    """Facts about the N samples of a source besides inputs and targets; each is None if it is not known.

    Args:
        cases: for each sample its name, patient and geometry. Samples with the same name are parts of one case, such as
            the slices of a volume, and are not separated by a split.
        strata: (N,) int64 strata for stratified splits, for samples without a class each.
        hidden: (N,) int64 classes of unlabelled samples, -1 if unknown. No batch contains them: they are compared with
            pseudo-labels after the training (``training.pseudo_labels``).
        files: the files of samples that are held in memory or in a cache.
    """

    cases: Sequence[Case] | None = None
    strata: Tensor | None = None
    hidden: Tensor | None = None
    files: Files | None = None

    def of(self, index: Tensor) -> About:
        """The facts about the samples at ``index``."""
        places = index.tolist()
        cases = None if self.cases is None else [self.cases[place] for place in places]
        strata, hidden = (None if one is None else one[index.cpu()] for one in (self.strata, self.hidden))
        return About(cases, strata, hidden, None if self.files is None else self.files.of(index))

    def added(self, batch: Batch) -> Batch:
        """A batch with the ``case`` of each of its samples, by their ``index``."""
        if self.cases is not None and "case" not in batch:
            batch["case"] = [self.cases[place] for place in batch["index"].tolist()]
        return batch


UNKNOWN = About()


class UnlikeSizesError(DataError):
    """Samples cannot be joined into one batch because their sizes differ.

    Args:
        message: for a training run, which cannot use them.
        batches: each sample as a batch of its own, for an evaluation.
    """

    def __init__(self, message: str, batches: list[Batch]) -> None:
        super().__init__(message)
        self.batches = batches


class OddSampleError(DataError):
    """One sample cannot be joined with its batch, whose other samples agree with each other.

    Args:
        message: the sample and the reason.
        place: its position in the batch.
    """

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


class TensorSource:
    """Samples held as tensors, batched by one gather: ``input`` (N, ...), images as uint8; ``target`` (N, ...).

    Args:
        input: the inputs.
        target: the targets.
        joinable: whether an evaluation may join small batches. The size of a batch changes a network's outputs in the
            eighth digit, so it is False for samples that are in memory only by the user's choice (``data.in_memory``).
        about: further facts about the samples.
    """

    def __init__(self, input: Tensor, target: Tensor, joinable: bool = True, about: About = UNKNOWN) -> None:
        if len(input) != len(target):
            raise DataError(f"{len(input)} inputs do not go with {len(target)} targets")
        self.input = input
        self.target = target
        self.targets = target
        self.joinable = joinable
        self.about = about

    def __len__(self) -> int:
        return len(self.input)

    def fetch(self, index: Tensor, *, draw: Draw | None = None) -> Batch:
        batch = {"input": self.input[index], "target": self.target[index], "index": index}
        return self.about.added(batch)

    def sample(self, index: int, draw: Draw | None = None) -> Batch:
        """One sample, not joined to a batch and not copied."""
        return {"input": self.input[index], "target": self.target[index]}

    def subset(self, index: Tensor) -> TensorSource:
        return TensorSource(self.input[index], self.target[index], self.joinable, self.about.of(index))

    def fits(self, device: torch.device) -> bool:
        """Whether the samples take at most half of the free memory of ``device``."""
        wanted = self.input.nbytes + self.target.nbytes
        return device.type != "cuda" or wanted <= torch.cuda.mem_get_info(device)[0] // 2

    def to(self, device: torch.device) -> TensorSource:
        """The same samples on ``device``."""
        return TensorSource(self.input.to(device), self.target.to(device), self.joinable, self.about)


class DatasetSource:
    """Samples of a map-style data set, joined by a collate function.

    A data set that draws random numbers as it reads is seeded for each sample: if it has a method
    ``drawn(index, draw)``, that gets the sample's random numbers; if its transforms have their own generators (MONAI's,
    albumentations', a ``numpy.random.Generator``), these are seeded before each sample is read.

    Args:
        dataset: anything with ``__len__`` and ``__getitem__`` that yields ``(input, target)``, ``(input, target,
            extra)`` or a dict with those names.
        collate: joins a list of samples into a batch; None is torch's ``default_collate``.
        targets: (N,) class indices, if they are known without reading the samples.
        indices: (N,) int64, which samples of the data set are meant; all where it is None.
        about: further facts about these samples.
        check: called for each sample when a process first reads it; raises DataError.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Collate | None = None,
        targets: Tensor | None = None,
        indices: Tensor | None = None,
        about: About = UNKNOWN,
        check: Check | None = None,
    ) -> None:
        self.dataset = dataset
        self.collate = stacked if collate in (None, default_collate) else collate
        self.targets = targets
        self.indices = indices
        self.about = about
        self.check = check
        self.generators = generators_of(dataset)
        self.checked: set[int] = set()

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    @property
    def numbers(self) -> Sequence[int]:
        """The indices of all samples in the data set."""
        return range(len(self)) if self.indices is None else self.indices.tolist()

    def fetch(
        self,
        index: Tensor,
        reading: Reading | None = None,
        *,
        draw: Draw | None = None,
        windows: Windows | None = None,
    ) -> Batch:
        """See ``Source.fetch``.

        Args:
            index: (N,) int64.
            reading: whether an unreadable sample is skipped.
            draw: see ``Source.fetch``.
            windows: one per sample, passed to the data set's ``windowed`` (see ``has_windows``).

        Raises:
            DataError: a sample, which is named, cannot be read and is not to be skipped.
            UnlikeSizesError: the samples cannot be joined because of their sizes.
        """
        reading = reading or Reading()
        wanted = (index if self.indices is None else self.indices[index]).tolist()
        samples = self._read(wanted, reading, draw, windows)
        places = [place for place in range(len(wanted)) if place not in reading.broken]
        while places:
            kept = places if len(places) < len(wanted) else slice(None)
            try:
                return self._joined(samples, index[kept], [wanted[place] for place in places])
            except OddSampleError as odd:
                if reading.on_error == "raise":
                    raise
                reading.broken[places[odd.place]] = wanted[places[odd.place]], str(odd)
                samples = [sample for place, sample in enumerate(samples) if place != odd.place]
                del places[odd.place]
        return {"index": index[:0]}

    def _joined(self, samples: Any, index: Tensor, numbers: Sequence[int]) -> Batch:
        """The batch of samples that have been read.

        Args:
            samples: a list or, for a user's collate function, whatever ``__getitems__`` returned.
            index: (N,) their indices in this source.
            numbers: their indices in the data set.

        Raises:
            OddSampleError: one of them does not fit the others.
            UnlikeSizesError: their sizes differ.
            DataError: the collate function fails for another reason.
        """
        try:
            batch = as_batch(self.collate(samples))
        except Exception as error:
            if not isinstance(samples, Sequence):
                given = f"what {type(self.dataset).__name__}.__getitems__ returned"
                raise DataError(f"{given} cannot be made a batch: {line(error)}") from error
            if len(samples) == 1:
                raise OddSampleError(f"{self.name(numbers[0])} cannot be made a batch: {line(error)}", 0) from error
            found = odd_one(samples, lambda few: as_batch(self.collate(few)))
            message = f"{self.name(numbers[found.place if found else 0])} cannot be joined with its batch"
            if sizes := _unlike_sizes(samples):
                apart = self._apart(samples, index, numbers)
                way = "bring all to one size, take patches, or set data.batch_size=1"
                raise UnlikeSizesError(f"{message}, whose samples are of sizes {sizes}: {way}", apart) from error
            if found and found.others_agree:
                raise OddSampleError(f"{message}: {found.reason}", found.place) from error
            raise DataError(f"{message}: {found.reason if found else line(error)}") from error
        if "index" not in batch:
            batch["index"] = index
            self._require_rows(batch, len(index))
        return self.completed(self.about.added(batch))

    def _apart(self, samples: Sequence[Any], index: Tensor, numbers: Sequence[int]) -> list[Batch]:
        """Each sample as a batch of its own. Raises OddSampleError for one that the collate function cannot take."""
        batches = []
        for place, sample in enumerate(samples):
            try:
                batches.append(self._joined([sample], index[place : place + 1], numbers[place : place + 1]))
            except OddSampleError as odd:
                raise OddSampleError(str(odd), place) from odd
        return batches

    def _require_rows(self, batch: Batch, count: int) -> None:
        """Raise DataError if the collate function has left out samples: it is then unknown which ones a batch contains.

        A collate function may make several rows of a sample, and the first axis of an input may be another one, such as
        the steps of sequences. So samples are missing only if input and target have the same, smaller number of rows.
        """
        values = [batch.get(name) for name in FIELDS[:2]]
        rows = {len(value) for value in values if isinstance(value, Tensor) and value.dim()}
        if all(isinstance(value, Tensor) for value in values) and len(rows) == 1 and max(rows) < count:
            made = f"made {max(rows)} rows of {FIELDS[0]} from {count} samples"
            way = "it must leave none out; let such a sample raise an error, and set data.on_error=skip"
            raise DataError(f"the collate function of {type(self.dataset).__name__} {made}; {way}")

    def completed(self, batch: Batch) -> Batch:
        """The batch that ``fetch`` returns; a subclass overrides this to remove or replace the targets."""
        return batch

    def sample(self, index: int, draw: Draw | None = None) -> Batch:
        """One sample, not joined to a batch. Raises DataError, which names it."""
        number = index if self.indices is None else int(self.indices[index])
        (sample,) = self._read([number], Reading(), draw)
        return as_batch(sample)

    @property
    def draws(self) -> bool:
        """Whether reading a sample needs random numbers: its data set has a method ``drawn``, or generators. The
        ``fetch`` of a subclass may use them too."""
        return type(self) is not DatasetSource or bool(self.generators) or hasattr(self.dataset, "drawn")

    @property
    def has_windows(self) -> bool:
        """Whether the data set can read a part of a sample, selected by ``Windows``: it has a method ``windowed``."""
        return callable(getattr(self.dataset, "windowed", None))

    def _read(
        self, wanted: list[int], reading: Reading, draw: Draw | None, windows: Windows | None = None
    ) -> Sequence[Any]:
        dataset = self.dataset
        at = reading.at
        passed_on = type(dataset) is Subset and not hasattr(dataset.dataset, "__getitems__")
        plain = self._is_plain(draw, windows)
        many = getattr(dataset, "__getitems__", None) if plain and not passed_on else None
        reading.begin_fetch()
        if many:
            at[1], at[2] = wanted[0], len(wanted) - 1
            try:
                found = many(wanted)
                if self.collate is not stacked:
                    return found  # type: ignore[no-any-return]  # it may be anything that this collate function takes
                if _one_each(found, wanted, dataset):
                    return found  # type: ignore[no-any-return]
            except Exception as error:  # the samples are read again one by one, to find the unreadable one
                if isinstance(error, DataError) and reading.on_error == "raise":
                    raise  # its message names the sample already
        samples = []
        seeds = draw.seeds() if draw is not None and self.generators else wanted
        for place, i in enumerate(wanted):
            at[1] = i
            try:
                if many:
                    samples.append(many([i])[0])
                elif plain:
                    samples.append(dataset[i])
                else:
                    window = None if windows is None else windows[place]
                    samples.append(self._one(i, place, seeds[place], draw, window))
                if samples[-1] is None:
                    del samples[-1]
                    raise DataError("is None, and no (input, target); data.on_error=skip leaves such a sample out")
            except Exception as error:
                name, message = self.name(i), line(error)
                if not message.startswith(f"{name}: "):  # patches read their cases through a source of their own
                    message = f"{name}: {message}"
                if reading.on_error == "raise":
                    raise DataError(message) from error
                reading.broken[place] = i, message
        return samples

    def _is_plain(self, draw: Draw | None, windows: Windows | None) -> bool:
        """Whether a sample is ``dataset[i]``, with nothing to seed, draw or check before or after it."""
        drawn = draw is not None and hasattr(self.dataset, "drawn")
        return not self.generators and windows is None and self.check is None and not drawn

    def _one(self, number: int, place: int, seed: int, draw: Draw | None, window: Sequence[float] | None) -> Any:
        """A sample by its index in the data set, checked when it is first read."""
        self.generators.seed(seed)
        if window is not None:
            sample = self.dataset.windowed(number, window)
        elif draw is not None and hasattr(self.dataset, "drawn"):
            sample = self.dataset.drawn(number, draw.of(torch.tensor([place])))
        else:
            sample = self.dataset[number]
        if self.check is not None and number not in self.checked:
            self.check(as_batch(sample), number)
            self.checked.add(number)
        return sample

    def name(self, index: int) -> str:
        """The name of a sample in messages: its index in the data set and, if known, its file."""
        dataset, path = self.dataset, None
        with contextlib.suppress(Exception):  # other people's attributes may be anything
            while isinstance(dataset, Subset):
                index, dataset = dataset.indices[index], dataset.dataset
            if callable(called := getattr(dataset, "name", None)):
                return line(called(index))
            path = dataset.paths[index] if hasattr(dataset, "paths") else dataset.samples[index][0]
        where = f" ({os.fspath(path)})" if isinstance(path, (str, os.PathLike)) else ""
        return line(f"sample {index} of {type(dataset).__name__}{where}")

    def subset(self, index: Tensor) -> DatasetSource:
        indices = index if self.indices is None else self.indices[index]
        targets = None if self.targets is None else self.targets[index]
        return DatasetSource(self.dataset, self.collate, targets, indices, self.about.of(index), self.check)

    def checking(self, check: Check) -> DatasetSource:
        """The same samples, each checked when it is first read."""
        return copied(self, {"check": check, "checked": set()})


def _one_each(samples: Any, wanted: Sequence[int], dataset: Any) -> bool:
    """Whether none of the samples that ``__getitems__`` returned is None. Raises DataError if their number is wrong."""
    if not isinstance(samples, Sequence) or len(samples) != len(wanted):
        given = f"{len(samples)} samples" if isinstance(samples, Sequence) else type(samples).__name__
        raise DataError(
            f"{type(dataset).__name__}.__getitems__: returned {given} for {len(wanted)} indices; give one each"
        )
    return all(sample is not None for sample in samples)


def _is_dense(value: Any) -> bool:
    return type(value) is Tensor and value.layout == torch.strided and not value.is_nested


def stacked(samples: list[Any]) -> Any:
    """The result of torch's ``default_collate``, computed faster for tuples of tensors."""
    if type(samples[0]) is not tuple:
        return default_collate(samples)
    try:
        columns = list(zip(*samples, strict=True))
    except ValueError:
        return default_collate(samples)  # whose error says that the lengths differ
    return [torch.stack(row) if _is_dense(row[0]) else default_collate(row) for row in columns]  # type: ignore[arg-type]


def _unlike_sizes(samples: Sequence[Any]) -> str:
    """The different sizes of images or volumes, for a message; empty if all have one size, or are something else."""
    try:
        sizes = dict.fromkeys(tuple(as_batch(sample)["input"].shape) for sample in samples)
    except (DataError, KeyError, AttributeError):
        return ""
    if min(map(len, sizes)) < 3 or len({(len(size), size[0]) for size in sizes}) > 1:
        return ""
    return " and ".join("x".join(map(str, size)) for size in list(sizes)[:3]) if len(sizes) > 1 else ""


def as_batch(value: Any) -> Batch:
    """The one place where a loader's ``(input, target)``, ``(input, target, extra)`` or dict becomes a batch."""
    if not isinstance(value, (tuple, list)) and isinstance(value, Mapping):  # isinstance of a Mapping is slow
        return dict(value)
    if isinstance(value, Sequence) and len(value) in (2, 3):
        return dict(zip(FIELDS, value, strict=False))
    given = type(value).__name__
    raise DataError(f"a loader yields {given}; give (input, target), (input, target, extra) or a dict of those names")


def line(message: BaseException | str) -> str:
    """An error, or a message about one, on one printable line."""
    bare = isinstance(message, (str, HealsgError))
    text = f"{message}" if bare else f"{type(message).__name__}: {message}".removesuffix(": ")
    return " ".join(text.encode(errors="backslashreplace").decode().split())


def files_of(source: Source) -> Files | None:
    """The files of a source's samples, by index; None if they are not known."""
    if isinstance(source, (TensorSource, DatasetSource)) and source.about.files is not None:
        return source.about.files
    if not isinstance(source, DatasetSource):
        return None
    paths: Any = getattr(source.dataset, "paths", None)  # an attribute of a user's data set may be anything
    known = hasattr(paths, "__getitem__") and hasattr(paths, "__len__") and len(paths) == len(source.dataset)
    return Files(paths, source.indices) if known else None
