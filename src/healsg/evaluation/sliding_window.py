"""Sliding window inference for images and volumes that are larger than the network's input: the outputs of overlapping
windows are averaged, with weights that decrease towards the edges of a window.

Two rules define the positions and weights of windows. With both, an image that is smaller than a window is padded with
zeros, half on each side.

``monai``
    MONAI's ``sliding_window_inference``: windows at multiples of ``int(size * (1 - overlap))``, the last one moved back
    to the edge; a Gaussian around the centre, between the pixels if the size is even; no weight is below 0.001.
``nnunet``
    nnU-Net's (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z, supplementary note 2): the smallest
    number of windows whose step is at most ``size * (1 - overlap)``, evenly spaced; a Gaussian around pixel
    ``size // 2``. Weights stay in float32; nnU-Net rounds them to float16.

The Gaussians have a standard deviation of an eighth of the window. The network's outputs are averaged as they are,
usually logits. Only the rows of the output that can still change are kept in memory, which therefore depends on the
depth of a window and not of the volume; ``slabs`` yields complete rows.
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
"""Maps (N, C, ...) windows to (N, K, ...) outputs of the same size."""

PIECE = 1 << 18
"""The number of outputs that are averaged at once."""

SIGMA = 0.125
"""The standard deviation of the Gaussian weights, relative to the side of the window."""


@dataclass(frozen=True)
class Windows:
    """How an image is split into windows.

    Args:
        size: the sides of a window, in pixels.
        rule: the positions and weights of windows; see the module's docstring.
        overlap: the overlap of neighbouring windows, as a share of a window, below 1.
        gaussian: use Gaussian weights; otherwise all pixels of a window have the same weight.
        batch: windows per forward pass.
        mirror: the spatial axes, from 0, for test-time mirroring: the output is the mean over all combinations of them.
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


# --- positions and weights of windows --------------------------------------------------------------------------------


def starts(side: int, window: int, overlap: float, rule: Rule) -> list[int]:
    """The first pixel of each window along an axis of ``side`` pixels; ``side`` is at least ``window``."""
    if side == window:
        return [0]
    if rule == "monai":
        step = max(1, int(window * (1 - overlap)))
        return [min(number * step, side - window) for number in range(math.ceil((side - window) / step) + 1)]
    number = math.ceil((side - window) / (window * (1 - overlap))) + 1
    return [round((side - window) / (number - 1) * index) for index in range(number)]


def weights(windows: Windows) -> Tensor:
    """The weights of the pixels of a window, float32, above 0 everywhere."""
    if not windows.gaussian:
        return torch.ones(windows.size)
    product = torch.ones(())
    for side in windows.size:
        centre = (side - 1) / 2 if windows.rule == "monai" else side // 2
        along = torch.exp(-0.5 * ((torch.arange(side) - centre) / (SIGMA * side)) ** 2)
        product = product.unsqueeze(-1) * along
    return product.clamp(min=max(float(product.min()), 1e-3)) if windows.rule == "monai" else product


def mirrored(predict: Predict, axes: Sequence[int]) -> Predict:
    """Test-time mirroring: the mean over all combinations of flips along ``axes`` (spatial, from 0), flipped back."""
    flips = [flip for number in range(len(axes) + 1) for flip in itertools.combinations(axes, number)]

    def averaged(batch: Tensor) -> Tensor:
        total = predict(batch)
        for flip in flips[1:]:
            sides = [axis + 2 for axis in flip]
            total = total + predict(batch.flip(sides)).flip(sides)
        return total / len(flips)

    return averaged if len(flips) > 1 else predict


