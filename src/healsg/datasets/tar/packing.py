"""Packing: write the image files of a data set unchanged into uncompressed tar archives; see
``healsg.datasets.shards``.

An archive gets its final name only when it is complete, so that a killed packing can be continued.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast, get_args

import torch
from torch import Tensor

from healsg import safefiles
from healsg.data.base import TaskData
from healsg.data.info import DataInfo
from healsg.data.source import DatasetSource, Source, line
from healsg.datasets.images.path_list import PathList
from healsg.datasets.images.stored import Stored, StoredFile
from healsg.datasets.published.files import MOST, log
from healsg.datasets.seg2d import MaskedPictures
from healsg.datasets.tar.index import PICTURES, SampleFiles, index_of
from healsg.datasets.tar.members import BLOCK
from healsg.datasets.tar.notes import (
    MASK,
    NOTES,
    UNFINISHED,
    Archive,
    Kind,
    MaskNotes,
    Notes,
    read_notes,
    write_notes,
)
from healsg.errors import ConfigError, DataError, RunError
from healsg.runs.folder import naming
from healsg.system import ProcessLock, sync_folder

PARTS = ("train", "val", "test")

GROUP = "group"
"""The name of the grouping in a list of masks, unless ``data.group`` gives another."""

LOCK = ".packing.lock"
"""The lock of the process that packs into a folder."""

OF_RUNS = (
    *("val_fraction", "fold", "labels", "labels_per_class", "fraction", "imbalance", "label_noise", "balanced"),
    *("in_memory", "cache", "patch", "patches_per_case", "samples_per_epoch", "foreground", "regions"),
)
"""Settings of ``data`` that belong to a run and not to the archives."""


@dataclass(frozen=True)
class Part:
    """The samples of one part to pack.

    Args:
        source: the samples.
        names: the path of each below the common folder of all files.
        keys: the name of each in the archive without its extension.
        sizes: the bytes of each file.
        mask_sizes: the bytes of each mask; empty if targets are not masks.
        states: of each file, see ``StoredFile``; those of masks follow those of images.
        groups: by name of the grouping, the name of each sample's group.
        bounds: the first sample of each archive, and finally the number of samples.
    """

    source: DatasetSource
    names: PathList
    keys: PathList
    sizes: Sequence[int]
    mask_sizes: Sequence[int]
    states: Sequence[int]
    groups: dict[str, list[str]]
    bounds: Sequence[int]

    @property
    def room(self) -> int:
        """The approximate size of all its archives, in bytes."""
        return sum(map(_room, self.sizes)) + sum(map(_room, self.mask_sizes))


@dataclass(frozen=True)
class Plan:
    """The plan of a packing.

    Args:
        info: of the data set.
        parts: by name.
        size: the approximate size of all archives, in bytes.
        digest: of the samples' names, sizes, states and targets, and of the size of an archive.
        masks: the meaning of the masks' labels; None for other targets.
        skipped: by part, the number of unreadable samples that are left out; empty without ``data.on_error=skip``.
    """

    info: DataInfo
    parts: dict[str, Part]
    size: int
    digest: str
    masks: MaskNotes | None = None
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(len(part.names) for part in self.parts.values())

    @property
    def archives(self) -> int:
        return sum(len(part.bounds) - 1 for part in self.parts.values())


# --- the plan --------------------------------------------------------------------------------------------------------


def plan_packing(data: TaskData, most: int) -> Plan:
    """The plan for packing ``data`` into archives of at most ``most`` bytes. Reads no images, and masks only if no
    setting names their labels. With ``data.on_error=skip`` all samples are read once.

    Raises ConfigError if its samples are not files, DataError if they cannot be found or too many are skipped.
    """
    info = data.info
    if info.kind not in get_args(Kind):
        raise ConfigError(f"data: archives hold one class, numbers or a mask a picture, and no {info.kind} targets")
    masks = _mask_notes(data) if info.dense else None
    parts, skipped = {}, {}
    total = hashlib.sha256(json.dumps([most, info.kind, info.class_names]).encode())
    if masks is not None:
        total.update(json.dumps([sorted(masks.mapping.items()), masks.ignore, masks.colours]).encode())
    for name in PARTS:
        source = data.read(name)
        if source is None:
            continue
        kept = _readable(data, source, name) if data.reading.on_error == "skip" else None
        if kept is not None:
            skipped[name] = len(source) - len(kept)
        part = _part(data, name, source, most, masks is not None, kept)
        parts[name] = part
        targets = [] if part.source.targets is None else [part.source.targets]
        for value in (part.names.content, part.names.offsets, *targets):
            total.update(value.cpu().contiguous().numpy().tobytes())
        sizes = [*part.sizes, *part.mask_sizes]
        total.update(json.dumps([name, sizes, list(part.states), part.groups]).encode())
    return Plan(info, parts, sum(part.room for part in parts.values()), total.hexdigest(), masks, skipped)


def _readable(data: TaskData, source: Source, part: str) -> Tensor:
    """The places of a part's samples that can be read, each of which is: the others are named, and left out.

    Raises DataError if more are left out than ``data.max_errors``, or all.
    """
    if not isinstance(source, DatasetSource):
        return torch.arange(len(source))
    kept = []
    for place in range(len(source)):
        try:
            source.sample(place)
        except DataError as error:
            data.reading.skip((PARTS.index(part), place), str(error))
        else:
            kept.append(place)
    if not kept:
        raise DataError(f"data: no sample of the part {part} can be read")
    return torch.tensor(kept)


def _mask_notes(data: TaskData) -> MaskNotes:
    """The meaning of a data set's mask labels. Raises ConfigError if its masks cannot be packed."""
    if not isinstance(data, MaskedPictures) or not data.masks_as_stored:
        way = "seg2d and voc, whose masks are files of labels or colours, are"
        raise ConfigError(f"data: the masks of {type(data).__name__} are not packed; {way}")
    if data.regions:
        raise ConfigError("data.regions: is chosen by each run that reads the archives; leave it out")
    return MaskNotes(data.mapping, data.ignore, data.colours)


