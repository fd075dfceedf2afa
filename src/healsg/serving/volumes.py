"""Volumes in ``healsg serve``: uploads are stored in files, the mask is a file in the volume's own space, and three
planes with the mask as an overlay are shown."""

from __future__ import annotations

import base64
import math
import re
import secrets
import tempfile
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from healsg.datasets.new_samples.mask_files import Scan
from healsg.datasets.new_samples.segmenter import Segmenter
from healsg.datasets.volumes.cases import preparation_of
from healsg.datasets.volumes.files import Array, Volume, read_geometry
from healsg.datasets.volumes.mapped import holds_its_numbers
from healsg.datasets.volumes.space import to_ras, turned
from healsg.errors import HealsgError, one_line
from healsg.evaluation.predictor import Predictor
from healsg.loggers.mask_panels import grey_levels, joined
from healsg.loggers.thumbnails import colour_of, with_mask
from healsg.runs.media import png
from healsg.serving.folder import ServerFolder
from healsg.serving.uploads import UploadError
from healsg.system import return_freed_memory

KINDS = (".nii", ".nii.gz", ".mha", ".nrrd")
"""The supported file types: those with header and numbers in one file."""

MOST_BYTES = 2 << 30
"""The largest upload, in bytes."""

MOST_VOXELS = 1 << 29
"""The most voxels of a volume, over all channels, by its header and at the network's spacing: 512 x 512 x 2048."""

KEPT = 8
"""The number of masks that can be fetched; older ones are removed."""

SIDE = 256
"""The side of a plane in the picture, in pixels."""

AXES = (2, 1, 0)
"""The axes across which planes are shown: seen from below, from the front and from the side."""

HEAD = 1 << 16
"""The number of bytes from which the type of a file is recognised."""


class VolumeService:
    """The network of a run for uploaded volumes. Files are in a temporary folder, which is removed when the process
    ends.

    Args:
        predictor: the network, which takes volumes.
        run: the name of the run, for messages.
    """

    def __init__(self, predictor: Predictor, run: str) -> None:
        self.segmenter = Segmenter([(run, predictor)])
        self.preparation = preparation_of(predictor.info)
        self.own_folder = ServerFolder()
        self.folder = self.own_folder.path
        self.masks: dict[str, tuple[Path, str]] = {}
        """By key, the masks that can be fetched and their file names, oldest first."""
        self.lock = threading.Lock()  # one volume at a time, whose arrays are as large as the disk lets them be

    def place(self) -> tempfile.TemporaryDirectory[str]:
        """A temporary folder for one upload."""
        return tempfile.TemporaryDirectory(dir=self.folder)

    def mask(self, key: str) -> tuple[Path, str] | None:
        """The file of a mask and its name for downloading; None if it does not exist or was removed."""
        return self.masks.get(key)

    def predicted(self, upload: Path, name: str) -> dict[str, Any]:
        """Predict the mask of an uploaded file.

        Args:
            upload: the file, in a folder of its own.
            name: its name in the user's browser, or empty.

        Returns:
            ``shape``, ``spacing``, ``shares`` and ``colours`` of the classes, ``planes``, a PNG in base64, ``mask``,
            the URL of the mask's file, and ``file``, its name for downloading.

        Raises:
            UploadError: it is not a volume, too large, unreadable, or does not fit the network.
        """
        kind = kind_of(upload)
        volume = upload.rename(upload.with_name("volume" + kind))
        key = secrets.token_urlsafe(12)
        path = self.folder / (key + kind)
        views: list[Array] = []

        def look(image: Volume, mask: Array) -> None:
            views.append(planes(image, mask, list(self.segmenter.names)))

        try:
            self._check(volume, kind)
            with self.lock:
                try:
                    facts = self.segmenter.write(Scan((volume,), Path(path.name)), path, look)
                finally:
                    return_freed_memory()  # the heap would else keep what the windows took
                self._keep(key, path, saved_name(name, kind))
        except HealsgError as error:
            raise UploadError(422, one_line(error).replace(str(volume), "the volume")) from error
        except OSError as error:
            raise UploadError(507, f"the mask cannot be written ({error.strerror})") from error
        return self._answer(facts, views[0]) | {"mask": f"masks/{key}", "file": self.masks[key][1]}

    def _check(self, volume: Path, kind: str) -> None:
        """Check by its header that a volume fits the network, has not too many voxels, and does not refer to another
        file.

        Raises UploadError, DataError, ConfigError.
        """
        if kind in (".mha", ".nrrd") and not holds_its_numbers(volume):
            message = f"the numbers of this {kind} file are in another file, or in a way that is not taken"
            raise UploadError(422, message)
        geometry = read_geometry(volume, self.preparation.trust)
        sides = " x ".join(map(str, geometry.shape))
        channels = self.segmenter.info.input_shape[0]
        if geometry.channels != channels:
            message = f"the volume is {sides} with {geometry.channels} channels; the network takes {channels}"
            raise UploadError(422, message)
        if math.prod(geometry.shape) * channels > MOST_VOXELS:
            raise UploadError(413, f"the volume has {sides} voxels; {MOST_VOXELS:,} are taken")
        prepared = self.preparation.shape(geometry)
        if math.prod(prepared) * channels > MOST_VOXELS:
            message = f"at the network's spacing the volume has {' x '.join(map(str, prepared))} voxels"
            raise UploadError(413, f"{message}; {MOST_VOXELS:,} are taken; are its spacings in mm?")

    def _keep(self, key: str, path: Path, name: str) -> None:
        self.masks[key] = (path, name)
        while len(self.masks) > KEPT:
            self.masks.pop(next(iter(self.masks)))[0].unlink(missing_ok=True)

    def _answer(self, facts: dict[str, Any], view: Array) -> dict[str, Any]:
        total = math.prod(facts["shape"])
        shares, colours = {}, {}
        for place, (label, name) in enumerate(self.segmenter.names.items()):
            shares[name] = facts["labels"].get(str(label), 0) / total
            if place:
                colours[name] = f"#{bytes(colour_of(place)).hex()}"
        described = {"shape": facts["shape"], "spacing": facts["spacing"], "shares": shares, "colours": colours}
        return described | {"planes": base64.b64encode(png(view)).decode()}


