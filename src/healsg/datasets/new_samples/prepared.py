"""Preprocess new samples as a network's training samples, by the ``DataInfo`` in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from healsg.data.base import DataInfo
from healsg.data.info import listed
from healsg.data.source import DatasetSource, Source, TensorSource
from healsg.datasets.csv import read_csv
from healsg.datasets.imagefolder import Pictures
from healsg.datasets.images.folders import EXTENSIONS
from healsg.datasets.tables import saved_scaling
from healsg.datasets.targets.columns import numbers
from healsg.errors import DataError
from healsg.transforms.image import ImageTransform
from healsg.transforms.standard import Standardise


def transform_of(info: DataInfo) -> ImageTransform | Standardise | None:
    """The transform from stored samples to inputs, bit for bit as in evaluation; None if the data set did not record
    it."""
    how = info.preprocessing
    if info.input_names:
        return saved_scaling(info, 0.0)
    if not {"mean", "std"} <= set(how):
        return None
    if "missing" in how:
        centre, spread = (torch.tensor(how[key]) for key in ("mean", "std"))
        shape = info.input_shape if centre.numel() > 1 else ()
        return Standardise(centre.view(shape), spread.view(shape))
    return ImageTransform(False, 0, how["mean"], how["std"], maximum=how.get("maximum", 255.0))


def source_of(samples: Any, info: DataInfo) -> Source:
    """Convert a user's samples to the form in which the data set stores them.

    Args:
        samples: an array or tensor (N, ...) of samples as the data set stores them (images of bytes, numbers as in the
            table); a table of columns by name; a picture, a folder of pictures, a .csv file, or a list of pictures.
        info: what the network takes.

    Raises:
        DataError: it is none of these, or does not fit the network.
    """
    if isinstance(samples, Mapping):
        return _rows(samples, info)
    if isinstance(samples, np.ndarray):
        samples = torch.from_numpy(np.ascontiguousarray(samples))
    if isinstance(samples, Tensor):
        of_any_size = (
            info.dense and samples.dim() == len(info.input_shape) + 1 and samples.shape[1] == info.input_shape[0]
        )
        if tuple(samples.shape[1:]) != tuple(info.input_shape) and not of_any_size:
            raise DataError(f"predictor: samples of {tuple(samples.shape[1:])}; the network takes {info.input_shape}")
        return TensorSource(samples, torch.zeros(len(samples)))
    paths = [Path(one) for one in ([samples] if isinstance(samples, (str, Path)) else samples)]
    if len(paths) == 1 and paths[0].suffix.lower() == ".csv":
        return _rows(read_csv(paths[0], ","), info)
    return _pictures(paths, info)


def _rows(columns: Mapping[str, Sequence[Any]], info: DataInfo) -> TensorSource:
    if not info.input_names:
        raise DataError("predictor: a table of columns, but the network takes no columns of numbers")
    if missing := [name for name in info.input_names if name not in columns]:
        raise DataError(f"predictor: there is no column {listed(missing)}, which the network takes")
    input = torch.stack([numbers(name, columns[name]) for name in info.input_names], dim=1).float()
    return TensorSource(input, torch.zeros(len(input)))


def _pictures(paths: Sequence[Path], info: DataInfo) -> DatasetSource:
    if len(info.input_shape) != 3 or info.input_shape[1] != info.input_shape[2] or info.input_names:
        raise DataError(f"predictor: pictures, but the network takes {listed(info.input_names) or info.input_shape}")
    files: list[Path] = []
    for path in paths:
        inner = sorted(one for one in path.rglob("*") if one.suffix.lower() in EXTENSIONS) if path.is_dir() else [path]
        if not inner or not inner[0].exists():
            raise DataError(f"predictor: {path}: {'no pictures in it' if path.is_dir() else 'there is no such file'}")
        files += inner
    channels, size = info.input_shape[0], info.input_shape[1]
    names = [str(file) for file in files]
    return DatasetSource(Pictures(names, [0] * len(names), size, channels))
