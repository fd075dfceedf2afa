"""Masks stored as images: labels as grey values, palettes and colours; and images with masks as samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import torch
from torch import Tensor

from healsg.data.source import line
from healsg.datasets.images.decoding import PIXELS, decode, open_picture, orientation_of
from healsg.datasets.images.stored import StoredFile, stored_file
from healsg.datasets.masks.pairs import Pair
from healsg.errors import DataError

Array = np.ndarray[Any, Any]
Colours = Mapping[str, Sequence[int]]
"""Red, green and blue of each class by name, in the order of the labels."""

ReadMask = Callable[[Pair], Array]
"""From a pair to (H, W) int32, the labels of its mask in the picture's own size."""

GREY = ("P", "L", "1", "I;16", "I", "I;16B")
"""Pillow's modes of masks with one number a pixel."""

LOSSY = ("JPEG", "MPO", "JPEG2000")
"""Pillow's lossy formats, in which a label may change."""

SHOWN = 4
"""Colours that a message gives."""


def read_mask_picture(mask: Path | BytesIO, colours: Colours | None = None, name: str = "") -> Array:
    """(H, W) int32 the labels of a mask: indices of a palette, grey values of 8 or 16 bits, or places of its colours.

    Args:
        mask: the file, or its bytes as a file.
        colours: of the classes; if given, the mask is read as colours, whatever its mode.
        name: its name in messages; its path by default.

    Raises:
        DataError: it cannot be read, or has colours that are not known.
    """
    name = name or str(mask)
    try:
        if isinstance(mask, Path) and not S_ISREG(os.stat(mask).st_mode):  # noqa: PTH116
            raise ValueError("not a file")
        with open_picture(mask) as opened:
            if opened.width * opened.height > PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels")
            if opened.format in LOSSY:
                raise ValueError("a JPEG, whose compression changes labels; write masks as PNG or TIFF")
            opened.load()
            if colours is None and opened.mode in GREY:
                shown = opened.convert("L") if opened.mode == "1" else opened
                return np.asarray(shown).astype(np.int32)
            values = np.asarray(opened.convert("RGB"))
    except Exception as error:
        raise DataError(f"{name}: cannot be read as a mask ({line(error)[:200]})") from error
    if colours is not None:
        return _by_colour(values, colours, name)
    if (values == values[..., :1]).all():
        return values[..., 0].astype(np.int32)
    raise DataError(
        f"{name}: a mask of colours, {_table(values)}; say which class each is: data.colours={{NAME: [R, G, B]}}"
    )


def _packed(values: Array) -> Array:
    """(..., 3) bytes as one number."""
    wide = values.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _by_colour(values: Array, colours: Colours, name: str) -> Array:
    known = _packed(np.asarray(list(colours.values())))
    order = np.argsort(known)
    packed = _packed(values)
    rank = np.searchsorted(known[order], packed).clip(max=len(known) - 1)
    labels: Array = order[rank].astype(np.int32)
    unknown = known[labels] != packed
    if unknown.any():
        raise DataError(f"{name}: has colours that data.colours does not name: {_table(values[unknown])}")
    return labels


