"""Case: what is known of one sample beside its numbers: its name, its patient, where its voxels lie in the scanner."""

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
        name: by which tables and written masks call it.
        group: what it shares with others, such as a patient or a scene; empty where that is not known.
        affine: (d + 1, d + 1) rows that lead from voxel indices to positions in the scanner; empty where not known.
        spacing: the distance of neighbouring voxels along each spatial axis, in mm; empty where not known.
        path: of the file of the input, where there is one.
        shape: pixels or voxels along each spatial axis as patches are cut from it; empty where not known.
    """

    name: str
    group: str = ""
    affine: Matrix = ()
    spacing: tuple[float, ...] = ()
    path: str = ""
    shape: tuple[int, ...] = ()


FACTS = ("name", "group", "affine", "spacing", "path")
"""The keys of a batch, beside ``case`` itself, from which a case is made."""


def cases_of(batch: Mapping[str, Any]) -> list[Case]:
    """The case of each sample of a batch.

    They are ``batch["case"]``, as sources with cases give them. Of a data set of somebody's own they are made of the
    entries ``name``, ``group``, ``affine``, ``spacing`` and ``path`` of its samples, as far as there are any; a sample
    without a name is called by its index.
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
    """What the cases of files are called, one a file: the files' names without their endings or, where two files have
    the same one, as in folders of patients, with the folders that differ."""
    stems = [path.stem for path in paths]
    files = len(set(paths))
    if len(set(stems)) == files:
        return stems
    shared = 0
    for names_at in zip(*(path.parts[:-1] for path in paths), strict=False):
        if len(set(names_at)) > 1:
            break
        shared += 1
    below = [PurePath(*path.parts[shared:]) for path in paths]
    names = [path.with_suffix("").as_posix() for path in below]
    return names if len(set(names)) == files else [path.as_posix() for path in below]


def numbered(cases: Sequence[Case]) -> Tensor:
    """(N,) int64: for samples that are parts of cases, such as slices of volumes, the number of each one's case.

    Samples of one name are one case.
    """
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(case.name, len(numbers)) for case in cases], dtype=torch.int64)
