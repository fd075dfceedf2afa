"""Packing: the pictures of a data set as plain tar archives, their bytes as they are; see ``healsg.datasets.shards``.

An archive appears under its name only when it is whole, so that a packing that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from torch import Tensor

from healsg import safefiles
from healsg.data.base import TaskData
from healsg.data.info import DataInfo
from healsg.data.source import DatasetSource, line
from healsg.datasets.files import MOST, log
from healsg.datasets.path_list import PathList
from healsg.datasets.shard_notes import NOTES, UNFINISHED, Archive, Notes, read_notes, write_notes
from healsg.datasets.stored import Stored
from healsg.datasets.tar_index import PICTURES, Wanted, index_of
from healsg.datasets.tar_members import BLOCK
from healsg.errors import ConfigError, DataError, RunError
from healsg.runs.folder import naming
from healsg.system import ProcessLock, sync_folder

LOCK = ".packing.lock"
"""The lock of the process that packs into a folder."""

OF_RUNS = (
    *("val_fraction", "fold", "labels", "labels_per_class", "fraction", "imbalance", "label_noise", "balanced"),
    *("in_memory", "cache"),
)
"""Settings of ``data`` that each run chooses anew."""


@dataclass(frozen=True)
class Part:
    """The samples of one part that are packed.

    Args:
        source: gives them.
        names: of each, its path below the folder that all files share.
        keys: of each, its name in the archive without its ending.
        sizes: the bytes of each file.
        states: what tells each from another of its size, see ``StoredFile``.
        groups: by name of each sample the name of its group.
        bounds: for each archive the first of its samples, and at the end their number.
    """

    source: DatasetSource
    names: PathList
    keys: PathList
    sizes: Sequence[int]
    states: Sequence[int]
    groups: dict[str, list[str]]
    bounds: Sequence[int]


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Args:
        info: of the data set.
        parts: by name.
        size: the bytes of all archives together, about.
        digest: of the samples' names, sizes, states and targets, and of the size of an archive.
    """

    info: DataInfo
    parts: dict[str, Part]
    size: int
    digest: str

    @property
    def samples(self) -> int:
        return sum(len(part.names) for part in self.parts.values())

    @property
    def archives(self) -> int:
        return sum(len(part.bounds) - 1 for part in self.parts.values())


# --- the plan --------------------------------------------------------------------------------------------------------


def plan_packing(data: TaskData, most: int) -> Plan:
    """What packing ``data`` into archives of at most ``most`` bytes will write; no picture is read for it.

    Raises ConfigError where its samples are no files, DataError where they cannot be found.
    """
    info = data.info
    if info.kind not in ("multiclass", "multilabel", "regression"):
        raise ConfigError(
            f"data: the targets are those of a {info.kind} task, and archives hold one class or numbers a picture"
        )
    parts = {}
    total = hashlib.sha256(json.dumps([most, info.kind, info.class_names]).encode())
    for name in ("train", "val", "test"):
        source = data.read(name)
        if source is None:
            continue
        part = _part(data, name, source, most)
        parts[name] = part
        assert part.source.targets is not None
        for value in (part.names.content, part.names.offsets, part.source.targets):
            total.update(value.cpu().contiguous().numpy().tobytes())
        total.update(json.dumps([name, list(part.sizes), list(part.states), part.groups]).encode())
    size = sum(_room(size) for part in parts.values() for size in part.sizes)
    return Plan(info, parts, size, total.hexdigest())


def _part(data: TaskData, name: str, source: Any, most: int) -> Part:
    dataset = source.dataset if isinstance(source, DatasetSource) else None
    if not isinstance(dataset, Stored) or source.targets is None:
        way = "imagefolder, csv and hf with data.image, sets of picture files, and shards are"
        raise ConfigError(f"data: the samples of {type(data).__name__} are no picture files; {way}")
    numbers = range(len(source)) if source.chosen is None else source.chosen.tolist()
    names = []
    sizes = []
    states = []
    for number in numbers:
        try:
            file = dataset.stored(number)
        except OSError as error:
            raise DataError(f"{source.name(number)}: {line(error)}") from error
        if file.size > MOST:
            raise DataError(f"{file.name}: has {file.size} bytes, which no picture has")
        names.append(file.name)
        sizes.append(file.size)
        states.append(file.state)
    names = _below_common_folder(names)
    groups = _groups(data, name)
    return Part(source, PathList(names), PathList(keys_of(names)), sizes, states, groups, _bounds(sizes, most))


