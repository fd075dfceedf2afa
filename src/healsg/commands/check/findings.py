"""``healsg check``: errors and suspicious facts in the samples that were read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from healsg.commands.check.samples import Seen
from healsg.data.info import DataInfo
from healsg.data.source import DatasetSource, Source, TensorSource, line
from healsg.datasets.targets.groups import path_groups
from healsg.datasets.targets.names import alike, shown
from healsg.errors import ConfigError, DataError

Level = Literal["fatal", "warning", "note"]

LEAST_NAME = 4
"""Shortest class name, in letters, for which one differing letter counts as a misspelling."""

MOST_NAMES = 2000
"""Most classes for which all pairs of names are compared."""

FEWEST_GROUPS = 5
"""Fewest distinct prefixes of file names that are taken to be patients or scenes."""


@dataclass(frozen=True)
class Finding:
    """One finding; ``fatal`` would stop training, ``warning`` is probably unintended."""

    level: Level
    subject: str
    message: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def findings_of(
    seen: Mapping[str, Seen], sources: Mapping[str, Source], info: DataInfo, skips: bool, most: int
) -> Iterator[Finding]:
    """All findings about the samples.

    Args:
        seen: by split.
        sources: the same splits' samples.
        info: the declared ``DataInfo``.
        skips: whether an unreadable sample is skipped (``data.on_error=skip``).
        most: how many may be skipped (``data.max_errors``).
    """
    bad = sum(len(one.bad) for one in seen.values())
    if bad:
        level: Level = "warning" if skips and bad <= most else "fatal"
        way = "" if skips else "; remove them, or data.on_error=skip leaves them out"
        yield Finding(level, "samples", f"{bad} cannot be read{way}")
    for split, one in seen.items():
        if one.not_finite:
            named = shown(one.not_finite, 3)
            yield Finding("fatal", "samples", f"{split}: {len(one.not_finite)} inputs hold inf or NaN: {named}")
        *odd, usual = sorted(one.fields.items(), key=lambda entry: len(entry[1])) or [((), [])]
        for fields, samples in odd:
            detail = f"{', '.join(fields)} alone, the others {', '.join(usual[0])}: {shown(samples, 3)}"
            yield Finding("fatal", "samples", f"{split}: {len(samples)} hold {detail}")
    yield from _class_findings(seen, info)
    yield from duplicates(seen, info)
    yield from group_findings(sources, info)
    yield from _table_findings(seen)
    yield from _picture_findings(seen, info)


def _class_findings(seen: Mapping[str, Seen], info: DataInfo) -> Iterator[Finding]:
    names = info.class_names or tuple(map(str, range(info.num_classes)))
    train = seen["train"].targets if "train" in seen else Counter[int]()
    if info.kind == "multiclass" and train:
        lacking = [name for label, name in enumerate(names) if not train[label]]
        if lacking:
            yield Finding("warning", "classes", f"no training sample of {shown(lacking)}: they cannot be learned")
        there = [count for count in train.values() if count]
        if max(there) >= 20 * min(there):
            yield Finding(
                "note", "classes", f"the largest has {max(there)} training samples, the smallest {min(there)}"
            )
    if info.dense:
        for label in info.labels if train else ():
            if not train[label]:
                name = names[label] if not info.regions and label < len(names) else str(label)
                yield Finding("warning", "classes", f"no training mask holds the label {label} ({name})")
        for split, one in seen.items():
            if one.empty_masks:
                share = f"{len(one.empty_masks)} of {one.count} masks"
                yield Finding(
                    "note", "masks", f"{split}: {share} have no foreground, such as {shown(one.empty_masks, 3)}"
                )
    for pair in misspelt(names if info.kind == "multiclass" else ()):
        detail = " and ".join(f"{name!r} ({train[names.index(name)]} training samples)" for name in pair)
        yield Finding("warning", "classes", f"{detail} are nearly the same name; are they one class?")


def misspelt(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of class names that may be one class: they differ in spelling or case, or in one letter."""
    found = alike(names)
    known = {frozenset(group) for group in found}
    if len(names) > MOST_NAMES:
        return found
    for one, two in combinations(names, 2):
        if any({one, two} <= group for group in known):
            continue
        if abs(len(one) - len(two)) <= 1 and min(len(one), len(two)) >= LEAST_NAME and _one_letter(one, two):
            found.append((one, two))
    return found


