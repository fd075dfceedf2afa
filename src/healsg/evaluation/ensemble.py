"""Ensemble: several networks, and several views of each sample, whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.data.info import DataInfo, differing_classes
from healsg.errors import ConfigError
from healsg.evaluation.heat_maps import Explainer
from healsg.evaluation.predictor import Prediction, Predictor

View = Callable[[Tensor], Tensor]
"""From samples as they are stored, (N, C, H, W), to the same ones seen in another way."""

VIEWS = ("flips", "shifts")
"""What test-time augmentation there is."""


def views_of(names: Sequence[str], info: DataInfo) -> list[View]:
    """The views that are averaged, the plain one first: mirrored left to right, moved by a thirty-second of the side to
    the upper left and to the lower right, or all combinations.

    Args:
        names: of ``VIEWS``.
        info: what the network takes.

    Raises:
        ConfigError: there is no such augmentation, or the network takes no pictures.
    """
    if unknown := next((name for name in names if name not in VIEWS), None):
        raise ConfigError(f"--tta: {unknown} is not one of {', '.join(VIEWS)}")
    if names and (len(info.input_shape) != 3 or info.input_names):
        raise ConfigError(f"--tta: is for pictures, but the network takes {info.input_names or info.input_shape}")
    pixels = max(1, info.input_shape[-1] // 32)
    shifts = [0, -pixels, pixels] if "shifts" in names else [0]
    flips = [False, True] if "flips" in names else [False]
    return [_view(flip, shift) for flip in flips for shift in shifts]


def _view(flip: bool, shift: int) -> View:
    def seen(samples: Tensor) -> Tensor:
        flipped = samples.flip(-1) if flip else samples
        return shifted(flipped, shift) if shift else flipped

    return seen


def shifted(samples: Tensor, pixels: int) -> Tensor:
    """Pictures (..., H, W) moved down and to the right by so many pixels; what comes in is mirrored at the edge."""
    for dimension in (-2, -1):
        size = samples.shape[dimension]
        places = torch.arange(size) - pixels
        inside = places.abs()
        samples = samples.index_select(dimension, torch.where(inside >= size, 2 * size - 2 - inside, inside))
    return samples


class Ensemble:
    """Networks with the same classes as one: the mean of their probabilities, or of their outputs in a regression.

    Args:
        members: the networks, with the names by which messages call them.
        tta: the test-time augmentation, of ``VIEWS``.

    Raises:
        ConfigError: the classes are not the same in the same order, or the augmentation does not fit.
    """

    def __init__(self, members: Sequence[tuple[str, Predictor]], tta: Sequence[str] = ()) -> None:
        name, first = members[0]
        for other, predictor in members[1:]:
            if difference := differing_classes(first.info, predictor.info):
                raise ConfigError(f"{other}: cannot be averaged with {name} (there): {difference}")
        if first.info.kind not in ("multiclass", "multilabel", "regression"):
            raise ConfigError(f"{name}: a {first.info.kind} task has no classes of whole samples to predict")
        self.members = [predictor for _, predictor in members]
        self.views = [views_of(tta, predictor.info) for predictor in self.members]
        self.info = first.info

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, labels or predicted numbers, in the order of the outputs; by number where they have no names."""
        return self.info.class_names or tuple(map(str, range(self.info.num_classes)))

    def __call__(self, batches: Sequence[Tensor], features: bool = False) -> Prediction:
        """Predict one batch.

        Args:
            batches: the same samples as the data set of each member stores them.
            features: whether the features of the first network's plain view are wanted.

        Raises:
            ConfigError: features are wanted of a network that has none.
        """
        found: list[Prediction] = []
        for predictor, views, batch in zip(self.members, self.views, batches, strict=True):
            for view in views:
                wanted = features and not found
                found.append(predictor(view(batch), batch_size=max(1, len(batch)), features=wanted))
        if len(found) == 1:
            return found[0]
        outputs = torch.stack([one.outputs for one in found]).mean(dim=0)
        probabilities = [one.probabilities for one in found if one.probabilities is not None]
        if not probabilities:
            return Prediction(outputs, None, None, found[0].features)
        mean = torch.stack(probabilities).mean(dim=0)
        return Prediction(outputs, mean, self._classes(mean), found[0].features)

    def explainers(self) -> list[Explainer]:
        """What tells where each network looks. Raises ConfigError where one takes no pictures, or has no such map."""
        return [member.explainer() for member in self.members]

    def heat_maps(self, batches: Sequence[Tensor], found: Prediction, explainers: Sequence[Explainer]) -> Tensor:
        """Where the networks looked for the most probable class of each sample: (N, H, W), the mean of their maps.

        Args:
            batches: the same samples as the data set of each member stores them; their plain view is explained.
            found: what the ensemble said of them.
            explainers: of ``explainers``.
        """
        classes = (found.outputs if found.probabilities is None else found.probabilities).argmax(dim=1)
        maps = [
            member.heat_maps(batch, classes, explainer)
            for member, batch, explainer in zip(self.members, batches, explainers, strict=True)
        ]
        if len({one.shape for one in maps}) > 1:
            shape = [*maps[0].shape[1:]]
            maps = [F.interpolate(one[:, None], shape, mode="bilinear")[:, 0] for one in maps]
        return torch.stack(maps).mean(dim=0)

    def _classes(self, probabilities: Tensor) -> list[str] | list[list[str]]:
        if self.info.kind == "multiclass":
            return [self.names[index] for index in probabilities.argmax(dim=1).tolist()]
        chosen = (probabilities > 0.5).tolist()
        return [[name for name, one in zip(self.names, row, strict=True) if one] for row in chosen]
