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
"""By sample the numbers in [0, 1) that choose a part of it; what they mean, the data set says."""


@dataclass
class Reading:
    """How a task's samples are read, and what happened in this process as they were read.

    Args:
        on_error, max_errors, timeout, prefetch: the arguments of ``TaskData``.
    """

    on_error: Literal["raise", "skip"] = "raise"
    max_errors: int = 100
    timeout: float = 600.0
    prefetch: int = 2
    skipped: dict[tuple[int, int], str] = field(default_factory=dict)
    """Why a sample was left out, by the id of its data set and its index."""
    broken: dict[int, tuple[int, str]] = field(default_factory=dict)
    """The samples of the last batch that could not be read: by position in the batch, their index and the message."""
    at: Any = field(default_factory=lambda: [0, -1, 0])
    """What is being read: the number of the stream, the index in its data set, and how many more samples in the same
    call. In a worker this is memory that its parent reads, to name the sample if the worker is lost."""
    remarks: dict[str, bool] = field(default_factory=dict)
    """What was found in the files that the user should know, and whether it was logged."""
    sent: set[str] = field(default_factory=set)
    """The remarks that a worker has sent to its parent."""

    def of_loader(self, timeout: float, prefetch: int | None) -> Reading:
        """The same with a loader's own timeout and prefetch factor, where it has any."""
        return replace(self, timeout=timeout or self.timeout, prefetch=prefetch or self.prefetch)

    def anew(self) -> Reading:
        """The same settings, with nothing read so far."""
        return Reading(self.on_error, self.max_errors, self.timeout, self.prefetch)

    def begin(self, stream: int) -> None:
        """A batch of stream number ``stream`` is read next."""
        self.at[0] = stream
        self.broken = {}

    def begin_fetch(self) -> None:
        """Samples of the stream are read next, none of which is broken so far."""
        self.broken = {}
        self.at[2] = 0

    def write_to(self, at: Any) -> None:
        """Record what is being read in ``at`` from here on, which is shared with another process."""
        self.at = at

    def skip(self, sample: tuple[int, int], message: str) -> None:
        """Log that a sample is left out, once. Raises DataError if there are too many."""
        if sample not in self.skipped:
            self.skipped[sample] = message
            if len(self.skipped) > self.max_errors:
                raise DataError(f"data.max_errors: more than {self.max_errors} samples cannot be read; {message}")
            log.warning("left out: %s", message)

    def remark(self, text: str) -> None:
        """Record what a data set found in a sample, such as an orientation, until it is logged."""
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
    """Samples by index. ``targets`` holds the labels where they are known without reading samples (for splits)."""

    @property
    def targets(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def fetch(self, index: Tensor, *, draw: Draw | None = None) -> Batch:
        """The batch of the samples at ``index`` ((N,) int64): ``input``, ``target`` and ``index``.

        Args:
            draw: the samples' own randomness in this epoch, for what is drawn as a sample is read, such as a patch of
                a volume; None where nothing is random. What is read is then a pure function of (seed, epoch, index).
        """

    def subset(self, index: Tensor) -> Source:
        """The samples at ``index`` alone, renumbered from 0."""


class Files:
    """The files of N samples, some of those that a data set has.

    Args:
        paths: of the data set.
        indices: (N,) int64, which of them; all where it is None.
    """

    def __init__(self, paths: Sequence[str], indices: Tensor | None = None) -> None:
        self.paths = paths
        self.indices = indices

    def __getitem__(self, index: int) -> str:
        return line(str(self.paths[index if self.indices is None else int(self.indices[index])]))

    def of(self, index: Tensor) -> Files:
        """Those of the samples at ``index`` alone."""
        return Files(self.paths, index.cpu() if self.indices is None else self.indices[index.cpu()])


@dataclass(frozen=True)
class About:
    """What is known of the N samples of a source beside inputs and targets; a set gives what it knows.

    Args:
        cases: of each sample, its name, patient and geometry. Samples of one name are parts of one case, such as the
            slices of a volume, and stay on one side of a split.
        strata: (N,) int64 numbers by which samples are shared evenly where there is no class for each.
        hidden: (N,) int64 classes of samples whose batches hold no target, -1 where they are not known. They are for
            what is told after the fact (a ledger of pseudo-labels); no batch has them.
        files: of samples that are held in memory or in a cache.
    """

    cases: Sequence[Case] | None = None
    strata: Tensor | None = None
    hidden: Tensor | None = None
    files: Files | None = None

    def of(self, index: Tensor) -> About:
        """The same of the samples at ``index`` alone."""
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
    """Samples that cannot be joined into one batch, since their sizes differ.

    Args:
        message: what a training run says of it.
        batches: each of the samples as a batch of its own, as an evaluation takes them.
    """

    def __init__(self, message: str, batches: list[Batch]) -> None:
        super().__init__(message)
        self.batches = batches


class OddSampleError(DataError):
    """A sample that cannot be joined with its batch, whose other samples agree with each other.

    Args:
        message: which one, and why.
        place: its place among the samples.
    """

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


class TensorSource:
    """Samples held as tensors, batched by one gather: ``input`` (N, ...), images as uint8; ``target`` (N, ...).

    Args:
        input: the inputs.
        target: the targets.
        joinable: whether small batches may be evaluated several at once. Where that is a choice of the user's, it must
            not be: the size of a batch changes a network's numbers in the eighth digit.
        about: what is known of the samples beside these.
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
        """Whether the samples take at most half of what is free on ``device``."""
        wanted = self.input.nbytes + self.target.nbytes
        return device.type != "cuda" or wanted <= torch.cuda.mem_get_info(device)[0] // 2

    def to(self, device: torch.device) -> TensorSource:
        """The same samples on ``device``."""
        return TensorSource(self.input.to(device), self.target.to(device), self.joinable, self.about)


class DatasetSource:
    """Samples of a map-style data set, put together by a collate function.

    A data set whose reading is random by itself is seeded sample by sample: one with a method ``drawn(index, draw)``
    gets the draw of the sample, one whose transforms keep generators of their own (MONAI's, albumentations', a
    ``numpy.random.Generator``) has these seeded before each sample is read.

    Args:
        dataset: anything with ``__len__`` and ``__getitem__`` that yields ``(input, target)``, ``(input, target,
            extra)`` or a dict with those names.
        collate: what joins a list of samples into a batch; torch's default where it is None.
        targets: (N,) class indices, where they are known without reading the samples.
        indices: (N,) int64, which samples of the data set are meant; all where it is None.
        about: what is known of these samples beside these.
        check: refuses a sample when it is first read in a process.
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

    def fetch(
        self,
        index: Tensor,
        reading: Reading | None = None,
        *,
        draw: Draw | None = None,
        windows: Windows | None = None,
    ) -> Batch:
        """See ``Source``. Raises DataError that names the sample, or leaves it out as ``reading`` says;
        UnlikeSizesError where they cannot be joined for their sizes.

        ``windows``, one a sample, are handed to the data set's ``windowed`` (see ``has_windows``).
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
        """The batch of samples, which have these indices in the data set: a list of them or, for a collate function of
        one's own, whatever ``__getitems__`` gave. Raises OddSampleError where one of them does not fit,
        UnlikeSizesError, and DataError."""
        try:
            batch = as_batch(self.collate(samples))
        except Exception as error:
            if not isinstance(samples, Sequence):
                given = f"what {type(self.dataset).__name__}.__getitems__ gave"
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
        """Each sample as a batch of its own. Raises OddSampleError where one of them makes none."""
        batches = []
        for place, sample in enumerate(samples):
            try:
                batches.append(self._joined([sample], index[place : place + 1], numbers[place : place + 1]))
            except OddSampleError as odd:
                raise OddSampleError(str(odd), place) from odd
        return batches

    def _require_rows(self, batch: Batch, count: int) -> None:
        """Raise DataError if the collate function has left out samples, so that it is not known which are in the batch.

        It may make several rows of each, and the rows of an input alone may be something else, such as the steps of
        sequences: only input and target that are short by the same number tell that samples are missing.
        """
        values = [batch.get(name) for name in FIELDS[:2]]
        rows = {len(value) for value in values if isinstance(value, Tensor) and value.dim()}
        if all(isinstance(value, Tensor) for value in values) and len(rows) == 1 and max(rows) < count:
            made = f"made {max(rows)} rows of {FIELDS[0]} from {count} samples"
            way = "it must leave none out; let such a sample raise an error, and set data.on_error=skip"
            raise DataError(f"the collate function of {type(self.dataset).__name__} {made}; {way}")

    def completed(self, batch: Batch) -> Batch:
        """A batch as it is given out; a subclass leaves its targets out, or replaces them."""
        return batch

    def sample(self, index: int, draw: Draw | None = None) -> Batch:
        """One sample, not joined to a batch. Raises DataError that names it."""
        number = index if self.indices is None else int(self.indices[index])
        (sample,) = self._read([number], Reading(), draw)
        return as_batch(sample)

    @property
    def draws(self) -> bool:
        """Whether reading a sample takes random numbers: its data set has a method ``drawn``, or generators. The
        ``fetch`` of a subclass may use them too."""
        return type(self) is not DatasetSource or bool(self.generators) or hasattr(self.dataset, "drawn")

    @property
    def has_windows(self) -> bool:
        """Whether the data set reads a part of a sample that is chosen by numbers: it has a method ``windowed``."""
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
        """A sample by its number in the data set, checked when it is first read."""
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
        """How a message calls a sample: its index in the data set and, where that knows one, its file."""
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
        """The same samples, each of them checked when it is first read."""
        return copied(self, {"check": check, "checked": set()})


def _one_each(samples: Any, wanted: Sequence[int], dataset: Any) -> bool:
    """Whether what ``__getitems__`` gave for several indices has no sample that is None. Raises DataError if it did not
    give one for each."""
    if not isinstance(samples, Sequence) or len(samples) != len(wanted):
        given = f"{len(samples)} samples" if isinstance(samples, Sequence) else type(samples).__name__
        raise DataError(f"{type(dataset).__name__}.__getitems__: gave {given} for {len(wanted)} indices; give one each")
    return all(sample is not None for sample in samples)


def _is_dense(value: Any) -> bool:
    return type(value) is Tensor and value.layout == torch.strided and not value.is_nested


def stacked(samples: list[Any]) -> Any:
    """What torch's ``default_collate`` makes of samples; tensors in tuples without its many questions."""
    if type(samples[0]) is not tuple:
        return default_collate(samples)
    try:
        columns = list(zip(*samples, strict=True))
    except ValueError:
        return default_collate(samples)  # which says that they are not of one length
    return [torch.stack(row) if _is_dense(row[0]) else default_collate(row) for row in columns]  # type: ignore[arg-type]


def _unlike_sizes(samples: Sequence[Any]) -> str:
    """The different sizes of images or volumes, for a message; empty where they are of one size, or are none."""
    try:
        sizes = dict.fromkeys(tuple(as_batch(sample)["input"].shape) for sample in samples)
    except (DataError, KeyError, AttributeError):
        return ""
    if min(map(len, sizes)) < 3 or len({(len(size), size[0]) for size in sizes}) > 1:
        return ""
    return " and ".join("x".join(map(str, size)) for size in list(sizes)[:3]) if len(sizes) > 1 else ""


def as_batch(value: Any) -> Batch:
    """The one place where a loader's ``(input, target)``, ``(input, target, extra)`` or dict becomes a batch."""
    if not isinstance(value, (tuple, list)) and isinstance(value, Mapping):  # asking for a Mapping is slow
        return dict(value)
    if isinstance(value, Sequence) and len(value) in (2, 3):
        return dict(zip(FIELDS, value, strict=False))
    given = type(value).__name__
    raise DataError(f"a loader yields {given}; give (input, target), (input, target, extra) or a dict of those names")


def line(message: BaseException | str) -> str:
    """An error, or what is said of one, on one line that can be printed."""
    bare = isinstance(message, (str, HealsgError))
    text = f"{message}" if bare else f"{type(message).__name__}: {message}".removesuffix(": ")
    return " ".join(text.encode(errors="backslashreplace").decode().split())


def files_of(source: Source) -> Files | None:
    """The files of a source's samples, by their index; None where it does not know them."""
    if isinstance(source, (TensorSource, DatasetSource)) and source.about.files is not None:
        return source.about.files
    if not isinstance(source, DatasetSource):
        return None
    paths: Any = getattr(source.dataset, "paths", None)  # of other people's data sets it may be anything
    known = hasattr(paths, "__getitem__") and hasattr(paths, "__len__") and len(paths) == len(source.dataset)
    return Files(paths, source.indices) if known else None