def _one_letter(one: str, two: str) -> bool:
    """Whether two names differ in one letter that is replaced, left out, added, or swapped with the next one.

    Digits, and letters that stand alone, distinguish classes: ``class1`` and ``class2``, ``type_a`` and ``type_b``.
    """
    one, two = one.casefold(), two.casefold()
    start = next((index for index, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    first, second = one[start:], two[start:]
    while first and second and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    swapped = len(first) == len(second) == 2 and first == second[::-1]
    if not swapped and max(len(first), len(second)) > 1:
        return False
    if not (first + second).isalpha():
        return False
    alone = re.compile(r"(?:^|[\W\d_])[^\W\d_](?:$|[\W\d_])")  # a single letter
    around = [name[max(0, start - 1) : start + 2] for name in (one, two)]
    return not all(alone.search(f" {part} " if start == 0 else part + " ") for part in around)


def duplicates(seen: Mapping[str, Seen], info: DataInfo) -> Iterator[Finding]:
    """Samples with the same decoded content: in two splits, or in one class and another."""
    groups: dict[bytes, list[tuple[str, str, int | None]]] = {}
    for split, one in seen.items():
        for digest, samples in one.digests.items():
            groups.setdefault(digest, []).extend((split, name, label) for name, label in samples)
    several = [group for group in groups.values() if len(group) > 1]
    across = [group for group in several if len({split for split, _, _ in group}) > 1]
    for pair, chosen in _by_splits(across).items():
        example = " and ".join(f"{line(name)} ({split})" for split, name, _ in _one_each(chosen[0]))
        sides = " and ".join(pair)
        detail = f"samples that lie in both {sides}: {len(chosen)}, such as {example}"
        yield Finding("warning", "duplicates", detail)
    unlike = [group for group in several if len({label for _, _, label in group if label is not None}) > 1]
    if unlike:
        names = info.class_names or tuple(map(str, range(info.num_classes)))
        detail = ", ".join(f"{line(name)} ({names[label]})" for _, name, label in unlike[0][:3] if label is not None)
        yield Finding("warning", "duplicates", f"samples with copies of another class: {len(unlike)}, such as {detail}")
    within = sum(len(group) - 1 for group in several if group not in across)
    if within:
        yield Finding("note", "duplicates", f"copies of a sample of the same split: {within}")


def duplicate_groups(seen: Mapping[str, Seen]) -> list[list[dict[str, str]]]:
    """The samples of the same content in several splits, for programs."""
    groups: dict[bytes, list[dict[str, str]]] = {}
    for split, one in seen.items():
        for digest, samples in one.digests.items():
            groups.setdefault(digest, []).extend({"split": split, "sample": line(name)} for name, _ in samples)
    return [group for group in groups.values() if len({entry["split"] for entry in group}) > 1]


def _by_splits(groups: list[list[tuple[str, str, int | None]]]) -> dict[tuple[str, ...], list[Any]]:
    found: dict[tuple[str, ...], list[Any]] = {}
    for group in groups:
        found.setdefault(tuple(dict.fromkeys(split for split, _, _ in group)), []).append(group)
    return found


def _one_each(group: list[tuple[str, str, int | None]]) -> list[tuple[str, str, int | None]]:
    """The first sample of each split."""
    firsts: dict[str, tuple[str, str, int | None]] = {}
    for entry in group:
        firsts.setdefault(entry[0], entry)
    return list(firsts.values())


def group_findings(sources: Mapping[str, Source], info: DataInfo) -> Iterator[Finding]:
    """Groups that occur in two splits: those that cases declare, else those that file names suggest."""
    cased = {split: _case_groups(source) for split, source in sources.items()}
    for one, two in combinations(cased, 2):
        if common := sorted(cased[one] & cased[two]):
            detail = f"{len(common)} groups have samples in {one} and in {two}, such as {common[0]!r}"
            yield Finding("warning", "groups", f"{detail}; data.group keeps each on one side")
    if any(cased.values()):
        return
    paths = {split: _chosen_paths(source) for split, source in sources.items()}
    for way in ("folder", "prefix"):
        known: dict[str, int] = {}
        try:
            held = {split: path_groups(own, way, info.class_names, known) for split, own in paths.items() if own}
        except (DataError, ConfigError):
            continue
        total = sum(len(own) for own in paths.values())
        if not FEWEST_GROUPS <= len(known) <= total / 2:
            continue
        called = {number: name for name, number in known.items()}
        for one, two in combinations(held, 2):
            if numbers := sorted(set(held[one].tolist()) & set(held[two].tolist())):
                detail = (
                    f"{len(numbers)} of {len(known)} beginnings of file names, such as {called[numbers[0]]!r}, are in"
                )
                detail = (
                    detail if way == "prefix" else detail.replace("beginnings of file names", "folders within classes")
                )
                hint = f"if each is one patient or scene, data.group={way} keeps it on one side"
                yield Finding("warning", "groups", f"{detail} {one} and in {two}; {hint}")


def _case_groups(source: Source) -> set[str]:
    cases = source.about.cases if isinstance(source, (TensorSource, DatasetSource)) else None
    return {case.group for case in cases or () if case.group}


def _chosen_paths(source: Source) -> list[str]:
    paths = getattr(source.dataset, "paths", None) if isinstance(source, DatasetSource) else None
    if paths is None or not isinstance(source, DatasetSource):
        return []
    return [str(paths[index]) for index in (range(len(paths)) if source.indices is None else source.indices.tolist())]


def _table_findings(seen: Mapping[str, Seen]) -> Iterator[Finding]:
    for split, one in seen.items():
        if one.missing:
            detail = ", ".join(f"{name} {count}" for name, count in list(one.missing.items())[:5])
            more = f" and {len(one.missing) - 5} columns more" * (len(one.missing) > 5)
            yield Finding("note", "columns", f"{split}: missing numbers become their column's mean: {detail}{more}")
        if one.constant and split == "train":
            yield Finding("warning", "columns", f"the same in every training row: {shown(one.constant, 5)}")


def _picture_findings(seen: Mapping[str, Seen], info: DataInfo) -> Iterator[Finding]:
    turned = sum(count for one in seen.values() for value, count in one.orientations.items() if value != 1)
    if turned:
        yield Finding("note", "pictures", f"turned as their EXIF orientation says: {turned}")
    modes = sum((one.modes for one in seen.values()), Counter[str]())
    clear = sum(count for mode, count in modes.items() if mode in ("RGBA", "LA", "PA"))
    if clear:
        yield Finding("note", "pictures", f"with an alpha channel, whose transparent pixels become white: {clear}")
    deep = sum(count for one in seen.values() for bits, count in one.bits.items() if bits > 8)
    if deep:
        yield Finding("note", "pictures", f"of more than 8 bits a channel: {deep}")
    sizes = sum((one.sizes for one in seen.values()), Counter[tuple[int, int]]())
    side = info.input_shape[-1]
    small = sum(count for size, count in sizes.items() if min(size) < side)
    if small:
        total = sum(sizes.values())
        yield Finding("note", "pictures", f"smaller than {side} pixels, and enlarged: {small} of {total}")
    wrong = [
        path
        for one in seen.values()
        for path in one.paths
        if "\N{REPLACEMENT CHARACTER}" in path or Path(path).name != Path(path).name.strip()
    ]
    if wrong:
        yield Finding("note", "pictures", f"odd file names: {shown([line(path) for path in wrong], 3)}")
