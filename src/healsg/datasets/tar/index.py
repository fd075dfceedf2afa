"""The index of tar archives of samples: each image's offset, name, target and groups.

It lies beside the archives as ``PART.index`` (or below ``root``/cache where that folder cannot be written to) and is
rebuilt if an archive's size or modification time has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from healsg.data.source import line
from healsg.datasets.images.folders import EXTENSIONS
from healsg.datasets.images.path_list import PathList
from healsg.datasets.published.files import CHUNK
from healsg.datasets.tar.array_file import Array, read_arrays, write_arrays
from healsg.datasets.tar.members import Member, Sample, open_tar, samples, state_of
from healsg.errors import DataError, RunError

log = logging.getLogger("healsg")

FORMAT = 1
"""Version of the index format; indices of other versions are rebuilt."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest absolute value of a numeric target, which is stored in float32."""

PICTURES = tuple(ending.removeprefix(".") for ending in EXTENSIONS)


@dataclass(frozen=True)
class SampleFiles:
    """Which files of a sample are read, and how.

    Args:
        image: the extension of its image; None takes the only file that is an image.
        target: the key of its target in KEY.json; None takes KEY.cls, else the key ``target`` or ``label``.
        numbers: whether the target consists of numbers, and is not the name or the index of a class.
        mask: the first part of the extension of its mask, which is the target: ``seg`` means KEY.seg.png, KEY.seg.tif,
            ...
    """

    image: str | None = None
    target: str | None = None
    numbers: bool = False
    mask: str | None = None


@dataclass(frozen=True)
class TarIndex:
    """The N samples of one part.

    Args:
        tars: the archives.
        states: their sizes and modification times.
        ends: (T,) int64, the number of samples in each archive and all before it.
        offset, size: (N,) int64, the position of the image's bytes in its archive, and their number.
        target: (N,) int64, indices into ``labels``; or (N, K) float32 numbers; or for masks (N, 2) int64, offset and
            size.
        labels: the distinct texts of the classes, in the order of the samples.
        names: of the samples; packed files have their original paths.
        groups: by name of the grouping, the number of each sample's group, and the names of the groups.
    """

    tars: list[str]
    states: list[tuple[int, int]]
    ends: Tensor
    offset: Tensor
    size: Tensor
    target: Tensor
    labels: list[str]
    names: PathList
    groups: dict[str, tuple[Tensor, PathList]]

    def __len__(self) -> int:
        return len(self.offset)


def index_of(tars: Sequence[Path], reading: SampleFiles, candidates: Sequence[Path]) -> TarIndex:
    """The index of archives: loaded from a file, or built and written.

    Args:
        tars: in the order of their samples.
        reading: which files of a sample are read.
        candidates: paths of the index file; it is written to the first one that is writable.

    Raises:
        DataError: an archive cannot be read, or lacks a file that is needed.
    """
    paths = [str(tar) for tar in tars]
    states = []
    for path in paths:
        descriptor = open_tar(path)
        states.append(state_of(descriptor))
        os.close(descriptor)
    expected = {
        "format": FORMAT,
        "reading": asdict(reading),
        "tars": [[tar.name, *state] for tar, state in zip(tars, states, strict=True)],
    }
    for candidate in candidates:
        try:
            found = read_arrays(candidate, lambda facts: facts["index"] == expected)
            if found is not None:
                return _checked(_loaded(*found, paths, states), reading)
            log.info("%s: belongs to other files; it is rebuilt", candidate)
        except (OSError, RunError, DataError, LookupError, ValueError, TypeError, ArithmeticError) as error:
            if not isinstance(error, FileNotFoundError):
                log.info("%s: cannot be used (%s); it is rebuilt", candidate, line(error))
    index = _made(paths, states, reading)
    _write(index, expected, candidates)
    return index


# --- files -----------------------------------------------------------------------------------------------------------


def _write(index: TarIndex, expected: Mapping[str, Any], candidates: Sequence[Path]) -> None:
    """Write an index to the first writable place; if there is none, the next run rebuilds it."""
    arrays: dict[str, Array] = {
        "ends": index.ends.numpy(),
        "offset": index.offset.numpy(),
        "size": index.size.numpy(),
        "target": index.target.numpy(),
        "names": index.names.content.numpy(),
        "name_ends": index.names.offsets.numpy(),
    }
    for number, (members, values) in enumerate(index.groups.values()):
        arrays[f"group {number}"] = members.numpy()
        arrays[f"group {number} names"] = values.content.numpy()
        arrays[f"group {number} ends"] = values.offsets.numpy()
    facts = {"index": expected, "labels": index.labels, "groups": list(index.groups)}
    for index_path in candidates:
        with contextlib.suppress(OSError, RunError):  # a folder without write permission, or a link in it
            index_path.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(index_path, facts, arrays)
            return
    log.warning("%s: no index can be written there; each run makes it again", candidates[0].parent)


