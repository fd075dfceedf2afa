"""The group of a sample, such as a patient or a scene, derived from its file name."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from healsg.errors import ConfigError, DataError


def numbers(names: Sequence[str], group_numbers: dict[str, int]) -> Tensor:
    """(N,) int64, one number a name. ``group_numbers`` holds the numbers assigned so far, and new ones are added."""
    return torch.tensor([group_numbers.setdefault(name, len(group_numbers)) for name in names], dtype=torch.int64)


def path_groups(paths: Sequence[str], name: str, classes: Collection[str], group_numbers: dict[str, int]) -> Tensor:
    """The groups of files that lie in a folder a class.

    Args:
        paths: the N files.
        name: ``folder``: the files in folders of one name inside the classes' belong together; ``prefix``: those whose
            names begin alike, up to the first ``_`` or ``-``.
        classes: the names of the classes' folders.
        group_numbers: as of ``numbers``.

    Returns:
        (N,) int64.

    Raises:
        ConfigError: for another ``name``.
        DataError: where a file lies in no folder inside its class.
    """
    files = [Path(path) for path in paths]
    if name == "prefix":
        return numbers([re.split("[_-]", path.stem)[0] for path in files], group_numbers)
    if name != "folder":
        raise ConfigError(f"data.group: {name!r} is not one of folder, prefix")
    folders = set(classes)
    if bare := next((path for path in files if path.parent.name in folders), None):
        raise DataError(f"data.group: {bare} lies in no folder inside its class; data.group=prefix takes file names")
    return numbers([path.parent.name for path in files], group_numbers)