def _part(data: TaskData, name: str, source: Any, most: int, masked: bool, kept: Tensor | None) -> Part:
    """The plan of a part, of its samples at the places ``kept``, or of all."""
    dataset = source.dataset if isinstance(source, DatasetSource) else None
    if not isinstance(dataset, Stored) or (source.targets is None and not masked):
        way = "imagefolder, csv and hf with data.image, seg2d, voc, sets of picture files, and shards are"
        raise ConfigError(f"data: the samples of {type(data).__name__} are no picture files; {way}")
    groups = _groups(data, name, source)
    if kept is not None:
        source = source.subset(kept)
        groups = {group: [names[place] for place in kept.tolist()] for group, names in groups.items()}
    numbers = source.numbers
    pictures = [_stored(source, number, dataset.stored) for number in numbers]
    masks = [_stored(source, number, dataset.stored_mask) for number in numbers] if masked else []  # type: ignore[attr-defined]
    sizes, mask_sizes = ([file.size for file in files] for files in (pictures, masks))
    rooms = [_room(size) for size in sizes]
    if masked:
        rooms = [room + _room(size) for room, size in zip(rooms, mask_sizes, strict=True)]
    names = _below_common_folder([file.name for file in pictures])
    states = [file.state for file in (*pictures, *masks)]
    own = PathList.of(names), PathList.of(keys_of(names)), sizes, mask_sizes, states
    return Part(source, *own, groups, _bounds(rooms, most))


def _stored(source: DatasetSource, number: int, stored: Callable[[int], StoredFile]) -> StoredFile:
    """A file of a sample. Raises DataError if it is missing or too large."""
    try:
        file = stored(number)
    except OSError as error:
        raise DataError(f"{source.name(number)}: {line(error)}") from error
    if file.size > MOST:
        raise DataError(f"{file.name}: has {file.size} bytes, which no picture has")
    return file


def _groups(data: TaskData, part: str, source: DatasetSource) -> dict[str, list[str]]:
    """The groups that ``data.group`` requests, by name; those of folders and file names are not stored, since names
    determine them. For masks, the groups of their list, requested or not."""
    group = getattr(data, "group", None)
    if (cases := source.about.cases) is not None:
        known = [case.group for case in cases]
        return {group or GROUP: known} if any(known) else {}
    if not group or group in ("folder", "prefix"):
        return {}
    numbers: Tensor | None = data.groups(group, part)  # type: ignore[attr-defined]
    return {} if numbers is None else {group: [str(number) for number in numbers.tolist()]}


def _bounds(rooms: Sequence[int], most: int) -> list[int]:
    """The first sample of each archive of at most ``most`` bytes, and finally the number of samples; an archive has
    at least one sample."""
    bounds = [0]
    filled = 0
    for index, room in enumerate(rooms):
        if filled and filled + room > most:
            bounds.append(index)
            filled = 0
        filled += room
    return [*bounds, len(rooms)]


