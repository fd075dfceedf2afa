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
"""From stored samples (N, C, H, W) to an augmented view of them."""

VIEWS = ("flips", "shifts")
"""The kinds of test-time augmentation."""


def views_of(names: Sequence[str], info: DataInfo) -> list[View]:
    """The views to average, starting with the unchanged one: flipped horizontally, shifted by a thirty-second of the
    side to the upper left and to the lower right, or all combinations.

    Args:
        names: of ``VIEWS``.
        info: describes the network's inputs.

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
    def view(samples: Tensor) -> Tensor:
        flipped = samples.flip(-1) if flip else samples
        return shifted(flipped, shift) if shift else flipped

    return view


def shifted(samples: Tensor, pixels: int) -> Tensor:
    """Images (..., H, W) shifted down and to the right by ``pixels``, with reflection padding."""
    for dimension in (-2, -1):
        size = samples.shape[dimension]
        index = (torch.arange(size) - pixels).abs()
        samples = samples.index_select(dimension, torch.where(index >= size, 2 * size - 2 - index, index))
    return samples


class Ensemble:
    """Networks with the same classes as one: the mean of their probabilities, or of their outputs in a regression.

    Args:
        members: the networks, with their names for messages.
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
        """The names of classes, labels or predicted numbers in the order of the outputs; their indices if unnamed."""
        return self.info.class_names or tuple(map(str, range(self.info.num_classes)))

    def __call__(self, batches: Sequence[Tensor], features: bool = False) -> Prediction:
        """Predict one batch.

        Args:
            batches: the same samples as the data set of each member stores them.
            features: whether the features of the first network's plain view are wanted.

        Raises:
            ConfigError: features are wanted of a network that has none.
        """
        predictions: list[Prediction] = []
        for predictor, views, batch in zip(self.members, self.views, batches, strict=True):
            for view in views:
                with_features = features and not predictions
                predictions.append(predictor(view(batch), batch_size=max(1, len(batch)), features=with_features))
        if len(predictions) == 1:
            return predictions[0]
        outputs = torch.stack([prediction.outputs for prediction in predictions]).mean(dim=0)
        probabilities = [value for value in (one.probabilities for one in predictions) if value is not None]
        if not probabilities:
            return Prediction(outputs, None, None, predictions[0].features)
        mean = torch.stack(probabilities).mean(dim=0)
        return Prediction(outputs, mean, self._classes(mean), predictions[0].features)

    def explainers(self) -> list[Explainer]:
        """The explainer of each network. Raises ConfigError if one does not take images, or has no feature map."""
        return [member.explainer() for member in self.members]

    def heat_maps(self, batches: Sequence[Tensor], prediction: Prediction, explainers: Sequence[Explainer]) -> Tensor:
        """Heat maps of the most probable class of each sample: (N, H, W), the mean over the networks.

        Args:
            batches: the same samples as the data set of each member stores them; their unchanged view is explained.
            prediction: the ensemble's prediction for them.
            explainers: the result of ``explainers``.
        """
        classes = (prediction.outputs if prediction.probabilities is None else prediction.probabilities).argmax(dim=1)
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
