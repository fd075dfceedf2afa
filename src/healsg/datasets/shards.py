"""Shards: images in uncompressed tar archives with random access, without unpacking."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from healsg.data.info import (
    ClassOrder,
    DataInfo,
    given_order,
    listed,
    order_classes,
    refuse_unknown_classes,
)
from healsg.data.source import DatasetSource
from healsg.datasets.imagefolder import PICTURE, OwnPictures
from healsg.datasets.images.decoded import DecodedPictures
from healsg.datasets.images.decoding import Decoder, Remark, unremarked
from healsg.datasets.images.folders import PARTS, inner_folders, parts_in
from healsg.datasets.images.stored import StoredFile
from healsg.datasets.published.files import locate, log
from healsg.datasets.tar.index import SampleFiles, TarIndex, index_of, place_in_cache
from healsg.datasets.tar.members import TarFiles
from healsg.datasets.tar.notes import NOTES, Kind, Notes, read_notes
from healsg.datasets.targets import groups
from healsg.datasets.targets.names import shown
from healsg.errors import ConfigError, DataError

MOST_CLASSES = 1 << 20

NUMBER = re.compile(r"0|[1-9]\d{0,8}")
"""The index of a class as text."""
NEGATIVE = re.compile(r"-\d+")
"""The class indices that other programs write for a sample without a class."""


class Shards(OwnPictures):
    """Images in tar archives: those of ``healsg pack``, or others in webdataset's naming: KEY.jpg (or .png, ...) and
    KEY.cls, or KEY.json with ``target`` or ``label``.

    Archives of other programs are in ``train/``, ``val/`` and ``test/``, or have the part in their names
    (``set-val-0001.tar``); otherwise all are the training part. Their classes are the indices in them, or the names,
    sorted as in ``ImageFolder``. An index of offsets is written beside them when they are first read.

    Args:
        image: the extension of the images if samples have several; None if each has one.
        target: the key of the target in KEY.json; None takes KEY.cls, else ``target`` or ``label``.
        kind: ``multiclass``, or ``multilabel`` and ``regression`` for numbers in KEY.json; None is what ``healsg pack``
            wrote, else multiclass.
        own: the arguments of OwnPictures. ``classes`` also names classes that are indices.
    """

    repeatable = True

    def __init__(
        self,
        image: str | None = None,
        target: str | None = None,
        kind: Literal["multiclass", "multilabel", "regression"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.image = image
        self.target = target
        self.given_kind = kind

    # --- what lies there -----------------------------------------------------------------------------------------

    @cached_property
    def place(self) -> Path:
        """The folder of the archives. Raises DataError."""
        return locate("folder", self.folder, (self.start, self.root), "folder").absolute()

    @cached_property
    def _notes(self) -> Notes | None:
        notes = read_notes(self.place)
        if notes is not None and notes.kind == "segmentation":
            raise ConfigError(f"data: {self.place} holds pictures with masks; data=shards_seg reads them")
        if notes is not None and self.given_kind not in (None, notes.kind):
            raise ConfigError(f"data.kind: {self.given_kind}, but {self.place / NOTES} says {notes.kind}; leave it out")
        return notes

    @property
    def _kind(self) -> Kind:
        return self._notes.kind if self._notes is not None else self.given_kind or "multiclass"

    @cached_property
    def _tars(self) -> dict[str, list[Path]]:
        """The archives of each part, sorted by name. Raises DataError if some are missing."""
        return archives_of(self.place, self._notes, any_part=self._saved is not None)

    @cached_property
    def _indices(self) -> dict[str, TarIndex]:
        reading = SampleFiles(self.image, self.target, self._kind != "multiclass")
        return indices_of(self._tars, reading, self.place, self.root)

    # --- classes and targets -------------------------------------------------------------------------------------

    @property
    def info(self) -> DataInfo:
        """From the description that ``healsg pack`` wrote, or from the index of the archives."""
        classes, order = self._classes_and_order
        count = len(classes) or (self._saved.num_classes if self._saved is not None else self._indexed)
        shape = (self.channels, self.image_size, self.image_size)
        return DataInfo(shape, count, self._kind, classes, order, preprocessing=PICTURE)

    @cached_property
    def _known_names(self) -> tuple[tuple[str, ...], ClassOrder]:
        """The names of classes or numbers in the archives, apart from settings and weights; empty for class indices."""
        if self._notes is not None:
            return self._notes.class_names, self._notes.class_order
        labels = [label for index in self._indices.values() for label in index.labels]
        if self._kind == "multiclass" and (odd := next(filter(NEGATIVE.fullmatch, labels), None)) is not None:
            raise DataError(f"{self.place}: a class has the index {odd}; leave samples without a class out")
        if self._kind != "multiclass" or all(map(NUMBER.fullmatch, labels)):
            return (), "published"
        return order_classes(self._indices["train"].labels if "train" in self._indices else labels)

    @cached_property
    def _indexed(self) -> int:
        """The number of classes given by indices, or of numeric targets."""
        train = self._indices.get("train") or next(iter(self._indices.values()))
        if self._kind != "multiclass":
            return train.target.shape[1]
        count = 1 + max(int(label) for label in train.labels)
        if count > MOST_CLASSES:
            raise DataError(f"{self.place}: a class has the index {count - 1}; is it a number, data.kind=regression?")
        return count

    @cached_property
    def _classes_and_order(self) -> tuple[tuple[str, ...], ClassOrder]:
        if self._saved is not None:
            return self._saved.class_names, self._saved.class_order
        known, order = self._known_names
        if self.given_classes is None:
            return known, order
        if self._kind == "multiclass" and known:
            return given_order(self.given_classes, known), "given"
        names = tuple(map(str, self.given_classes))
        if len(names) != (len(known) or self._indexed):
            raise ConfigError(f"data.classes: {len(names)} names, but there are {len(known) or self._indexed}")
        return names, "given"

    def restored(self, saved: DataInfo) -> Shards:
        """The same images with the classes of ``saved`` in their order; a part may have fewer. Raises DataError."""
        made = self.as_new(_saved=saved)
        if saved.kind != made._kind:
            raise DataError(f"data: the weights were trained on a {saved.kind} task, these are {made._kind}")
        known = made._known_names[0]
        if known and saved.class_names and saved.kind == "multiclass":
            refuse_unknown_classes(saved.class_names, known, str(self.place))
        elif known and saved.class_names and saved.class_names != known:
            raise DataError(f"{self.place}: {listed(known)}; the weights predict {listed(saved.class_names)}")
        return made

    def _targets(self, part: str) -> Tensor:
        """(N,) class indices, (N, K) labels, (N,) or (N, K) numbers. Raises DataError."""
        index = self._indices[part]
        if self._kind != "multiclass":
            return self._numbers(part, index.target)
        classes = self.info.class_names
        known = self._known_names[0]
        indices = {name: code for code, name in enumerate(classes)}
        found = []
        for label in index.labels:
            number = int(label) if NUMBER.fullmatch(label) and (not known or self._notes is not None) else None
            name = label if number is None else known[number] if number < len(known) else None
            code = indices.get(name) if name is not None and indices else number
            if code is None or code >= self.info.num_classes:
                raise DataError(f"{self.place}: the class {label!r} of its {part} part is not in the training part")
            found.append(code)
        return torch.tensor(found, dtype=torch.int64)[index.target]

    def _numbers(self, part: str, target: Tensor) -> Tensor:
        if target.shape[1] != self.info.num_classes:
            raise DataError(
                f"{self.place}: {target.shape[1]} numbers a sample of the {part} part, not {self.info.num_classes}"
            )
        if self._kind == "regression":
            return target[:, 0] if target.shape[1] == 1 else target
        if not bool(((target == 0) | (target == 1)).all()):
            raise DataError(f"{self.place}: a target of the {part} part is neither 0 nor 1")
        return target

    # --- parts ---------------------------------------------------------------------------------------------------

    @property
    def _places(self) -> Mapping[str, list[Path]]:
        return self._tars

    def _part(self, part: str) -> DatasetSource:
        targets = self._targets(part)
        if part != "train" and self._kind == "multiclass":
            self._report_empty_classes(part, targets)
        dataset = ShardPictures(
            self._indices[part], targets, self.image_size, self.channels, self.reading.remark, self.decoder
        )
        return DatasetSource(dataset, targets=targets)

    def _report_empty_classes(self, part: str, targets: Tensor) -> None:
        counts = torch.bincount(targets, minlength=self.info.num_classes)
        names = self.info.class_names or tuple(map(str, range(len(counts))))
        if empty := [names[index] for index in (counts == 0).nonzero().flatten().tolist()]:
            log.warning("%s: no %s pictures of the classes %s", self.place, part, shown(empty))

    def _group_numbers(self, dataset: Any, name: str) -> Tensor:
        """The groups stored by ``healsg pack`` or in KEY.json; otherwise by ``folder`` or ``prefix``, see
        ``path_groups``."""
        index: TarIndex = dataset.index
        if name not in index.groups:
            return groups.path_groups(index.names, name, self.info.class_names, self._group_names)
        members, values = index.groups[name]
        known = [self._group_names.setdefault(value, len(self._group_names)) for value in values]
        return torch.tensor(known, dtype=torch.int64)[members]

    def explain_single_class(self) -> str:
        return f"data.folder: {self.place} has samples of one class alone; two are needed to tell apart"


class ArchivedPictures:
    """The common part of data sets of images in archives.

    Args:
        index: of the archives.
    """

    def __init__(self, index: TarIndex) -> None:
        self.index = index
        self.tars = TarFiles(index.tars, index.states)
        columns = [index.offset, index.size, *([index.target] if index.target.shape[1:] == (2,) else [])]
        places = (column.contiguous().numpy().tobytes() for column in columns)
        self.members = hashlib.sha256(b"".join(places)).hexdigest()
        """The files of the archives that are the samples; also part of a cache's identity."""

    @property
    def files(self) -> Sequence[str]:
        """The archives: the identity of the samples for a fingerprint or a cache."""
        return self.index.tars

    def opened(self, index: int) -> BytesIO:
        """The bytes of an image as a file, from a single read."""
        return _Content(self._picture(index))

    def name(self, index: int) -> str:
        """The name of a sample in messages: its archive and its name in it."""
        return f"{self.index.tars[self._tar(index)]}: {self.index.names[index]}"

    def stored(self, index: int) -> StoredFile:
        """An image's file, without decoding."""
        return self.stored_at(index, self.index.names[index], *self._place(index))

    def stored_at(self, index: int, name: str, offset: int, size: int) -> StoredFile:
        """A file of a sample, unchanged, by its offset in the sample's archive."""
        _, changed = self.index.states[self._tar(index)]
        return StoredFile(name, partial(self.read, index, offset, size), size, changed)

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Bytes of a sample's archive at an offset."""
        return self.tars.read(self._tar(index), offset, size)

    def _picture(self, index: int) -> bytes:
        return self.read(index, *self._place(index))

    def _place(self, index: int) -> tuple[int, int]:
        return int(self.index.offset[index]), int(self.index.size[index])

    def _tar(self, index: int) -> int:
        """The number of the archive that contains a sample."""
        return int(torch.searchsorted(self.index.ends, index, right=True))


