"""nnU-Net's augmentation of batches of images and volumes on their device, with random numbers for each sample.

Source: F. Isensee et al., "nnU-Net", Nature Methods 2021, https://doi.org/10.1038/s41592-020-01008-z, supplementary
note 4, with the probabilities and ranges of nnU-Net 2's default trainer (no elastic deformation).

Random numbers are drawn on the CPU, so that no value is read from the device. A transform that is not drawn for a
sample costs nothing and leaves it unchanged, bit for bit. Samples are processed one by one, so that rounding does not
depend on the rest of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.data.source import Batch
from healsg.seeding import Draw
from healsg.transforms.dense_targets import has_dense_target
from healsg.transforms.image import ImageTransform
from healsg.transforms.numbers import bell, uniform

ROTATED = 0.2
SCALED = 0.2
NOISY = 0.1
BLURRED = 0.2
BRIGHTENED = 0.15
CONTRASTED = 0.15
COARSE = 0.25
INVERTED_GAMMA = 0.1
GAMMA = 0.3
"""The probability of each transform."""

BY_CHANNEL = 0.5
"""The probability, for each channel, of being blurred or coarsened in a sample for which this is drawn."""

SCALES = (0.7, 1.4)
VARIANCES = (0.0, 0.1)
SIGMAS = (0.5, 1.0)
FACTORS = (0.75, 1.25)
ZOOMS = (0.5, 1.0)
GAMMAS = (0.7, 1.5)
"""The ranges of the parameters; factors and gammas are below and above 1 with equal probability."""

ANISOTROPIC, OBLONG = 3.0, 1.5
"""The ratios of the sides from which a volume is rotated only in the plane of its slices, and an image only
slightly."""

RADIUS = 3
"""The radius of the blur's kernel, in pixels."""

WHICH = 16
"""The index of the first random number used here; lower ones are used by the data set's own flips and shifts."""

Matrix = list[list[float]]


class NnunetTransform:
    """The data set's own flips and normalisation, then rotation and scaling (also of a mask), noise, blur, brightness,
    contrast, low resolution and gamma.

    Args:
        standard: the data set's flips, shifts and normalisation.
        outside: the label of mask pixels from outside the image.
    """

    per_sample = True

    shares_geometry = False
    """The mask is transformed with the image of this view, and belongs to no other view."""

    def __init__(self, standard: ImageTransform, outside: int = 0) -> None:
        self.standard, self.outside = standard, outside

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        made = self.standard(batch, draw)
        if draw is None:
            return made
        made = made | {"input": made["input"].clone()}
        sides = tuple(made["input"].shape[2:])
        turned = [(row, matrix) for row, matrix in enumerate(matrices(draw.shared, sides)) if matrix is not None]
        if turned and has_dense_target(made):
            made["target"] = made["target"].clone()
            for row, matrix in turned:
                made["target"][row] = moved_labels(made["target"][row], matrix, len(sides), self.outside)
        for row, matrix in turned:
            made["input"][row] = moved_image(made["input"][row], matrix)
        recolour(made["input"], draw)
        return made


class IntensityTransform:
    """The data set's own flips and normalisation, then the noise, blur, brightness, contrast, low resolution and gamma
    of ``NnunetTransform``: a view that differs from the other views of a sample only in intensities.

    Args:
        standard: the data set's flips, shifts and normalisation.
    """

    per_sample = True

    shares_geometry = True

    def __init__(self, standard: ImageTransform) -> None:
        self.standard = standard

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        made = self.standard(batch, draw)
        if draw is not None:
            made = made | {"input": made["input"].clone()}
            recolour(made["input"], draw)
        return made


# --- where pixels come from ------------------------------------------------------------------------------------------


def matrices(draw: Draw, sides: Sequence[int]) -> list[Matrix | None]:
    """For each sample, the matrix from output pixels to input positions, both relative to the centre and along the
    array's axes; None if it is neither rotated nor scaled.

    Args:
        draw: the samples' random numbers.
        sides: of an image or volume.
    """
    drawn = uniform(draw.host, 6, WHICH).double().tolist()
    made: list[Matrix | None] = []
    for turn, size, *amounts, zoom in drawn:
        if turn >= ROTATED and size >= SCALED:
            made.append(None)
            continue
        angles = [2 * amount - 1 if turn < ROTATED else 0.0 for amount in amounts]
        scale = SCALES[0] + zoom * (SCALES[1] - SCALES[0]) if size < SCALED else 1.0
        made.append(_flat(angles, scale, sides) if len(sides) == 2 else _solid(angles, scale, sides))
    return made


