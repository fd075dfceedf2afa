"""Caching: samples are read once, into memory or into a memory-mapped file, and then batched as tensors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from healsg import distributed, safefiles, system
from healsg.data.source import (
    About,
    Batch,
    DatasetSource,
    Reading,
    Source,
    TensorSource,
    UnlikeSizesError,
    files_of,
    line,
)
from healsg.data.workers import Workers
from healsg.errors import ConfigError, DataError

log = logging.getLogger("healsg")

CHUNK = 64
"""Samples that are read at once."""

FORMAT = 3
"""The version of the cache's format; caches of other versions are not used."""

SUMS = "sums"
"""The file with the checksum of each sample."""
LAYOUT = "layout"
"""The file with the sizes of each sample, as JSON, in a cache of samples of different sizes."""
FILES = ("input", "target", SUMS)
"""The files of every cache."""

LOOKED_AT = 64
"""Samples whose checksums are verified when a cache is opened; the others are verified when they are first read."""


def cached(
    source: Source, part: str, workers: int, reading: Reading, cache: Path | None, differing_sizes: bool = False
) -> Source:
    """The samples of ``source`` as tensors in memory, or in a file below ``cache`` if given.

    Each sample is read once, so that a data set with random reading yields the same samples in every epoch. The results
    of a run are the same as without a cache, since evaluation uses the same batches.

    Args:
        source: the samples.
        part: the name of the part, for messages.
        workers: processes that read.
        reading: receives what is remarked about the files.
        cache: the folder of all caches; None keeps the samples in memory.
        differing_sizes: whether samples may differ in size, as volumes do; they are then stored one by one.

    Raises:
        ConfigError: the samples do not fit into memory, or have no files to identify a cache by.
        DataError: a sample cannot be read, or has another type or number of dimensions than the first.
    """
    if isinstance(source, TensorSource):
        return source
    first = source.fetch(torch.tensor([0]))
    if unsupported := set(first) - {"input", "target", "index", "case"}:
        raise ConfigError(
            f"data.in_memory: samples have {', '.join(sorted(unsupported))} beside input and target; set it to false"
        )
    size = sum(first[key].nbytes * len(source) for key in ("input", "target"))
    detail = f"{len(source)} {part} samples are {_bytes(size)}"
    about = replace(source.about if isinstance(source, DatasetSource) else About(), files=files_of(source))
    if cache is None:
        free = system.available_memory()
        if free is not None and size > 0.9 * free:
            raise ConfigError(f"data.in_memory: {detail}, and {_bytes(free)} are free; set data.cache=true instead")
        log.info("data.in_memory: %s%s", detail, f" of {_bytes(free)} free" if free is not None else "")
        return _in_memory(source, first, workers, reading, differing_sizes, about, free)
    folder = cache / _name(source, first)
    if distributed.processes().local_rank == 0 and not folder.is_dir():
        log.info("data.cache: %s, written to %s", detail, folder)
        try:
            _write(folder, first, source, lambda tensors: _fill(tensors, source, workers, reading))
        except UnlikeSizesError:
            if not differing_sizes:
                raise
            _write_apart(folder, source, workers, reading)
    distributed.meet()  # a barrier would time out if writing took longer than runner.timeout
    return _opened(folder, source, first, about)


def _in_memory(
    source: Source,
    first: Batch,
    workers: int,
    reading: Reading,
    differing_sizes: bool,
    about: About,
    free: int | None,
) -> Source:
    """The samples as tensors in memory; ``free`` is the available memory in bytes, None if it is not known."""
    shapes = {key: (len(source), *first[key].shape[1:]) for key in ("input", "target")}
    try:
        tensors = {key: torch.empty(shape, dtype=first[key].dtype) for key, shape in shapes.items()}
        _fill(tensors, source, workers, reading, widens=True)
    except UnlikeSizesError:
        if not differing_sizes:
            raise
        apart = _in_memory_apart(source, workers, reading, free)
        return DatasetSource(apart, targets=source.targets, about=about)
    return TensorSource(tensors["input"], tensors["target"], False, about)