def ensemble(predictors: Sequence[Predict]) -> Predict:
    """The mean of the outputs of several networks, such as those of several folds."""

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
    """Predict an image slab by slab. Yields ``(first, output)``: ``output`` (K, ...), float32 on ``device``, holds the
    rows from ``first`` on. Concatenated along ``axis``, the slabs are the complete output.

    Args:
        predict: the network.
        image: (C, ...), a tensor or an array, possibly memory-mapped: only one batch of windows is read at a time.
        windows: how it is split.
        device: the device of the network and of the averages.
        axis: the spatial axis of the slabs; None for the longest.
        empty: allocates the sums if ``device`` is the CPU, such as ``Scratch.empty``.
    """
    sides = tuple(image.shape[1:])
    if len(sides) != len(windows.size):
        raise ConfigError(f"windows: {list(windows.size)} is for {len(windows.size)} axes, the image has {len(sides)}")
    axis = slab_axis(sides) if axis is None else axis
    padded = [max(side, window) for side, window in zip(sides, windows.size, strict=True)]
    before = [(length - side) // 2 for length, side in zip(padded, sides, strict=True)]
    inside = [slice(pad, pad + side) for pad, side in zip(before, sides, strict=True)]
    sums = _Sums(padded, windows, axis, weights(windows).to(device), empty)
    averaged = mirrored(predict, windows.mirror)
    origins = _origins(padded, windows, axis)
    for first in range(0, len(origins), windows.batch):
        batch = origins[first : first + windows.batch]
        inputs = [_window(image, origin, windows.size, before) for origin in batch]
        outputs = averaged(torch.stack(inputs).to(device))
        for origin, output in zip(batch, outputs, strict=True):
            for rows in sums.advance(origin[axis]):
                yield from _without_padding(rows, inside, axis)
            sums.add(origin, output)
    for rows in sums.advance(padded[axis]):
        yield from _without_padding(rows, inside, axis)


def full_output(
    predict: Predict, image: Any, windows: Windows, device: torch.device | str = "cpu", axis: int | None = None
) -> Tensor:
    """The complete output (K, ...) of an image, float32 on ``device``; see ``slabs`` for the arguments."""
    axis = slab_axis(image.shape[1:]) if axis is None else axis
    return torch.cat([output for _, output in slabs(predict, image, windows, device, axis)], dim=axis + 1)


def labels(
    predict: Predict, image: Any, windows: Windows, device: torch.device | str = "cpu", regions: Sequence[int] = ()
) -> Tensor:
    """The label of each pixel of an image, on the CPU: uint8, or int16 for more than 256 classes.

    Args:
        predict, image, windows, device: see ``slabs``.
        regions: empty if the outputs are classes (argmax). If they are regions, which contain a pixel if their score is
            above 0: the label of each; later regions overwrite earlier ones, and pixels in no region are 0.
    """
    axis = slab_axis(image.shape[1:])
    result: Tensor | None = None
    for first, output in slabs(predict, image, windows, device, axis):
        part = label_map(output, regions)
        if result is None:
            result = torch.zeros(tuple(image.shape[1:]), dtype=part.dtype)
        result.narrow(axis, first, output.shape[axis + 1]).copy_(part)
    assert result is not None
    return result


def label_map(scores: Tensor, regions: Sequence[int] = ()) -> Tensor:
    """The labels (...) for scores (K, ...), uint8, or int16 for more than 256 classes; see ``labels`` for
    ``regions``."""
    kind = torch.int16 if max([len(scores) - 1, *regions]) > 255 else torch.uint8
    if not regions:
        return scores.argmax(dim=0).to(kind)
    result = torch.zeros(scores.shape[1:], dtype=kind, device=scores.device)
    for label, inside in zip(regions, scores > 0, strict=True):
        result = torch.where(inside, label, result)
    return result


def slab_axis(sides: Sequence[int]) -> int:
    """The longest axis, along which slabs are smallest."""
    return max(range(len(sides)), key=lambda axis: sides[axis])


def memory(sides: Sequence[int], windows: Windows, outputs: int, axis: int | None = None) -> int:
    """The memory for averaging, in bytes, for an image of ``sides`` and ``outputs`` channels, without that of the
    network."""
    axis = slab_axis(sides) if axis is None else axis
    padded = [max(side, window) for side, window in zip(sides, windows.size, strict=True)]
    rows = math.prod(padded) // padded[axis] * windows.size[axis]
    return 4 * (rows * (outputs + 1) + math.prod(windows.size) * (outputs * (windows.batch + 1) + 1))


def _origins(padded: Sequence[int], windows: Windows, axis: int) -> list[tuple[int, ...]]:
    """The first pixels of all windows, sorted along ``axis``."""
    along = [starts(side, size, windows.overlap, windows.rule) for side, size in zip(padded, windows.size, strict=True)]
    return sorted(itertools.product(*along), key=lambda origin: origin[axis])


def _window(image: Any, origin: Sequence[int], size: Sequence[int], before: Sequence[int]) -> Tensor:
    """One window of the image, integers converted to float32, zero-padded outside the image."""
    box, padding = [], []
    for start, window, pad, side in zip(origin, size, before, image.shape[1:], strict=True):
        low, high = start - pad, start - pad + window
        box.append(slice(max(low, 0), min(high, side)))
        padding.append((max(-low, 0), max(high - side, 0)))
    taken = torch.as_tensor(image[(slice(None), *box)])
    taken = taken if taken.is_floating_point() else taken.float()
    return F.pad(taken, [amount for pair in reversed(padding) for amount in pair]) if any(map(any, padding)) else taken


class _Sums:
    """The weighted sums of outputs in the rows that further windows may still change.

    Args:
        sides: the shape of the padded image.
        windows: how it is split.
        axis: the axis along which windows are sorted.
        weight: the weights of a window's pixels.
        empty: allocates the sums on the CPU.
    """

    def __init__(self, sides: Sequence[int], windows: Windows, axis: int, weight: Tensor, empty: Empty) -> None:
        self.sides = sides
        self.windows = windows
        self.axis = axis
        self.weight = weight
        self.empty = empty
        self.base = 0
        """The first row of the sums; rows before it are complete."""
        self.total: Tensor | None = None
        self.weight_sums = self._zeros()

    def _zeros(self, *channels: int) -> Tensor:
        sides = [self.windows.size[axis] if axis == self.axis else side for axis, side in enumerate(self.sides)]
        shape = [*channels, *sides]
        if self.weight.device.type != "cpu":
            return self.weight.new_zeros(shape)
        return torch.from_numpy(self.empty(shape, np.float32)).zero_()

    def add(self, origin: Sequence[int], output: Tensor) -> None:
        """Add the output of a window; along ``axis`` it starts at ``base``."""
        if self.total is None:
            self.total = self._zeros(len(output))
        box = tuple(
            slice(None) if axis == self.axis else slice(start, start + size)
            for axis, (start, size) in enumerate(zip(origin, self.windows.size, strict=True))
        )
        self.total[(slice(None), *box)] += output.float() * self.weight
        self.weight_sums[box] += self.weight

    def advance(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the means of the rows before ``start``, some rows at a time with the first one's index, and discard
        them."""
        rows = min(start - self.base, self.windows.size[self.axis])
        if rows <= 0 or self.total is None:
            return
        plane = math.prod(self.sides) // self.sides[self.axis] * len(self.total)
        at_once = max(1, PIECE // plane)
        for at in range(0, rows, at_once):
            count = min(at_once, rows - at)
            sums = self.total.narrow(self.axis + 1, at, count)
            yield self.base + at, sums / self.weight_sums.narrow(self.axis, at, count)
        self.base = start
        for sums, axis in ((self.total, self.axis + 1), (self.weight_sums, self.axis)):
            kept = sums.shape[axis] - rows
            for at in range(0, kept, rows):  # in pieces, since source and destination must not overlap
                count = min(rows, kept - at)
                sums.narrow(axis, at, count).copy_(sums.narrow(axis, at + rows, count))
            sums.narrow(axis, kept, rows).zero_()


def _without_padding(rows: tuple[int, Tensor], inside: Sequence[slice], axis: int) -> Iterator[tuple[int, Tensor]]:
    """Complete rows without the padding of the image."""
    first, output = rows
    low, high = max(first, inside[axis].start), min(first + output.shape[axis + 1], inside[axis].stop)
    if low < high:
        box = [slice(low - first, high - first) if at == axis else one for at, one in enumerate(inside)]
        yield low - inside[axis].start, output[(slice(None), *box)]