class ShardPictures(ArchivedPictures, DecodedPictures):
    """A data set of images in archives.

    Args:
        index: of the archives.
        targets: of each sample.
        size, channels, remark, decoder: see ``DecodedPictures``.
    """

    def __init__(
        self,
        index: TarIndex,
        targets: Tensor,
        size: int,
        channels: int,
        remark: Remark = unremarked,
        decoder: Decoder = "auto",
    ) -> None:
        DecodedPictures.__init__(self, targets, size, channels, remark, decoder)
        ArchivedPictures.__init__(self, index)


class _Content(BytesIO):
    """The bytes of an image, with a representation without a memory address for a decoder's error messages."""

    def __repr__(self) -> str:
        return "its bytes"


def archives_of(folder: Path, notes: Notes | None, any_part: bool) -> dict[str, list[Path]]:
    """The archives in a folder by part, sorted by name.

    Args:
        folder: the folder.
        notes: the description that ``healsg pack`` wrote.
        any_part: whether a training part may be missing.

    Raises:
        DataError: archives are missing.
    """
    if notes is not None:
        return notes.archives(folder)
    found = tars_by_part(folder)
    if "train" not in found and not any_part:
        raise DataError(f"data.folder: {folder} has no archives (.tar) of a training part")
    return found


def indices_of(
    tars: Mapping[str, Sequence[Path]], reading: SampleFiles, folder_path: Path, root: Path
) -> dict[str, TarIndex]:
    """The index of the archives of each part. Raises DataError for a part without samples."""
    indices: dict[str, TarIndex] = {}
    for part, archives in tars.items():
        candidates = [folder / f"{part}.index" for folder in (folder_path, place_in_cache(folder_path, root))]
        indices[part] = index_of(archives, reading, candidates)
        if not len(indices[part]):
            raise DataError(f"{archives[0]}: the archives of the {part} part hold no samples")
        log.info("%s: %d %s pictures in %d archives", folder_path, len(indices[part]), part, len(archives))
    return indices


