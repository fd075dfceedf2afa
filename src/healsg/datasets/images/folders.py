"""Folders of images: the parts and classes in a folder, and the folder that was probably meant if it has neither."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from healsg.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""As torchvision.datasets.folder.IMG_EXTENSIONS."""

PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Lower-case names of a part's folder, and the part."""

DEPTH, MOST = 3, 200
"""Depth of the search for the folder that was meant, and most folders searched at one depth."""


def inner_folders(folder: Path) -> list[str]:
    """The names of the folders in ``folder``, sorted, without hidden ones. Raises DataError if it cannot be read."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise unlisted(error) from error


def is_picture(name: str) -> bool:
    """Whether a file name has an image's extension; hidden files, such as those of macOS, do not count."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def pictures_in(folder: Path) -> Iterator[str]:
    """The names of the images directly in ``folder``."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if is_picture(entry.name))
    except OSError as error:
        raise unlisted(error) from error


def parts_in(folder: Path) -> dict[str, Path]:
    """The folders of the parts in ``folder``, by part.

    ``Train``, ``training``, ``valid``, ``validation`` and ``testing`` are recognised if there is a training part;
    without one, folders of such names may be classes. Raises DataError if two name the same part.
    """
    found: dict[str, Path] = {}
    exact = [part for part in ("train", "val", "test") if (folder / part).is_dir()]
    for name in inner_folders(folder):
        part = PARTS.get(name.lower())
        if part is None or (part in exact and name != part):
            continue
        if part in found:
            raise DataError(f"data.folder: {folder} has {found[part].name} and {name}; which is the {part} part?")
        found[part] = folder / name
    return found if "train" in found else {part: folder / part for part in exact}


def meant(folder: Path) -> Path | None:
    """The nearest folder below ``folder`` with a training part or several folders of images; None if there is none."""
    level = [folder]
    for _ in range(DEPTH):
        level = [outer / name for outer in level for name in inner_folders(outer)][:MOST]
        for one in level:
            if holds_set(one):
                return one
    return None


def holds_set(folder: Path) -> bool:
    """Whether ``folder`` has a training part, or several folders with images."""
    names = inner_folders(folder)
    if any(PARTS.get(name.lower()) == "train" for name in names):
        return True
    return sum(next(pictures_in(folder / name), None) is not None for name in names[:MOST]) > 1


def above(folder: Path) -> Path | None:
    """The folder above ``folder`` with a data set of which ``folder`` is a class; None if there is none."""
    parent = folder.parent
    outer = parent.parent if parent.name.lower() in PARTS else parent
    return next((one for one in (outer, parent) if one != folder and holds_set(one)), None)


def class_folders(folder: Path) -> list[str]:
    """The classes of a training part: the folders in ``folder``, sorted.

    Raises DataError that names the folder that was probably meant: if there are no class folders, if one of them is a
    data set with its own training part, or if the only one contains several folders of images.
    """
    names = inner_folders(folder)
    if not names:
        way = "put the pictures of each class into a folder of its name"
        if next(pictures_in(folder), None) is None:
            raise DataError(f"data.folder: {folder}: no class folders in it; {way}")
        outer = above(folder)
        way = f"did you mean data.folder={outer}?" if outer else way
        raise DataError(f"data.folder: {folder}: pictures lie directly in it, with no class folders; {way}")
    for name in names:
        inner = folder / name
        if (inner / "train").is_dir() or (len(names) == 1 and "train" in parts_in(inner)):
            raise DataError(
                f"data.folder: {folder}: {name} has a train folder and is no class; did you mean data.folder={inner}?"
            )
    return names


def unlisted(error: OSError) -> DataError:
    return DataError(f"{error.filename}: cannot be listed ({error.strerror})")