def kind_of(path: Path) -> str:
    """The type of a volume's file by its first bytes, one of ``KINDS``. Raises UploadError."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    inner = head
    if packed := head.startswith(b"\x1f\x8b"):
        try:
            inner = zlib.decompressobj(31).decompress(head, HEAD)
        except zlib.error:
            inner = b""
    if inner[344:348] == b"n+1\0" or inner[4:8] == b"n+2\0":
        return ".nii.gz" if packed else ".nii"
    if head.startswith(b"NRRD"):
        return ".nrrd"
    if re.match(rb"(ObjectType|NDims|Comment)\s*=", head):
        return ".mha"
    raise UploadError(415, f"this is no volume of a known kind, and the network takes volumes ({', '.join(KINDS)})")


def saved_name(name: str, kind: str) -> str:
    """The name of the mask of a file: ``scan_seg.nii.gz`` for ``scan.nii.gz``."""
    stem = re.sub(r"(?i)\.(nii|nii\.gz|mha|nrrd)$", "", re.split(r"[/\\]", name)[-1])
    plain = "".join(letter for letter in stem if letter.isalnum() or letter in " ._-")[:80].strip(" .")
    return f"{plain or 'volume'}_seg{kind}"


def planes(image: Volume, mask: Array, labels: Sequence[int]) -> Array:
    """(2 * SIDE, 3 * SIDE, 3) uint8: three planes of a volume, and below them the same with the mask as an overlay.

    They are the planes with most mask voxels, or the middle ones if the mask is empty; in RAS, with head or front up.

    Args:
        image: (C, X, Y, Z), of which the first channel is shown.
        mask: (X, Y, Z) labels in its own space.
        labels: all labels, the background first, which determine the colours.
    """
    turn = to_ras(image.geometry.affine)
    shown = turned(image.array[:1], turn)[0]
    labelled = turned(mask[None], turn)[0]
    spacing = [image.geometry.spacing[axis] for axis in turn.order]
    counts = _along_axes(labelled)
    places = [int(count.argmax()) if count.any() else len(count) // 2 for count in counts]
    images = [_plane(shown, axis, places[axis]) for axis in AXES]
    grey = grey_levels(np.concatenate([one.reshape(-1) for one in images]))  # all of one brightness
    plain, coloured = [], []
    for axis, image_plane in zip(AXES, images, strict=True):
        levels, grey = grey[: image_plane.size].reshape(image_plane.shape), grey[image_plane.size :]
        picture = np.repeat(levels[..., None], 3, axis=2)
        own = _plane(labelled, axis, places[axis])
        numbers = np.zeros(own.shape, np.int32)
        for number, label in enumerate(labels):
            numbers[own == label] = number
        across, up = (length for at, length in enumerate(spacing) if at != axis)
        plain.append((picture, (up, across)))
        coloured.append((with_mask(picture, numbers), (up, across)))
    return joined([plain, coloured], SIDE)


def _plane(array: Array, axis: int, place: int) -> Array:
    """A plane across an axis of (X, Y, Z), upright. ``take`` would copy the whole of a turned array first."""
    plane: Array = np.moveaxis(array, axis, 0)[place].T[::-1]
    return plane


def _along_axes(mask: Array) -> list[Array]:
    """For each axis, the number of foreground voxels in each plane across it, counted row by row."""
    counts = [np.zeros(side, np.int64) for side in mask.shape]
    for row in range(mask.shape[0]):
        inside = mask[row] > 0
        counts[0][row] = inside.sum()
        counts[1] += inside.sum(axis=1)
        counts[2] += inside.sum(axis=0)
    return counts
