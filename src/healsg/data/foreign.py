"""Loaders that a user's own task returns: a plain DataLoader is replaced by ``Loader``, any other is wrapped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from healsg.data.joining import FIELDS
from healsg.data.loader import Loader
from healsg.data.sharding import Sharding
from healsg.data.source import Batch, DatasetSource, Reading, Source, TensorSource, as_batch, line
from healsg.errors import DataError
from healsg.parts import defines
from healsg.seeding import mix, seed_everything, seed_foreign
from healsg.training.step import Samples, TrainBatch, none_negative

POLL = 5.0
"""Seconds after which a DataLoader that waits for a batch checks whether its workers are alive."""
ENDING = 5.0
"""The most seconds between the moment when a worker's connection is closed and the end of its process."""


class ForeignLoader:
    """An iterable of batches that is not a plain DataLoader.

    The global generators are seeded by (seed, epoch) as a pass starts and by the position before each batch, since the
    steps between two batches draw from the same generators. A resumed run skips the batches it has seen. Each process
    takes its rows of a batch. An error of the loader becomes a DataError that names the batch.

    Args:
        loader: any iterable of batches; if its sampler has ``set_epoch``, that is called with the epoch.
        name: the name of the split.
        reading: its ``timeout``, in seconds, applies to a DataLoader without one of its own.
        sharding: this process's shard of a batch; None for whole batches.
        poll: the attribute ``poll``, if it has been set for this loader already.
    """

    in_memory = False
    left_out = 0

    def __init__(
        self,
        loader: Any,
        name: str,
        reading: Reading | None = None,
        sharding: Sharding | None = None,
        poll: float | None = None,
    ) -> None:
        self.loader = loader
        self.name = name
        self.reading = reading or Reading()
        self.sharding = sharding or Sharding()
        self.timeout = self.reading.timeout
        self.poll = _set_poll(loader, self.timeout) if poll is None else poll
        """Seconds after which torch checks whether the workers are alive; 0 if the loader is left as it is."""

    def sharded(self, sharding: Sharding) -> ForeignLoader:
        """The same loader, with this process's shard of each batch."""
        return ForeignLoader(self.loader, self.name, self.reading, sharding, self.poll)

    def __len__(self) -> int:
        limit = self.sharding.limit
        try:
            length = len(self.loader)
        except TypeError:
            if limit is None:
                way = "set runner.limit_batches, or give its data set a __len__"
                raise DataError(f"the {self.name} loader has no length: {way}") from None
            return limit
        if not length:
            raise DataError(f"the {self.name} loader is empty")
        return length if limit is None else min(length, limit)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.batches(0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """The batches of ``epoch`` from position ``start``, each with the rows of this rank that count. Earlier batches
        are read and skipped."""
        seed_everything(self.sharding.seed, "loader", self.name, epoch)
        sampler = getattr(self.loader, "sampler", None)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        values, length = self._begin(), len(self)
        for position in range(length):
            seed_foreign(mix(self.sharding.seed, "batch", self.name, epoch, position))
            try:
                value = self._next(values)
            except StopIteration:
                if self.name != "train":
                    return
                way = f"set runner.limit_batches={position}"
                raise DataError(f"the train loader ended after {position} of {length} batches; {way}") from None
            except Exception as error:
                lost = self._lost(error)
                cause = f"a loader worker was lost: {line(_end_of_worker(error))}" if lost else _cause(error)
                raise DataError(f"the {self.name} loader failed at batch {position}: {cause}") from error
            if position >= start:
                yield self._share(as_batch(value))

    def batches_for_steps(self, epoch: int, start: int, stop: int) -> Iterator[tuple[Batch, int]]:
        """See ``Loader.batches_for_steps``; nothing is read ahead."""
        batches = self.batches(epoch, start)
        return batches if stop >= len(self) else islice(batches, stop - start)

    def _next(self, values: Iterator[Any]) -> Any:
        """The next batch. Raises TimeoutError after ``data.timeout``; an alarm of torch before that only means that its
        workers are alive."""
        waited = 0.0
        while True:
            try:
                return next(values)
            except RuntimeError as error:
                waited += self.poll
                if not self.poll or "timed out after" not in str(error):
                    raise
                if 0 < self.timeout <= waited:
                    raise TimeoutError(f"none for {self.timeout:g} seconds (data.timeout)") from error

    def _lost(self, error: Exception) -> bool:
        """Whether an error means that a worker's connection was closed, and was not raised by its data set."""
        workers = getattr(self.loader, "num_workers", 0)
        return bool(workers) and isinstance(error, (EOFError, ConnectionError)) and not _is_of_data_set(error)

    def _begin(self) -> Iterator[Any]:
        try:
            return iter(self.loader)
        except Exception as error:
            raise DataError(f"the {self.name} loader cannot begin: {_cause(error)}") from error

    def as_train_batch(self, batch: Batch, rows: int, position: int) -> TrainBatch:
        """See ``Loader.as_train_batch``; the batches of ``batches`` have their ``Samples`` already."""
        assert isinstance(batch, TrainBatch)
        return batch

    def _size(self, batch: Batch) -> int:
        """The number of rows of a batch. Raises DataError if it is empty, or a single sample."""
        if not batch:
            raise DataError(f"the {self.name} loader yields an empty dict; give one of input and target")
        fields = FIELDS[: 2 if _is_unbatched(self.loader) else 1]  # the target of a batch may be anything
        if single := next((key for key in fields if key in batch and _is_single(batch[key])), None):
            kind = type(batch[single]).__name__ if not isinstance(batch[single], Tensor) else "a tensor without rows"
            way = "DataLoader(dataset, batch_size=16) joins them"
            raise DataError(f"the {self.name} loader yields single samples and no batches ({single} is {kind}); {way}")
        return len(next(iter(batch.values())))

    def _share(self, batch: Batch) -> tuple[TrainBatch, int]:
        if batch and all(isinstance(value, Mapping) for value in batch.values()):
            parts = {stream: self._share(dict(value))[0] for stream, value in batch.items()}
            samples = next(iter(parts.values())).samples
            return TrainBatch(parts, samples), samples.rows
        size = self._size(batch)
        low, high, rows = self.sharding.shard(0, size)
        update = size if self.sharding.accumulate == 1 else None
        whole_update = update is not None and self.sharding.world == 1
        samples = Samples(rows, low, size, update, whole_update and none_negative(batch.get("target")))
        if self.sharding.world > 1:
            batch = {key: value[low:high] if _rows(value) == size else value for key, value in batch.items()}
        return TrainBatch(batch, samples), rows


def _is_unbatched(loader: Any) -> bool:
    """Whether a loader is a DataLoader that does not form batches: it yields the items of its data set."""
    return isinstance(loader, DataLoader) and loader.batch_size is None and loader.batch_sampler is None


def _is_single(value: Any) -> bool:
    """Whether a value belongs to one sample, instead of having a row for each of several samples."""
    return not hasattr(value, "__len__") or isinstance(value, str) or getattr(value, "ndim", 1) == 0


def _set_poll(loader: Any, timeout: float) -> float:
    """Set the timeout of a user's DataLoader that has none, so that torch detects dead workers.

    torch checks whether its workers are alive only when a batch is late, and without a timeout no batch ever is. The
    ``timeout`` of a DataLoader can be set after its construction, unlike most of its attributes.

    Returns:
        The seconds; 0 if the loader is not a DataLoader with workers, or has a timeout of its own.
    """
    if not isinstance(loader, DataLoader) or not loader.num_workers or loader.timeout or loader.persistent_workers:
        return 0.0
    seconds = min(timeout or POLL, POLL)
    loader.timeout = seconds
    return seconds


def _end_of_worker(error: Exception) -> Exception:
    """torch's error for a worker that has ended, whose closed connection, ``error``, was noticed first; else ``error``.

    torch raises its error from its handler of SIGCHLD, at any point of the main thread: unless it is awaited here, it
    interrupts the code that handles ``error``. It is not raised in other threads, where ``error`` is returned after
    ``ENDING`` seconds.
    """
    try:
        deadline = time.monotonic() + ENDING
        while time.monotonic() < deadline:
            time.sleep(0.01)
    except RuntimeError as ended:
        return ended
    return error


def _cause(error: Exception) -> str:
    """The cause of an error on one line, without the traceback that a worker sends with it."""
    return str(error).strip().splitlines()[-1] if _is_of_data_set(error) else line(error)


def _is_of_data_set(error: Exception) -> bool:
    """Whether an error was raised by a data set in a worker, which sent it."""
    return str(error).lstrip().startswith("Caught ")


def _rows(value: Any) -> int | None:
    """The number of rows of a tensor or list; None for any other value."""
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value) if type(value) is list else None


