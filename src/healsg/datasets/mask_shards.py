"""Shards with masks: images and masks in uncompressed tar archives with random access; see
``healsg.datasets.shards``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from io import BytesIO
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from healsg.data.case import Case, names_of_files
from healsg.datasets.images.stored import StoredFile
from healsg.datasets.masks.pictures import Array, Colours, MaskedSamples, read_mask_picture
from healsg.datasets.seg2d import MaskedPictures
from healsg.datasets.shards import ArchivedPictures, archives_of, indices_of
from healsg.datasets.tar.index import SampleFiles, TarIndex
from healsg.datasets.tar.notes import read_notes
from healsg.errors import ConfigError
from healsg.paths import current_folder


class MaskShards(MaskedPictures):
    """Pictures with masks in tar archives: those of ``healsg pack``, or others in webdataset's naming: KEY.jpg (or
    .png, ...) and KEY.seg.png.

    The meaning of the masks' values or colours, and the ignored label, come from the settings or else from the notes
    that ``healsg pack`` wrote next to the archives. Parts and indices are those of ``Shards``.

    Args:
        folder: of the archives, relative to the current directory or else to ``root``.
        root: see TaskData.
        ignore: the label of pixels that are excluded from loss and metrics; None is what ``healsg pack`` wrote, else
            none.
        image: the extension of the images where samples have several; None if each has one.
        mask: the first part of the masks' extension: ``seg`` means KEY.seg.png, KEY.seg.tif, ...
        common: the arguments of MaskedPictures.
    """

    masks_as_stored = True

    def __init__(
        self,
        folder: str,
        root: str = "data",
        ignore: int | None = None,
        image: str | None = None,
        mask: str = "seg",
        **common: Any,
    ) -> None:
        given = Path(folder).expanduser()
        candidates = (current_folder() / given, current_folder() / Path(root).expanduser() / given)
        found = next(filter(Path.is_dir, candidates), None)  # if it is missing, reading reports it
        self.notes = notes = read_notes(found) if found is not None else None
        if notes is not None and notes.masks is None:
            raise ConfigError(f"data: {found} holds pictures without masks; data=shards reads them")
        self.packed = notes.masks if notes is not None else None
        """What ``healsg pack`` wrote of the masks."""
        if self.packed is not None and ignore is None:
            ignore = self.packed.ignore
        super().__init__(folder=folder, root=root, ignore=ignore, **common)
        self.image, self.mask = image, mask
        self.colours = self.packed.colours if self.packed is not None else None
        if notes is not None and self.classes is None and self.given_mapping is None:
            self.classes = list(notes.class_names)

    @cached_property
    def mapping(self) -> dict[int, int]:
        """From the labels of the files to those of the classes."""
        if self.packed is None or self.given_mapping is not None or self.regions:
            return super().mapping
        return dict(self.packed.mapping)

    @cached_property
    def parts(self) -> Mapping[str, TarIndex]:
        """By part where its pictures and masks lie."""
        folder_path = self.place.absolute()
        tars = archives_of(folder_path, self.notes, any_part=self._saved is not None)
        return indices_of(tars, SampleFiles(self.image, mask=self.mask), folder_path, self.root)

    def samples(self, part: str, mapping: Mapping[int, int]) -> ShardMasks:
        return ShardMasks(self.parts[part], self.colours, self.image_size, self.channels, mapping, self.ignore)

    def cases(self, part: str) -> list[Case]:
        index = self.parts[part]
        names = list(index.names)
        if len(set(names)) < len(names):  # by another program, whose keys restart in each archive
            starts = [0, *index.ends.tolist()]
            counts = [stop - start for start, stop in pairwise(starts)]
            tars = [Path(tar).stem for tar, count in zip(index.tars, counts, strict=True) for _ in range(count)]
            names = [f"{tar}/{name}" for tar, name in zip(tars, names, strict=True)]
        named = names_of_files([PurePosixPath(name) for name in names])
        if self.group and len(index.groups) > 1 and self.group not in index.groups:
            raise ConfigError(f"data.group: {self.group} is not one of {', '.join(index.groups)}")
        shape = (self.image_size, self.image_size)
        groups = index.groups.get(str(self.group)) or next(iter(index.groups.values()), None)
        if groups is None:
            return [Case(name, shape=shape) for name in named]
        members, values = groups
        known = list(values)
        return [Case(name, known[member], shape=shape) for name, member in zip(named, members.tolist(), strict=True)]


class ShardMasks(ArchivedPictures, MaskedSamples):
    """A data set of pictures and masks in archives.

    Args:
        index: where they lie.
        colours: of masks of colours, by class.
        size, channels, mapping, ignore: see ``MaskedSamples``.
    """

    def __init__(
        self,
        index: TarIndex,
        colours: Colours | None,
        size: int,
        channels: int,
        mapping: Mapping[int, int],
        ignore: int | None,
    ) -> None:
        MaskedSamples.__init__(self, size, channels, mapping, ignore)
        ArchivedPictures.__init__(self, index)
        self.colours = colours
        self.coloured = str(colours)
        """The colours as text: a cache is identified by the strings and numbers of its data set."""

    def __len__(self) -> int:
        return len(self.index)

    def picture(self, index: int) -> BytesIO:
        return self.opened(index)

    def labels(self, index: int) -> Array:
        return read_mask_picture(BytesIO(self._mask(index)), self.colours, self.mask_name(index))

    def mask_name(self, index: int) -> str:
        return f"{self.name(index)}, its mask"

    def stored_mask(self, index: int) -> StoredFile:
        """A mask's file as it is, without decoding."""
        return self.stored_at(index, self.mask_name(index), *self.index.target[index].tolist())

    def _mask(self, index: int) -> bytes:
        return self.read(index, *self.index.target[index].tolist())
