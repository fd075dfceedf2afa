"""MATLAB files: the arrays of a ``.mat`` file of version 5, as SciPy reads them."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from healsg.data.source import line
from healsg.datasets.published.files import Sums, checked_bytes
from healsg.errors import ConfigError, DataError


def read_mat(path: Path, sums: Sums, names: tuple[str, ...]) -> list[np.ndarray[Any, Any]]:
    """The arrays called ``names`` in the file ``path``, which must be the published one, in this order.

    Raises ConfigError if SciPy is missing, DataError that names the file if it is damaged or lacks one of them.
    """
    if find_spec("scipy") is None:
        raise ConfigError(f"data: {path.name} is a MATLAB file; install what reads it with: pip install 'healsg[mat]'")
    content = checked_bytes(path, sums)
    from scipy.io import loadmat

    try:
        found = loadmat(io.BytesIO(content), variable_names=list(names))
    except Exception as error:  # a damaged file can raise almost any exception
        raise DataError(f"{path}: damaged, not a MATLAB file of version 5 ({line(error)})") from error
    for name in names:
        if not isinstance(found.get(name), np.ndarray):
            raise DataError(f"{path}: holds no array {name!r}; download it again")
    return [found[name] for name in names]


def labels_of(array: np.ndarray[Any, Any], path: Path, lowest: int, highest: int) -> np.ndarray[Any, Any]:
    """Labels stored as a row or a column, as (N,) int64. Raises DataError if one is not within the bounds."""
    line_up = array.dtype.kind in "iu" and array.size == max(array.shape, default=0)
    labels = array.astype(np.int64).reshape(-1) if line_up else np.array([lowest - 1])
    if not np.all((lowest <= labels) & (labels <= highest)):
        raise DataError(f"{path}: its labels are not a row of whole numbers in {lowest}..{highest}; download it again")
    return labels
