"""Finding cases and their splits: folders, MSD and MONAI lists, nnU-Net's raw layout.

Each function returns ``CaseFiles`` sorted by name, or in the order of the list. Lists are untrusted data: a missing
file, an entry without an image or a duplicate case is reported in one line that names the list.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from healsg.datasets.volumes.files import EXTENSIONS, is_volume, stem
from healsg.errors import DataError

IMAGES = ("images", "imagesTr", "image", "img")
LABELS = ("labels", "labelsTr", "label", "masks", "mask", "seg", "segmentations")
"""Possible names of the folders of images and of masks."""

MASK_ENDS = ("_seg", "-seg", "_mask", "-mask", "_label", "-label", "_gt")
"""Possible endings of the name of a mask beside its image."""

IMAGE_BEGINS = ("image", "img")
MASK_BEGINS = ("label", "mask", "seg")
"""Possible prefixes of all files of a folder, before the common part of image and mask: img0001 and label0001."""

PARTS = {"training": "train", "train": "train", "validation": "val", "val": "val", "test": "test", "testing": "test"}
"""The names of splits in lists, and the split that is meant; other splits keep their names."""

MOST_BYTES = 1 << 28
"""The largest list that is read, in bytes."""


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case.

    Args:
        name: unique in its data set.
        images: the file, or one file per channel.
        label: the file of the mask; None if there is none.
        split: ``train``, ``val``, ``test`` or another; empty if not given.
        entry: further keys of its list entry, such as ``fold``.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    split: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseList:
    """A data set on disk.

    Args:
        cases: in order.
        labels: the names of the labels by number, if the list has them; a region is named by its numbers.
        channels: the names of the channels.
        regions: the numbers of each region, if labels are regions.
        ignore: the label that is ignored.
        folds: by fold, the names of the cases for training and validation.
    """

    cases: tuple[CaseFiles, ...]
    labels: Mapping[int, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: int | None = None
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()


# --- folders ---------------------------------------------------------------------------------------------------------


def volumes_in(folder: Path) -> list[Path]:
    """The volumes directly in a folder, by name. Raises DataError if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if is_volume(path) and path.is_file())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a folder ({error.strerror})") from error


def paired(folder: Path, masks: bool = True) -> tuple[CaseFiles, ...]:
    """Images and masks of a folder, paired by name: ``images/`` and ``labels/``, or ``NAME`` and ``NAME_seg`` side by
    side.

    Args:
        folder: that contains both.
        masks: whether each image must have a mask.

    Raises:
        DataError: no volume, an image without a mask, a mask without an image, or two files with the same name.
    """
    images = next((folder / name for name in IMAGES if (folder / name).is_dir()), None)
    if images is None:
        return _side_by_side(folder, masks)
    labels = next((folder / name for name in LABELS if (folder / name).is_dir()), None)
    if labels is None and masks:
        raise DataError(f"{folder}: has {images.name}/ but no folder of masks; {LABELS[0]}/ is its usual name")
    own = _by_name(volumes_in(images))
    others = _by_name(volumes_in(labels), MASK_ENDS) if labels else {}
    if others and not set(own) & set(others):
        own, others = _without(own, IMAGE_BEGINS), _without(others, MASK_BEGINS)
    return _cases(images, own, others, masks)


def _without(files: dict[str, Path], begins: Sequence[str]) -> dict[str, Path]:
    """Files by the rest of their names after a common prefix in ``begins``, as in BTCV; unchanged without one."""
    common = next((one for one in begins if all(name.startswith(one) and name != one for name in files)), "")
    return {name.removeprefix(common): path for name, path in files.items()}


def _side_by_side(folder: Path, masks: bool) -> tuple[CaseFiles, ...]:
    found = volumes_in(folder)
    is_mask = {path: stem(path).lower().endswith(MASK_ENDS) for path in found}
    own = _by_name([path for path in found if not is_mask[path]])
    others = _by_name([path for path in found if is_mask[path]], MASK_ENDS)
    if own and not others and masks:
        raise DataError(
            f"{folder}: has {len(own)} volumes and no masks; put them into images/ and labels/, or name masks NAME_seg"
        )
    return _cases(folder, own, others, masks)


def _by_name(paths: Sequence[Path], ends: Sequence[str] = ()) -> dict[str, Path]:
    """Files by their names without extension and without one of ``ends``. Raises DataError if two have the same
    name."""
    found: dict[str, Path] = {}
    for path in paths:
        name = stem(path)
        name = next((name[: -len(end)] for end in ends if name.lower().endswith(end)), name)
        if name in found:
            raise DataError(f"{path}: {found[name].name} has the same name; which one is meant? Remove the other")
        found[name] = path
    return found