def tars_by_part(folder: Path) -> dict[str, list[Path]]:
    """The archives in a folder, or in the folders of its parts, by part and sorted by name.

    Raises DataError if the part of an archive is ambiguous.
    """
    inner = {part: _tars_in(inner_folder) for part, inner_folder in parts_in(folder).items()}
    there = _tars_in(folder)
    if there and any(inner.values()):
        raise DataError(f"data.folder: {folder} has archives beside those in {' and '.join(inner)}; move them there")
    if any(inner.values()):
        return {part: tars for part, tars in inner.items() if tars}
    found: dict[str | None, list[Path]] = {}
    for tar in there:
        words = re.split(r"[^a-z]+", tar.stem.lower())
        found.setdefault(next((PARTS[word] for word in words if word in PARTS), None), []).append(tar)
    if None in found and len(found) > 1:
        names = " nor ".join(part for part in found if part is not None)
        raise DataError(f"data.folder: {found[None][0]} is named neither {names}; which part is it?")
    if not found:
        way = (
            "archives are named *.tar" if not (below := inner_folders(folder)) else f"is one of {listed(below)} meant?"
        )
        raise DataError(f"data.folder: {folder} holds no archives; {way}")
    return {part or "train": tars for part, tars in found.items()}


def _tars_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".tar") and not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
    return [folder / name for name in sorted(names)]
