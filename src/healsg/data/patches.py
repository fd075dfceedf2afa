"""Patches: parts of images or volumes to train on, each a pure function of its per-sample random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.data.case import Case
from healsg.data.source import About, Batch, DatasetSource, Source, TensorSource, line
from healsg.errors import ConfigError, DataError
from healsg.seeding import Draw, mix

KEPT = 4096
"""The most voxel positions of each foreground class that are kept per case, evenly spaced among all of them."""

ROUNDING = 32
"""The sides of a network's inputs may have to be a multiple of this, as with five downsampling steps."""

READ = 8
"""The most cases of unknown shape that are read at the start of a training."""

NAMED = 3
"""The most cases that a message names."""


class Patches:
    """A map-style data set of random patches of cases, which differ from epoch to epoch: see ``drawn``.

    Args:
        cases: whole cases, of any sizes.
        size: of a patch along each spatial axis. A smaller case is padded: its input with 0, its mask with ``outside``.
        count: patches per epoch; patch ``i`` is cut from case ``i % len(cases)``.
        foreground: the share of patches that are centred on a foreground pixel, as far as the border of the case
            allows; its class is sampled uniformly from the classes of the case.
        outside: the label of padding.
        ignore: a label that is not foreground.
    """

    def __init__(
        self,
        cases: TensorSource | DatasetSource,
        size: tuple[int, ...],
        count: int,
        foreground: float = 0.0,
        outside: int = 0,
        ignore: int | None = None,
    ) -> None:
        self.cases = cases
        self.size = size
        self.count = count
        self.foreground = foreground
        self.outside = outside
        self.ignore = ignore
        self.places: dict[int, list[Tensor]] = {}
        """By case, flat voxel positions of each of its foreground classes; collected when the case is first read."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        """A patch that is the same in each epoch, for reading training samples without randomness."""
        return self.drawn(index, Draw(mix(0, "patches"), torch.tensor([index])))

    def drawn(self, index: int, draw: Draw) -> Batch:
        """The patch at the position given by the random numbers of one sample, from the case given by its index.

        The ``target`` of a case without a mask is 1 inside the case and 0 in the padding.
        """
        number = index % len(self.cases)
        sample = self.cases.sample(number, draw)
        input: Tensor = torch.as_tensor(sample["input"])
        sides = tuple(input.shape[1:])
        if len(sides) != len(self.size):
            raise ConfigError(f"data.patch: {list(self.size)} for samples of size {list(sides)}")
        u = torch.cat([draw.uniform(which) for which in range(len(sides) + 3)]).tolist()
        target = torch.as_tensor(sample["target"]) if "target" in sample else None
        centre = None
        if target is not None and u[0] < self.foreground:
            centre = self._foreground_place(number, target, u[1], u[2])
        corner = []
        for axis, (side, length) in enumerate(zip(sides, self.size, strict=True)):
            free = max(0, side - length)
            drawn = int(u[3 + axis] * (free + 1)) if centre is None else centre[axis] - length // 2
            corner.append(min(max(drawn, 0), free))
        patch = {"input": self._cut(input, corner, 0)}
        if target is None:  # a network must not learn from its own predictions in the padding
            patch["target"] = self._cut(torch.ones(sides, dtype=torch.uint8), corner, 0)
        else:
            patch["target"] = self._cut(target, corner, self.outside)
        return patch

    def _cut(self, volume: Tensor, corner: list[int], outside: int) -> Tensor:
        """The window of (..., *spatial) at ``corner``, padded to the patch's size."""
        first = volume.dim() - len(self.size)
        window = volume
        padding: list[int] = []
        for axis, (begin, length) in enumerate(zip(corner, self.size, strict=True)):
            window = window.narrow(first + axis, begin, min(length, volume.shape[first + axis]))
            missing = length - window.shape[first + axis]
            padding = [missing // 2, missing - missing // 2, *padding]
        return F.pad(window, padding, value=outside) if any(padding) else window.clone()

    def _foreground_place(self, number: int, target: Tensor, which: float, where: float) -> list[int] | None:
        """The indices of a random foreground voxel of a case; None if it has no foreground.

        Args:
            number: of the case.
            target: its mask.
            which, where: random numbers in [0, 1) that choose the class, and the voxel among those of the class.
        """
        mask = target if target.dim() == len(self.size) else target.sum(dim=0)
        if number not in self.places:
            flat = mask.reshape(-1)
            by_class = []
            for label in torch.unique(flat).tolist():
                if label not in (0, self.ignore):
                    positions = (flat == label).nonzero().flatten()
                    by_class.append(positions[:: -(-len(positions) // KEPT)].clone())
            self.places[number] = by_class
        classes = self.places[number]
        if not classes:
            return None
        positions = classes[int(which * len(classes))]
        position = positions[int(where * len(positions))]
        return [int(index) for index in torch.unravel_index(position, mask.shape)]

    def name(self, index: int) -> str:
        """The case of a patch, for messages."""
        number = index % len(self.cases)
        cases = self.cases.about.cases
        if cases is not None:
            return cases[number].path or cases[number].name
        return self.cases.name(number) if isinstance(self.cases, DatasetSource) else f"sample {number}"


def padding(sources: Iterable[Source], size: tuple[int, ...], read: int | None = READ) -> str:
    """One line on how many cases are smaller than a patch, and are padded; empty if none is.

    A network may need that, so as many voxels as round the largest case up to a multiple of ``ROUNDING`` are taken.

    Args:
        sources: of training; a case that several have counts once.
        size: of a patch along each spatial axis.
        read: how many cases at most, evenly spread, are read of a source that does not tell their shapes; None reads
            all. The line then speaks of those that were read.

    Raises:
        DataError: along some axis the patch is larger than that in every case, so that training would see padding.
    """
    shaped: dict[Case, None] = {}
    all_known = True
    for source in sources:
        cases, whole = _with_shapes(source, len(size), read)
        shaped |= dict.fromkeys(cases)
        all_known = all_known and whole
    if not shaped:
        return ""
    for axis, side in enumerate(size if all_known else ()):
        largest = max(shaped, key=lambda case: case.shape[axis])
        most = -(-largest.shape[axis] // ROUNDING) * ROUNDING
        if side > most:
            detail = f"{side} along axis {axis}, and the largest training case is {_named(largest)}"
            raise DataError(f"data.patch: {list(size)} has {detail}; give at most {most} along that axis")
    small = [case for case in shaped if any(own < side for own, side in zip(case.shape, size, strict=True))]
    if not small:
        return ""
    fits = [min(sides) for sides in zip(size, *(case.shape for case in shaped), strict=True)]
    of = f"{len(shaped)} training cases" if all_known else f"{len(shaped)} training cases that were looked at"
    count = f"{len(small)} of {of} are" if len(shaped) > 1 or not all_known else "the training case is"
    named = ", ".join(map(_named, small[:NAMED])) + (f" and {len(small) - NAMED} more" if len(small) > NAMED else "")
    return (
        f"{count} smaller along an axis than {list(size)} and padded with zeros to it: {named}; up to {fits} pads none"
    )


def _with_shapes(source: Source, axes: int, read: int | None) -> tuple[list[Case], bool]:
    """The cases of a source with their shapes, and whether these are all of its cases."""
    if isinstance(source, TensorSource):
        shape = tuple(source.input.shape[2:])
        cases = source.about.cases or [Case(str(place)) for place in range(len(source))]
        return ([replace(case, shape=shape) for case in cases], True) if len(shape) == axes else ([], True)
    if not isinstance(source, DatasetSource):
        return [], True
    cases = source.about.cases or [Case(source.name(place)) for place in source.numbers]
    known = [case for case in cases if len(case.shape) == axes]
    if len(known) == len(cases):
        return known, True
    unknown = [place for place, case in enumerate(cases) if not case.shape]
    count = len(unknown) if read is None else min(read, len(unknown))
    found = []
    for place in (unknown[number * len(unknown) // count] for number in range(count)):
        with contextlib.suppress(DataError):  # reported, or skipped, where it is read for training
            shape = tuple(torch.as_tensor(source.sample(place)["input"]).shape[1:])
            found += [replace(cases[place], shape=shape)] if len(shape) == axes else []
    return known + found, len(known) + len(found) == len(cases)


def _named(case: Case) -> str:
    """The case and its shape, for messages."""
    return f"{line(case.path or case.name)} ({' x '.join(map(str, case.shape))})"


def patches_of(
    cases: Source,
    size: tuple[int, ...],
    per_case: int = 1,
    samples: int | None = None,
    foreground: float = 0.0,
    outside: int = 0,
    ignore: int | None = None,
) -> DatasetSource:
    """A source of patches for the training epochs of ``cases``.

    Args:
        cases: whole cases.
        size: see ``Patches``.
        per_case: patches of each case in an epoch.
        samples: patches of an epoch, in the place of ``per_case``; each case then gives as many, up to one.
        foreground: see ``Patches``.
        outside: likewise.
        ignore: likewise.

    Raises:
        ConfigError: the cases cannot be read one by one.
    """
    if not isinstance(cases, (TensorSource, DatasetSource)):
        raise ConfigError(f"data.patch: {type(cases).__name__} gives no single samples; a DatasetSource does")
    count = samples or per_case * len(cases)
    made: Any = Patches(cases, size, count, foreground, outside, ignore)
    known = cases.about.cases
    about = About([known[number % len(cases)] for number in range(count)] if known is not None else None)
    return DatasetSource(made, about=about)
