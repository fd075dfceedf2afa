"""Prediction of images and volumes that are larger than what a network takes: overlapping windows, whose outputs are
averaged with weights that fall towards the windows' edges.

Two rules say where windows lie and how they weigh; both pad an image that is smaller than a window with zeros, half on
each side.

``monai``
    MONAI's ``sliding_window_inference``: windows at whole multiples of ``int(size * (1 - overlap))``, the last one
    moved back to the edge; a Gaussian around the centre between the pixels, no weight below a thousandth.
``nnunet``
    nnU-Net's (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z, supplementary note 2): as few windows as
    have steps of at most ``size * (1 - overlap)``, spread evenly; a Gaussian around pixel ``size // 2``. Weights stay
    in float32, where nnU-Net rounds them to float16.

The Gaussians have a deviation of an eighth of the window. Outputs are averaged as the network gives them, scores as a
rule. Only the rows of the output that still change are kept, so that the memory grows with a window's depth and not
with the volume's; ``slabs`` yields the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.data.scratch import Empty
from healsg.errors import ConfigError

Rule = Literal["monai", "nnunet"]
Predict = Callable[[Tensor], Tensor]
"""(N, C, ...) windows to (N, K, ...) outputs of the same size."""

PIECE = 1 << 18
"""Outputs that are averaged at once."""

SIGMA = 0.125
"""The deviation of the Gaussian weights, as a share of the window's side."""


@dataclass(frozen=True)
class Windows:
    """How an image is taken apart.

    Args:
        size: the sides of a window, in pixels.
        rule: where windows lie and how they weigh; see the module.
        overlap: the share of a window that the next one covers too, below 1.
        gaussian: weigh windows by a Gaussian; else all pixels of a window alike.
        batch: windows that are predicted at once.
        mirror: the spatial axes, from 0, along which each window is mirrored too: the mean over all combinations.
    """

    size: tuple[int, ...]
    rule: Rule = "nnunet"
    overlap: float = 0.5
    gaussian: bool = True
    batch: int = 1
    mirror: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.size or min(self.size) < 1:
            raise ConfigError(f"windows: {list(self.size)} is no size; give each axis at least 1 pixel")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"windows: overlap={self.overlap} leaves no step; give less than 1")
        if self.batch < 1:
            raise ConfigError(f"windows: batch={self.batch}; at least one window is predicted at once")
        if set(self.mirror) - set(range(len(self.size))):
            raise ConfigError(f"windows: mirror={list(self.mirror)}, but the axes are 0 to {len(self.size) - 1}")


# --- where windows lie, and how they weigh ---------------------------------------------------------------------------


def starts(side: int, window: int, overlap: float, rule: Rule) -> list[int]:
    """The first pixel of each window along one axis of ``side`` pixels, which are at least the window's."""
    if side == window:
        return [0]
    if rule == "monai":
        step = max(1, int(window * (1 - overlap)))
        return [min(number * step, side - window) for number in range(math.ceil((side - window) / step) + 1)]
    number = math.ceil((side - window) / (window * (1 - overlap))) + 1
    return [round((side - window) / (number - 1) * place) for place in range(number)]


def weights(windows: Windows) -> Tensor:
    """Float32 of a window's size: how much each of its pixels weighs, above 0 everywhere."""
    if not windows.gaussian:
        return torch.ones(windows.size)
    product = torch.ones(())
    for side in windows.size:
        centre = (side - 1) / 2 if windows.rule == "monai" else side // 2
        along = torch.exp(-0.5 * ((torch.arange(side) - centre) / (SIGMA * side)) ** 2)
        product = product.unsqueeze(-1) * along
    return product.clamp(min=max(float(product.min()), 1e-3)) if windows.rule == "monai" else product


def mirrored(predict: Predict, axes: Sequence[int]) -> Predict:
    """The mean of what is predicted of each mirror image along ``axes`` (spatial, from 0), mirrored back."""
    flips = [flip for number in range(len(axes) + 1) for flip in itertools.combinations(axes, number)]

    def averaged(batch: Tensor) -> Tensor:
        total = predict(batch)
        for flip in flips[1:]:
            sides = [axis + 2 for axis in flip]
            total = total + predict(batch.flip(sides)).flip(sides)
        return total / len(flips)

    return averaged if len(flips) > 1 else predict