def _flat(angles: Sequence[float], scale: float, sides: Sequence[int]) -> Matrix:
    most = math.pi if max(sides) <= OBLONG * min(sides) else math.radians(15)
    return _scaled(rotation(2, (0, 1), angles[0] * most), [scale, scale])


def _solid(angles: Sequence[float], scale: float, sides: Sequence[int]) -> Matrix:
    thin = min(range(3), key=lambda axis: sides[axis])
    if max(sides) > ANISOTROPIC * min(sides):
        plane = [axis for axis in range(3) if axis != thin]
        return _scaled(
            rotation(3, (plane[0], plane[1]), angles[0] * math.pi),
            [1.0 if axis == thin else scale for axis in range(3)],
        )
    turns = [rotation(3, plane, angle * math.radians(30)) for plane, angle in zip(_PLANES, angles, strict=True)]
    return _scaled(product(product(turns[0], turns[1]), turns[2]), [scale] * 3)


_PLANES = ((0, 1), (0, 2), (1, 2))


def rotation(axes: int, plane: tuple[int, int], angle: float) -> Matrix:
    """The rotation by ``angle`` radians in the plane of two axes."""
    made = [[float(row == column) for column in range(axes)] for row in range(axes)]
    first, second = plane
    made[first][first] = made[second][second] = math.cos(angle)
    made[first][second], made[second][first] = -math.sin(angle), math.sin(angle)
    return made


def product(one: Matrix, other: Matrix) -> Matrix:
    """The product of two square matrices."""
    indices = range(len(one))
    return [[sum(one[row][k] * other[k][column] for k in indices) for column in indices] for row in indices]


def _scaled(matrix: Matrix, scales: Sequence[float]) -> Matrix:
    """The matrix that magnifies by ``scales`` along the axes of the input."""
    return [[value / scale for value in row] for row, scale in zip(matrix, scales, strict=True)]


def positions(matrix: Matrix, sides: Sequence[int], device: torch.device) -> list[Tensor]:
    """For each axis (*sides) float32: the position of each output pixel in the input, in pixels from the centre of
    the first one."""
    along = [
        (torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2).view(
            [-1 if axis == position else 1 for axis in range(len(sides))]
        )
        for position, side in enumerate(sides)
    ]
    made = []
    for row, side in zip(matrix, sides, strict=True):
        total = torch.full(tuple(sides), (side - 1) / 2, device=device)
        for weight, offset in zip(row, along, strict=True):
            total = total + weight * offset
        made.append(total)
    return made


def moved_image(image: Tensor, matrix: Matrix) -> Tensor:
    """An image (C, *sides) transformed by ``matrix`` with linear interpolation, 0 outside."""
    sides = image.shape[1:]
    found = positions(matrix, sides, image.device)
    # align_corners=False: -1 and 1 are the outer faces of the first and the last pixel
    grid = [(2 * position + 1) / side - 1 for position, side in zip(found, sides, strict=True)]
    stacked = torch.stack(grid[::-1], dim=-1).to(image.dtype)
    return F.grid_sample(image[None], stacked[None], padding_mode="zeros", align_corners=False)[0]


def moved_labels(mask: Tensor, matrix: Matrix, axes: int, outside: int) -> Tensor:
    """A mask (*sides) or masks (R, *sides) transformed by ``matrix`` with nearest neighbour, in their own type,
    ``outside`` outside."""
    sides = mask.shape[-axes:]
    flat: Tensor | None = None
    inside = torch.ones(tuple(sides), dtype=torch.bool, device=mask.device)
    for position, side in zip(positions(matrix, sides, mask.device), sides, strict=True):
        near = position.round().long()
        inside &= (near >= 0) & (near < side)
        near = near.clamp(0, side - 1)
        flat = near if flat is None else flat * side + near
    assert flat is not None
    taken = mask.reshape(-1, inside.numel())[:, flat.flatten()].view(mask.shape)
    return torch.where(inside, taken, torch.full_like(taken, outside))


