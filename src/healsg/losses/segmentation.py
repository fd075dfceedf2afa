"""Losses of dense targets, which give each pixel or voxel one class, or membership in several regions.

The first half are pure functions; the second half are the criteria that a configuration names. Throughout, ``output``
is (N, C, ...) logits and ``target`` is (N, ...) class indices, or (N, C, ...) probabilities from label smoothing or
mixing. All criteria have these arguments:

``ignore``
    A label whose pixels are excluded, from sums over pixels as well as from numbers of pixels. With probabilities, a
    pixel is ignored if all of its probabilities are 0. (With regions no pixel is ignored in that case, since pixels of
    the background belong to no region and look the same.)
``regions``
    Lists of labels, one for each of the C outputs, which may overlap (whole tumour, tumour core). Each output is then a
    binary decision of its own: sigmoid instead of softmax.

Each criterion declares its denominator for ``healsg.training.denominator``: ``mean_over_samples``,
``denominator(output, target)``, or ``means(output, target)`` if it is a sum of means with different denominators.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.losses.classification import require_pixels, wide
from healsg.training.denominator import loss_over, mean_over_samples
from healsg.training.step import Loss
from healsg.types import Count, Fraction, Kept, NonNegative, Positive

Regions = Sequence[Sequence[int]]

# --- targets and probabilities ---------------------------------------------------------------------------------------


def dense_target(
    target: Tensor, output: Tensor, ignore: int | None = None, regions: Regions | None = None
) -> tuple[Tensor, Tensor | None]:
    """Targets as one map per class, and the pixels that are not ignored.

    Returns:
        ``truth`` (N, C, ...), 0 or 1 (or probabilities), 0 for ignored pixels; and ``counted`` (N, 1, ...), 0 or 1, or
        None if ``ignore`` is None. Both in at least float32.
    """
    require_pixels(output, target)
    dtype = torch.promote_types(output.dtype, torch.float32)
    if target.is_floating_point():
        truth = target.to(dtype)
        known_pixels = ignore is not None and regions is None  # of regions, the background has no probability either
        return truth, (truth.sum(dim=1, keepdim=True) > 0).to(dtype) if known_pixels else None
    labels = target.unsqueeze(1).long()
    counted = None if ignore is None else (labels != ignore).to(dtype)
    if regions is None:
        known = labels if ignore is None else labels.masked_fill(labels == ignore, 0)
        truth = torch.zeros_like(output, dtype=dtype).scatter_(1, known, 1.0)
    else:
        inside = [torch.stack([labels == label for label in region]).any(dim=0) for region in regions]
        truth = torch.cat(inside, dim=1).to(dtype)
    return masked(truth, counted), counted


def masked(values: Tensor, counted: Tensor | None) -> Tensor:
    """``values`` (N, C, ...) with 0 for ignored pixels."""
    return values if counted is None else values * counted


def probabilities(output: Tensor, regions: Regions | None = None) -> Tensor:
    """Softmax over the classes, or a sigmoid for each region, in at least float32."""
    return wide(output).softmax(dim=1) if regions is None else wide(output).sigmoid()


# --- overlap ---------------------------------------------------------------------------------------------------------


def soft_overlap(
    predicted: Tensor, truth: Tensor, counted: Tensor | None, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums over pixels of ``p y``, of ``p`` and of ``y``, each (N, C), or (1, C) summed over the samples too if
    ``batch``. ``truth`` is already 0 for ignored pixels."""
    axes = [*([0] if batch else []), *range(2, predicted.dim())]
    predicted = masked(predicted, counted)
    sums = [values.sum(dim=axes) for values in (predicted * truth, predicted, truth)]
    overlap, predicted_sum, truth_sum = (value.reshape(1 if batch else len(predicted), -1) for value in sums)
    return overlap, predicted_sum, truth_sum