def _groups(data: TaskData, part: str) -> dict[str, list[str]]:
    """By name the groups that ``data.group`` asks for; those of folders and file names are told by names anyhow."""
    asked = getattr(data, "group", None)
    if not asked or asked in ("folder", "prefix"):
        return {}
    numbers: Tensor | None = data.groups(asked, part)  # type: ignore[attr-defined]
    return {} if numbers is None else {asked: [str(number) for number in numbers.tolist()]}


def _bounds(sizes: Sequence[int], most: int) -> list[int]:
    """Where each archive of at most ``most`` bytes begins, and the number of all; one sample at least lies in each."""
    bounds = [0]
    filled = 0
    for place, size in enumerate(sizes):
        room = _room(size)
        if filled and filled + room > most:
            bounds.append(place)
            filled = 0
        filled += room
    return [*bounds, len(sizes)]


def _room(size: int) -> int:
    """The bytes that a picture and its target take in an archive."""
    return BLOCK + -(-size // BLOCK) * BLOCK + 2 * BLOCK


def _below_common_folder(names: Sequence[str]) -> list[str]:
    """Names as paths below the folder of the classes, which all files share; as they are where they share none.

    The folder of a class, or of a group, stays also where there is only one of it.
    """
    try:
        folders = {os.path.dirname(os.path.dirname(name)) for name in names}  # noqa: PTH120
        common = os.path.commonpath(folders) if folders else ""
    except ValueError:
        return list(names)
    skipped = len(common) + 1 if common not in ("", "/") else len(common)
    return [name[skipped:] for name in names]


def keys_of(names: Sequence[str]) -> Iterator[str]:
    """The key of each sample: its path without the ending.

    A dot in it would begin the ending, and is written as %2E, as % is as %25. Where two samples have one key, as a.jpg
    and a.png, the later ones get a number.
    """
    seen: dict[str, int] = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        stem = last.rpartition(".")[0] or last
        stem = stem.replace("%", "%25").replace(".", "%2E") or "%"
        parts = [part for part in PurePosixPath(folder).parts if part not in ("/", "..")]
        key = "/".join([*parts, stem])
        if key in seen:
            number = seen[key] + 1
            while f"{key}%{number}" in seen:
                number += 1
            seen[key] = number
            key = f"{key}%{number}"
        seen[key] = 1
        yield key


# --- writing ---------------------------------------------------------------------------------------------------------


def pack(plan: Plan, out: Path) -> Notes:
    """Write the archives of a plan into a folder, or those of them that are missing there, and what is known of them.

    Raises:
        ConfigError: other things lie in the folder, or there is no room.
        DataError: a picture cannot be read, or was changed meanwhile.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made ({error.strerror})") from error
    with _alone(out):
        if safefiles.kind_of(out / NOTES) and (notes := read_notes(out)) is not None:
            if notes.plan != plan.digest:
                raise ConfigError(f"--out: {out} holds other data, or archives of another size; give another folder")
            notes.archives(out)  # raises where one is missing
            (out / UNFINISHED).unlink(missing_ok=True)
            return notes
        _begin(plan, out)
        free = shutil.disk_usage(out).free
        left = plan.size - sum(path.stat().st_size for path in out.glob("*.tar"))
        if left > free:
            raise ConfigError(
                f"--out: about {left / 1e9:.2f} GB will be written to {out}, and {free / 1e9:.2f} GB are free"
            )
        parts = {name: list(_archives(name, part, plan.info.kind, out)) for name, part in plan.parts.items()}
        notes = Notes(plan.info.kind, _names(plan.info), plan.info.class_order, parts, plan.digest)  # type: ignore[arg-type]
        sync_folder(out)
        for name, tars in notes.archives(out).items():
            index_of(tars, Wanted(numbers=plan.info.kind != "multiclass"), [out / f"{name}.index"])
        write_notes(out, notes)
        (out / UNFINISHED).unlink(missing_ok=True)
        return notes


def _names(info: DataInfo) -> tuple[str, ...]:
    return info.class_names or tuple(map(str, range(info.num_classes)))


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold a folder for this process, so that nobody else packs into it."""
    try:
        with safefiles.open_to_append(out / LOCK) as file:
            held = ProcessLock(file, out / LOCK)
            held.acquire()
            try:
                yield
            finally:
                (out / LOCK).unlink(missing_ok=True)
                held.release()
    except BlockingIOError:
        raise RunError(f"{out}: another process packs into it") from None


def _begin(plan: Plan, out: Path) -> None:
    """Go on with the packing that was begun in a folder, or begin one in an empty folder. Raises ConfigError."""
    try:
        begun = safefiles.read_bytes(out / UNFINISHED, 1 << 16).decode()
    except FileNotFoundError:
        if there := sorted(path.name for path in out.iterdir() if path.name != LOCK):
            raise ConfigError(
                f"--out: {out} holds {there[0]}, and no archives of healsg pack; give an empty folder"
            ) from None
        with safefiles.replacing(out / UNFINISHED, sync=True) as file:
            file.write(plan.digest.encode())
        return
    if begun != plan.digest:
        raise ConfigError(f"--out: another packing was begun in {out}; give another folder, or remove it")
    for left in out.glob(".*.tar.*.tmp"):  # by a process that was killed: the lock is ours
        left.unlink()


def _archives(name: str, part: Part, kind: str, out: Path) -> Iterator[Archive]:
    """Write the archives of a part, but for those that are there."""
    for number, (start, stop) in enumerate(zip(part.bounds, part.bounds[1:], strict=False)):
        path = out / f"{name}-{number:06}.tar"
        if not safefiles.require(path):
            with (
                naming(path),
                safefiles.replacing(path, sync=True) as file,
                tarfile.open(fileobj=cast("IO[bytes]", file), mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for place in range(start, stop):
                    _add(tar, part, place, kind)
            log.info("%s: %d samples", path, stop - start)
        yield Archive(path.name, path.stat().st_size, stop - start)


def _add(tar: tarfile.TarFile, part: Part, place: int, kind: str) -> None:
    """Write one sample: its picture, its class as KEY.cls, and what else is known of it as KEY.json."""
    source = part.source
    number = place if source.chosen is None else int(source.chosen[place])
    stored = source.dataset.stored(number)
    try:
        content = stored.read()
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"{stored.name}: {line(error)}") from error
    if len(content) != part.sizes[place]:
        raise DataError(f"{stored.name}: has {len(content)} bytes, and {part.sizes[place]} before; pack the data anew")
    key, name = part.keys[place], part.names[place]
    ending = name.rpartition("/")[2].rpartition(".")[2]
    ending = ending if ending.lower() in PICTURES else kind_of_picture(content, stored.name)
    facts: dict[str, Any] = {} if name == f"{key}.{ending}" else {"path": name}
    assert source.targets is not None
    target = source.targets[place].tolist()
    try:
        _write(tar, f"{key}.{ending}", content)
    except UnicodeEncodeError as error:
        raise DataError(f"{line(name)}: is a name that no archive can hold") from error
    if kind == "multiclass":
        _write(tar, f"{key}.cls", str(target).encode())
    else:
        facts["target"] = target
    if part.groups:
        facts["group"] = {group: values[place] for group, values in part.groups.items()}
    if facts:
        _write(tar, f"{key}.json", json.dumps(facts).encode())


def _write(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))


def kind_of_picture(content: bytes, name: str) -> str:
    """The usual ending of a picture whose name has none. Raises DataError for what is no picture."""
    from PIL import Image

    from healsg.datasets.decoding import FORMATS

    endings = {"JPEG": "jpg", "PNG": "png", "PPM": "ppm", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return endings[opened.format or ""]
    except Exception as error:  # a damaged file makes the decoder raise almost anything
        raise DataError(f"{name}: is no picture that has an ending of its own") from error