def _loaded(
    facts: Mapping[str, Any], arrays: Mapping[str, Array], paths: list[str], states: list[tuple[int, int]]
) -> TarIndex:
    """A saved index. Raises KeyError, TypeError and ValueError if the content is invalid."""
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    groups = {}
    for number, name in enumerate(facts["groups"]):
        values = PathList(tensors[f"group {number} names"], tensors[f"group {number} ends"])
        groups[str(name)] = (tensors[f"group {number}"], values)
    return TarIndex(
        paths,
        states,
        tensors["ends"],
        tensors["offset"],
        tensors["size"],
        tensors["target"],
        [str(label) for label in facts["labels"]],
        PathList(tensors["names"], tensors["name_ends"]),
        groups,
    )


def _checked(index: TarIndex, reading: SampleFiles) -> TarIndex:
    """Check that all offsets of an index are within bounds, since the file is untrusted. Raises ValueError."""
    count = len(index.offset)
    limits = torch.tensor([size for size, _ in index.states], dtype=torch.int64)
    fits = len(index.ends) == len(limits) and index.offset.dim() == index.size.dim() == index.ends.dim() == 1
    fits = fits and len(index.size) == len(index.target) == len(index.names) == count
    columns = [index.ends, index.offset, index.size, *(members for members, _ in index.groups.values())]
    fits = fits and all(numbers.dtype == torch.int64 and numbers.dim() == 1 for numbers in columns)
    fits = fits and all(len(members) == count for members, _ in index.groups.values())
    kind = (torch.float32, 2) if reading.numbers else (torch.int64, 1 if reading.mask is None else 2)
    fits = fits and (index.target.dtype, index.target.dim()) == kind and bool(index.target.isfinite().all())
    lists = [index.names, *(values for _, values in index.groups.values())]
    if not fits or not all(map(_is_list, lists)):
        raise ValueError("its parts do not fit each other")
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), index.ends])
    if bool((starts.diff() < 0).any()) or int(starts[-1]) != count:
        raise ValueError("it counts other samples than it has")
    end = limits[torch.repeat_interleave(starts.diff())]
    places = [(index.offset, index.size)]
    named = [(members, len(values)) for members, values in index.groups.values()]
    if reading.mask is None:
        named.append((index.target, len(index.labels)))
    elif index.target.shape[1] == 2:
        places.append((index.target[:, 0], index.target[:, 1]))
    else:
        raise ValueError("it does not say where masks lie")
    if any(bool(((at < 0) | (size < 0) | (size > end) | (at > end - size)).any()) for at, size in places):
        raise ValueError("it points beyond an archive")
    for numbers, most in named:
        if not numbers.is_floating_point() and bool(((numbers < 0) | (numbers >= most)).any()):
            raise ValueError("it has a number without a name")
    return index


def _is_list(paths: PathList) -> bool:
    ends = paths.offsets
    return (
        len(ends) > 0 and int(ends[0]) == 0 and int(ends[-1]) <= len(paths.content) and bool((ends.diff() >= 0).all())
    )


# --- making one ------------------------------------------------------------------------------------------------------


@dataclass
class _Columns:
    """The columns of the samples read so far."""

    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    label: array[int] = field(default_factory=lambda: array("q"))
    mask: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("f"))
    width: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def add_numbers(self, values: Sequence[float]) -> None:
        """Add the numeric target of a sample. Raises ValueError if it has more or fewer numbers than the others."""
        self.width = self.width or len(values)
        if len(values) != self.width:
            raise ValueError(f"has {len(values)} numbers, and those before it have {self.width}")
        self.numbers.extend(map(float, values))