def dice(overlap: Tensor, predicted: Tensor, truth: Tensor, smooth: float) -> Tensor:
    """``1 - (2 sum p y + s) / (sum p + sum y + s)`` for each class: Milletari et al. 2016 (arXiv 1606.04797) without
    squares in the denominator, as in nnU-Net and MONAI. It is 0 if both truth and prediction are empty."""
    return 1.0 - (2.0 * overlap + smooth) / (predicted + truth + smooth)


def tversky(overlap: Tensor, predicted: Tensor, truth: Tensor, alpha: float, beta: float, smooth: float) -> Tensor:
    """``1 - (TP + s) / (TP + alpha FP + beta FN + s)`` for each class (Salehi et al. 2017, arXiv 1706.05721,
    equation 4); ``alpha = beta = 0.5`` is Dice with half its ``smooth``."""
    return 1.0 - (overlap + smooth) / (overlap + alpha * (predicted - overlap) + beta * (truth - overlap) + smooth)


# --- single pixels ---------------------------------------------------------------------------------------------------


def pixel_cross_entropy(output: Tensor, truth: Tensor, weights: Tensor | None, regions: Regions | None) -> Tensor:
    """(N, ...) cross entropy of each pixel: with softmax, or the mean of the regions' binary cross entropies.
    ``weights`` are (C,). With softmax, a pixel whose truth is 0 for all classes gives 0; with regions it is a pixel
    in no region."""
    scale = None if weights is None else weights.to(truth.dtype).view(1, -1, *[1] * (truth.dim() - 2))
    if regions is None:
        terms = -truth * wide(output).log_softmax(dim=1)
        return (terms if scale is None else terms * scale).sum(dim=1)
    terms = F.binary_cross_entropy_with_logits(wide(output), truth, reduction="none")
    return (terms if scale is None else terms * scale).mean(dim=1)


def pixel_focal(output: Tensor, truth: Tensor, gamma: float, weights: Tensor | None, regions: Regions | None) -> Tensor:
    """(N, ...) focal loss of each pixel (Lin et al. 2017, arXiv 1708.02002, equation 4): with softmax, of the target
    class; with regions, the mean of their binary focal losses. ``weights`` are (C,)."""
    scale = 1.0 if weights is None else weights.to(truth.dtype).view(1, -1, *[1] * (truth.dim() - 2))
    if regions is None:
        log_p = wide(output).log_softmax(dim=1)
        doubt = (-torch.expm1(log_p)).clamp(min=1e-12)
        return -(scale * truth * doubt**gamma * log_p).sum(dim=1)
    log_p = -F.binary_cross_entropy_with_logits(wide(output), truth, reduction="none")
    doubt = (-torch.expm1(log_p)).clamp(min=1e-12)
    return -(scale * doubt**gamma * log_p).mean(dim=1)


def hardest(losses: Tensor, counted: Tensor | None, share: float) -> Tensor:
    """(N,) for each sample the mean of its largest pixel losses: the ``share`` of those that are not ignored, at
    least one (Wu et al. 2016, arXiv 1605.06885, section 3.2). 0 if all are ignored. No value is read from the
    device."""
    flat = losses.flatten(1)
    valid = flat.new_full((len(flat), 1), flat.shape[1])
    if counted is not None:
        within = counted.flatten(1)
        flat, valid = torch.where(within > 0, flat, -1.0), within.sum(dim=1, keepdim=True)  # a loss is never below 0
    most = max(1, int(flat.shape[1] * share))
    largest = flat.topk(most, dim=1).values
    count = (valid * share).floor().clamp(min=1.0).minimum(valid)
    chosen = torch.arange(most, device=flat.device) < count
    return torch.where(chosen, largest, 0.0).sum(dim=1) / count.squeeze(1).clamp(min=1.0)


