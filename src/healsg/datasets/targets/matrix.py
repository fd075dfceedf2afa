"""A matrix of label noise from a small file."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from healsg.errors import DataError

LARGEST = 1 << 26
"""Bytes of a file."""


def read_matrix(name: str, classes: int, folders: Sequence[Path]) -> Tensor:
    """(classes, classes) float64, each row of which adds up to 1.

    Args:
        name: a .csv file without a header, a .json list of lists, or a .npy array.
        classes: how many there are.
        folders: where it may lie; the first that has it counts.

    Raises:
        DataError: if there is no such file, or it holds no such matrix.
    """
    candidates = [folder / Path(name).expanduser() for folder in folders]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None and Path(name).suffix in (".csv", ".json", ".npy"):
        raise DataError(f"data.label_noise: no such file: {' nor '.join(map(str, candidates))}")
    if path is None or path.suffix not in (".csv", ".json", ".npy") or path.stat().st_size > LARGEST:
        raise DataError(f"data.label_noise: {name} is no share, and no .csv, .json or .npy file")
    try:
        matrix = np.asarray(_read(path), dtype=np.float64)
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise DataError(f"data.label_noise: {path} cannot be read as a matrix ({str(error).splitlines()[0]})") from None
    if matrix.shape != (classes, classes):
        raise DataError(f"data.label_noise: {path} is {matrix.shape}, and there are {classes} classes")
    if not (matrix >= 0).all() or not np.allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-6):
        raise DataError(f"data.label_noise: {path}: each row holds shares that add up to 1")
    return torch.from_numpy(matrix)


def _read(path: Path) -> object:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with path.open(newline="") as file:
        return [[float(cell) for cell in row] for row in csv.reader(file) if row]
