"""Files whose masks are predicted: listing, grouping by channel, and the names of their masks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from healsg.datasets.images.folders import is_picture
from healsg.datasets.volumes.files import EXTENSIONS, is_volume
from healsg.datasets.volumes.lists import IMAGES, LABELS, MASK_ENDS
from healsg.errors import DataError

CHANNEL = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's name of one channel of a case."""

LOSSLESS = (".png", ".tif", ".tiff")
"""Image formats in which a mask is written; the masks of other formats are PNG files."""


@dataclass(frozen=True)
class Scan:
    """A volume or picture whose mask is predicted.

    Args:
        files: the file, or one file a channel.
        mask: its mask's path below the folder of all masks.
    """

    files: tuple[Path, ...]
    mask: Path


def scans_of(paths: Sequence[str], channels: int, volumes: bool, out: Path) -> list[Scan]:
    """The files of all paths in turn, those of a folder in the order of their names, all below it.

    Skipped in a folder: hidden files, files that are neither volumes nor images by extension, files in ``out``, and
    masks, which are files beside their image (``NAME_seg``) and folders such as ``labels/`` beside ``images/``. Files
    of one channel each (``NAME_0000``, ``NAME_0001``, ...) are one scan.

    Args:
        paths: files and folders.
        channels: that the network takes.
        volumes: whether it takes volumes; else pictures.
        out: the folder of the masks.

    Raises:
        DataError: a path is not there, has nothing in it, or is of the other kind; two files would have one mask.
    """
    found: list[tuple[Path, Path]] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = [one for one in _below(path, out.resolve()) if _is_wanted(one, volumes)]
            if not inside:
                raise DataError(f"{given}: no {'volumes' if volumes else 'pictures'} in it, which the network takes")
            found += [(one, one.relative_to(path)) for one in inside]
        elif not path.exists():
            raise DataError(f"{given}: there is no such file or folder")
        elif not _is_wanted(path, volumes):
            kinds = ", ".join(EXTENSIONS) if volumes else "pictures"
            raise DataError(f"{given}: the network takes {'volumes: ' if volumes else ''}{kinds}")
        else:
            found.append((path, Path(path.name)))
    scans = _grouped(found, channels if volumes else 1)
    _refuse_same(scans, out)
    return scans


def _is_wanted(path: Path, volumes: bool) -> bool:
    return is_volume(path) if volumes else is_picture(path.name)


def _below(folder: Path, out: Path, seen: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files below a folder that are no masks; a folder that contains itself is skipped."""
    resolved = folder.resolve()
    if resolved in seen or resolved == out:
        return
    try:
        entries = sorted((entry for entry in os.scandir(folder)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a folder ({error.strerror})") from error
    folders = {entry.name for entry in entries if entry.is_dir()}
    masks = set(LABELS) if folders & set(IMAGES) else set()
    files = [Path(entry.path) for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    stems = {_parts(path.name)[0] for path in files}
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in masks:
            yield from _below(Path(entry.path), out, (*seen, resolved))
    yield from (path for path in files if not _is_mask_beside(_parts(path.name)[0], stems))


def _is_mask_beside(stem: str, stems: set[str]) -> bool:
    end = next((end for end in MASK_ENDS if stem.lower().endswith(end)), None)
    return end is not None and stem[: len(stem) - len(end)] in stems


def _parts(name: str) -> tuple[str, str]:
    """A file's name and its extension, with ``.nii.gz`` as one."""
    known = next((one for one in (".nii.gz", *EXTENSIONS) if name.lower().endswith(one)), Path(name).suffix)
    return name[: len(name) - len(known)], name[len(name) - len(known) :]


def _grouped(images: Sequence[tuple[Path, Path]], channels: int) -> list[Scan]:
    """One scan a file, or, where a name ends in ``_0000``, of as many files as there are channels."""
    scans: dict[Path, list[Path]] = {}
    by_channel = channels > 1 and any(CHANNEL.fullmatch(_parts(path.name)[0]) for path, _ in images)
    for path, below in images:
        stem, ending = _parts(below.name)
        single = CHANNEL.fullmatch(stem) if by_channel else None
        kept = ending if is_volume(path) or ending.lower() in LOSSLESS else ".png"
        mask = below.with_name((single[1] if single else stem) + kept)
        if mask in scans and single is None:
            raise DataError(f"{path}: its mask would be {mask}, and so would that of {scans[mask][0]}; rename one")
        scans.setdefault(mask, []).append(path)
    for mask, files in scans.items():
        if by_channel and CHANNEL.fullmatch(_parts(files[0].name)[0]) and len(files) != channels:
            raise DataError(f"{files[0]}: {len(files)} files of {mask}, one a channel; the network takes {channels}")
    return [Scan(tuple(files), mask) for mask, files in scans.items()]


def _refuse_same(scans: Sequence[Scan], out: Path) -> None:
    for scan in scans:
        target = (out / scan.mask).resolve()
        if any(file.resolve() == target for file in scan.files):
            raise DataError(f"{scan.files[0]}: its mask would take its place; give another --out")
