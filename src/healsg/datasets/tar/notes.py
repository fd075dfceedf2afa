"""The notes that ``healsg pack`` writes next to its archives as ``shards.json``: the archives, and the meaning of their
targets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from healsg.data.info import ClassOrder
from healsg.errors import DataError, RunError
from healsg.safefiles import kind_of, read_bytes, replacing

NOTES = "shards.json"

UNFINISHED = ".packing.json"
"""The file in its place until all archives are written: the digest of the plan."""

MASK = "seg"
"""The ending of packed masks, before that of their kind of file: KEY.seg.png."""

FORMAT = 1

MOST = 1 << 26
"""Bytes that the file may have."""

Kind = Literal["multiclass", "multilabel", "regression", "segmentation"]


class Archive(NamedTuple):
    """An archive: its name, its bytes and its samples."""

    name: str
    size: int
    samples: int


@dataclass(frozen=True)
class MaskNotes:
    """The meaning of packed masks' values.

    Args:
        mapping: from the labels of the masks' files to those of the classes.
        ignore: the label of pixels that are excluded from loss and metrics; None for none.
        colours: red, green and blue of each class by name, in masks of colours; None in masks of labels.
    """

    mapping: Mapping[int, int]
    ignore: int | None
    colours: Mapping[str, Sequence[int]] | None


@dataclass(frozen=True)
class Notes:
    """The facts of a folder of archives.

    Args:
        kind: of the task.
        class_names: the classes in the order of the indices in KEY.cls, or what the numbers of a target are called.
        class_order: see ``DataInfo``.
        parts: by part its archives, in order.
        plan: the digest of what was packed, and how.
        masks: what the masks mean that are the targets; None of other targets.
    """

    kind: Kind
    class_names: tuple[str, ...]
    class_order: ClassOrder
    parts: Mapping[str, Sequence[Archive]]
    plan: str
    masks: MaskNotes | None = None

    def archives(self, folder: Path) -> dict[str, list[Path]]:
        """By part the archives in ``folder``. Raises DataError if one is missing or has another size."""
        found: dict[str, list[Path]] = {}
        for part, archives in self.parts.items():
            for archive in archives:
                path = folder / archive.name
                try:
                    size = path.stat().st_size
                except OSError as error:
                    raise DataError(f"{path}: cannot be read ({error.strerror}), and {NOTES} names it") from error
                if size != archive.size:
                    raise DataError(f"{path}: has {size} bytes, and by {NOTES} {archive.size}; copy or pack it anew")
                found.setdefault(part, []).append(path)
        return found


def read_notes(folder: Path) -> Notes | None:
    """Read the notes of a folder of archives; None for archives of another program. Raises DataError for damage."""
    path = folder / NOTES
    try:
        given = json.loads(read_bytes(path, MOST))
    except FileNotFoundError:
        if kind_of(folder / UNFINISHED):
            raise DataError(f"{folder}: not all archives are packed yet; the same command continues it") from None
        return None
    except (OSError, RunError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read; pack the data anew, or remove it") from error
    try:
        parts = {
            part: [Archive(_name(name), int(size), int(samples)) for name, size, samples in archives]
            for part, archives in given["parts"].items()
        }
        names = tuple(str(name) for name in given["class_names"])
        fits = (
            given["format"] == FORMAT
            and given["kind"] in get_args(Kind)
            and given["class_order"] in get_args(ClassOrder)
        )
        if not fits or not set(parts) <= {"train", "val", "test"} or not names or len(set(names)) < len(names):
            raise ValueError("unknown")
        masks = _masks(given["masks"], len(names)) if given["kind"] == "segmentation" else None
        return Notes(cast("Kind", given["kind"]), names, given["class_order"], parts, str(given["plan"]), masks)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: does not describe archives that this version knows; pack the data anew") from error


def _masks(content: Any, classes: int) -> MaskNotes:
    """The notes on masks. Raises ValueError, KeyError and TypeError for other content than ``write_notes`` writes."""
    mapping = {_label(old): _label(new) for old, new in content["mapping"]}
    ignore = None if content["ignore"] is None else _label(content["ignore"])
    if sorted(set(mapping.values())) != list(range(classes)):
        raise ValueError("labels without a class")
    colours = content["colours"]
    if colours is not None:
        colours = {str(name): [_label(level) for level in levels] for name, levels in colours}
        if any(len(levels) != 3 or max(levels) > 255 for levels in colours.values()):
            raise ValueError("no colours")
    return MaskNotes(mapping, ignore, colours)


def _label(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError("no label")
    return value


def _name(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*\.tar", name):
        raise ValueError("no name of an archive")
    return name


def write_notes(folder: Path, notes: Notes) -> None:
    """Write them in one atomic step. Raises OSError."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "kind": notes.kind,
        "class_names": list(notes.class_names),
        "class_order": notes.class_order,
        "parts": {part: [list(archive) for archive in archives] for part, archives in notes.parts.items()},
        "plan": notes.plan,
    }
    if (masks := notes.masks) is not None:
        facts["masks"] = {
            "mapping": [list(pair) for pair in masks.mapping.items()],
            "ignore": masks.ignore,
            "colours": None if masks.colours is None else [[name, list(one)] for name, one in masks.colours.items()],
        }
    with replacing(folder / NOTES, sync=True) as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())