def _opened(folder: Path, source: Source, first: Batch, about: About) -> Source:
    """The samples in an existing cache, memory-mapped. Raises DataError if it is damaged."""
    safefiles.require(folder, safefiles.FOLDER)
    verified = torch.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).round().long().tolist()
    if (folder / LAYOUT).exists():
        mapped_apart = _opened_apart(folder, first, len(source))
        mapped_apart.check(verified)
        return DatasetSource(mapped_apart, targets=source.targets, about=about)
    tensors = {key: _mapped(folder / key, first[key], len(source), shared=False) for key in ("input", "target")}
    sums = _mapped(folder / SUMS, torch.zeros(1, dtype=torch.int64), len(source), shared=False)
    targets = tensors["target"].clone() if source.targets is None else source.targets
    mapped = Mapped(**tensors, sums=sums, folder=folder)
    mapped.check(verified)
    return DatasetSource(mapped, _unchanged, targets, about=about)


class Mapped:
    """Samples in memory-mapped files: a batch is one gather, and only its rows are read.

    Each row is compared with its checksum when a process first reads it, so that a file that is damaged, or was not yet
    on disk at a power failure, is detected before a network learns from it.

    Args:
        input: (N, ...), mapped.
        target: (N, ...), mapped.
        sums: (N,) int64, the ``checksum`` of each row.
        folder: the folder of the files, for messages.
    """

    def __init__(self, input: Tensor, target: Tensor, sums: Tensor, folder: Path) -> None:
        self.input = input
        self.target = target
        self.sums = sums
        self.folder = folder
        self.checked = torch.zeros(len(sums), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.input)

    def __getitems__(self, index: list[int]) -> Batch:
        batch = {"input": self.input[index], "target": self.target[index]}
        if not bool(self.checked[index].all()):
            self._compare(index, batch)
        return batch

    def check(self, index: list[int]) -> None:
        """Raise DataError if one of these rows does not match its checksum."""
        for number in index:
            self.__getitems__([number])

    def _compare(self, index: list[int], batch: Batch) -> None:
        for number, input, target in zip(index, batch["input"], batch["target"], strict=True):
            if checksum(input, target) != int(self.sums[number]):
                raise DataError(f"data.cache: {self.folder} is damaged at sample {number}; remove this folder")
        self.checked[index] = True


class Apart:
    """Samples of different sizes, in memory or in memory-mapped files: reading a patch of a large sample loads only the
    bytes of the patch.

    Args:
        input: N tensors (C, *spatial).
        target: N tensors.
        sums: (N,) int64 as in ``Mapped``; None if the samples are in memory.
        folder: the folder of the files.
    """

    def __init__(
        self, input: list[Tensor], target: list[Tensor], sums: Tensor | None = None, folder: Path | None = None
    ) -> None:
        self.input = input
        self.target = target
        self.sums = sums
        self.folder = folder
        self.checked = torch.full((len(input),), sums is None)

    def __len__(self) -> int:
        return len(self.input)

    def __getitem__(self, index: int) -> Batch:
        input, target = self.input[index], self.target[index]
        if self.sums is not None and not bool(self.checked[index]):
            if checksum(input, target) != int(self.sums[index]):
                raise DataError(f"data.cache: {self.folder} is damaged at sample {index}; remove this folder")
            self.checked[index] = True
        return {"input": input, "target": target}

    def check(self, index: list[int]) -> None:
        """Raise DataError if one of these samples does not match its checksum."""
        for number in index:
            self.__getitem__(number)


def checksum(input: Tensor, target: Tensor) -> int:
    """The CRC-32 of a sample's bytes."""
    total = 0
    for value in (input, target):
        total = zlib.crc32(memoryview(value.contiguous().view(-1).view(torch.uint8).numpy()), total)  # type: ignore[arg-type]
    return total


def _unchanged(batch: Any) -> Any:
    return batch