def _room(size: int) -> int:
    """The bytes that a file takes in an archive, with headers and other entries of its sample."""
    return BLOCK + -(-size // BLOCK) * BLOCK + 2 * BLOCK


def _below_common_folder(names: Sequence[str]) -> list[str]:
    """Names as paths below the common folder of all files; unchanged if there is none.

    The folder of a class or group is kept even if there is only one.
    """
    try:
        folders = {os.path.dirname(os.path.dirname(name)) for name in names}  # noqa: PTH120
        common = os.path.commonpath(folders) if folders else ""
    except ValueError:
        return list(names)
    skipped = len(common) + 1 if common not in ("", "/") else len(common)
    return [name[skipped:] for name in names]


def keys_of(names: Sequence[str]) -> Iterator[str]:
    """The key of each sample: its path without the extension.

    A dot would start the extension and is written as %2E, and % as %25. If several samples have the same key, such as
    a.jpg and a.png, the later ones get a number.
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
    """Write the missing archives of a plan into a folder, and a description of them.

    Raises:
        ConfigError: the folder holds other files, or the disk has too little space.
        DataError: an image cannot be read, or has changed since the plan was made.
    """
    safefiles.make_folders(out, "--out")
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
        kind = cast("Kind", plan.info.kind)
        parts = {name: list(_archives(name, part, kind, out)) for name, part in plan.parts.items()}
        notes = Notes(kind, _names(plan.info), plan.info.class_order, parts, plan.digest, plan.masks)
        sync_folder(out)
        for name, tars in notes.archives(out).items():
            index_of(tars, reading_of(kind), [out / f"{name}.index"])
        write_notes(out, notes)
        (out / UNFINISHED).unlink(missing_ok=True)
        return notes


def reading_of(kind: Kind) -> SampleFiles:
    """How samples of packed archives are read."""
    if kind == "segmentation":
        return SampleFiles(mask=MASK)
    return SampleFiles(numbers=kind != "multiclass")


def _names(info: DataInfo) -> tuple[str, ...]:
    return info.class_names or tuple(map(str, range(info.num_classes)))


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Lock a folder against other packing processes. Raises RunError."""
    while True:
        file = safefiles.open_to_append(out / LOCK)
        held = ProcessLock(file, out / LOCK)
        try:
            held.acquire()
        except BlockingIOError:
            file.close()
            raise RunError(f"{out}: another process packs into it") from None
        if safefiles.is_still(file, out / LOCK):
            break
        held.release()  # the last holder removed the file between our open and our lock
    try:
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        held.release()


def _begin(plan: Plan, out: Path) -> None:
    """Continue the packing in a folder, or start one in an empty folder. Raises ConfigError."""
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
    for left in out.glob(".*.tar.*.tmp"):  # left by a killed process: we hold the lock
        left.unlink()


def _archives(name: str, part: Part, kind: Kind, out: Path) -> Iterator[Archive]:
    """Write the archives of a part that do not exist yet."""
    for number, (start, stop) in enumerate(zip(part.bounds, part.bounds[1:], strict=False)):
        path = out / f"{name}-{number:06}.tar"
        if not safefiles.require(path):
            with (
                naming(path),
                safefiles.replacing(path, sync=True) as file,
                tarfile.open(fileobj=cast("IO[bytes]", file), mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for index in range(start, stop):
                    _add(tar, part, index, kind)
            log.info("%s: %d samples", path, stop - start)
        yield Archive(path.name, path.stat().st_size, stop - start)


def _add(tar: tarfile.TarFile, part: Part, index: int, kind: Kind) -> None:
    """Write a sample: its image, its class as KEY.cls or its mask as KEY.seg.png, and further properties as
    KEY.json."""
    source = part.source
    number = index if source.indices is None else int(source.indices[index])
    key, name = part.keys[index], part.names[index]
    content, ending = _content(source.dataset.stored(number), name, part.sizes[index])
    facts: dict[str, Any] = {} if name == f"{key}.{ending}" else {"path": name}
    try:
        _write(tar, f"{key}.{ending}", content)
    except UnicodeEncodeError as error:
        raise DataError(f"{line(name)}: is a name that no archive can hold") from error
    if kind == "segmentation":
        mask = source.dataset.stored_mask(number)
        content, ending = _content(mask, mask.name, part.mask_sizes[index])
        _write(tar, f"{key}.{MASK}.{ending}", content)
    else:
        assert source.targets is not None
        target = source.targets[index].tolist()
        if kind == "multiclass":
            _write(tar, f"{key}.cls", str(target).encode())
        else:
            facts["target"] = target
    if part.groups:
        facts["group"] = {group: values[index] for group, values in part.groups.items()}
    if facts:
        _write(tar, f"{key}.json", json.dumps(facts).encode())


def _content(stored: StoredFile, name: str, size: int) -> tuple[bytes, str]:
    """The bytes of an image or mask, and its extension: that of ``name``, or else the usual one. Raises DataError."""
    try:
        content = stored.read()
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"{stored.name}: {line(error)}") from error
    if len(content) != size:
        raise DataError(f"{stored.name}: has {len(content)} bytes, and {size} before; pack the data anew")
    ending = name.rpartition("/")[2].rpartition(".")[2]
    return content, ending if ending.lower() in PICTURES else kind_of_picture(content, stored.name)


def _write(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))


def kind_of_picture(content: bytes, name: str) -> str:
    """The usual extension for an image whose name has none. Raises DataError if it is not an image."""
    from PIL import Image

    from healsg.datasets.images.decoding import FORMATS

    endings = {"JPEG": "jpg", "PNG": "png", "PPM": "ppm", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return endings[opened.format or ""]
    except Exception as error:  # a damaged file can make the decoder raise almost any exception
        raise DataError(f"{name}: is no picture that has an ending of its own") from error
