"""Case: the metadata of one sample: its name, its patient, the position of its voxels in the scanner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Case:
    """One image or volume as it was recorded.

    Args:
        name: its name in tables and for written masks.
        group: what it shares with other cases, such as a patient or a scene; empty if unknown.
        affine: the rows of the (d + 1, d + 1) matrix from voxel indices to positions in the scanner; empty if unknown.
        spacing: the distance between voxels along each spatial axis, in mm; empty if unknown.
        path: of the input's file, if there is one.
        shape: pixels or voxels along each spatial axis, before patches are cut; empty if unknown.
    """

    name: str
    group: str = ""
    affine: Matrix = ()
    spacing: tuple[float, ...] = ()
    path: str = ""
    shape: tuple[int, ...] = ()


FACTS = ("name", "group", "affine", "spacing", "path")
"""The keys of a batch that a case is made from if there is no ``case``."""


def cases_of(batch: Mapping[str, Any]) -> list[Case]:
    """The case of each sample of a batch.

    They are ``batch["case"]`` for sources with cases. For a user's data set they are made from the entries ``name``,
    ``group``, ``affine``, ``spacing`` and ``path`` of its samples, as far as they exist; the name of a sample without
    one is its index.
    """
    if "case" in batch:
        return list(batch["case"])
    count = len(batch["input"])
    index = batch.get("index")
    names = batch.get("name")
    if names is None:
        names = index.tolist() if isinstance(index, Tensor) else range(count)
    columns = {key: batch[key] for key in FACTS[1:] if key in batch}
    return [_case(str(name), {key: values[row] for key, values in columns.items()}) for row, name in enumerate(names)]


def _case(name: str, facts: Mapping[str, Any]) -> Case:
    affine = tuple(tuple(row) for row in _numbers(facts["affine"])) if "affine" in facts else ()
    spacing = tuple(_numbers(facts["spacing"])) if "spacing" in facts else ()
    return Case(name, str(facts.get("group", "")), affine, spacing, str(facts.get("path", "")))


def _numbers(values: Any) -> Any:
    return torch.as_tensor(values, dtype=torch.float64).tolist()


def names_of_files(paths: Sequence[PurePath]) -> list[str]:
    """The names of the cases of files: the file names without suffixes or, if they are not unique, as in folders of
    patients, together with the folders that differ."""
    stems = [path.stem for path in paths]
    files = len(set(paths))
    if len(set(stems)) == files:
        return stems
    common = 0
    for folders in zip(*(path.parts[:-1] for path in paths), strict=False):
        if len(set(folders)) > 1:
            break
        common += 1
    relative = [PurePath(*path.parts[common:]) for path in paths]
    names = [path.with_suffix("").as_posix() for path in relative]
    return names if len(set(names)) == files else [path.as_posix() for path in relative]


def numbered(cases: Sequence[Case]) -> Tensor:
    """(N,) int64: the number of each sample's case; samples with the same name, such as slices of a volume, belong to
    one case."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(case.name, len(numbers)) for case in cases], dtype=torch.int64)
