"""``healsg check``: every sample of a data set read once, by the reader with which it would be trained."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from healsg.data.info import DataInfo
from healsg.data.source import DatasetSource, Source, TensorSource, line
from healsg.errors import DataError
from healsg.loggers.thumbnails import shown_levels, thumbnail, with_mask

SHOWN_EACH = 4
"""Sample pictures of each class, or of a split without classes, for the page."""

MOST_SHOWN = 120
"""Sample pictures in all."""

AT_ONCE = 64
"""Samples that are read between two checks of the clock."""


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used: its split, the file or the sample's name, the reason, and the file's path if any"""

    split: str
    name: str
    reason: str
    path: str | None = None


@dataclass
class Seen:
    """Statistics and problems of one split's samples.

    Args:
        count: samples, also those that cannot be read.
        targets: by class index its samples; of masks by label the pixels.
        digests: by digest of the decoded input the samples (name, class index or None).
        bad: what cannot be read or used.
        sizes, modes, bits, formats, orientations: of picture files, by value the number of files.
        shapes: of inputs that are no picture files, by shape their number.
        empty_masks: the names of samples whose mask has no foreground.
        not_finite: the names of samples with inf or NaN in the input.
        fields: by the fields that samples have, such as input and target, their names.
        missing: by column of a table, values that are not known.
        constant: the columns of a table with a single value.
        samples: pictures for the page: (class index or None, name, JPEG).
        paths: of the samples' files, as far as there are any.
    """

    count: int = 0
    targets: Counter[int] = field(default_factory=Counter)
    digests: dict[bytes, list[tuple[str, int | None]]] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    bits: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    orientations: Counter[int] = field(default_factory=Counter)
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    empty_masks: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    fields: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)
    samples: list[tuple[int | None, str, bytes]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    targets_range: tuple[float, float] | None = None


def read_split(split: str, source: Source, info: DataInfo) -> Seen:
    """Read all samples of a split once."""
    if isinstance(source, TensorSource):
        return _read_tensors(source, info)
    seen = Seen(count=len(source))
    if isinstance(source, DatasetSource):
        _read_files(seen, split, source, info)
    return seen


# --- samples in memory -----------------------------------------------------------------------------------------------


def _numbers_of(input: Tensor, target: Tensor, info: DataInfo) -> dict[str, Any]:
    """The statistics of inputs and targets: the fields of ``Seen`` with these names."""
    found: dict[str, Any] = {}
    if input.dim() == 2 and input.is_floating_point():  # a table, whose missing values are NaN
        names = info.input_names or tuple(f"column {index}" for index in range(input.shape[1]))
        unknown = input.isnan()
        found["missing"] = {name: int(n) for name, n in zip(names, unknown.sum(dim=0).tolist(), strict=True) if n}
        low = torch.where(unknown, torch.inf, input).amin(dim=0)
        high = torch.where(unknown, -torch.inf, input).amax(dim=0)
        found["constant"] = [name for name, same in zip(names, (low >= high).tolist(), strict=True) if same]
        wrong = input.isinf().any(dim=1)
    elif input.is_floating_point():
        wrong = ~input.flatten(1).isfinite().all(dim=1)
    else:
        wrong = torch.zeros(len(input), dtype=torch.bool)
    found["not_finite"] = [f"sample {index}" for index in wrong.nonzero().flatten().tolist()]
    if target.is_floating_point() and target.numel():
        found["targets_range"] = float(target.min()), float(target.max())
    return found


def _read_tensors(source: TensorSource, info: DataInfo) -> Seen:
    input = source.input.cpu()
    target = source.target.cpu()
    seen = Seen(count=len(source), **_numbers_of(input, target, info))
    seen.shapes[tuple(input.shape[1:])] = len(input)
    one_class = target.dim() == 1 and not target.is_floating_point()
    labels = target.tolist() if one_class else [None] * len(target)
    rows = input.contiguous().numpy()
    cases = source.about.cases
    for index, label in enumerate(labels):
        name = f"sample {index}" if cases is None else cases[index].name
        digest = hashlib.blake2b(rows[index].tobytes(), digest_size=16).digest()
        seen.digests.setdefault(digest, []).append((name, label))
        if info.dense:
            _see_mask(seen, name, target[index], info)
        elif label is not None:
            seen.targets[label] += 1
        if _wanted(seen, label):
            _keep_picture(seen, label, name, rows[index], target[index] if info.dense else None)
    return seen


# --- samples in files ------------------------------------------------------------------------------------------------


def _read_files(seen: Seen, split: str, source: DatasetSource, info: DataInfo) -> None:
    numbers = source.numbers
    paths = _paths_of(source.dataset)
    targets = None
    if source.targets is not None and source.targets.dim() == 1 and not source.targets.is_floating_point():
        targets = source.targets.tolist()
    for index, found in _samples(source, parallel=paths is not None):
        path = paths[numbers[index]] if paths is not None else None
        name = path or source.name(numbers[index])
        if path:
            seen.paths.append(path)
        facts = None if path is None else picture_facts(path)
        if facts is not None:
            seen.sizes[facts["size"]] += 1
            seen.modes[facts["mode"]] += 1
            seen.bits[facts["bits"]] += 1
            seen.formats[facts["format"]] += 1
            seen.orientations[facts["orientation"]] += 1
        label = targets[index] if targets is not None else None
        if isinstance(found, str):
            seen.bad.append(Bad(split, name, _reason(found, source.name(numbers[index]), path), path))
            continue
        try:
            _see_sample(seen, name, label, found, info)
        except DataError as error:
            seen.bad.append(Bad(split, name, line(error), path))


def _see_sample(seen: Seen, name: str, label: int | None, sample: dict[str, Any], info: DataInfo) -> None:
    """Add one sample. Raises DataError if it holds something else than numbers."""
    input = _numbers(sample, "input")
    target = _numbers(sample, "target") if "target" in sample else None
    if label is None and target is not None and info.kind == "multiclass" and target.numel() == 1:
        label = int(target)
    seen.fields.setdefault(tuple(sorted(map(str, sample))), []).append(name)
    seen.shapes[tuple(input.shape)] += 1
    digest = hashlib.blake2b(input.contiguous().numpy().tobytes(), digest_size=16).digest()
    seen.digests.setdefault(digest, []).append((name, label))
    if input.is_floating_point() and not bool(input.isfinite().all()):
        seen.not_finite.append(name)
    if info.dense and target is not None:
        _see_mask(seen, name, target, info)
    elif label is not None:
        seen.targets[label] += 1
    if _wanted(seen, label):
        _keep_picture(seen, label, name, input.numpy(), target if info.dense else None)


def _numbers(sample: Mapping[str, Any], field: str) -> Tensor:
    if field not in sample:
        raise DataError(f"it has no {field}, but {', '.join(map(str, sample)) or 'nothing'}")
    try:
        return torch.as_tensor(sample[field])
    except (TypeError, ValueError, RuntimeError) as error:
        kind = "None" if sample[field] is None else type(sample[field]).__name__
        raise DataError(f"its {field} is {kind}, and no tensor or number") from error


def _samples(source: DatasetSource, parallel: bool) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each sample by index, or why it cannot be read; file decoders run in several threads."""

    def read(place: int) -> dict[str, Any] | str:
        try:
            return dict(source.sample(place))
        except DataError as error:
            return line(error)

    began = reported = time.monotonic()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if parallel else 1) as pool:
        for first in range(0, len(source), AT_ONCE):
            indices = range(first, min(first + AT_ONCE, len(source)))
            yield from zip(indices, pool.map(read, indices) if parallel else map(read, indices), strict=True)
            if sys.stderr.isatty() and time.monotonic() - reported > 2:
                reported = time.monotonic()
                rate = indices.stop / (reported - began)
                print(f"\rread {indices.stop} of {len(source)} samples, {rate:.0f} a second", end="", file=sys.stderr)
    if reported > began:
        print(file=sys.stderr)


def _reason(message: str, name: str, path: str | None) -> str:
    """Why a sample cannot be read, without the sample's name, which is shown separately."""
    bare = message.removeprefix(name).removeprefix(": ")
    return bare if path is None else bare.replace(f" {line(repr(path))}", "")


def _paths_of(dataset: Any) -> list[str] | None:
    """By index the file of each sample of a data set that knows them; None of others."""
    if isinstance(dataset, Subset):
        inner = _paths_of(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    paths = getattr(dataset, "paths", None)
    if paths is None or len(paths) != len(dataset):
        return None
    return [os.fspath(path) for path in paths]


def picture_facts(path: str) -> dict[str, Any] | None:
    """Size, mode, bits a channel, format and EXIF orientation of a picture file, by its header; None for other files.

    ``size`` is (height, width) as it is stored; ``orientation`` is 1 for an upright image.
    """
    from healsg.datasets.images.decoding import ORIENTATION, open_picture

    try:
        with open_picture(path) as opened:
            mode = opened.mode
            try:
                orientation = int(opened.getexif().get(ORIENTATION) or 1)
            except Exception:  # damaged EXIF data make Pillow raise almost anything; the picture is upright then
                orientation = 1
            bits = 1 if mode == "1" else 16 if mode.startswith("I;16") else 32 if mode[0] in "IF" else 8
            if mode == "I" and opened.format in ("PNG", "PPM"):
                bits = 16
            facts = {"size": (opened.height, opened.width), "mode": mode, "bits": bits}
            return facts | {"format": opened.format or "", "orientation": orientation}
    except Exception:  # what cannot be opened is reported by the reader, with its reason
        return None


# --- both ------------------------------------------------------------------------------------------------------------


def _see_mask(seen: Seen, name: str, mask: Tensor, info: DataInfo) -> None:
    """Count the pixels of each label."""
    if mask.is_floating_point():
        return
    labels, counts = torch.unique(mask, return_counts=True)
    pixels = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    for label, count in pixels.items():
        seen.targets[label] += count
    if not any(label not in (0, info.ignore) for label in pixels):
        seen.empty_masks.append(name)


def _wanted(seen: Seen, label: int | None) -> bool:
    """Whether a sample of this class is to be shown on the page."""
    shown = sum(1 for other, _, _ in seen.samples if other == label)
    return shown < (SHOWN_EACH if label is not None else 4 * SHOWN_EACH) and len(seen.samples) < MOST_SHOWN


def _keep_picture(seen: Seen, label: int | None, name: str, input: np.ndarray[Any, Any], mask: Any) -> None:
    levels = shown_levels(input)
    if levels is not None:
        levels = levels if mask is None else with_mask(levels, mask)
        seen.samples.append((label, name, thumbnail(levels)))
