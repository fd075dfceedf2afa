"""Metrics of segmentation: by case and class first, then over the cases, then over the classes.

``output`` is (N, C, ...) scores and ``target`` (N, ...) labels; each of the N is a whole case, with a ``spacing`` of
its own where lengths are measured. What each metric makes of a class that is not there, in the truth or in the
prediction:

=================== ============== ====================== =================== ======================================
metric              neither        in the truth alone     predicted alone     over the cases
=================== ============== ====================== =================== ======================================
Dice, IoU, NSD      left out       0                      0                   mean
clDice              left out       0                      0                   mean
sensitivity         left out       0                      left out            mean
precision           left out       0                      0                   mean
specificity         1              1                      below 1             mean
volume              left out       its volume             its volume          mean of absolute differences, in ml
HD95, ASSD          left out       infinite               infinite            median, and how many are infinite
=================== ============== ====================== =================== ======================================

A mean over the classes is over those that have a value in some case, without the background (class 0) unless asked for:
nnU-Net's ``foreground_mean``. Regions, which may overlap, have no background. ``Cases`` counts what was left out,
missed altogether and predicted without being there. Distances are infinite rather than left out, so that a missed organ
cannot improve a result; their median is infinite where half of the cases are missed.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from healsg.data.case import cases_of
from healsg.data.info import DataInfo
from healsg.errors import ConfigError
from healsg.metric import precise
from healsg.metrics.classification import tally
from healsg.metrics.gathered import Gathered
from healsg.parts import copied
from healsg.types import Count, NonNegative

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Distances = np.ndarray[Any, np.dtype[np.float64]]
Spacing = Sequence[float]
Regions = Sequence[Sequence[int]]

# --- what is compared ------------------------------------------------------------------------------------------------


def predicted_labels(output: Tensor) -> Tensor:
    """(N, ...) the argmax over the classes for each pixel."""
    return output.argmax(dim=1)


def overlap_counts(predicted: Tensor, truth: Tensor, classes: int, ignore: int | None = None) -> Tensor:
    """(N, classes, 4) numbers of pixels for each case and class: in prediction and truth, in the prediction, in the
    truth, and all that are not ignored.

    Args:
        predicted, truth: (N, ...) labels.
        ignore: the label of the truth whose pixels are excluded.
    """
    cases = len(truth)
    first = torch.arange(cases, device=truth.device).view(-1, *[1] * (truth.dim() - 1)) * classes
    counted = torch.ones_like(truth, dtype=torch.bool) if ignore is None else truth != ignore
    known = counted & (truth >= 0) & (truth < classes)
    sizes = (cases * classes, cases, classes)
    right = tally(first + truth, known & (predicted == truth), sizes[0]).view(sizes[1:])
    made = tally(first + predicted, counted, sizes[0]).view(sizes[1:])
    true = tally(first + truth, known, sizes[0]).view(sizes[1:])
    every = precise(counted.flatten(1).sum(dim=1, keepdim=True)).expand(sizes[1:])
    return torch.stack([right, made, true, every], dim=2)


def region_counts(output: Tensor, truth: Tensor, regions: Regions, ignore: int | None = None) -> Tensor:
    """(N, regions, 4) as ``overlap_counts``, for regions that are predicted where their score is above 0."""
    counted = torch.ones_like(truth, dtype=torch.bool) if ignore is None else truth != ignore
    rows = []
    for made, region in zip((output > 0).unbind(dim=1), regions, strict=True):
        true = torch.isin(truth, torch.tensor(list(region), device=truth.device)) & counted
        made = made & counted
        sums = [(values.flatten(1).sum(dim=1)) for values in (made & true, made, true, counted)]
        rows.append(precise(torch.stack(sums, dim=1)))
    return torch.stack(rows, dim=1)


def mask_pairs(
    output: Tensor, truth: Tensor, ignore: int | None = None, regions: Regions | None = None
) -> list[list[tuple[Mask, Mask]]]:
    """The predicted and the true mask of each class (or region) of each case, on the CPU, without ignored pixels."""
    counted = torch.ones_like(truth, dtype=torch.bool) if ignore is None else truth != ignore
    predicted = None if regions is not None else predicted_labels(output)
    cases: list[list[tuple[Mask, Mask]]] = []
    for case in range(len(truth)):
        pairs = []
        for label in range(output.shape[1]):
            if regions is None:
                assert predicted is not None
                made, true = predicted[case] == label, truth[case] == label
            else:
                inside = torch.tensor(list(regions[label]), device=truth.device)
                made, true = output[case, label] > 0, torch.isin(truth[case], inside)
            pairs.append(((made & counted[case]).cpu().numpy(), (true & counted[case]).cpu().numpy()))
        cases.append(pairs)
    return cases


# --- surfaces --------------------------------------------------------------------------------------------------------


def cropped(predicted: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Both masks cropped to their common bounding box with a margin of one pixel. It contains every surface pixel,
    so distances between surfaces are those of the entire volume."""
    either = predicted | truth
    if not either.any():
        return np.zeros([2] * either.ndim, bool), np.zeros([2] * either.ndim, bool)
    box = []
    for axis in range(either.ndim):
        along = np.flatnonzero(either.any(axis=tuple(other for other in range(either.ndim) if other != axis)))
        box.append(slice(along[0], along[-1] + 1))
    return np.pad(predicted[tuple(box)], 1), np.pad(truth[tuple(box)], 1)