def _table(values: Array) -> str:
    """Colours for a message, the most frequent first, with their number of pixels."""
    found, counts = np.unique(_packed(values), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    detail = [
        f"[{one >> 16}, {one >> 8 & 255}, {one & 255}] ({count})"
        for one, count in zip(found[order], counts[order], strict=True)
    ]
    return ", ".join(detail[:SHOWN]) + (f" and {len(detail) - SHOWN} more" if len(detail) > SHOWN else "")


def fitted(labels: Array, size: int) -> Array:
    """(size, size) of (H, W) labels: resized on the shorter side by nearest neighbour and cut to the centre, as
    ``decode`` does with the picture."""
    from PIL import Image
    from PIL.Image import Resampling

    shown = Image.fromarray(labels.astype(np.int32))
    shorter = min(shown.size)
    width, height = (size * side // shorter for side in shown.size)
    shown = shown.resize((width, height), Resampling.NEAREST)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(shown.crop((left, top, left + size, top + size)))


class MaskedSamples:
    """A map-style data set of pictures and masks, wherever their bytes lie: ``(input, target)``, (C, size, size) and
    (size, size) uint8. A subclass gives ``picture``, ``labels`` and ``mask_name``.

    Args:
        size: height and width.
        channels: 3 for colour, 1 for grey.
        mapping: from the labels of the files to 0, 1, 2, ...
        ignore: the label that is left as it is.
    """

    def __init__(self, size: int, channels: int, mapping: Mapping[int, int], ignore: int | None) -> None:
        self.size = size
        self.channels = channels
        self.mapping = mapping
        self.ignore = ignore
        self.mapped = str(sorted(mapping.items()))
        """The mapping as text: a cache is identified by the strings and numbers of its data set."""

    def picture(self, index: int) -> str | BytesIO:
        """What ``decode`` reads: the path of a picture's file, or its bytes as a file."""
        raise NotImplementedError

    def labels(self, index: int) -> Array:
        """(H, W) int32 the labels of a mask in the picture's own size. Raises DataError."""
        raise NotImplementedError

    def mask_name(self, index: int) -> str:
        """The name of a mask in messages."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of a picture, from its header. Raises DataError."""
        return picture_header(self.picture(index))[0]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = self.picture(index)
        full_labels = self.labels(index)
        shape, turn = picture_header(picture)
        if turn != 1 and (turn < 5 or full_labels.shape != shape[::-1] or shape[0] == shape[1]):
            detail = f"it has an EXIF orientation ({turn}), by which pictures are turned and masks are not"
            raise DataError(f"the picture of {self.mask_name(index)}: {detail}; save it upright")
        if turn != 1:
            shape = shape[::-1]  # the mask belongs to the upright image
        if full_labels.shape != shape:
            detail = f"the mask is {full_labels.shape[0]} x {full_labels.shape[1]}, its picture {shape[0]} x {shape[1]}"
            raise DataError(f"{self.mask_name(index)}: {detail}")
        labels = fitted(full_labels, self.size)
        known = dict(self.mapping) | ({} if self.ignore is None else {self.ignore: self.ignore})
        there = np.unique(labels).tolist()
        if others := [label for label in there if label not in known]:
            hint = "; is 255 the foreground? 'data.mapping={0: 0, 255: 1}'" if there in ([0, 255], [255]) else ""
            problem = f"holds the label {others[0]}, and those known are {sorted(known)}{hint}"
            raise DataError(f"{self.mask_name(index)}: {problem}")
        target = np.zeros(labels.shape, np.uint8)
        for old, new in known.items():
            target[labels == old] = new
        return decode(picture, self.size, self.channels), torch.from_numpy(target)


class Pictures(MaskedSamples):
    """Those whose pictures are files.

    Args:
        pairs: of files.
        read_mask: gives the labels of a pair.
        size, channels, mapping, ignore: see ``MaskedSamples``.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        read_mask: ReadMask,
        size: int,
        channels: int,
        mapping: Mapping[int, int],
        ignore: int | None,
    ) -> None:
        super().__init__(size, channels, mapping, ignore)
        self.pairs, self.read_mask = list(pairs), read_mask
        self.paths = [str(pair.image) for pair in pairs]
        self.mask_paths = [str(pair.mask) for pair in pairs]

    def every_path(self) -> list[str]:
        """The files of all samples, each once: their pictures, then their masks, of which one file may hold several."""
        return list(dict.fromkeys([*self.paths, *self.mask_paths]))

    def __len__(self) -> int:
        return len(self.pairs)

    def picture(self, index: int) -> str:
        return self.paths[index]

    def labels(self, index: int) -> Array:
        return self.read_mask(self.pairs[index])

    def mask_name(self, index: int) -> str:
        return self.mask_paths[index]

    def stored(self, index: int) -> StoredFile:
        """An image's file, without decoding."""
        return stored_file(self.paths[index])

    def stored_mask(self, index: int) -> StoredFile:
        """The file of a mask as it is, or of what masks are made of."""
        return stored_file(self.mask_paths[index])


def picture_header(picture: str | Path | BytesIO) -> tuple[tuple[int, int], int]:
    """(height, width) of a picture as it is stored, and the EXIF orientation by which ``decode`` turns it, 1 where it
    is upright. Raises DataError."""
    try:
        with open_picture(picture) as opened:
            return (opened.height, opened.width), orientation_of(opened)
    except Exception as error:
        name = "its picture" if isinstance(picture, BytesIO) else picture
        raise DataError(f"{name}: cannot be read as a picture ({line(error)[:200]})") from error