def _fill(tensors: dict[str, Tensor], source: Source, workers: int, reading: Reading, widens: bool = False) -> None:
    """Read all samples into ``tensors``.

    Args:
        tensors: by key, with a row for each sample.
        source: the samples.
        workers: processes that read.
        reading: receives their remarks.
        widens: whether a tensor may be replaced by one of a wider type, as a batch of the samples would have it, e.g.
            for 8-bit images (uint8) among 16-bit ones (float32).
    """

    def read(_: int, number: int) -> tuple[Batch | str, list[str]]:
        try:
            batch = source.fetch(torch.arange(number * CHUNK, min((number + 1) * CHUNK, len(source))))
        except UnlikeSizesError as unlike:  # workers do not transfer exceptions of this type
            return str(unlike), []
        return batch, reading.new_remarks()

    chunks = [(0, number) for number in range(-(-len(source) // CHUNK))]
    pool = Workers(read, workers, reading, [source]) if workers else None
    for (_, number), (batch, remarks) in zip(
        chunks, pool.results(chunks) if pool else (read(*chunk) for chunk in chunks), strict=True
    ):
        reading.report(remarks)
        for key, tensor in tensors.items():
            rows = tensor[number * CHUNK : (number + 1) * CHUNK]
            detail = f"data.in_memory: samples of different shapes or types, near number {number * CHUNK}"
            if isinstance(batch, str) or (batch[key].dtype == rows.dtype and batch[key].shape[1:] != rows.shape[1:]):
                if pool:
                    pool.end()
                raise UnlikeSizesError(batch if isinstance(batch, str) else detail, [])
            if batch[key].dtype != rows.dtype:
                wider = torch.promote_types(batch[key].dtype, rows.dtype)
                if not widens and wider != rows.dtype:
                    raise DataError(
                        f"data.cache: samples are of two types, {rows.dtype} and {batch[key].dtype}, such as pictures "
                        "of 8 and of 16 bits; convert them to one, or set data.in_memory=true instead"
                    )
                if wider != rows.dtype:
                    tensors[key] = tensor.to(wider)
                    rows = tensors[key][number * CHUNK : (number + 1) * CHUNK]
            rows.copy_(batch[key])
    if pool:
        pool.end()


def _read_apart(source: Source, workers: int, reading: Reading) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples one by one, in their order, read by workers if there are any. Raises DataError if types differ."""
    assert isinstance(source, DatasetSource)

    def read(_: int, number: int) -> tuple[Batch, list[str]]:
        return source.sample(number), reading.new_remarks()

    numbers = [(0, number) for number in range(len(source))]
    pool = Workers(read, workers, reading, [source]) if workers else None
    first: tuple[Any, ...] | None = None
    for (_, number), (sample, remarks) in zip(
        numbers, pool.results(numbers) if pool else (read(*number) for number in numbers), strict=True
    ):
        reading.report(remarks)
        input, target = torch.as_tensor(sample["input"]), torch.as_tensor(sample["target"])
        kind = (input.dtype, input.dim(), target.dtype, target.dim())
        first = first or kind
        if kind != first:
            name = source.name(number)
            raise DataError(f"{name}: its type or dimensions, {kind}, are not those of the first, {first}")
        yield input.contiguous(), target.contiguous()
    if pool:
        pool.end()


def _in_memory_apart(source: Source, workers: int, reading: Reading, free: int | None) -> Apart:
    """Samples of different sizes in memory. Raises ConfigError if they do not fit."""
    inputs = list[Tensor]()
    targets = list[Tensor]()
    used = 0
    for input, target in _read_apart(source, workers, reading):
        inputs.append(input)
        targets.append(target)
        used += input.nbytes + target.nbytes
        if free is not None and used > 0.9 * free:
            detail = (
                f"the first {len(inputs)} of {len(source)} samples are {_bytes(used)}, and {_bytes(free)} were free"
            )
            raise ConfigError(f"data.in_memory: {detail}; set data.cache=true instead")
    return Apart(inputs, targets)


def _write_apart(folder: Path, source: Source, workers: int, reading: Reading) -> None:
    """Create the folder of a cache of samples of different sizes. Raises DataError if the disk is full."""
    sizes, sums = [], []
    with _created(folder, (*FILES, LAYOUT)) as temporary:
        with (temporary / "input").open("xb") as inputs, (temporary / "target").open("xb") as targets:
            for input, target in _read_apart(source, workers, reading):
                for file, value in ((inputs, input), (targets, target)):
                    file.write(memoryview(value.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
                sizes.append([list(input.shape), list(target.shape)])
                sums.append(checksum(input, target))
        (temporary / SUMS).write_bytes(torch.tensor(sums, dtype=torch.int64).numpy().tobytes())
        (temporary / LAYOUT).write_text(json.dumps(sizes))


def _opened_apart(folder: Path, first: Batch, count: int) -> Apart:
    """Open the cache of samples of different sizes in ``folder``. Raises DataError if it is incomplete."""
    safefiles.require(folder / LAYOUT)
    try:
        sizes = json.loads((folder / LAYOUT).read_text())
        columns = [[tuple(int(side) for side in row[column]) for row in sizes] for column in (0, 1)]
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"data.cache: {folder / LAYOUT} is damaged; remove its folder") from error
    if len(sizes) != count:
        raise DataError(f"data.cache: {folder} is incomplete; remove this folder")
    parts = {}
    for key, shapes in zip(("input", "target"), columns, strict=True):
        numbers = [math.prod(shape) for shape in shapes]
        flat = _mapped(folder / key, first[key].new_empty(1), sum(numbers), shared=False)
        pieces = torch.split(flat, numbers)
        parts[key] = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    sums = _mapped(folder / SUMS, torch.zeros(1, dtype=torch.int64), count, shared=False)
    return Apart(parts["input"], parts["target"], sums, folder)


def _temporary(folder: Path) -> Path:
    """Where to write what will become ``folder``; removes what processes that were killed have left there."""
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        process = leftover.name.split(".")[-2].partition("-")[0]
        if process.isdecimal() and not system.lives(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)
    return safefiles.temporary_name(folder)


@contextlib.contextmanager
def _created(folder: Path, files: Sequence[str]) -> Iterator[Path]:
    """A context that creates the folder of a cache in one atomic step: yields a temporary folder to write ``files`` in.

    Raises DataError if the disk is full.
    """
    temporary = _temporary(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()  # a new folder, so that nobody can have planted a link in it
        yield temporary
        for name in files:  # so that a cache under its final name is on disk completely
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(folder)
    except OSError as error:
        if not folder.is_dir():  # otherwise another run has created it meanwhile
            raise DataError(f"data.cache: {folder} cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # which does not follow a link


def _write(folder: Path, first: Batch, source: Source, fill: Callable[[dict[str, Tensor]], None]) -> None:
    """Create the folder of a cache. Raises DataError if the disk is full.

    Args:
        folder: to create.
        first: the first sample, as a batch.
        source: all samples.
        fill: writes the samples into the memory-mapped tensors that it gets by key.
    """
    with _created(folder, FILES) as temporary:
        tensors = {}
        rows = {**first, SUMS: torch.zeros(1, dtype=torch.int64)}
        for key in FILES:
            with (temporary / key).open("xb") as file:
                system.reserve(file, max(1, rows[key].nbytes * len(source)))
            tensors[key] = _mapped(temporary / key, rows[key], len(source), shared=True)
        sums = tensors.pop(SUMS)
        fill(tensors)
        for number, sample in enumerate(zip(tensors["input"], tensors["target"], strict=True)):
            sums[number] = checksum(*sample)
        del tensors, sums  # unmapped, so that the files can be synced and renamed


def _mapped(path: Path, like: Tensor, count: int, shared: bool) -> Tensor:
    """A file as a memory-mapped (count, ...) tensor; writes to it reach the file only if it is ``shared``."""
    if not safefiles.require(path) or path.stat().st_size < count * like.nbytes:
        raise DataError(f"data.cache: {path} is incomplete; remove its folder")
    flat = torch.from_file(str(path), shared=shared, size=count * like.numel(), dtype=like.dtype)
    return flat.view(count, *like.shape[1:])


def _name(source: Source, first: Batch) -> str:
    """The folder name of a cache: a hash of the files, their sizes and times, and how they are read."""
    dataset = getattr(source, "dataset", source)
    paths = getattr(dataset, "files", getattr(dataset, "paths", None))
    if paths is None or not isinstance(source, DatasetSource):
        raise ConfigError(f"data.cache: the files of {type(dataset).__name__} are not known; set data.in_memory=true")
    plain = {key: value for key, value in vars(dataset).items() if isinstance(value, (int, float, str, tuple))}
    indices = source.indices.tolist() if source.indices is not None else None
    targets = source.targets.tolist() if source.targets is not None else getattr(dataset, "targets", None)
    identity: list[Any] = [
        FORMAT,
        type(dataset).__qualname__,
        plain,
        targets.tolist() if isinstance(targets, Tensor) else targets,
        indices,
        str(first["input"].dtype),
        list(first["input"].shape),
    ]
    for path in (*paths, *getattr(dataset, "mask_paths", ())):
        try:
            status = os.stat(path)  # noqa: PTH116, a Path for each is slow
        except OSError as error:
            raise DataError(f"{path}: {line(error)}") from error
        identity.append([str(path), status.st_size, status.st_mtime_ns])
    digest = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()
    return f"{type(dataset).__name__.lower()}-{digest[:16]}"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