def boundary(mask: Mask) -> Mask:
    """The pixels of a mask with a neighbour outside the mask along an axis; the outside of the image counts as
    outside."""
    from scipy.ndimage import binary_erosion

    inner: Mask = mask & ~binary_erosion(mask)
    return inner


def between(first: Mask, second: Mask, spacing: Spacing) -> tuple[Distances, Distances]:
    """The distances of the pixels of each set from the nearest pixel of the other set; infinite if the other set is
    empty."""
    from scipy.ndimage import distance_transform_edt

    found = []
    for own, other in ((first, second), (second, first)):
        if other.any():
            found.append(np.asarray(distance_transform_edt(~other, sampling=spacing)[own], dtype=np.float64))
        else:
            found.append(np.full(int(own.sum()), np.inf))
    return found[0], found[1]


def surface_distances(predicted: Mask, truth: Mask, spacing: Spacing) -> tuple[Distances, Distances]:
    """The distances, in units of ``spacing``, of the boundary pixels of the prediction from the boundary of the
    truth, and vice versa. The result for an empty mask is empty."""
    predicted, truth = cropped(predicted, truth)
    return between(boundary(predicted), boundary(truth), spacing)


def hausdorff(predicted: Mask, truth: Mask, spacing: Spacing, percentile: float = 95.0) -> float:
    """The larger of the two directed percentiles of distances between boundary pixels, with linear interpolation.

    This is MONAI's ``compute_hausdorff_distance``. DeepMind's surface-distance weights surface elements by area and
    gives another value. nan if both masks are empty, infinite if one is.
    """
    directed = surface_distances(predicted, truth, spacing)
    if not predicted.any() or not truth.any():
        return math.nan if predicted.any() == truth.any() else math.inf
    return max(float(np.percentile(distances, percentile)) for distances in directed)


def average_surface_distance(predicted: Mask, truth: Mask, spacing: Spacing) -> float:
    """The mean over the distances of both directions (ASSD), as in MONAI with ``symmetric=True``. nan if both masks
    are empty, infinite if one is."""
    directed = surface_distances(predicted, truth, spacing)
    if not predicted.any() or not truth.any():
        return math.nan if predicted.any() == truth.any() else math.inf
    return float(np.concatenate(directed).mean())