AnyLoader = Loader | ForeignLoader


def wrap_loader(loader: Any, name: str, reading: Reading | None = None) -> AnyLoader:
    """HEALSg's loader for a loader that ``build_dataloader`` returned.

    A plain map-style ``DataLoader`` becomes a ``Loader`` with its data set, batch size, collate function, ``drop_last``
    and workers; random and sequential sampling follow our seeds. With a ``DistributedSampler``, the batch size is that
    of one process. Any other iterable becomes a ``ForeignLoader``.

    Args:
        loader: the returned one.
        name: the name of its split.
        reading: the task's settings for unreadable samples and workers; the loader's own timeout and prefetch factor
            take precedence.

    Raises:
        DataError: it is no loader, or its data set is empty or has no length.
    """
    if isinstance(loader, (Loader, ForeignLoader)):
        return loader
    if not hasattr(loader, "__iter__"):
        raise DataError(f"build_dataloader: {type(loader).__name__} for {name} is no loader; wrap it in a DataLoader")
    if not _is_plain(loader):
        return ForeignLoader(loader, name, reading)
    return _rebuilt(loader, name, reading or Reading())


def _rebuilt(loader: Any, name: str, reading: Reading) -> Loader:
    """A ``Loader`` with the settings of a plain ``DataLoader``; see ``wrap_loader``."""
    source: Source
    dataset = loader.dataset
    collate = loader.collate_fn
    sampler = loader.sampler
    if not hasattr(dataset, "__len__"):
        raise DataError(f"the {name} loader: its data set, {type(dataset).__name__}, has no length; give it a __len__")
    if not len(dataset):
        raise DataError(f"the {name} loader has no samples")
    spread = isinstance(sampler, DistributedSampler)
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2 and collate is default_collate:
        source = TensorSource(*dataset.tensors)
    else:
        source = DatasetSource(dataset, collate)
    return Loader(
        {"labelled": source},
        {"labelled": {"input": None}},
        loader.batch_size * (sampler.num_replicas if spread else 1),
        shuffle=sampler.shuffle if spread else isinstance(sampler, RandomSampler),
        drop_last=loader.drop_last,
        workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        reading=reading.of_loader(loader.timeout, loader.prefetch_factor),
        training=name == "train",
        may_join=False,
    )


def _is_plain(loader: Any) -> bool:
    """Whether a loader is a map-style DataLoader whose batches are all its samples, in their order or shuffled."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    if loader.batch_size is None:  # it has a batch_sampler of its own, or none
        return False
    if defines(loader, DataLoader, "__iter__"):
        return False
    sampler = loader.sampler
    whole = type(sampler) in (SequentialSampler, DistributedSampler) or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    return whole and type(loader.batch_sampler) is BatchSampler