def _cases(folder: Path, images: Mapping[str, Path], labels: Mapping[str, Path], masks: bool) -> tuple[CaseFiles, ...]:
    if not images:
        raise DataError(f"{folder}: there is no volume in it; known are {', '.join(EXTENSIONS)}")
    alone = sorted(set(images) - set(labels)) if masks else []
    if alone:
        more = f", and so have {len(alone) - 1} more" if alone[1:] else ""
        raise DataError(f"{images[alone[0]]}: has no mask of its name{more}")
    lost = sorted(set(labels) - set(images))
    if lost:
        raise DataError(f"{labels[lost[0]]}: there is no image of its name")
    return tuple(CaseFiles(name, (path,), labels.get(name)) for name, path in sorted(images.items()))


# --- lists -----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DataError that names it."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: is larger than {MOST_BYTES} bytes, which no list of cases is; it is not read")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON ({error})") from error


def decathlon(path: Path, folder: Path | None = None) -> CaseList:
    """An MSD ``dataset.json``, or a data list as MONAI reads it.

    ``training`` or ``train``, ``validation`` or ``val``, and ``test`` are the splits; any further key that holds a list
    of cases is a split of that name. A case is ``{"image": ..., "label": ...}``, with a list of files for several
    channels, or the image alone.

    Args:
        path: the list.
        folder: to which its files are relative; the list's own if it is None.

    Raises:
        DataError: one line that names the list, and the entry or the file.
    """
    content, folder = read_json(path), folder or path.parent
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no keys; a list of cases has training, validation or test")
    cases: list[CaseFiles] = []
    for key, entries in content.items():
        if isinstance(entries, list) and (key in PARTS or _lists_cases(entries)):
            split = PARTS.get(key) or str(key)
            cases += [_case(path, f"{key}[{n}]", entry, folder, split) for n, entry in enumerate(entries)]
    if not cases:
        raise DataError(f"{path}: lists no case under training, validation or test")
    cases = _unique(path, cases)
    labels = _names(content.get("labels"))
    channels = _names(content.get("modality") or content.get("channel_names"))
    return CaseList(tuple(cases), labels, tuple(channels[number] for number in sorted(channels)))


def _lists_cases(entries: Sequence[Any]) -> bool:
    return bool(entries) and all(isinstance(entry, dict) and "image" in entry for entry in entries)


def _case(path: Path, where: str, entry: Any, folder: Path, split: str) -> CaseFiles:
    if isinstance(entry, str):
        entry = {"image": entry}
    given = entry.get("image") if isinstance(entry, dict) else None
    names = [given] if isinstance(given, str) else given
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: {where} names no image")
    if label is not None and not isinstance(label, str):
        raise DataError(f"{path}: {where} names several masks or none; give one file")
    if label is None and split == "train":
        raise DataError(f"{path}: {where} ({names[0]}) has no label")
    files = [folder / Path(name) for name in (*names, *([label] if label else []))]
    for file in files:
        if not file.is_file():
            raise DataError(f"{path}: {where} names {file}, and there is no such file")
    more = {key: value for key, value in entry.items() if key not in ("image", "label")}
    return CaseFiles(stem(files[0]), tuple(files[: len(names)]), files[-1] if label else None, split, more)


def _unique(path: Path, cases: Sequence[CaseFiles]) -> list[CaseFiles]:
    """Cases with unique names: a file in two splits is refused; different files with the same name also get the name
    of their folder."""
    seen: dict[Path, CaseFiles] = {}
    for case in cases:
        file = case.images[0].resolve()
        if file in seen:
            raise DataError(f"{path}: {case.images[0]} is listed twice, in {seen[file].split} and in {case.split}")
        seen[file] = case
    most = max(len(case.images[0].parts) for case in cases)
    for above in range(most):  # as many folders as tell them apart
        names = Counter(case.name for case in cases)
        if len(names) == len(cases):
            break
        cases = [case if names[case.name] == 1 else _with_folder(case, above) for case in cases]
    return list(cases)


def _with_folder(case: CaseFiles, above: int) -> CaseFiles:
    """A case whose name is prefixed by the name of a folder above its file, counted from 0 for the nearest."""
    folders = case.images[0].parts[-2 - above :][:1]
    return CaseFiles("/".join([*folders, case.name]), case.images, case.label, case.split, case.entry)