# --- intensities -----------------------------------------------------------------------------------------------------


def recolour(images: Tensor, draw: Draw) -> None:
    """Change the intensities of normalised images (N, C, ...) in place, each with its own random numbers."""
    channels = images.shape[1]
    host = draw.host
    chances = uniform(host, 8, WHICH + 2).double().tolist()
    amounts = uniform(host, 9 * channels, WHICH + 4).view(-1, 9, channels).double().tolist()
    for row, (noise, blur, bright, contrast, coarse, inverted, gamma, deviation) in enumerate(chances):
        own = amounts[row]
        if noise < NOISY:
            variance = VARIANCES[0] + deviation * (VARIANCES[1] - VARIANCES[0])
            chosen = draw.copied(row, row + 1)
            images[row] += bell(chosen, images[row].numel(), WHICH + 6).view(images[row].shape) * math.sqrt(variance)
        for channel in range(channels):
            image = images[row, channel]
            if blur < BLURRED and own[0][channel] < BY_CHANNEL:
                image = blurred(image, SIGMAS[0] + own[1][channel] * (SIGMAS[1] - SIGMAS[0]))
            if bright < BRIGHTENED:
                image = image * factor(own[2][channel], FACTORS)
            if contrast < CONTRASTED:
                image = contrasted(image, factor(own[3][channel], FACTORS))
            if coarse < COARSE and own[4][channel] < BY_CHANNEL:
                image = coarsened(image, ZOOMS[0] + own[5][channel] * (ZOOMS[1] - ZOOMS[0]))
            if inverted < INVERTED_GAMMA:
                image = -powered(-image, factor(own[6][channel], GAMMAS))
            if gamma < GAMMA:
                image = powered(image, factor(own[7][channel], GAMMAS))
            if image is not images[row, channel]:
                images[row, channel] = image


def factor(drawn: float, limits: tuple[float, float]) -> float:
    """A number within ``limits``, below or above 1 with equal probability and uniform within each, from a uniform
    number in [0, 1)."""
    low, high = limits
    return low + 2 * drawn * (1 - low) if drawn < 0.5 else 1 + (2 * drawn - 1) * (high - 1)


def blurred(image: Tensor, deviation: float) -> Tensor:
    """(...) blurred by a Gaussian with this standard deviation in pixels; the edge is repeated."""
    weights = [math.exp(-(offset**2) / (2 * deviation**2)) for offset in range(-RADIUS, RADIUS + 1)]
    total = sum(weights)
    for axis, side in enumerate(image.shape):
        made = torch.zeros_like(image)
        for offset, weight in enumerate(weights):
            near = (torch.arange(side, device=image.device) + (offset - RADIUS)).clamp(0, side - 1)
            made += image.index_select(axis, near) * (weight / total)
        image = made
    return image


def contrasted(image: Tensor, by: float) -> Tensor:
    """The contrast changed by the factor ``by``: distances from the mean are multiplied, and clipped to the original
    range."""
    mean = image.mean()
    return torch.clamp((image - mean) * by + mean, image.min(), image.max())


def coarsened(image: Tensor, zoom: float) -> Tensor:
    """Low resolution: downsampled by nearest neighbour and upsampled linearly."""
    small = [max(1, round(side * zoom)) for side in image.shape]
    mode = "bilinear" if image.dim() == 2 else "trilinear"
    coarse = F.interpolate(image[None, None], small, mode="nearest-exact")
    return F.interpolate(coarse, tuple(image.shape), mode=mode, align_corners=False)[0, 0]


def powered(image: Tensor, gamma: float) -> Tensor:
    """Gamma: the intensities, relative to their range, to the power of ``gamma``; mean and standard deviation are
    kept."""
    mean = image.mean()
    deviation = image.std()
    low = image.min()
    spread = (image.max() - low).clamp(min=1e-7)
    made = ((image - low) / spread) ** gamma * spread + low
    made = made - made.mean()
    return made * (deviation / made.std().clamp(min=1e-7)) + mean