def surface_dice(predicted: Mask, truth: Mask, spacing: Spacing, tolerance: float) -> float:
    """The normalised surface distance (Nikolov et al. 2018, arXiv 1809.04430): the share of both surfaces' area
    within ``tolerance`` of each other. Surfaces run between pixels, and the area of each element is taken from
    MONAI's marching cubes table: this is ``compute_surface_dice`` with ``use_subvoxels=True``. nan if both masks are
    empty."""
    if not predicted.any() and not truth.any():
        return math.nan
    require_package("monai", "the normalised surface distance")
    from monai.metrics.utils import get_code_to_measure_table

    table, kernel = get_code_to_measure_table([float(side) for side in spacing])
    areas, powers = table.cpu().numpy().astype(np.float64), kernel[0, 0].cpu().numpy()
    codes = [corner_codes(mask, powers) for mask in cropped(predicted, truth)]
    edges = [(code != 0) & (code != len(areas) - 1) for code in codes]
    distances = between(edges[0], edges[1], spacing)
    # in float32, as MONAI compares them, so that a distance of just the tolerance is within it
    near = [own.astype(np.float32) <= np.float32(tolerance) for own in distances]
    pieces = [areas[code[edge]] for code, edge in zip(codes, edges, strict=True)]
    within = sum(float(piece[own].sum()) for piece, own in zip(pieces, near, strict=True))
    return within / sum(float(piece.sum()) for piece in pieces)