def _names(labels: Any) -> dict[int, str]:
    """``{"0": "background"}`` or ``{"background": 0}`` as names by number."""
    if not isinstance(labels, dict):
        return {}
    found = {}
    for key, value in labels.items():
        if str(key).isdigit():
            found[int(key)] = str(value)
        elif isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            found[int(value)] = str(key)
    return found


# --- nnU-Net ---------------------------------------------------------------------------------------------------------


def nnunet_raw(folder: Path) -> CaseList:
    """A data set in nnU-Net's raw layout: ``imagesTr/CASE_0000.nii.gz``, one file per channel,
    ``labelsTr/CASE.nii.gz``, ``imagesTs``, and ``dataset.json`` with ``channel_names``, ``labels`` (numbers, or
    lists of them for regions, and ``ignore``) and ``file_ending``; also ``splits_final.json`` if it exists. Raises
    DataError."""
    path = folder / "dataset.json"
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise DataError(f'{path}: has no labels by name; nnU-Net writes {{"labels": {{"background": 0, ...}}}}')
    channels = _names(content.get("channel_names") or content.get("modality"))
    ending = content.get("file_ending", ".nii.gz")
    if ending not in EXTENSIONS:
        raise DataError(f"{path}: file_ending is {ending!r}; known are {', '.join(EXTENSIONS)}")
    labels, regions, ignore = _nnunet_labels(path, content["labels"])
    cases = _nnunet_cases(folder, "Tr", ending, max(1, len(channels)), "train")
    if (folder / "imagesTs").is_dir():
        cases += _nnunet_cases(folder, "Ts", ending, max(1, len(channels)), "test")
    if not cases:
        raise DataError(f"{folder / 'imagesTr'}: there is no CASE_0000{ending} in it")
    folds = _nnunet_folds(folder / "splits_final.json", {case.name for case in cases if case.split == "train"})
    names = tuple(channels[number] for number in sorted(channels))
    return CaseList(tuple(cases), labels, names, regions, ignore, folds)


def _nnunet_labels(
    path: Path, given: Mapping[str, Any]
) -> tuple[dict[int, str], dict[str, tuple[int, ...]], int | None]:
    labels: dict[int, str] = {}
    regions: dict[str, tuple[int, ...]] = {}
    ignore = None
    for name, value in given.items():
        if name == "ignore" and isinstance(value, int):
            ignore = value
        elif isinstance(value, int):
            labels[value] = name
            regions[name] = (value,)
        elif isinstance(value, list) and value and all(isinstance(one, int) for one in value):
            regions[name] = tuple(value)
        else:
            raise DataError(
                f"{path}: the label {name!r} is {value!r}; give a number, or a list of numbers for a region"
            )
    several = any(len(numbers) > 1 for numbers in regions.values())
    regions.pop("background", None)
    return labels, regions if several else {}, ignore


def _nnunet_cases(folder: Path, part: str, ending: str, channels: int, split: str) -> list[CaseFiles]:
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    found: dict[str, dict[int, Path]] = {}
    for path in volumes_in(images):
        matched = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending)) if path.name.endswith(ending) else None
        if matched:
            found.setdefault(matched[1], {})[int(matched[2])] = path
    cases = []
    for name, files in sorted(found.items()):
        if sorted(files) != list(range(channels)):
            lacking = next((n for n in range(channels) if n not in files), None)
            detail = f"has no channel {lacking:04d}" if lacking is not None else f"has more than {channels} channels"
            raise DataError(f"{images / name}: {detail}; dataset.json says {channels}")
        label = labels / f"{name}{ending}"
        if not label.is_file() and split == "train":
            raise DataError(f"{label}: there is no such file, and {files[0].name} needs its mask")
        cases.append(
            CaseFiles(name, tuple(files[n] for n in range(channels)), label if label.is_file() else None, split)
        )
    return cases


def _nnunet_folds(path: Path, names: set[str]) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    if not path.is_file():
        return ()
    folds = []
    for number, fold in enumerate(content if isinstance(content := read_json(path), list) else [None]):
        sides = [fold.get(key) if isinstance(fold, dict) else None for key in ("train", "val")]
        for side in sides:
            if not isinstance(side, list) or not all(isinstance(name, str) for name in side):
                raise DataError(f"{path}: fold {number} has no lists train and val of names")
            others = sorted(set(side) - names)
            if others:
                raise DataError(f"{path}: fold {number} names {others[0]!r}, and there is no such case in imagesTr")
        train, val = (tuple(side) for side in sides if side is not None)
        both = sorted(set(train) & set(val))
        if both:
            raise DataError(f"{path}: fold {number} has {both[0]!r} on both sides")
        folds.append((train, val))
    return tuple(folds)
