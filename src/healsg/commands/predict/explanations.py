"""``healsg predict --explain``: images with saliency maps of the network, next to the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healsg import safefiles
from healsg.runs.media import file_name, png

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from healsg.datasets.new_samples.samples import Sample
    from healsg.evaluation.ensemble import Ensemble
    from healsg.evaluation.predictor import Prediction

SIDE = 224
"""Length in pixels to which the longer side of a smaller image is enlarged."""

SHARE = 0.6
"""The opacity of the colour over the image where the map is 1."""

COLOURS = ((0.0, (0, 0, 130)), (0.35, (0, 200, 255)), (0.65, (255, 230, 0)), (1.0, (200, 0, 0)))
"""Colours of the values from 0 to 1, interpolated linearly."""


class Explanations:
    """Draws each sample with the heat map of its most probable class.

    Args:
        ensemble: the networks.
        out: the file of the predictions; the images are written to the folder ``<its stem>-explain`` beside it.

    Raises:
        ConfigError: the networks do not take images, or have no feature map.
    """

    def __init__(self, ensemble: Ensemble, out: Path) -> None:
        self.ensemble = ensemble
        self.explainers = ensemble.explainers()
        self.folder = out.parent / f"{out.stem}-explain"

    def draw(self, samples: Sequence[Sample], batches: Sequence[Tensor], prediction: Prediction) -> list[str]:
        """Write the picture of each sample; returns their paths, relative to the file of the predictions.

        Args:
            samples: those that could be read.
            batches: the same as the data set of each network stores them, (N, C, H, W).
            prediction: the ensemble's predictions of them.
        """
        from healsg.evaluation.writers import key_of, printable
        from healsg.loggers.thumbnails import shown_levels

        self.folder.mkdir(parents=True, exist_ok=True)
        maps = self.ensemble.heat_maps(batches, prediction, self.explainers)
        names = []
        for sample, stored, heat in zip(samples, batches[0], maps, strict=True):
            levels = shown_levels(stored.numpy())
            assert levels is not None  # the explainers take pictures alone
            file = printable(sample.file)
            name = f"{file_name(Path(file).stem)}-{key_of(file, sample.row):016x}.png"
            with safefiles.replacing(self.folder / name) as picture:
                picture.write(png(overlay(levels, heat.numpy())))
            names.append(f"{self.folder.name}/{name}")
        return names


def overlay(picture: np.ndarray[Any, Any], heat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A picture (H, W, 3) uint8 with a heat map (h, w) in 0..1 over it, the more opaque the larger its values."""
    import numpy as np
    from PIL import Image
    from PIL.Image import Resampling

    height, width = picture.shape[:2]
    times = max(1, -(-SIDE // max(height, width)))
    size = width * times, height * times
    base = np.asarray(Image.fromarray(picture).resize(size, Resampling.NEAREST), np.float64)
    values = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Resampling.BILINEAR), np.float64)
    at = [position for position, _ in COLOURS]
    colours = np.array([colour for _, colour in COLOURS])
    drawn = np.stack([np.interp(values, at, colours[:, channel]) for channel in range(3)], axis=2)
    share = SHARE * values[..., None].clip(0, 1)
    made: np.ndarray[Any, Any] = ((1 - share) * base + share * drawn).round().astype(np.uint8)
    return made
