"""Holding: samples read once, into memory or into a file that is mapped into it, and then batched as tensors."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
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
"""Samples that are read together."""

FORMAT = 3
"""Of a cache; others are made anew."""

SUMS, LAYOUT = "sums", "layout"
FILES = ("input", "target", SUMS)
"""What a cache consists of; of samples of unlike sizes also ``LAYOUT``, the sizes of each as JSON."""

LOOKED_AT = 64
"""Samples of a cache that are compared with their checksums as it is opened; the others when they are first read."""


def hold(source: Source, part: str, workers: int, reading: Reading, cache: Path | None, unlike: bool = False) -> Source:
    """The samples of ``source`` as tensors in memory, or in a file below ``cache`` where that is given.

    What each sample is, it is for good: a data set whose own reading is random is read once. The numbers of a run are
    those without this: evaluation takes the same batches. Samples of unlike sizes, such as volumes, are held one by
    one where ``unlike`` allows them.

    Raises:
        ConfigError: they would not fit, or have no files by which a cache could be recognised.
        DataError: a sample cannot be read, or has another type or number of dimensions than the first.
    """
    if isinstance(source, TensorSource):
        return source
    first = source.fetch(torch.tensor([0]))
    if odd := set(first) - {"input", "target", "index", "case"}:
        raise ConfigError(
            f"data.in_memory: samples have {', '.join(sorted(odd))} beside input and target; set it to false"
        )
    sizes = {key: first[key].nbytes * len(source) for key in ("input", "target")}
    detail = f"{len(source)} {part} samples are {_bytes(sum(sizes.values()))}"
    about = replace(source.about if isinstance(source, DatasetSource) else About(), files=files_of(source))
    if cache is None:
        if (free := available()) is not None and sum(sizes.values()) > 0.9 * free:
            raise ConfigError(
                f"data.in_memory: {detail}, and {_bytes(free)} are free; set data.cache=true in its place"
            )
        log.info("data.in_memory: %s%s", detail, f" of {_bytes(free)} free" if free is not None else "")
        try:
            tensors = {key: torch.empty((len(source), *first[key].shape[1:]), dtype=first[key].dtype) for key in sizes}
            _fill(tensors, source, workers, reading, widens=True)
        except UnlikeSizesError:
            if not unlike:
                raise
            apart = _in_memory_apart(source, workers, reading, free)
            return DatasetSource(apart, targets=source.targets, about=about)
        return TensorSource(tensors["input"], tensors["target"], False, about)
    place = cache / _name(source, first)
    if distributed.processes().local_rank == 0 and not place.is_dir():
        log.info("data.cache: %s, written to %s", detail, place)
        try:
            _write(place, first, source, lambda tensors: _fill(tensors, source, workers, reading))
        except UnlikeSizesError:
            if not unlike:
                raise
            _write_apart(place, first, source, workers, reading)
    distributed.meet()  # a barrier would give up where writing takes longer than runner.timeout
    safefiles.require(place, safefiles.FOLDER)
    looked_at = torch.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).round().long().tolist()
    if (place / LAYOUT).exists():
        mapped_apart = _opened_apart(place, first, len(source))
        mapped_apart.check(looked_at)
        return DatasetSource(mapped_apart, targets=source.targets, about=about)
    tensors = {key: _mapped(place / key, first[key], len(source), shared=False) for key in sizes}
    sums = _mapped(place / SUMS, torch.zeros(1, dtype=torch.int64), len(source), shared=False)
    targets = tensors["target"].clone() if source.targets is None else source.targets
    mapped = Mapped(**tensors, sums=sums, place=place)
    mapped.check(looked_at)
    return DatasetSource(mapped, _as_it_is, targets, about=about)


class Mapped:
    """Samples in files that are mapped into memory: a batch is one gather, and only its rows are read.

    Each row is compared with its checksum when it is first read by a process, so that a file which was damaged, or was
    not yet on the disk when the power failed, is noticed before a network learns from it.

    Args:
        input: (N, ...), mapped.
        target: (N, ...), mapped.
        sums: (N,) int64, the checksum of each row as ``checksum`` gives it.
        place: the folder of the files, to be named where they are damaged.
    """

    def __init__(self, input: Tensor, target: Tensor, sums: Tensor, place: Path) -> None:
        self.input = input
        self.target = target
        self.sums = sums
        self.place = place
        self.checked = torch.zeros(len(sums), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.input)

    def __getitems__(self, index: list[int]) -> Batch:
        batch = {"input": self.input[index], "target": self.target[index]}
        if not bool(self.checked[index].all()):
            self._compare(index, batch)
        return batch

    def check(self, index: list[int]) -> None:
        """Raise DataError where one of these rows is not what was written."""
        for number in index:
            self.__getitems__([number])

    def _compare(self, index: list[int], batch: Batch) -> None:
        for number, input, target in zip(index, batch["input"], batch["target"], strict=True):
            if checksum(input, target) != int(self.sums[number]):
                raise DataError(f"data.cache: {self.place} is damaged at sample {number}; remove this folder")
        self.checked[index] = True


class Apart:
    """Samples of unlike sizes, in memory or in files that are mapped into it: what is not read is not loaded, so that a
    part of a large one, such as a patch, costs its own bytes alone.

    Args:
        input: N tensors (C, *spatial).
        target: N tensors.
        sums: (N,) int64 as of ``Mapped``; None where the samples are in memory.
        place: the folder of the files.
    """

    def __init__(
        self, input: list[Tensor], target: list[Tensor], sums: Tensor | None = None, place: Path | None = None
    ) -> None:
        self.input = input
        self.target = target
        self.sums = sums
        self.place = place
        self.checked = torch.full((len(input),), sums is None)

    def __len__(self) -> int:
        return len(self.input)

    def __getitem__(self, index: int) -> Batch:
        input, target = self.input[index], self.target[index]
        if self.sums is not None and not bool(self.checked[index]):
            if checksum(input, target) != int(self.sums[index]):
                raise DataError(f"data.cache: {self.place} is damaged at sample {index}; remove this folder")
            self.checked[index] = True
        return {"input": input, "target": target}

    def check(self, index: list[int]) -> None:
        """Raise DataError where one of these samples is not what was written."""
        for number in index:
            self.__getitem__(number)


def checksum(input: Tensor, target: Tensor) -> int:
    """The CRC-32 of a sample's bytes."""
    made = 0
    for value in (input, target):
        made = zlib.crc32(memoryview(value.contiguous().view(-1).view(torch.uint8).numpy()), made)  # type: ignore[arg-type]
    return made