# --- centre lines ----------------------------------------------------------------------------------------------------

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def soft_erode(image: Tensor) -> Tensor:
    """The minimum over each pixel and its neighbours along the axes, of (N, C, ...) maps."""
    axes = image.dim() - 2
    eroded = None
    for axis in range(axes):
        size = [3 if axis == own else 1 for own in range(axes)]
        padding = [side // 2 for side in size]
        along = -_MAX_POOL[axes](-image, size, 1, padding)
        eroded = along if eroded is None else torch.minimum(eroded, along)
    assert eroded is not None
    return eroded


def soft_open(image: Tensor) -> Tensor:
    """Erosion, then the maximum over the full neighbourhood of each pixel."""
    axes = image.dim() - 2
    opened: Tensor = _MAX_POOL[axes](soft_erode(image), 3, 1, 1)
    return opened


def soft_skeleton(image: Tensor, iterations: int) -> Tensor:
    """The centre line of soft masks (N, C, ...), differentiable: the pixels that morphological openings remove, layer
    by layer (Shit et al. 2021, arXiv 2003.07311, algorithm 1).

    Args:
        image: values in 0..1.
        iterations: the number of layers, that is, the largest radius of a vessel in pixels.
    """
    skeleton = (image - soft_open(image)).relu()
    for _ in range(iterations):
        image = soft_erode(image)
        removed = (image - soft_open(image)).relu()
        skeleton = skeleton + (removed - skeleton * removed).relu()
    return skeleton


def centreline_dice(
    predicted: Tensor, truth: Tensor, iterations: int, smooth: float = 1.0, epsilon: float = 1e-4
) -> Tensor:
    """(N,) ``1 - 2 Tprec Tsens / (Tprec + Tsens)``: Tprec is the share of the predicted centre line inside the truth,
    Tsens the share of the true one inside the prediction, over all given classes (arXiv 2003.07311, equations 1 and 2).

    Args:
        predicted, truth: (N, C, ...) in 0..1, without the background.
        iterations: see ``soft_skeleton``.
        smooth: added to numerator and denominator of both shares.
        epsilon: added to the sum of both shares, as in MONAI.
    """
    axes = list(range(1, predicted.dim()))
    own, true = soft_skeleton(predicted, iterations), soft_skeleton(truth, iterations)
    precision = ((own * truth).sum(dim=axes) + smooth) / (own.sum(dim=axes) + smooth)
    sensitivity = ((true * predicted).sum(dim=axes) + smooth) / (true.sum(dim=axes) + smooth)
    return 1.0 - 2.0 * precision * sensitivity / (precision + sensitivity + epsilon)


# --- criteria --------------------------------------------------------------------------------------------------------


class DenseLoss(nn.Module):
    """Base class of the criteria.

    Args:
        ignore: the label whose pixels are excluded.
        regions: the labels of each output, if outputs are regions; see the module's docstring.
        class_weights: one weight for each output.
    """

    weights: Tensor | None

    def __init__(
        self,
        ignore: int | None = None,
        regions: Regions | None = None,
        class_weights: Sequence[NonNegative] | None = None,
    ) -> None:
        super().__init__()
        if class_weights is not None and (not len(class_weights) or min(class_weights) < 0 or not sum(class_weights)):
            raise ConfigError(f"class_weights: {list(class_weights)} has no weight above 0, or one below")
        if regions is not None and (not len(regions) or not all(len(region) for region in regions)):
            raise ConfigError(f"data.regions: {regions} names no label for some output; give each a list of labels")
        if class_weights is not None and regions is not None and len(class_weights) != len(regions):
            raise ConfigError(f"class_weights: {len(class_weights)} weights for {len(regions)} regions")
        self.ignore = ignore
        self.regions = regions
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def prepared(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``dense_target``."""
        return dense_target(target, output, self.ignore, self.regions)

    def take_labels(self, ignore: int | None, regions: Regions | None) -> None:
        """Set arguments that are None from the data's ``DataInfo``."""
        self.ignore = ignore if self.ignore is None else self.ignore
        self.regions = regions if self.regions is None else self.regions

    def by_class(self, losses: Tensor, background: bool) -> Tensor:
        """The mean of losses (N, C) over samples and classes, with class weights; without the first class, the
        background, unless ``background`` is set. Regions have no background."""
        weighted = losses if self.weights is None else losses * self.weights.to(losses.dtype)
        return weighted[:, first_class(losses.shape[1], background, self.regions) :].mean()


def for_labels(criterion: nn.Module, ignore: int | None = None, regions: Regions | None = None) -> nn.Module:
    """A copy of a criterion in which all losses of this module use the ``ignore`` and ``regions`` of the data,
    unless their own are set."""
    made = copy.deepcopy(criterion)
    for part in made.modules():
        if isinstance(part, DenseLoss):
            part.take_labels(ignore, regions)
    return made


def pixels_that_count(truth: Tensor, counted: Tensor | None) -> Tensor:
    """The number of pixels that are not ignored, a scalar; ``counted`` is None if there are none to ignore."""
    return truth.new_full((), truth[:, 0].numel()) if counted is None else counted.sum()


def first_class(classes: int, background: bool, regions: Regions | None) -> int:
    """The first class in an overlap loss: 1, without the background, or 0 for regions, which have none."""
    return 0 if background or regions is not None or classes == 1 else 1


class PixelLoss(DenseLoss):
    """A mean over pixels: the sum of ``pixels`` divided by the sum of the weights of the pixels that are not ignored.

    This sum, in units of full samples, is also the weight of accumulated batches and processes (``denominator``).
    """

    def pixels(self, output: Tensor, truth: Tensor) -> Tensor:
        """(N, ...) the losses of pixels, with class weights."""
        raise NotImplementedError

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        truth, counted = self.prepared(output, target)
        losses = self.pixels(output, truth)
        if counted is not None:
            losses = losses * counted.squeeze(1)
        total = self._weight(truth, counted)
        return losses.sum() / torch.where(total > 0, total, 1.0)

    def denominator(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum of the weights of the pixels that are not ignored, divided by the number of pixels of a sample."""
        truth, counted = self.prepared(output, target)
        return self._weight(truth, counted) / truth[0, 0].numel()

    def _weight(self, truth: Tensor, counted: Tensor | None) -> Tensor:
        """As in torch's cross entropy, a pixel has the weight of its class. With regions all pixels have the same
        weight."""
        if self.weights is not None and self.regions is None:
            scale = self.weights.to(truth.dtype).view(1, -1, *[1] * (truth.dim() - 2))
            return (truth * scale).sum()
        return pixels_that_count(truth, counted)


class CrossEntropy(PixelLoss):
    """Cross entropy as a mean over the pixels that are not ignored; for regions, the mean of their binary cross
    entropies. The arguments are those of ``DenseLoss``."""

    def pixels(self, output: Tensor, truth: Tensor) -> Tensor:
        return pixel_cross_entropy(output, truth, self.weights, self.regions)


class Focal(PixelLoss):
    """Focal loss as a mean over the pixels that are not ignored (Lin et al. 2017, arXiv 1708.02002). MONAI also
    averages over the classes, so its value is 1/C of this.

    Args:
        gamma: the focusing parameter; 0 is the cross entropy.
        common: the arguments of ``DenseLoss``; the class weights are the paper's alpha, and not part of the
            denominator.
    """

    def __init__(self, gamma: NonNegative = 2.0, **common: Any) -> None:
        super().__init__(**common)
        self.gamma = gamma

    def pixels(self, output: Tensor, truth: Tensor) -> Tensor:
        return pixel_focal(output, truth, self.gamma, self.weights, self.regions)

    def _weight(self, truth: Tensor, counted: Tensor | None) -> Tensor:
        return pixels_that_count(truth, counted)


class TopK(DenseLoss):
    """The cross entropy of the hardest pixels of each sample, averaged over the samples.

    nnU-Net selects the hardest pixels of the entire batch. Selecting them by sample makes the loss independent of how a
    batch is split.

    Args:
        share: the share of hardest pixels among those that are not ignored.
        common: the arguments of ``DenseLoss``.
    """

    mean_over_samples = True

    def __init__(self, share: Kept = 0.1, **common: Any) -> None:
        super().__init__(**common)
        self.share = share

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        truth, counted = self.prepared(output, target)
        losses = pixel_cross_entropy(output, truth, self.weights, self.regions)
        return hardest(losses, counted, self.share).mean()


class OverlapLoss(DenseLoss):
    """A loss computed from sums over the pixels of a sample or of the entire batch, then averaged over the classes.

    Args:
        batch: sum over the samples of a batch too, as nnU-Net does for small structures. The loss is then not a mean
            over samples: each batch of each process has its own loss, and these are averaged.
        background: whether to include the first class.
        smooth: added to numerator and denominator.
        common: the arguments of ``DenseLoss``.
    """

    def __init__(self, batch: bool = False, background: bool = False, smooth: Positive = 1e-5, **common: Any) -> None:
        super().__init__(**common)
        self.batch = batch
        self.background = background
        self.smooth = smooth
        self.mean_over_samples = not batch

    def class_losses(self, overlap: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
        """The loss of each class from the sums of ``soft_overlap``."""
        raise NotImplementedError

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        truth, counted = self.prepared(output, target)
        sums = soft_overlap(probabilities(output, self.regions), truth, counted, self.batch)
        return self.by_class(self.class_losses(*sums), self.background)


class Dice(OverlapLoss):
    """Soft Dice loss, by sample or over the batch; see ``OverlapLoss`` for its arguments and ``dice`` for the
    formula."""

    def class_losses(self, overlap: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
        return dice(overlap, predicted, truth, self.smooth)


class Tversky(OverlapLoss):
    """Tversky loss (Salehi et al. 2017, arXiv 1706.05721): Dice with separate weights for false positives and false
    negatives.

    Args:
        alpha, beta: the weights of false positives and of false negatives.
        common: the arguments of ``OverlapLoss``.
    """

    def __init__(self, alpha: NonNegative = 0.3, beta: NonNegative = 0.7, **common: Any) -> None:
        super().__init__(**common)
        self.alpha = alpha
        self.beta = beta

    def class_losses(self, overlap: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
        return tversky(overlap, predicted, truth, self.alpha, self.beta, self.smooth)


class CentrelineDice(DenseLoss):
    """``(1 - share) Dice + share clDice`` for each sample, for vessels and other tubes (Shit et al. 2021, arXiv
    2003.07311, equation 3). Ignored pixels are background in truth and prediction.

    Args:
        share: the weight of clDice, at most 1.
        iterations: the largest radius of a vessel in pixels.
        background: whether to include the first class.
        smooth: added to numerator and denominator of both parts.
        ignore, regions: see ``DenseLoss``.
    """

    mean_over_samples = True

    def __init__(
        self,
        share: Fraction = 0.5,
        iterations: Count = 3,
        background: bool = False,
        smooth: Positive = 1.0,
        ignore: int | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(ignore, regions)
        self.share = share
        self.iterations = iterations
        self.background = background
        self.smooth = smooth

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        truth, counted = self.prepared(output, target)
        predicted = masked(probabilities(output, self.regions), counted)
        first = first_class(output.shape[1], self.background, self.regions)
        predicted, truth = predicted[:, first:], truth[:, first:]
        overlap = dice(*soft_overlap(predicted, truth, None, batch=False), self.smooth).mean()
        centre = centreline_dice(predicted, truth, self.iterations, self.smooth).mean()
        return (1.0 - self.share) * overlap + self.share * centre


class Combined(nn.Module):
    """A weighted sum of criteria, each with its own denominator.

    Args:
        parts: criteria by name.
        weights: by name; 1 by default.
    """

    def __init__(self, parts: Mapping[str, nn.Module], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(parts)
        if not parts or unknown:
            detail = f"there is no {min(unknown)!r}" if unknown else "there is none"
            raise ConfigError(f"loss.weights: {detail} among the parts {sorted(parts)}")
        self.parts = nn.ModuleDict(dict(parts))
        self.shares = {name: float((weights or {}).get(name, 1.0)) for name in parts}
        self.mean_over_samples = all(mean_over_samples(part) for part in parts.values())

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        terms = [self.shares[name] * part(output, target) for name, part in self.parts.items()]
        return torch.stack(terms).sum()

    def means(self, output: Tensor, target: Tensor) -> Loss:
        """The same with the denominator of each part, so that accumulated batches are weighted part by part."""
        first, *others = (self.shares[name] * loss_over(part, output, target) for name, part in self.parts.items())
        for other in others:
            first = first + other
        return first


class DiceCrossEntropy(Combined):
    """The sum of Dice loss and cross entropy, nnU-Net's loss (Isensee et al. 2021,
    https://doi.org/10.1038/s41592-020-01008-z).

    Args:
        dice_weight, cross_entropy_weight: of the two parts.
        batch, background, smooth: see ``OverlapLoss``; for the Dice part.
        ignore, regions: see ``DenseLoss``; for both parts.
        class_weights: for the cross entropy only.
    """

    def __init__(
        self,
        dice_weight: NonNegative = 1.0,
        cross_entropy_weight: NonNegative = 1.0,
        batch: bool = False,
        background: bool = False,
        smooth: Positive = 1e-5,
        ignore: int | None = None,
        regions: Regions | None = None,
        class_weights: Sequence[NonNegative] | None = None,
    ) -> None:
        parts: dict[str, nn.Module] = {
            "cross_entropy": CrossEntropy(ignore, regions, class_weights),
            "dice": Dice(batch, background, smooth, ignore=ignore, regions=regions),
        }
        super().__init__(parts, {"cross_entropy": cross_entropy_weight, "dice": dice_weight})


class DeepSupervision(nn.Module):
    """A criterion for outputs at several resolutions, the finest first (Isensee et al. 2021). In training the network
    returns a list of them; in evaluation only the finest one, to which the criterion is applied as it is.

    Each output has half the weight of the previous one, and the weights sum to 1. Targets are resized to an output by
    nearest neighbour, with torch's ``nearest-exact`` indices, which have no shift of half a pixel.

    Args:
        criterion: for a single output.
    """

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        self.mean_over_samples = mean_over_samples(criterion)

    def forward(self, output: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        if isinstance(output, Tensor):
            alone: Tensor = self.criterion(output, target)
            return alone
        terms = [weight * self.criterion(part, at_size(target, part)) for weight, part in weighted(output)]
        return torch.stack(terms).sum()

    def means(self, output: Tensor | Sequence[Tensor], target: Tensor) -> Loss:
        """The same with its denominator."""
        if isinstance(output, Tensor):
            return loss_over(self.criterion, output, target)
        first, *others = (
            weight * loss_over(self.criterion, part, at_size(target, part)) for weight, part in weighted(output)
        )
        for other in others:
            first = first + other
        return first


def weighted(outputs: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
    """Outputs with the weights 1, 1/2, 1/4, ..., normalised to a sum of 1."""
    total = sum(0.5**level for level in range(len(outputs)))
    return [(0.5**level / total, output) for level, output in enumerate(outputs)]


def at_size(target: Tensor, output: Tensor) -> Tensor:
    """Targets, indices (N, ...) or probabilities (N, C, ...), resized to ``output`` by nearest neighbour."""
    size = output.shape[2:]
    if target.is_floating_point():
        return target if target.shape[2:] == size else F.interpolate(target, size, mode="nearest-exact")
    for axis, length in enumerate(size, start=1):
        have = target.shape[axis]
        if have != length:  # whole numbers throughout, since float32 is exact to 2^24 alone
            index = (torch.arange(length, device=target.device) * 2 + 1) * have // (2 * length)
            target = target.index_select(axis, index)
    return target