def ensemble(predictors: Sequence[Predict]) -> Predict:
    """The mean of several networks' outputs, such as those of several folds."""

    def averaged(batch: Tensor) -> Tensor:
        total = predictors[0](batch)
        for predict in predictors[1:]:
            total = total + predict(batch)
        return total / len(predictors)

    return averaged


# --- prediction ------------------------------------------------------------------------------------------------------


def slabs(
    predict: Predict,
    image: Any,
    windows: Windows,
    device: torch.device | str = "cpu",
    axis: int | None = None,
    empty: Empty = np.empty,
) -> Iterator[tuple[int, Tensor]]:
    """Predict an image slab by slab: ``(first, output)`` with ``output`` (K, ...) of the rows from ``first`` on,
    float32 on ``device``. One after the other they are the whole output.

    Args:
        predict: the network.
        image: (C, ...), a tensor or an array, memory-mapped ones too: no more of it is read than a batch of windows.
        windows: how it is taken apart.
        device: where windows are predicted and outputs averaged.
        axis: the spatial axis along which slabs follow each other; the longest where it is None.
        empty: makes the arrays of the sums where ``device`` is the CPU, such as ``Scratch.empty``.
    """
    sides = tuple(image.shape[1:])
    if len(sides) != len(windows.size):
        raise ConfigError(f"windows: {list(windows.size)} is for {len(windows.size)} axes, the image has {len(sides)}")
    axis = slab_axis(sides) if axis is None else axis
    padded = [max(side, window) for side, window in zip(sides, windows.size, strict=True)]
    before = [(whole - side) // 2 for whole, side in zip(padded, sides, strict=True)]
    inside = [slice(pad, pad + side) for pad, side in zip(before, sides, strict=True)]
    sum_of = _Sums(padded, windows, axis, weights(windows).to(device), empty)
    averaged = mirrored(predict, windows.mirror)
    places = _places(padded, windows, axis)
    for first in range(0, len(places), windows.batch):
        batch = places[first : first + windows.batch]
        cut = [_window(image, place, windows.size, before) for place in batch]
        outputs = averaged(torch.stack(cut).to(device))
        for place, output in zip(batch, outputs, strict=True):
            for done in sum_of.advance(place[axis]):
                yield from _visible(done, inside, axis)
            sum_of.add(place, output)
    for done in sum_of.advance(padded[axis]):
        yield from _visible(done, inside, axis)


def whole(
    predict: Predict, image: Any, windows: Windows, device: torch.device | str = "cpu", axis: int | None = None
) -> Tensor:
    """(K, ...) the whole output of an image, float32 on ``device``; see ``slabs`` for the arguments."""
    axis = slab_axis(image.shape[1:]) if axis is None else axis
    return torch.cat([output for _, output in slabs(predict, image, windows, device, axis)], dim=axis + 1)


def labels(
    predict: Predict, image: Any, windows: Windows, device: torch.device | str = "cpu", regions: Sequence[int] = ()
) -> Tensor:
    """(...) uint8 or, of more than 256 classes, int16: the class of the largest score of each pixel, on the CPU.

    Args:
        predict, image, windows, device: see ``slabs``.
        regions: where outputs are regions, predicted above 0: the label that each of them writes, later ones over
            earlier ones; a pixel of none is 0.
    """
    axis = slab_axis(image.shape[1:])
    made: Tensor | None = None
    for first, output in slabs(predict, image, windows, device, axis):
        part = chosen(output, regions)
        if made is None:
            made = torch.zeros(tuple(image.shape[1:]), dtype=part.dtype)
        made.narrow(axis, first, output.shape[axis + 1]).copy_(part)
    assert made is not None
    return made


def chosen(scores: Tensor, regions: Sequence[int] = ()) -> Tensor:
    """(...) uint8 or, of more than 256 classes, int16: the class of the largest of (K, ...) scores; where outputs are
    regions, what ``labels`` says."""
    kind = torch.int16 if max([len(scores) - 1, *regions]) > 255 else torch.uint8
    if not regions:
        return scores.argmax(dim=0).to(kind)
    found = torch.zeros(scores.shape[1:], dtype=kind, device=scores.device)
    for label, inside in zip(regions, scores > 0, strict=True):
        found = torch.where(inside, label, found)
    return found


def slab_axis(sides: Sequence[int]) -> int:
    """The longest axis, along which a slab is the smallest part of the whole."""
    return max(range(len(sides)), key=lambda axis: sides[axis])


def memory(sides: Sequence[int], windows: Windows, outputs: int, axis: int | None = None) -> int:
    """The bytes that averaging takes for an image of ``sides`` and ``outputs`` channels, beside the network itself."""
    axis = slab_axis(sides) if axis is None else axis
    padded = [max(side, window) for side, window in zip(sides, windows.size, strict=True)]
    rows = math.prod(padded) // padded[axis] * windows.size[axis]
    return 4 * (rows * (outputs + 1) + math.prod(windows.size) * (outputs * (windows.batch + 1) + 1))


def _places(padded: Sequence[int], windows: Windows, axis: int) -> list[tuple[int, ...]]:
    """The first pixels of all windows, in the order of ``axis``."""
    along = [starts(side, size, windows.overlap, windows.rule) for side, size in zip(padded, windows.size, strict=True)]
    return sorted(itertools.product(*along), key=lambda place: place[axis])


def _window(image: Any, place: Sequence[int], size: Sequence[int], before: Sequence[int]) -> Tensor:
    """One window, float32 if it holds whole numbers, with zeros where it reaches beyond the image."""
    box, padding = [], []
    for start, window, pad, side in zip(place, size, before, image.shape[1:], strict=True):
        low, high = start - pad, start - pad + window
        box.append(slice(max(low, 0), min(high, side)))
        padding.append((max(-low, 0), max(high - side, 0)))
    taken = torch.as_tensor(image[(slice(None), *box)])
    taken = taken if taken.is_floating_point() else taken.float()
    return F.pad(taken, [amount for pair in reversed(padding) for amount in pair]) if any(map(any, padding)) else taken


class _Sums:
    """The weighted sums of the rows that windows to come may still add to.

    Args:
        sides: of the image, padded.
        windows: of which each adds.
        axis: along which windows come in order.
        weight: of a window's pixels.
        empty: makes the arrays of sums on the CPU.
    """

    def __init__(self, sides: Sequence[int], windows: Windows, axis: int, weight: Tensor, empty: Empty) -> None:
        self.sides = sides
        self.windows = windows
        self.axis = axis
        self.weight = weight
        self.empty = empty
        self.base = 0
        """The row at which the sums begin; those before are complete."""
        self.total: Tensor | None = None
        self.counted = self._zeros()

    def _zeros(self, *channels: int) -> Tensor:
        sides = [self.windows.size[axis] if axis == self.axis else side for axis, side in enumerate(self.sides)]
        shape = [*channels, *sides]
        if self.weight.device.type != "cpu":
            return self.weight.new_zeros(shape)
        return torch.from_numpy(self.empty(shape, np.float32)).zero_()

    def add(self, place: Sequence[int], output: Tensor) -> None:
        """Add a window that starts at ``base`` along the axis."""
        if self.total is None:
            self.total = self._zeros(len(output))
        box = tuple(
            slice(None) if axis == self.axis else slice(start, start + size)
            for axis, (start, size) in enumerate(zip(place, self.windows.size, strict=True))
        )
        self.total[(slice(None), *box)] += output.float() * self.weight
        self.counted[box] += self.weight

    def advance(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """The means of the rows before ``start``, some rows at a time, each with its first row; then drop them."""
        rows = min(start - self.base, self.windows.size[self.axis])
        if rows <= 0 or self.total is None:
            return
        plane = math.prod(self.sides) // self.sides[self.axis] * len(self.total)
        at_once = max(1, PIECE // plane)
        for at in range(0, rows, at_once):
            count = min(at_once, rows - at)
            sums, counted = self.total.narrow(self.axis + 1, at, count), self.counted.narrow(self.axis, at, count)
            yield self.base + at, sums / counted
        self.base = start
        for sums, axis in ((self.total, self.axis + 1), (self.counted, self.axis)):
            kept = sums.shape[axis] - rows
            for at in range(0, kept, rows):  # parts that do not overlap with where they go
                count = min(rows, kept - at)
                sums.narrow(axis, at, count).copy_(sums.narrow(axis, at + rows, count))
            sums.narrow(axis, kept, rows).zero_()


def _visible(done: tuple[int, Tensor], inside: Sequence[slice], axis: int) -> Iterator[tuple[int, Tensor]]:
    """The part of complete rows that lies in the image and not in its padding."""
    first, output = done
    low, high = max(first, inside[axis].start), min(first + output.shape[axis + 1], inside[axis].stop)
    if low < high:
        box = [slice(low - first, high - first) if at == axis else one for at, one in enumerate(inside)]
        yield low - inside[axis].start, output[(slice(None), *box)]