def _as_it_is(batch: Any) -> Any:
    return batch


def available() -> int | None:
    """Bytes of memory that can still be had, by what Linux says of the machine and of this group; None elsewhere."""
    try:
        rows = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(row.split()[1]) * 1024 for row in rows if row.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no limit is the word "max"
        return free


def _fill(tensors: dict[str, Tensor], source: Source, workers: int, reading: Reading, widens: bool = False) -> None:
    """Read all samples into ``tensors``.

    Args:
        tensors: by key, with a row for each sample.
        source: the samples.
        workers: processes that read.
        reading: what they say of it.
        widens: whether a tensor may be replaced by one of a type that holds all samples, as a batch of them would
            have it: pictures of 8 bits (uint8) among some of 16 (float32).
    """

    def read(_: int, number: int) -> tuple[Batch | str, list[str]]:
        try:
            batch = source.fetch(torch.arange(number * CHUNK, min((number + 1) * CHUNK, len(source))))
        except UnlikeSizesError as unlike:  # a worker sends no exceptions of this type
            return str(unlike), []
        return batch, reading.new_remarks()

    places = [(0, number) for number in range(-(-len(source) // CHUNK))]
    crew = Workers(read, workers, reading, [source]) if workers else None
    for (_, number), (batch, remarks) in zip(
        places, crew.results(places) if crew else (read(*place) for place in places), strict=True
    ):
        reading.report(remarks)
        for key, whole in tensors.items():
            rows = whole[number * CHUNK : (number + 1) * CHUNK]
            detail = f"data.in_memory: samples of different shapes or types, near number {number * CHUNK}"
            if isinstance(batch, str) or (batch[key].dtype == rows.dtype and batch[key].shape[1:] != rows.shape[1:]):
                if crew:
                    crew.end()
                raise UnlikeSizesError(batch if isinstance(batch, str) else detail, [])
            if batch[key].dtype != rows.dtype:
                wider = torch.promote_types(batch[key].dtype, rows.dtype)
                if not widens and wider != rows.dtype:
                    raise DataError(
                        f"data.cache: samples are of two types, {rows.dtype} and {batch[key].dtype}, such as pictures "
                        "of 8 and of 16 bits; convert them to one, or set data.in_memory=true in its place"
                    )
                if wider != rows.dtype:
                    tensors[key] = whole.to(wider)
                    rows = tensors[key][number * CHUNK : (number + 1) * CHUNK]
            rows.copy_(batch[key])
    if crew:
        crew.end()


def _read_apart(source: Source, workers: int, reading: Reading) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples one by one, in their order, by workers where there are any. Raises DataError for another type."""
    assert isinstance(source, DatasetSource)

    def read(_: int, number: int) -> tuple[Batch, list[str]]:
        return source.sample(number), reading.new_remarks()

    places = [(0, number) for number in range(len(source))]
    crew = Workers(read, workers, reading, [source]) if workers else None
    like: tuple[Any, ...] | None = None
    for (_, number), (sample, remarks) in zip(
        places, crew.results(places) if crew else (read(*place) for place in places), strict=True
    ):
        reading.report(remarks)
        input, target = torch.as_tensor(sample["input"]), torch.as_tensor(sample["target"])
        own = (input.dtype, input.dim(), target.dtype, target.dim())
        like = like or own
        if own != like:
            raise DataError(f"{source.name(number)}: its type or dimensions, {own}, are not those of the first, {like}")
        yield input.contiguous(), target.contiguous()
    if crew:
        crew.end()


def _in_memory_apart(source: Source, workers: int, reading: Reading, free: int | None) -> Apart:
    """Samples of unlike sizes in memory. Raises ConfigError where they do not fit."""
    inputs = list[Tensor]()
    targets = list[Tensor]()
    taken = 0
    for input, target in _read_apart(source, workers, reading):
        inputs.append(input)
        targets.append(target)
        taken += input.nbytes + target.nbytes
        if free is not None and taken > 0.9 * free:
            detail = (
                f"the first {len(inputs)} of {len(source)} samples are {_bytes(taken)}, and {_bytes(free)} were free"
            )
            raise ConfigError(f"data.in_memory: {detail}; set data.cache=true in its place")
    return Apart(inputs, targets)


def _write_apart(place: Path, first: Batch, source: Source, workers: int, reading: Reading) -> None:
    """Make the folder of a cache of samples of unlike sizes in one atomic step."""
    making = place.with_name(f".{place.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")
    sizes, sums = [], []
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        making.mkdir()
        with (making / "input").open("xb") as inputs, (making / "target").open("xb") as targets:
            for input, target in _read_apart(source, workers, reading):
                for file, value in ((inputs, input), (targets, target)):
                    file.write(memoryview(value.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
                sizes.append([list(input.shape), list(target.shape)])
                sums.append(checksum(input, target))
        (making / SUMS).write_bytes(torch.tensor(sums, dtype=torch.int64).numpy().tobytes())
        (making / LAYOUT).write_text(json.dumps(sizes))
        for name in (*FILES, LAYOUT):
            with (making / name).open("rb") as written:
                os.fsync(written.fileno())
        making.replace(place)
    except OSError as error:
        if not place.is_dir():
            raise DataError(f"data.cache: {place} cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _opened_apart(place: Path, first: Batch, count: int) -> Apart:
    """The cache of samples of unlike sizes that lies in ``place``. Raises DataError where it is not whole."""
    safefiles.require(place / LAYOUT)
    try:
        sizes = json.loads((place / LAYOUT).read_text())
        columns = [[tuple(int(side) for side in row[column]) for row in sizes] for column in (0, 1)]
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"data.cache: {place / LAYOUT} is damaged; remove its folder") from error
    if len(sizes) != count:
        raise DataError(f"data.cache: {place} is not whole; remove this folder")
    parts = {}
    for key, shapes in zip(("input", "target"), columns, strict=True):
        numbers = [math.prod(shape) for shape in shapes]
        flat = _mapped(place / key, first[key].new_empty(1), sum(numbers), shared=False)
        pieces = torch.split(flat, numbers)
        parts[key] = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    sums = _mapped(place / SUMS, torch.zeros(1, dtype=torch.int64), count, shared=False)
    return Apart(parts["input"], parts["target"], sums, place)


def _write(place: Path, first: Batch, source: Source, fill: Callable[[dict[str, Tensor]], None]) -> None:
    """Make the folder of a cache in one atomic step. Raises DataError where the disk has no room."""
    for left in place.parent.glob(f".{place.name}.*.tmp"):  # by a process that was killed
        if not system.lives(int(left.name.split(".")[-2])):
            shutil.rmtree(left, ignore_errors=True)
    making = place.with_name(f".{place.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        making.mkdir()  # a new folder, in which nobody has put a link
        tensors, wanted = {}, {**first, SUMS: torch.zeros(1, dtype=torch.int64)}
        for key in FILES:
            with (making / key).open("xb") as file:
                system.reserve(file, max(1, wanted[key].nbytes * len(source)))
            tensors[key] = _mapped(making / key, wanted[key], len(source), shared=True)
        sums = tensors.pop(SUMS)
        fill(tensors)
        for number, sample in enumerate(zip(tensors["input"], tensors["target"], strict=True)):
            sums[number] = checksum(*sample)
        del tensors, sums
        for name in FILES:  # a cache that has its name is on the disk as a whole
            with (making / name).open("rb") as file:
                os.fsync(file.fileno())
        making.replace(place)
    except OSError as error:
        if not place.is_dir():  # which another run has made meanwhile
            raise DataError(f"data.cache: {place} cannot be written ({error.strerror})") from error
    finally:
        for key in FILES if making.is_dir() else ():
            (making / key).unlink(missing_ok=True)
        if making.is_dir():
            making.rmdir()


def _mapped(path: Path, like: Tensor, count: int, shared: bool) -> Tensor:
    """The (count, ...) tensor that lies in a file. Not ``shared``, nothing that is written to it reaches the file."""
    if not safefiles.require(path) or path.stat().st_size < count * like.nbytes:
        raise DataError(f"data.cache: {path} is not whole; remove its folder")
    flat = torch.from_file(str(path), shared=shared, size=count * like.numel(), dtype=like.dtype)
    return flat.view(count, *like.shape[1:])


def _name(source: Source, first: Batch) -> str:
    """What a cache is recognised by: the files, their sizes and times, and how they are read."""
    dataset = getattr(source, "dataset", source)
    paths = getattr(dataset, "files", getattr(dataset, "paths", None))
    if paths is None or not isinstance(source, DatasetSource):
        raise ConfigError(f"data.cache: the files of {type(dataset).__name__} are not known; set data.in_memory=true")
    plain = {key: value for key, value in vars(dataset).items() if isinstance(value, (int, float, str, tuple))}
    chosen = source.chosen.tolist() if source.chosen is not None else None
    targets = source.targets.tolist() if source.targets is not None else getattr(dataset, "targets", None)
    known: list[Any] = [
        FORMAT,
        type(dataset).__qualname__,
        plain,
        targets.tolist() if isinstance(targets, Tensor) else targets,
        chosen,
        str(first["input"].dtype),
        list(first["input"].shape),
    ]
    for path in (*paths, *getattr(dataset, "mask_paths", ())):
        try:
            status = os.stat(path)  # noqa: PTH116, a Path for each is slow
        except OSError as error:
            raise DataError(f"{path}: {line(error)}") from error
        known.append([str(path), status.st_size, status.st_mtime_ns])
    digest = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()
    return f"{type(dataset).__name__.lower()}-{digest[:16]}"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
