"""Pairing of images and masks: folders paired by name, two patterns, a table."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from healsg.data.source import line
from healsg.datasets.images.folders import is_picture
from healsg.datasets.volumes.lists import IMAGES, LABELS, MASK_ENDS, PARTS, volumes_in
from healsg.errors import ConfigError, DataError


@dataclass(frozen=True)
class Pair:
    """An image and the source of its mask.

    Args:
        image: the picture's file.
        mask: the mask's file, or the file that describes it, by which messages call it.
        group: such as a patient or a city; empty if unknown.
        objects: outlines to draw into the mask, if it is not an image file.
        sides: height and width of the image according to a list; None if unknown.
    """

    image: Path
    mask: Path
    group: str = ""
    objects: tuple[Any, ...] = ()
    sides: tuple[int, int] | None = None


def paired_pictures(folder: Path) -> list[Pair]:
    """Pictures and masks of ``images/`` and ``labels/`` (or ``masks/``), or ``NAME`` and ``NAME_mask`` side by side, by
    name. Raises DataError for an empty folder and for what has no partner."""
    images = next((folder / name for name in IMAGES if (folder / name).is_dir()), folder)
    masks = next((folder / name for name in LABELS if (folder / name).is_dir()), folder)
    if (images == folder) != (masks == folder):
        lacking = "masks (labels/ or masks/)" if masks == folder else "pictures (images/)"
        raise DataError(f"{folder}: has no folder of {lacking}")
    together = images == folder
    own = _by_name((path.stem, path) for path in _pictures(images) if not (together and _is_mask(path)))
    others = _by_name((_bare(path), path) for path in _pictures(masks) if not together or _is_mask(path))
    if set(others) - set(own) or not own:
        _refuse_volumes(images)
    if not own:
        raise DataError(f"{images}: there is no picture in it")
    alone = sorted(set(own) - set(others))
    if alone:
        more = f", and so have {len(alone) - 1} more" if alone[1:] else ""
        raise DataError(f"{own[alone[0]]}: has no mask of its name{more}")
    if lost := sorted(set(others) - set(own)):
        raise DataError(f"{others[lost[0]]}: there is no picture of its name")
    return [Pair(own[name], others[name]) for name in sorted(own)]


def _by_name(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files by their names. Raises DataError if two have one name."""
    found: dict[str, Path] = {}
    for name, path in named:
        if other := found.get(name):
            raise DataError(f"{path}: {other.name} has the same name; which one is meant? Remove the other")
        found[name] = path
    return found


def _pictures(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_picture(path.name) and path.is_file())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a folder ({error.strerror})") from error


def _refuse_volumes(folder: Path) -> None:
    """Raises DataError for a volume instead of an image."""
    if found := volumes_in(folder):
        raise DataError(f"{found[0]}: is a volume, and this set takes pictures; data=nifti takes volumes")


def _is_mask(path: Path) -> bool:
    return path.stem.lower().endswith(MASK_ENDS)


def _bare(path: Path) -> str:
    end = next((end for end in MASK_ENDS if path.stem.lower().endswith(end)), "")
    return path.stem[: len(path.stem) - len(end)]


# --- patterns --------------------------------------------------------------------------------------------------------


def matched_pictures(folder: Path, images: str, masks: str) -> list[Pair]:
    """Pictures and masks of two patterns below a folder, such as ``*/rgb/*.png`` and ``*/label/*_mask.png``; those for
    which each ``*`` stands for the same text belong together. Raises ConfigError, DataError.
    """
    found = [_matches(folder, key, pattern) for key, pattern in (("images", images), ("masks", masks))]
    if images.count("*") != masks.count("*"):
        raise ConfigError(f"data.masks: {masks} has not as many * as data.images={images}, by which files are paired")
    own, others = found
    if not own:
        raise DataError(f"{folder}: there is no picture {images} in it")
    if alone := sorted(set(own) - set(others)):
        more = f", and so have {len(alone) - 1} more" if alone[1:] else ""
        raise DataError(f"{own[alone[0]]}: has no mask {masks}{more}")
    return [Pair(own[key], others[key]) for key in sorted(own)]


def _matches(folder: Path, key: str, pattern: str) -> dict[tuple[str, ...], Path]:
    """The files of a pattern, by what its stars stand for."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts or "**" in pattern or "*" not in pattern:
        raise ConfigError(f"data.{key}: {pattern}; give a pattern below data.folder with *, such as images/*.png")
    stars = re.compile("([^/]*)".join(re.escape(part) for part in pattern.split("*")))
    found = {}
    for path in sorted(folder.glob(pattern)):
        match = stars.fullmatch(path.relative_to(folder).as_posix())
        if match and path.is_file() and is_picture(path.name):
            found[match.groups()] = path
    return found


# --- tables ----------------------------------------------------------------------------------------------------------


def listed_pictures(table: Path, folder: Path) -> dict[str, list[Pair]]:
    """Pictures and masks of a table with the columns ``image``, ``mask`` and, optionally, ``split`` and ``group``, by
    part; paths are relative to ``folder``. Rows without a split are for training. Raises DataError."""
    parts: dict[str, list[Pair]] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read as a table ({line(error)})") from error
    for number, row in enumerate(rows, 2):
        image, mask = row.get("image"), row.get("mask")
        if not image or not mask:
            raise DataError(f"{table}: row {number} names no image or no mask; the columns are image and mask")
        for name in (image, mask):
            if not (folder / name).is_file():
                raise DataError(f"{table}: row {number}: there is no file {folder / name}")
        split = (row.get("split") or "train").lower()
        if split not in PARTS:
            raise DataError(f"{table}: row {number}: the split {split} is none of {', '.join(PARTS)}")
        parts.setdefault(PARTS[split], []).append(Pair(folder / image, folder / mask, row.get("group") or ""))
    if not parts.get("train"):
        raise DataError(f"{table}: no row is for training")
    return parts


def check_groups(parts: Mapping[str, Sequence[Pair]], name: str) -> None:
    """Raises DataError for a group with pictures in two parts; ``name`` is what groups are called, such as patient."""
    first: dict[str, tuple[str, Pair]] = {}
    for part, pairs in parts.items():
        for pair in pairs:
            other, known = first.setdefault(pair.group, (part, pair))
            if pair.group and other != part:
                raise DataError(
                    f"{pair.image}: {name} {line(pair.group)} is in {other} ({known.image.name}) and in {part}; "
                    "put all of its pictures into one part"
                )


def check_pairs(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """The pairs, of which each names files that are there. Raises DataError."""
    for pair in pairs:
        for path in (pair.image, pair.mask):
            if not path.is_file():
                raise DataError(f"{path}: there is no such file")
    return pairs