def corner_codes(mask: Mask, powers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """For each group of 2 x 2 (x 2) pixels the sum of ``powers`` over the pixels in the mask."""
    shape = [side - 1 for side in mask.shape]
    codes = np.zeros(shape, dtype=np.int64)
    for corner in np.ndindex(powers.shape):
        window = tuple(slice(start, start + side) for start, side in zip(corner, shape, strict=True))
        codes += mask[window] * int(powers[corner])
    return codes


# --- centre lines ----------------------------------------------------------------------------------------------------


def skeleton(mask: Mask) -> Mask:
    """The morphological skeleton: the pixels that openings remove while the mask is eroded (Lantuejoul 1980), like
    the soft skeleton of ``healsg.losses.segmentation``, for binary masks. The outside of the image counts as inside
    the mask, so that vessels may leave the image."""
    from scipy.ndimage import binary_dilation, binary_erosion

    box = np.ones([3] * mask.ndim, bool)
    found = np.zeros_like(mask)
    while mask.any():
        smaller = binary_erosion(mask, border_value=1)
        found |= mask & ~binary_dilation(smaller, box)
        if np.array_equal(smaller, mask):  # it fills the image
            return found | mask
        mask = smaller
    return found


def centreline_dice(predicted: Mask, truth: Mask) -> float:
    """``2 Tprec Tsens / (Tprec + Tsens)`` (Shit et al. 2021, arXiv 2003.07311): the share of the predicted skeleton
    inside the truth, and of the true one inside the prediction. nan if both masks are empty, 0 if one is."""
    if not predicted.any() or not truth.any():
        return math.nan if predicted.any() == truth.any() else 0.0
    predicted, truth = (np.pad(mask, [(1, 1)] * mask.ndim, mode="edge") for mask in (predicted, truth))
    own, true = skeleton(predicted), skeleton(truth)
    precision, sensitivity = float(truth[own].mean()), float(predicted[true].mean())
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def require_package(package: str, metric: str) -> None:
    """Raise ConfigError if a package of the extra is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"model.metrics: {metric} needs {package}; install it with: pip install 'healsg[seg]'")


# --- over cases and classes ------------------------------------------------------------------------------------------

Table = list[list[float]]
"""Values by case and class; nan for a case that is excluded."""


def over_cases(table: Table, median: bool = False) -> list[float]:
    """The mean or median of each class over the cases that have a value; nan if none has.

    The result does not depend on the order of the cases, bit for bit. An infinite value makes the mean infinite, but
    the median only if half of the values are.
    """
    classes = []
    for column in zip(*table, strict=True):
        values = sorted(value for value in column if not math.isnan(value))
        if not values:
            classes.append(math.nan)
        elif median:
            low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
            classes.append(low if low == high else (low + high) / 2)
        else:
            classes.append(math.fsum(values) / len(values))
    return classes


def over_classes(values: list[float], first: int) -> float:
    """The mean over the classes from ``first`` on that have a value; nan if none has."""
    known = [value for value in values[first:] if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


class CaseMetric(Gathered):
    """Base class of the metrics of segmentation: a value for each case and class, stored until the end of the
    evaluation.

    The value without a name is the mean over the classes; each class's value has its number as name.

    Args:
        ignore: the label of the truth whose pixels are excluded.
        regions: the labels of each output, if outputs are regions that may overlap.
        background: whether to include class 0 in the mean over the classes.
        max_mib: the largest memory for stored values, in MiB.
    """

    kinds: ClassVar[tuple[str, ...]] = ("segmentation",)
    higher_is_better: ClassVar[bool | Mapping[str, bool] | None] = True
    goes_by_case: ClassVar[bool] = True

    median: ClassVar[bool] = False
    """Whether to use the median over the cases, and count infinite values."""

    def __init__(
        self,
        ignore: int | None = None,
        regions: Regions | None = None,
        background: bool = False,
        max_mib: Count = 1024,
    ) -> None:
        super().__init__(max_mib)
        self.ignore = ignore
        self.regions = regions
        self.background = background
        self.names: list[tuple[int, str]] = []
        """The index and the name of each case, in the order of the rows."""

    def for_task(self, info: DataInfo | None) -> CaseMetric:
        new = copy.deepcopy(self)
        if info is None:
            return new
        ignore = info.ignore if self.ignore is None else self.ignore
        regions = list(info.regions.values()) or None if self.regions is None else self.regions
        return copied(new, {"ignore": ignore, "regions": regions})

    def see(self, output: Tensor, batch: Mapping[str, Any]) -> None:
        cases = cases_of(batch)
        known = all(case.spacing for case in cases)
        index = batch["index"].tolist() if "index" in batch else range(len(self.names), len(self.names) + len(cases))
        self.names += [(position, case.name) for position, case in zip(index, cases, strict=True)]
        self.update(output, batch["target"], [case.spacing for case in cases] if known else None)

    def packed(self) -> Any:
        return super().packed(), self.names

    def of(self, states: Sequence[Any]) -> Any:
        kept = [rows for rows, _ in states]
        if any(rows is None for rows in kept):
            return math.nan
        return self.value(self.rows_and_names(states)[0])

    def rows_and_names(self, states: Sequence[Any]) -> tuple[tuple[Tensor, ...], list[str]]:
        """The rows of all processes and the names of their cases, in the order of the data set."""
        rows = tuple(torch.cat(column) for column in zip(*(rows for rows, _ in states), strict=True))
        named = [name for _, names in states for name in names]
        if len(named) != len(rows[0]):  # updated without batches, by hand
            return rows, [str(position) for position in range(len(rows[0]))]
        order = sorted(range(len(named)), key=lambda position: named[position][0])
        return tuple(column[order] for column in rows), [named[position][1] for position in order]

    def by_case(self, states: Sequence[Any]) -> dict[str, dict[str, float]]:
        if any(rows is None for rows, _ in states):
            return {}
        rows, names = self.rows_and_names(states)
        table = self.table(rows)
        found: dict[str, dict[str, float]] = {}
        for name, values in zip(names, table, strict=True):
            first = self.first(len(values))
            named = {"": over_classes(values, first)}
            if len(values) - first > 1:
                named |= {str(label): value for label, value in enumerate(values) if label >= first}
            unique = name if name not in found else f"{name} ({sum(other.startswith(name) for other in found) + 1})"
            found[unique] = named
        return found

    def rows(
        self, output: Tensor, target: Tensor, spacing: Sequence[Spacing] | None = None
    ) -> tuple[Tensor, ...] | None:
        """See ``Gathered``. ``spacing``: the size of a pixel of each case, in mm; 1 if it is None."""
        raise NotImplementedError

    def update(self, output: Tensor, target: Tensor, spacing: Sequence[Spacing] | None = None) -> None:
        rows = None if self.is_full() else self.rows(output, target, spacing)
        if rows is not None:
            self.keep(rows)

    def keep(self, rows: tuple[Tensor, ...]) -> None:
        """Add the values of further cases."""
        self.kept += sum(column.numel() * column.element_size() for column in rows)
        self.state = [] if self.is_full() else [*(self.state or []), rows]

    def table(self, state: Any) -> Table:
        """The values by case and class from the joined state; nan for excluded ones."""
        raise NotImplementedError

    def first(self, classes: int) -> int:
        """The first class in the mean over the classes."""
        return 0 if self.background or self.regions is not None or classes == 1 else 1

    def value(self, state: Any) -> dict[str, float]:
        table = self.table(state)
        values = over_cases(table, self.median)
        first = self.first(len(values))
        named = {"": over_classes(values, first)}
        if len(values) - first > 1:
            named |= {str(label): value for label, value in enumerate(values) if label >= first}
        if self.median:
            named["infinite"] = float(sum(math.isinf(value) for row in table for value in row[first:]))
        return named


class Overlap(CaseMetric):
    """A metric computed from numbers of pixels, which are stored by case and class. Nothing is read from the device
    before the end. The arguments are those of ``CaseMetric``."""

    def rows(
        self, output: Tensor, target: Tensor, spacing: Sequence[Spacing] | None = None
    ) -> tuple[Tensor, ...] | None:
        if target.is_floating_point() or output.dim() != target.dim() + 1:
            return None
        if self.regions is not None:
            counts = region_counts(output, target, self.regions, self.ignore)
        else:
            counts = overlap_counts(predicted_labels(output), target.long(), output.shape[1], self.ignore)
        sizes = [math.prod(sides) for sides in spacing] if spacing is not None else [1.0] * len(target)
        broken = output.isnan().flatten(1).any(dim=1).view(-1, 1, 1)
        counts = torch.where(broken, math.nan, counts)
        return counts, torch.tensor(sizes, dtype=counts.dtype)

    def score(self, overlap: float, predicted: float, truth: float, pixels: float) -> float:
        """The metric of one class in one case; nan excludes it. The arguments are numbers of pixels: in the overlap of
        prediction and truth, in each of them, and in the image."""
        raise NotImplementedError

    def table(self, state: Any) -> Table:
        return [[self.score(*pixels) for pixels in case] for case in state[0].tolist()]

    def value(self, state: Any) -> dict[str, float]:
        if bool(state[0].isnan().any()):
            return {"": math.nan}  # an output was no number
        return super().value(state)


class Dice(Overlap):
    """``2 |P and T| / (|P| + |T|)``, in 0..1."""

    def score(self, overlap: float, predicted: float, truth: float, pixels: float) -> float:
        return 2 * overlap / (predicted + truth) if predicted + truth else math.nan


class IoU(Overlap):
    """``|P and T| / |P or T|``, in 0..1: the Jaccard index."""

    def score(self, overlap: float, predicted: float, truth: float, pixels: float) -> float:
        return overlap / (predicted + truth - overlap) if predicted + truth else math.nan


class Sensitivity(Overlap):
    """Recall: the share of the true pixels that are predicted, in 0..1."""

    def score(self, overlap: float, predicted: float, truth: float, pixels: float) -> float:
        return overlap / truth if truth else math.nan


class Specificity(Overlap):
    """Specificity: the share of the negative pixels that are not predicted, in 0..1."""

    def score(self, overlap: float, predicted: float, truth: float, pixels: float) -> float:
        return 1.0 - (predicted - overlap) / (pixels - truth) if pixels - truth else math.nan


class Precision(Overlap):
    """Precision: the share of the predicted pixels that are true, in 0..1."""

    def score(self, overlap: float, predicted: float, truth: float, pixels: float) -> float:
        if predicted:
            return overlap / predicted
        return 0.0 if truth else math.nan


class Volume(Overlap):
    """The mean absolute difference between the predicted and the true volume, in ml if spacings are in mm; ``bias`` is
    the mean difference, predicted minus true. In 2D it is an area divided by 1000."""

    higher_is_better: ClassVar[bool | None] = False

    def table(self, state: Any) -> Table:
        return [[abs(value) for value in row] for row in self.differences(state)]

    def differences(self, state: Any) -> Table:
        """Predicted minus true volume, by case and class."""
        rows = []
        for case, size in zip(state[0].tolist(), state[1].tolist(), strict=True):
            rows.append(
                [
                    (predicted - truth) * size / 1000 if predicted + truth else math.nan
                    for _, predicted, truth, _ in case
                ]
            )
        return rows

    def value(self, state: Any) -> dict[str, float]:
        named = super().value(state)
        if math.isnan(named[""]):
            return named
        means = over_cases(self.differences(state))
        return named | {"bias": over_classes(means, self.first(len(means)))}


class Cases(Overlap):
    """Counts of pairs of a case and a class, without the background. The value without a name (``missed``) counts those
    whose class is in the truth and not predicted at all; ``false_alarms`` those that are predicted but not in the
    truth; ``left_out`` those with neither, which are excluded from all means; ``all`` all pairs."""

    higher_is_better: ClassVar[bool | None] = False

    def score(self, overlap: float, predicted: float, truth: float, pixels: float) -> float:
        """1 for a missed class, so that the value of a case is the share of its classes that were missed."""
        return float(truth > 0 and not predicted)

    def value(self, state: Any) -> dict[str, float]:
        counts = state[0][:, self.first(state[0].shape[1]) :]
        predicted, truth = counts[..., 1] > 0, counts[..., 2] > 0
        return {
            "": float((truth & ~predicted).sum()),
            "false_alarms": float((predicted & ~truth).sum()),
            "left_out": float((~predicted & ~truth).sum()),
            "all": float(predicted.numel()),
        }


class ShapeMetric(CaseMetric):
    """A metric of entire masks, computed case by case on the CPU, which reads each case from the device. The
    arguments are those of ``CaseMetric``."""

    def score(self, predicted: Mask, truth: Mask, spacing: Spacing, label: int) -> float:
        """The metric of one class in one case; nan excludes it."""
        raise NotImplementedError

    def rows(
        self, output: Tensor, target: Tensor, spacing: Sequence[Spacing] | None = None
    ) -> tuple[Tensor, ...] | None:
        if target.is_floating_point() or output.dim() != target.dim() + 1:
            return None
        require_package("scipy", type(self).__name__)
        sizes = spacing if spacing is not None else [[1.0] * (target.dim() - 1)] * len(target)
        first = self.first(output.shape[1])
        rows = []
        for pairs, size in zip(mask_pairs(output, target, self.ignore, self.regions), sizes, strict=True):
            scores = [self.score(*pair, size, label) for label, pair in enumerate(pairs) if label >= first]
            rows.append([math.nan] * first + scores)
        return (torch.tensor(rows, dtype=torch.float64),)

    def table(self, state: Any) -> Table:
        rows: Table = state[0].tolist()
        return rows


class HD95(ShapeMetric):
    """The 95th percentile of the Hausdorff distance, in mm; see ``hausdorff``."""

    higher_is_better: ClassVar[bool | None] = False
    median: ClassVar[bool] = True

    def score(self, predicted: Mask, truth: Mask, spacing: Spacing, label: int) -> float:
        return hausdorff(predicted, truth, spacing)


class ASSD(ShapeMetric):
    """The average symmetric surface distance, in mm; see ``average_surface_distance``."""

    higher_is_better: ClassVar[bool | None] = False
    median: ClassVar[bool] = True

    def score(self, predicted: Mask, truth: Mask, spacing: Spacing, label: int) -> float:
        return average_surface_distance(predicted, truth, spacing)


class NSD(ShapeMetric):
    """The normalised surface distance, in 0..1; see ``surface_dice``.

    Args:
        tolerance: in mm, for all classes.
        others: see ``CaseMetric``.
    """

    def __init__(
        self,
        tolerance: NonNegative = 1.0,
        ignore: int | None = None,
        regions: Regions | None = None,
        background: bool = False,
        max_mib: Count = 1024,
    ) -> None:
        super().__init__(ignore, regions, background, max_mib)
        self.tolerance = tolerance

    def score(self, predicted: Mask, truth: Mask, spacing: Spacing, label: int) -> float:
        return surface_dice(predicted, truth, spacing, self.tolerance)


class CentrelineDice(ShapeMetric):
    """clDice, in 0..1: the overlap of the centre lines of vessels; see ``centreline_dice``."""

    def score(self, predicted: Mask, truth: Mask, spacing: Spacing, label: int) -> float:
        return centreline_dice(predicted, truth)
