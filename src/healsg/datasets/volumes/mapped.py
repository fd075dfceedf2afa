"""Volumes whose numbers are mapped into memory instead of read, for work whose memory must not grow with them.

An uncompressed file is mapped as it lies. A compressed one is unpacked into scratch, some bytes at a time. Kinds of
file that neither fits (MetaImages of several files, NRRD with several channels or in text) are read as a whole.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from healsg.data.scratch import Empty
from healsg.datasets.volumes.files import (
    NIFTI,
    Array,
    Geometry,
    Trusted,
    Volume,
    damage,
    extension,
    read_geometry,
    read_volume,
    require_finite,
    require_same_space,
)

BLOCK = 1 << 20
"""Bytes that are unpacked at once."""

MOST_HEADER = 1 << 20
"""Bytes in which the header of a MetaImage or NRRD ends."""


def mapped_image(paths: Sequence[Path], empty: Empty, trust: Trusted = "agreeing") -> Volume:
    """What ``volumes.read_image`` gives, the same numbers bit for bit, float32, with its array in a file.

    Args:
        paths: of one image: one file, or one a channel.
        empty: makes arrays of the volume's size, such as ``Scratch.empty``.
        trust: see ``volumes.read_geometry``.

    Raises:
        DataError: see ``volumes.read_image``.
    """
    volumes = [Volume(path, *_stored(path, empty, trust)) for path in paths]
    for volume in volumes:
        require_finite(volume)
        require_same_space(volumes[0], volume, "channel")
    first = volumes[0]
    if len(volumes) == 1 and first.array.dtype == np.float32:
        return first
    channels = sum(len(volume.array) for volume in volumes)
    # the order of the files, in which the first axis changes fastest, so that both sides are read and written in order
    joined = empty((channels, *reversed(first.geometry.shape)), np.float32).transpose(0, 3, 2, 1)
    at = 0
    for volume in volumes:
        joined[at : at + len(volume.array)] = volume.array
        at += len(volume.array)
    return Volume(first.path, joined, first.geometry)


def _stored(path: Path, empty: Empty, trust: Trusted) -> tuple[Array, Geometry]:
    """The numbers (C, X, Y, Z) of a file as they are meant, and its geometry."""
    geometry = read_geometry(path, trust)
    kind = extension(path)
    with damage(path):
        found = _nifti(path, geometry, empty) if kind in NIFTI else _itk(path, kind, geometry, empty)
    return (read_volume(path, trust).array if found is None else found), geometry


def _nifti(path: Path, geometry: Geometry, empty: Empty) -> Array:
    import nibabel
    from nibabel.volumeutils import apply_read_scaling

    proxy = cast(Any, nibabel.load(path)).dataobj
    sides = (geometry.channels, *reversed(geometry.shape))  # as they lie, the last axis changes fastest
    if extension(path) == ".nii":
        stored: Array = np.memmap(path, proxy.dtype, "r", proxy.offset, sides)
    else:
        with gzip.open(path) as file:
            file.seek(proxy.offset)
            stored = _unpacked(iter(lambda: file.read(BLOCK), b""), empty(sides, proxy.dtype))
    if geometry.scale != (1.0, 0.0):
        slope, inter = np.asanyarray(proxy.slope), np.asanyarray(proxy.inter)
        scaled: Array | None = None
        for plane_index in np.ndindex(sides[:2]):
            plane = apply_read_scaling(stored[plane_index], slope, inter)
            scaled = empty(sides, plane.dtype) if scaled is None else scaled
            scaled[plane_index] = plane
        assert scaled is not None
        stored = scaled
    return stored.transpose(0, 3, 2, 1)


_ELEMENTS = {b"MET_" + name for name in b"CHAR UCHAR SHORT USHORT INT UINT FLOAT DOUBLE".split()}
"""Types of a MetaImage that are of one size everywhere."""


def _itk(path: Path, kind: str, geometry: Geometry, empty: Empty) -> Array | None:
    """The numbers of a MetaImage or NRRD; None of a kind of file that is not read here."""
    with path.open("rb") as file:
        head = file.read(MOST_HEADER)
    found = _nrrd_layout(path, head, geometry.channels) if kind == ".nrrd" else _metaimage_layout(path, head)
    if found is None:
        return None
    source, offset, packed, order = found
    dtype = geometry.dtype.newbyteorder(order)
    sides = (*reversed(geometry.shape), geometry.channels)
    if not packed:
        stored: Array = np.memmap(source, dtype, "r", offset, sides)
    else:
        with source.open("rb") as file:
            file.seek(offset)
            stored = _unpacked(_inflated(file), empty(sides, dtype))
    return stored.transpose(3, 2, 1, 0)


def holds_its_numbers(path: Path) -> bool:
    """Whether a MetaImage or NRRD file has its numbers in itself, by its header: one from elsewhere could else name any
    other file as that of its numbers."""
    with path.open("rb") as file:
        head = file.read(MOST_HEADER)
    found = _nrrd_layout(path, head, 1) if extension(path) == ".nrrd" else _metaimage_layout(path, head)
    return found is not None and found[0] == path


Layout = tuple[Path, int, bool, Any]
"""The file of the numbers, where they begin, whether they are compressed, and the order of their bytes."""


def _metaimage_layout(path: Path, head: bytes) -> Layout | None:
    found = re.match(rb"(?s).*?^ElementDataFile\s*=\s*(.*?)\s*\n", head, re.M)
    if found is None:
        return None
    header = dict(re.findall(rb"(?m)^(\w+)\s*=\s*(.*?)\s*$", found[0]))
    other = {b"HeaderSize", b"ElementToIntensityFunctionSlope", b"ElementToIntensityFunctionOffset"}
    if other & set(header) or header.get(b"BinaryData") != b"True" or header.get(b"ElementType") not in _ELEMENTS:
        return None
    order = ">" if header.get(b"BinaryDataByteOrderMSB", header.get(b"ElementByteOrderMSB")) == b"True" else "<"
    packed = header.get(b"CompressedData") == b"True"
    if found[1] == b"LOCAL":
        return path, found.end(), packed, order
    source = path.parent / found[1].decode()
    return (source, 0, packed, order) if source.parent == path.parent and source.is_file() else None


def _nrrd_layout(path: Path, head: bytes, channels: int) -> Layout | None:
    text, mark, _ = head.partition(b"\n\n")
    header = dict(re.findall(rb"(?m)^([\w ]+): (.*?)\s*$", text))
    if not mark or channels > 1 or {b"data file", b"datafile", b"byte skip", b"line skip"} & set(header):
        return None
    if b"\r" in text or header.get(b"encoding") not in (b"raw", b"gzip") or b"block" in header.get(b"type", b"block"):
        return None
    order = ">" if header.get(b"endian") == b"big" else "<"
    return path, len(text) + len(mark), header[b"encoding"] == b"gzip", order


def _unpacked(blocks: Iterator[bytes], array: Array) -> Array:
    """Fill an array with bytes. Raises EOFError if they are too few; any further are not looked at."""
    buffer = array.reshape(-1).view(np.uint8)
    at = 0
    for block in blocks:
        part = np.frombuffer(block, np.uint8)[: buffer.size - at]
        buffer[at : at + part.size] = part
        at += part.size
        if at == buffer.size:
            return array
    raise EOFError(f"{at:,} of {buffer.size:,} bytes of numbers")


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    """The content of a zlib or gzip stream."""
    stream = zlib.decompressobj(47)
    while not stream.eof and (block := file.read(BLOCK)):
        yield stream.decompress(block, BLOCK)
        while stream.unconsumed_tail:
            yield stream.decompress(stream.unconsumed_tail, BLOCK)