def _made(paths: list[str], states: list[tuple[int, int]], reading: SampleFiles) -> TarIndex:
    """Build the index of archives from their headers."""
    columns = _Columns()
    ends = []
    log.info("%s: the samples of %d archives are indexed, once", Path(paths[0]).parent, len(paths))
    for path, state in zip(paths, states, strict=True):
        descriptor = open_tar(path)
        try:
            for sample in samples(path, descriptor):
                _take(columns, sample, path, descriptor, reading)
            if state_of(descriptor) != state:
                raise DataError(f"{path}: is being written; start again when it is complete")
        finally:
            os.close(descriptor)
        ends.append(len(columns.offset))
    target = _whole(columns.label)
    if reading.mask is not None:
        target = _whole(columns.mask).view(len(columns.offset), 2)
    elif reading.numbers:
        target = torch.from_numpy(np.array(columns.numbers, np.float32)).view(len(columns.offset), columns.width or 1)
    groups = {}
    for name, values in columns.groups.items():
        if len(values) != len(columns.names):
            raise DataError(f"{paths[0]}: some samples name their {name}, others do not")
        known: dict[str, int] = {}
        members = torch.tensor([known.setdefault(value, len(known)) for value in values], dtype=torch.int64)
        groups[name] = (members, PathList.of(known))
    return TarIndex(
        paths,
        states,
        torch.tensor(ends, dtype=torch.int64),
        _whole(columns.offset),
        _whole(columns.size),
        target,
        list(columns.labels),
        PathList.of(columns.names),
        groups,
    )


def _whole(numbers: array[int]) -> Tensor:
    return torch.from_numpy(np.array(numbers, np.int64))


def _take(columns: _Columns, sample: Sample, path: str, descriptor: int, reading: SampleFiles) -> None:
    """Add a sample. Raises DataError that names the archive and the sample."""
    where = f"{path}: {sample.key}"
    picture = _picture(sample, where, reading.image)
    facts: dict[str, Any] = {}
    try:
        if "json" in sample.files:
            read = json.loads(_text(descriptor, sample.files["json"]))
            facts = read if isinstance(read, dict) else {}  # other programs may store other values there
        if reading.mask is not None:
            mask = _mask(sample, reading.mask)
            columns.mask.extend((mask.offset, mask.size))
        elif reading.numbers:
            _take_numbers(columns, facts, reading.target)
        else:
            label = _label(sample, facts, descriptor, reading.target)
            columns.label.append(columns.labels.setdefault(label, len(columns.labels)))
        named = facts.get("group")
        for name, value in named.items() if isinstance(named, dict) else ():
            columns.groups.setdefault(str(name), []).append(str(value))
        columns.names.append(str(facts.get("path", f"{sample.key}.{picture.name.rpartition('.')[2]}")))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: {line(str(error))}") from error
    columns.offset.append(picture.offset)
    columns.size.append(picture.size)


def _picture(sample: Sample, where: str, ending: str | None) -> Member:
    found = [name for name in sample.files if name in PICTURES] if ending is None else [ending.lower().lstrip(".")]
    if len(found) > 1:
        raise DataError(f"{where}: has {' and '.join(found)}; data.image={found[0]} says which is the picture")
    if not found or found[0] not in sample.files:
        there = ", ".join(sample.files)
        raise DataError(f"{where}: has no {found[0] if found else 'picture'}, but {there}")
    return sample.files[found[0]]


def _mask(sample: Sample, ending: str) -> Member:
    """The mask of a sample. Raises ValueError."""
    extension = ending.lower().strip(".")
    found = [name for name in sample.files if name == extension or name.startswith(f"{extension}.")]
    if len(found) > 1:
        raise ValueError(f"has {' and '.join(found)}; data.mask={found[0]} says which is the mask")
    if not found:
        raise ValueError(f"has no mask {extension}, but {', '.join(sample.files)}; data.mask says what masks end in")
    return sample.files[found[0]]


def _text(descriptor: int, member: Member) -> str:
    if member.size > CHUNK:
        raise ValueError(f"{member.name} has {member.size} bytes")
    return os.pread(descriptor, member.size, member.offset).decode()


def _label(sample: Sample, facts: Mapping[str, Any], descriptor: int, key: str | None) -> str:
    """The text of a sample's class. Raises ValueError."""
    if key is None and "cls" in sample.files:
        label: Any = _text(descriptor, sample.files["cls"]).strip()
    else:
        label = next((facts[name] for name in ([key] if key else ["target", "label"]) if name in facts), None)
    if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
        missing = f"the key {key} of its .json" if key else ".cls, and neither target nor label in its .json"
        raise ValueError(f"has no class: there is no {missing}")
    return str(label)


def _take_numbers(columns: _Columns, facts: Mapping[str, Any], key: str | None) -> None:
    """Add the numeric target of a sample. Raises ValueError."""
    given = facts.get(key or "target")
    values: list[Any] = given if isinstance(given, list) else [given]
    if not all(isinstance(value, (int, float)) and abs(value) <= LARGEST for value in values):
        raise ValueError(f"its .json has no finite numbers as {key or 'target'}")
    columns.add_numbers(values)


def place_in_cache(folder: Path, root: Path) -> Path:
    """The folder below ``root`` for the indices of archives whose own folder is not writable."""
    digest = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()
    return root / "cache" / f"shards-{digest[:16]}"
